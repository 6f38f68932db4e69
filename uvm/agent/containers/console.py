"""The terminal of a process in a container: the runtime makes it, and hands over its master end.

The runtime connects to a socket that it was given the path of, and sends the descriptor over it. The socket
is there before the runtime is started, so that nothing is lost however early it connects.
"""

from __future__ import annotations

import array
import os
import socket
from typing import Final

#: How long the runtime may take, once it has ended with success, for what it has sent to be there.
_SECONDS: Final = 5.0
#: What comes beside the descriptor: the terminal's name.
_MAX_NAME: Final = 4096


class ConsoleSocket:
    """The socket that a runtime hands a terminal over at.

    :param path: at most 107 bytes.
    """

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.settimeout(_SECONDS)
        try:
            self._listener.bind(path)
            self._listener.listen(1)
        except BaseException:
            self.close()
            raise

    def receive(self) -> int:
        """Return the descriptor of the terminal's master end.

        :raises OSError: the runtime has sent none.
        """
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(_SECONDS)
            size = array.array("i").itemsize
            _, ancillary, _, _ = connection.recvmsg(_MAX_NAME, socket.CMSG_SPACE(size))
        fds = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % size])
        if not fds:
            raise OSError("the runtime sent no terminal")
        for extra in fds[1:]:
            os.close(extra)
        os.set_inheritable(fds[0], False)
        return fds[0]

    def close(self) -> None:
        """Close the socket."""
        self._listener.close()
