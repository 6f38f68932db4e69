"""A stand-in for a runtime: it starts processes as crun and runc do, without putting them into a container.

It is a program of its own, which the tests run with the interpreter that they run with.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
from typing import Any, NoReturn

_VALUES = ("--root", "--log", "--log-format", "--bundle", "--pid-file", "--console-socket", "--process")
_TAKES = (*_VALUES, "--resources")


def main(arguments: list[str]) -> None:
    options: dict[str, str] = {}
    words: list[str] = []
    while arguments:
        word = arguments.pop(0)
        if word in _TAKES:
            options[word] = arguments.pop(0)
        elif not word.startswith("--"):
            words.append(word)
    command, container = words
    state = f"{options['--root']}/{container}"
    if command == "create":
        _create(options, state)
    elif command == "start":
        with open(f"{state}/start", "w"):
            pass
    elif command == "exec":
        with open(options["--process"]) as file:
            _start(options, json.load(file), None)
    elif command == "update":
        shutil.copy(options["--resources"], f"{state}/resources")
    else:
        _delete(state)


def _create(options: dict[str, str], state: str) -> None:
    with open(f"{options['--bundle']}/config.json") as file:
        spec = json.load(file)
    os.makedirs(state)
    try:
        os.mkfifo(f"{state}/start")
        pid = _start(options, spec["process"], f"{state}/start")
    except BaseException:
        shutil.rmtree(state)
        raise
    with open(f"{state}/pid", "w") as file:
        file.write(str(pid))
    if spec.get("hostname") == "fails-late":
        _fail(options, "it failed late")


def _start(options: dict[str, str], process: Any, gate: str | None) -> int:
    """Start a process, which becomes a child of whoever reaps, and waits at a gate if there is one."""
    if shutil.which(process["args"][0]) is None:
        _fail(options, f"{process['args'][0]}: no such program")
    master, slave = os.openpty() if process.get("terminal") else (-1, -1)
    pid = os.fork()
    if not pid:
        if slave >= 0:
            os.login_tty(slave)
        if gate is not None:
            with open(gate):
                pass
        os.execvp(process["args"][0], process["args"])
    if master >= 0:
        with socket.socket(socket.AF_UNIX) as console:
            console.connect(options["--console-socket"])
            socket.send_fds(console, [b"x"], [master])
    with open(options["--pid-file"], "w") as file:
        file.write(str(pid))
    return pid


def _fail(options: dict[str, str], message: str) -> NoReturn:
    with open(options["--log"], "w") as file:
        json.dump({"level": "error", "msg": message}, file)
    raise SystemExit(1)


def _delete(state: str) -> None:
    with open(f"{state}/pid") as file, contextlib.suppress(ProcessLookupError):
        os.kill(int(file.read()), signal.SIGKILL)
    shutil.rmtree(state)


if __name__ == "__main__":
    main(sys.argv[1:])
