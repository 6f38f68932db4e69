"""The pipes of the host, in memory."""

from __future__ import annotations

import anyio.lowlevel

from uvm._names import PathFlavour, host_path, pipe_key
from uvm._repr import showing
from uvm.backends.fake.streams import FakeListener, FakeStream, stream_pair
from uvm.errors import HostError
from uvm.hresult import HResult


@showing("listened_at")
class FakePipes:
    """The pipes of a host (:class:`~uvm.backend.HostPipes`): named pipes, or Unix sockets."""

    def __init__(self, paths: PathFlavour) -> None:
        self._paths: PathFlavour = paths
        self._listeners: dict[str, FakeListener] = {}

    @property
    def listened_at(self) -> tuple[str, ...]:
        """The paths that are listened at."""
        return tuple(listener.service_id for listener in self._listeners.values())

    async def listen(self, path: str) -> FakeListener:
        """Listen at a path; E_ACCESSDENIED if it is listened at."""
        await anyio.lowlevel.checkpoint()
        key = self._key(path)
        if key in self._listeners:
            raise HostError(f"listen at {path}", HResult.E_ACCESSDENIED, "it is listened at")
        self._listeners[key] = FakeListener(path, lambda: self._listeners.pop(key, None))
        return self._listeners[key]

    async def dial(self, path: str) -> FakeStream:
        """Connect to what listens at a path; ERROR_FILE_NOT_FOUND if nothing does."""
        await anyio.lowlevel.checkpoint()
        listener = self._listeners.get(self._key(path))
        if listener is None:
            raise HostError(f"dial {path}", HResult.ERROR_FILE_NOT_FOUND, "nothing listens there")
        ours, theirs = stream_pair(lambda _: None)
        listener.offer(theirs)
        return ours

    def _key(self, path: str) -> str:
        return pipe_key(path, "pipe") if self._paths == "windows" else host_path(path, "posix", "pipe")
