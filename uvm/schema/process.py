"""Processes in a VM or a container, and requests to a running one."""

from __future__ import annotations

from uvm.schema.field import Model, named


class ProcessParameters(Model):
    """A process to start. ``console_size`` is height, then width; ``environment`` may hold secrets."""

    application_name: str = named("ApplicationName", default="")
    command_line: str = named("CommandLine", default="")
    command_args: list[str] = named("CommandArgs", factory=list)
    user: str = named("User", default="")
    working_directory: str = named("WorkingDirectory", default="")
    environment: dict[str, str] = named("Environment", factory=dict, secret=True)
    restricted_token: bool = named("RestrictedToken", default=False)
    emulate_console: bool = named("EmulateConsole", default=False)
    create_std_in_pipe: bool = named("CreateStdInPipe", default=False)
    create_std_out_pipe: bool = named("CreateStdOutPipe", default=False)
    create_std_err_pipe: bool = named("CreateStdErrPipe", default=False)
    console_size: list[int] = named("ConsoleSize", factory=list)
    use_existing_login: bool = named("UseExistingLogin", default=False)
    use_legacy_console: bool = named("UseLegacyConsole", default=False)


class ConsoleSize(Model):
    """The size of a console, in characters."""

    height: int = named("Height", default=0)
    width: int = named("Width", default=0)


class CloseHandle(Model):
    """The standard handle to close: ``StdIn``, ``StdOut``, ``StdErr`` or ``All``."""

    handle: str = named("Handle", default="")


class ProcessModifyRequest(Model):
    """A change of a running process: ``operation`` is ``ConsoleSize`` or ``CloseHandle``."""

    operation: str = named("Operation", default="")
    console_size: ConsoleSize | None = named("ConsoleSize", default=None)
    close_handle: CloseHandle | None = named("CloseHandle", default=None)


class ProcessStatus(Model):
    """Whether a process has exited, and its exit code."""

    process_id: int = named("ProcessId", default=0)
    exited: bool = named("Exited", default=False)
    exit_code: int = named("ExitCode", default=0)
    last_wait_result: int = named("LastWaitResult", default=0)


class ProcessDetails(Model):
    """A process in the list of a container; the timestamp is RFC 3339."""

    process_id: int = named("ProcessId", default=0)
    image_name: str = named("ImageName", default="")
    create_timestamp: str = named("CreateTimestamp", default="")
    user_time_100ns: int = named("UserTime100ns", default=0)
    kernel_time_100ns: int = named("KernelTime100ns", default=0)
    memory_commit_bytes: int = named("MemoryCommitBytes", default=0)
    memory_working_set_private_bytes: int = named("MemoryWorkingSetPrivateBytes", default=0)
    memory_working_set_shared_bytes: int = named("MemoryWorkingSetSharedBytes", default=0)


class SignalProcessOptionsLCOW(Model):
    """The signal to send to a process of a Linux guest, by number."""

    signal: int = named("Signal", default=0)


class SignalProcessOptionsWCOW(Model):
    """The signal for a process of a Windows guest: ``CtrlC``, ``CtrlBreak``, ..."""

    signal: str = named("Signal", default="")
