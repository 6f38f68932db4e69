"""Pipes of a Linux host: Unix sockets."""

from __future__ import annotations

from contextlib import suppress

import anyio
import anyio.abc
from attrs import define, field

from uvm._names import host_path
from uvm.backend import ByteStream, Listener
from uvm.errors import HostError
from uvm.hresult import HResult

#: Only this user may connect, and root.
_MODE = 0o600


class UnixPipes:
    """Connections over Unix sockets (:class:`~uvm.backend.HostPipes`)."""

    async def listen(self, path: str) -> Listener:
        """Listen at a path where nothing does; a socket that was left there is replaced.

        :raises OptionsError: it is no absolute path.
        :raises HostError: E_ACCESSDENIED if a process listens there, or no socket can be made there.
        """
        path = host_path(path, "posix", "path")
        operation = f"listen at {path}"
        if await _answers(path):
            raise HostError(operation, HResult.E_ACCESSDENIED, "another listener is there")
        try:
            # A thread makes it, also for a caller who has left.
            with anyio.CancelScope(shield=True):
                socket = await anyio.create_unix_listener(path, mode=_MODE)
        except OSError as error:
            raise HostError(operation, HResult.E_ACCESSDENIED, str(error)) from error
        return _UnixListener(path, socket)

    async def dial(self, path: str) -> ByteStream:
        """Connect to what listens at a path.

        :raises OptionsError: it is no absolute path.
        :raises HostError: ERROR_FILE_NOT_FOUND if nothing listens there; E_ACCESSDENIED.
        """
        path = host_path(path, "posix", "path")
        try:
            return await anyio.connect_unix(path)
        except PermissionError as error:
            raise HostError(f"connect to {path}", HResult.E_ACCESSDENIED, str(error)) from error
        except OSError as error:
            raise HostError(f"connect to {path}", HResult.ERROR_FILE_NOT_FOUND, str(error)) from error


async def _answers(path: str) -> bool:
    """Return whether something listens at a path."""
    try:
        stream = await anyio.connect_unix(path)
    except OSError:
        return False
    await stream.aclose()
    return True


@define(eq=False, repr=False)
class _UnixListener:
    """A socket that is listened at (:class:`~uvm.backend.Listener`)."""

    path: str
    _socket: anyio.abc.SocketListener
    _closed: bool = field(default=False, init=False)

    async def accept(self) -> ByteStream:
        """Wait for the next connection."""
        return await self._socket.accept()

    async def aclose(self) -> None:
        """Stop listening, and remove the socket."""
        if self._closed:
            return
        self._closed = True
        with anyio.CancelScope(shield=True):
            with suppress(FileNotFoundError):
                await anyio.Path(self.path).unlink()
            await self._socket.aclose()
