"""The socket at which a runtime hands a terminal over."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from uvm.agent.containers.console import ConsoleSocket


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")


@pytest.fixture
def console(path: str) -> Iterator[ConsoleSocket]:
    console = ConsoleSocket(path)
    yield console
    console.close()


def test_a_terminal_that_was_sent_before_it_was_asked_for_is_received(
    console: ConsoleSocket, path: str
) -> None:
    master, slave = os.openpty()
    with socket.socket(socket.AF_UNIX) as runtime:
        runtime.connect(path)
        socket.send_fds(runtime, [b"/dev/ptmx"], [master])
    received = console.receive()
    os.write(slave, b"hi")
    assert os.read(received, 2) == b"hi"
    assert not os.get_inheritable(received)
    for fd in (master, slave, received):
        os.close(fd)


def test_more_descriptors_than_one_are_closed(console: ConsoleSocket, path: str) -> None:
    read, write = os.pipe()
    with socket.socket(socket.AF_UNIX) as runtime:
        runtime.connect(path)
        socket.send_fds(runtime, [b"x"], [read, write])
    os.close(console.receive())
    os.close(write)
    assert os.read(read, 1) == b""
    os.close(read)


def test_a_runtime_that_sends_none_is_an_error(console: ConsoleSocket, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as runtime:
        runtime.connect(path)
        runtime.send(b"nothing")
    with pytest.raises(OSError, match="sent no terminal"):
        console.receive()
