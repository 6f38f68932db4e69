"""Processes of the guest itself: streams, terminals, signals, exits, and what is refused."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

import pytest

from tests.agent.rawhost import RawHost
from uvm._wire.channels import Channel
from uvm._wire.frames import Procedure
from uvm.agent.loop import Loop
from uvm.agent.processes import FOREVER, Process
from uvm.agent.refused import Refused
from uvm.agent.streams import terminal
from uvm.hresult import HResult


def code(answer: dict[str, Any]) -> int:
    return int(answer["Result"]) & 0xFFFFFFFF


class Started:
    """A process with streams, and its channels."""

    def __init__(self, host: RawHost, names: str, *args: str, **parameters: Any) -> None:
        self.host = host
        ports = {f"Std{name}": host.listen() for name in names.split()}
        answer = host.execute(*args, ports=ports, **parameters)
        assert answer["Result"] == 0, answer
        self.pid: int = answer["ProcessId"]
        self.streams: dict[str, Channel] = {name[3:]: host.channel(port) for name, port in ports.items()}

    def say(self, data: bytes) -> None:
        self.host.write(self.streams["In"], data)

    def end_input(self) -> None:
        self.host.mux.send_eof(self.streams["In"])

    def output(self, name: str = "Out") -> bytes:
        """Return the whole output, and close the stream."""
        data = self.host.read_all(self.streams[name])
        self.host.mux.send_eof(self.streams[name])
        return data

    def until(self, text: bytes) -> None:
        """Wait until a text has come."""
        while text not in self.host.received[self.streams["Out"].id]:
            self.host.step()

    def exit_code(self) -> int:
        return self.host.exit_code(self.pid)

    def ask(self, procedure: Procedure, **fields: Any) -> dict[str, Any]:
        return self.host.ask(procedure, {"ProcessId": self.pid, **fields})

    def signal(self, number: int) -> dict[str, Any]:
        return self.ask(Procedure.SIGNAL_PROCESS, Options={"Signal": number})


def test_exit_codes_are_the_processes_own_and_those_of_signals_go_s(host: RawHost) -> None:
    assert [host.run("sh", "-c", f"exit {number}") for number in (0, 1, 255)] == [0, 1, 255]
    assert host.run("sh", "-c", "kill -9 $$") == 0xFFFFFFFF


def test_a_process_has_the_environment_and_directory_that_are_asked_for_and_no_other(host: RawHost) -> None:
    started = Started(host, "Out", "/usr/bin/env", Environment={"A": "b", "PATH": "/nowhere"})
    assert sorted(started.output().splitlines()) == [b"A=b", b"PATH=/nowhere"]
    assert Started(host, "Out", "pwd", WorkingDirectory="/usr").output() == b"/usr\n"


def test_a_command_line_is_split_as_a_shell_does(host: RawHost) -> None:
    started = Started(host, "Out", CommandLine="printf '%s|' 'a b' c")
    assert started.output() == b"a b|c|"


def test_both_outputs_are_streams_of_their_own_which_end(host: RawHost) -> None:
    started = Started(host, "Out Err", "sh", "-c", "echo out; echo err >&2")
    assert (started.output("Out"), started.output("Err")) == (b"out\n", b"err\n")
    assert started.exit_code() == 0


def test_input_is_passed_on_as_the_process_takes_it_and_its_end_too(host: RawHost) -> None:
    started = Started(host, "In Out", "cat")
    data = os.urandom(3_000_000)
    started.say(data)
    started.end_input()
    assert started.output() == data
    assert started.exit_code() == 0


def test_streams_that_are_not_asked_for_are_empty(host: RawHost) -> None:
    started = Started(host, "Out", "sh", "-c", "cat; echo nothing >&2; echo end")
    assert started.output() == b"end\n"


def test_a_process_whose_output_the_host_closes_gets_a_broken_pipe(host: RawHost) -> None:
    started = Started(host, "Out", "sh", "-c", "yes; exit 7")
    host.mux.close(started.streams["Out"])
    assert started.exit_code() in (7, 0xFFFFFFFF)


def test_the_input_of_a_process_that_has_exited_is_closed(host: RawHost) -> None:
    started = Started(host, "In", "true")
    assert started.exit_code() == 0
    host.read_all(started.streams["In"])


def test_output_may_go_on_after_the_exit_of_the_process_that_was_started(host: RawHost) -> None:
    started = Started(host, "In Out", "sh", "-c", "(exec 3<&0; cat <&3) & exit 4")
    assert started.exit_code() == 4
    assert started.output() == b""


def test_two_hundred_processes_run_at_once(host: RawHost) -> None:
    started = [Started(host, "In Out", "sh", "-c", 'read x; echo "$x"; exit 5') for _ in range(200)]
    for number, each in enumerate(started):
        each.say(f"{number}\n".encode())
    assert [each.output() for each in started] == [f"{number}\n".encode() for number in range(200)]
    assert {each.exit_code() for each in started} == {5}


# Terminals.


def test_a_terminal_is_one_and_has_its_size(host: RawHost) -> None:
    started = Started(
        host, "In Out", "sh", "-c", "tty && stty size && read x", EmulateConsole=True, ConsoleSize=[30, 100]
    )
    started.until(b"30 100\r\n")
    assert code(started.ask(Procedure.RESIZE_CONSOLE, Height=10, Width=20)) == 0
    started.say(b"\n")
    assert started.output().startswith(b"/dev/pts/")
    assert started.exit_code() == 0


def test_a_terminal_is_resized_and_its_process_signalled(host: RawHost) -> None:
    script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.01; done"
    started = Started(host, "Out", "bash", "-c", script, EmulateConsole=True)
    started.until(b"ready")
    assert code(started.ask(Procedure.RESIZE_CONSOLE, Height=12, Width=34)) == 0
    assert started.output().endswith(b"12 34\r\n")


def test_a_terminal_passes_control_characters_to_its_foreground_process(host: RawHost) -> None:
    started = Started(host, "In Out", "sh", "-c", "echo ready; exec sleep 100", EmulateConsole=True)
    started.until(b"ready")
    started.say(b"\x03")
    started.output()
    assert started.exit_code() == 0xFFFFFFFF


def test_all_output_of_a_terminal_comes_before_the_exit(host: RawHost) -> None:
    started = Started(host, "Out", "sh", "-c", "seq 20000", EmulateConsole=True)
    assert started.exit_code() == 0
    assert started.output().endswith(b"20000\r\n")


def test_a_terminal_without_streams_does_not_block_its_process(host: RawHost) -> None:
    assert host.run("seq", "20000", EmulateConsole=True) == 0


def test_what_has_no_terminal_cannot_be_resized(host: RawHost) -> None:
    started = Started(host, "In", "cat")
    answer = started.ask(Procedure.RESIZE_CONSOLE, Height=1, Width=1)
    assert code(answer) == HResult.E_FAIL
    assert answer["ErrorMessage"] == f"pid: {started.pid}, is not a tty and cannot be resized"


# Signals and waits.


def test_a_process_is_signalled_and_killed_if_the_request_names_no_signal(host: RawHost) -> None:
    script = "trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 0.01; done"
    started = Started(host, "Out", "bash", "-c", script)
    started.until(b"ready")
    assert code(started.signal(signal.SIGTERM)) == 0
    assert started.output() == b"ready\nterm\n"
    assert started.exit_code() == 3
    endless = Started(host, "In", "cat")
    assert code(endless.ask(Procedure.SIGNAL_PROCESS)) == 0
    assert endless.exit_code() == 0xFFFFFFFF


def test_a_process_that_has_exited_is_not_signalled_while_its_output_is_read() -> None:
    child, streams = terminal(0, 0)
    # It stands for another process that has got the id meanwhile.
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
        process = Process(other.pid, streams, lambda process: None)
        process.relay(Loop(print), {})
        process.exited(0)
        with pytest.raises(Refused) as caught:
            process.signal(signal.SIGKILL)
    assert (caught.value.result, other.returncode) == (HResult.ERROR_NOT_FOUND, 0)
    streams.close()
    os.close(child[0])


def test_what_is_no_signal_is_refused(host: RawHost) -> None:
    started = Started(host, "In", "cat")
    answer = started.signal(999)
    assert (code(answer), answer["ErrorMessage"]) == (HResult.E_FAIL, "invalid argument")


def test_a_wait_with_a_limit_ends_with_it_and_the_process_goes_on(host: RawHost) -> None:
    started = Started(host, "In", "cat")
    answer = started.ask(Procedure.WAIT_FOR_PROCESS, TimeoutInMs=1)
    assert code(answer) == HResult.ERROR_VMCOMPUTE_TIMEOUT
    started.end_input()
    assert started.exit_code() == 0


def test_all_that_wait_are_answered_and_who_comes_after_that_finds_no_process(host: RawHost) -> None:
    started = Started(host, "In", "cat")
    body = {"ProcessId": started.pid, "TimeoutInMs": FOREVER}
    waits = [host.begin(Procedure.WAIT_FOR_PROCESS, body) for _ in range(3)]
    started.end_input()
    assert [host.answer(wait)["ExitCode"] for wait in waits] == [0, 0, 0]
    for procedure in (Procedure.WAIT_FOR_PROCESS, Procedure.SIGNAL_PROCESS, Procedure.RESIZE_CONSOLE):
        assert code(started.ask(procedure)) == HResult.ERROR_NOT_FOUND


def test_the_exit_of_a_process_is_kept_until_it_is_asked_for(host: RawHost) -> None:
    started = Started(host, "Out", "sh", "-c", "exit 6")
    started.output()
    # Its output ends before it has exited.
    while (result := code(started.signal(signal.SIGTERM))) == 0:
        pass
    assert result == HResult.ERROR_NOT_FOUND
    assert started.exit_code() == 6


# What is refused.


@pytest.mark.parametrize(
    ("args", "parameters", "text"),
    [
        (["nothing-there"], {}, 'exec: "nothing-there": executable file not found in $PATH'),
        (["/nothing/there"], {}, "fork/exec /nothing/there: no such file or directory"),
        (["/etc"], {}, "fork/exec /etc: permission denied"),
        (["true"], {"WorkingDirectory": "/nothing"}, "chdir /nothing: no such file or directory"),
        (["sh", "\0"], {}, "fork/exec /usr/bin/sh: invalid argument"),
    ],
)
def test_what_cannot_be_started_is_refused_in_the_words_of_go(
    host: RawHost, args: list[str], parameters: dict[str, Any], text: str
) -> None:
    port = host.listen()
    answer = host.execute(*args, ports={"StdOut": port}, **parameters)
    assert code(answer) == HResult.E_FAIL
    assert answer["ErrorMessage"] == f"failed to call Start for external process: {text}"
    # Its streams are closed.
    host.read_all(host.channel(port))


def test_a_stream_that_the_host_does_not_listen_for_is_a_refusal_and_closes_the_others(host: RawHost) -> None:
    port = host.listen()
    answer = host.execute("true", ports={"StdOut": port, "StdErr": 77})
    problem = "vsock Dial port (77) failed: failed connect() to 00000002.0000004d: connection refused"
    assert answer["ErrorMessage"] == f"failed creating stderr Connection: {problem}"
    host.read_all(host.channel(port))


@pytest.mark.parametrize(
    "parameters",
    [
        {"CommandArgs": "text"},
        {"CommandArgs": [1]},
        {"CommandArgs": ["true"], "Environment": {"A": 1}},
        {"CommandArgs": ["true"], "EmulateConsole": "yes"},
        {"CommandArgs": ["true"], "EmulateConsole": True, "ConsoleSize": [-1, 70000]},
        {"CommandArgs": ["true"], "WorkingDirectory": []},
    ],
)
def test_parameters_of_another_kind_are_refused(host: RawHost, parameters: dict[str, Any]) -> None:
    args = parameters.pop("CommandArgs")
    answer = host.execute(CommandArgs=args, **parameters)
    assert code(answer) == HResult.ERROR_VMCOMPUTE_INVALID_JSON


@pytest.mark.parametrize("line", ["", "'"])
def test_a_command_that_is_none_is_refused_and_the_agent_goes_on(host: RawHost, line: str) -> None:
    assert code(host.execute(CommandLine=line)) == HResult.E_FAIL
    assert host.run("true") == 0
