"""Pairs of connected pipes, like those that the host returns for the standard streams of processes."""

from __future__ import annotations

import itertools
import os
import socket
import sys

__all__ = ["make_pipe_pair"]

_numbers = itertools.count(1)

if sys.platform == "win32":
    import _winapi

    _PIPE_REJECT_REMOTE_CLIENTS = 0x8
    _FILE_FLAG_OVERLAPPED = 0x40000000

    def make_pipe_pair(*, messages: bool = False, overlapped: bool = True) -> tuple[int, int]:
        """Make two connected handles, each for both directions; the caller owns them.

        :param messages: each write is a message, and may be empty.
        :param overlapped: the second is for overlapped I/O, as the first always is.
        """
        name = rf"\\.\pipe\uvm-test-{os.getpid()}-{next(_numbers)}"
        mode = _winapi.PIPE_WAIT | _PIPE_REJECT_REMOTE_CLIENTS
        if messages:
            mode |= _winapi.PIPE_TYPE_MESSAGE | _winapi.PIPE_READMODE_MESSAGE
        first = _winapi.CreateNamedPipe(
            name,
            _winapi.PIPE_ACCESS_DUPLEX | _winapi.FILE_FLAG_FIRST_PIPE_INSTANCE | _FILE_FLAG_OVERLAPPED,
            mode,
            1,
            65536,
            65536,
            0,
            _winapi.NULL,
        )
        second = _winapi.CreateFile(
            name,
            _winapi.GENERIC_READ | _winapi.GENERIC_WRITE,
            0,
            _winapi.NULL,
            _winapi.OPEN_EXISTING,
            _FILE_FLAG_OVERLAPPED if overlapped else 0,
            _winapi.NULL,
        )
        return first, second

else:

    def make_pipe_pair(*, messages: bool = False, overlapped: bool = True) -> tuple[int, int]:
        """Make two connected sockets, which stand for Windows's pipes; the caller owns the descriptors."""
        first, second = socket.socketpair()
        return first.detach(), second.detach()
