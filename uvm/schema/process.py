"""Processes in a VM or a container, and requests to a running one."""

from __future__ import annotations

from uvm.schema.json import Model, Secret


class ProcessParameters(Model):
    """A process to start. ``console_size`` is height, then width; ``environment`` may hold secrets."""

    application_name: str = ""
    command_line: str = ""
    command_args: list[str] = []
    user: str = ""
    working_directory: str = ""
    environment: Secret[dict[str, str]] = {}
    restricted_token: bool = False
    emulate_console: bool = False
    create_std_in_pipe: bool = False
    create_std_out_pipe: bool = False
    create_std_err_pipe: bool = False
    console_size: list[int] = []
    use_existing_login: bool = False
    use_legacy_console: bool = False


class ConsoleSize(Model):
    """The size of a console, in characters."""

    height: int = 0
    width: int = 0


class CloseHandle(Model):
    """The standard handle to close: ``StdIn``, ``StdOut``, ``StdErr`` or ``All``."""

    handle: str = ""


class ProcessModifyRequest(Model):
    """A change of a running process: ``operation`` is ``ConsoleSize`` or ``CloseHandle``."""

    operation: str = ""
    console_size: ConsoleSize | None = None
    close_handle: CloseHandle | None = None


class ProcessStatus(Model):
    """Whether a process has exited, and its exit code."""

    process_id: int = 0
    exited: bool = False
    exit_code: int = 0
    last_wait_result: int = 0


class ProcessDetails(Model):
    """A process in the list of a container; the timestamp is RFC 3339."""

    process_id: int = 0
    image_name: str = ""
    create_timestamp: str = ""
    user_time_100ns: int = 0
    kernel_time_100ns: int = 0
    memory_commit_bytes: int = 0
    memory_working_set_private_bytes: int = 0
    memory_working_set_shared_bytes: int = 0


class SignalProcessOptionsLCOW(Model):
    """The signal to send to a process of a Linux guest, by number."""

    signal: int = 0


class SignalProcessOptionsWCOW(Model):
    """The signal for a process of a Windows guest: ``CtrlC``, ``CtrlBreak``, ..."""

    signal: str = ""
