"""Access of the VM to host paths: granted with each new attachment, revoked when the VM closes."""

from __future__ import annotations

from functools import partial

import anyio
from attrs import define, field, frozen

from uvm._async import errors_of
from uvm._buses.driver import is_refusal
from uvm._buses.link import Link
from uvm.backend import Backend
from uvm.errors import own


@frozen
class HostName:
    """A path of the host that a caller named.

    :ivar path: the path that it leads to, in the caller's spelling, cleaned; it is sent and granted.
    :ivar names: what look-ups know it by; the last is the key of `path`.
    """

    path: str
    names: tuple[str, ...]

    @property
    def key(self) -> str:
        """The key of :attr:`path`."""
        return self.names[-1]


@define(eq=False)
class _Flight:
    landed: anyio.Event
    error: Exception | None = None


@define(eq=False)
class Access:
    """Grants of one VM.

    One request per path is in flight at a time; other callers meanwhile share its outcome. It is a part of
    the operation that attaches, so a task of the VM sends it, which no caller cancels.

    :ivar granted: paths as they were sent, by their keys.
    """

    backend: Backend
    link: Link
    granted: dict[str, str] = field(factory=dict)
    _flights: dict[str, _Flight] = field(factory=dict, init=False)

    async def grant(self, path: HostName) -> None:
        """Grant the VM access to a path; raise what the host raises."""
        flight = self._flights.get(path.key)
        if flight is None:
            flight = self._flights[path.key] = _Flight(anyio.Event())
            await self._fly(path, flight)
        else:
            await flight.landed.wait()
        if flight.error is not None:
            raise own(flight.error)

    async def _fly(self, path: HostName, flight: _Flight) -> None:
        had = path.key in self.granted
        # Noted before it is requested: an answer that is lost may have been a yes.
        sent = self.granted.setdefault(path.key, path.path)
        try:
            await self.backend.grant_access(sent, self.link.vm_id)
        except Exception as error:
            flight.error = error
            if is_refusal(error) and not had:
                del self.granted[path.key]
        finally:
            del self._flights[path.key]
            flight.landed.set()

    async def revoke_all(self) -> list[Exception]:
        """Revoke everything that was granted, all at once; return the errors of what was not revoked."""
        paths = list(self.granted.values())
        self.granted.clear()
        return await errors_of(partial(self.backend.revoke_access, path, self.link.vm_id) for path in paths)
