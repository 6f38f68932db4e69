"""Access of the VM to host paths: granted with each new attachment, revoked with the last device on a path.

Per path the devices that need it are counted, the boot files of the VM among them. A path is revoked when
the last of them is known to be gone, before its release returns; what attaches it meanwhile waits for that,
and grants it anew. What is an orphan or quarantined still counts, so its path is revoked when the VM closes,
as are paths that could not be revoked earlier. Access that is not the VM's own (of the VM group, which other
VMs may use; ``grant_access=False``) is never revoked.
"""

from __future__ import annotations

from functools import partial
from typing import Final, Literal, TypeAlias

from attrs import Factory, define, field, frozen

from uvm._async import Flag, errors_of
from uvm._buses.link import Link
from uvm._checks import checked, flag
from uvm._log import Log
from uvm._repr import Value
from uvm.backend import VM_GROUP, Backend
from uvm.errors import OptionsError, is_refusal, own

_log = Log("uvm")

#: How many paths are revoked at once when the VM closes: each is a task, and a request to the host.
_AT_ONCE: Final = 64


#: Access that is granted with a device: to the VM, to the VM group, or to none, since its caller sees to it.
Grant: TypeAlias = bool | Literal["VM_GROUP"]


def grant_of(wanted: Grant, *, read_only: bool = True) -> Grant:
    """Check an argument ``grant_access``, and return it.

    :raises OptionsError: it is none, or would let every VM write.
    """
    if wanted == VM_GROUP and not read_only:
        raise OptionsError("grant_access is VM_GROUP, which is for what is read_only")
    return wanted if wanted == VM_GROUP else checked(wanted, flag, "grant_access, if it is not VM_GROUP,")


@frozen(repr=False)
class HostName(Value):
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


@frozen(eq=False, repr=False)
class Need:
    """A device's need of access to a path.

    :ivar grant: grant it to the VM, or to the VM group; False leaves it to the caller of the device.
    """

    _access: Access
    _name: HostName
    _grant: Grant = True

    async def take(self) -> None:
        """Have access, before the device is added."""
        await self._access.take(self._name, self._grant)

    async def leave(self) -> None:
        """Need it no longer, since the device is gone."""
        await self._access.leave(self._name)


@define(eq=False, repr=False)
class _Flight:
    """A request in flight: whose access it changes, and how."""

    to: str
    revokes: bool
    landed: Flag = Factory(Flag)
    error: Exception | None = None


@define(eq=False, repr=False)
class _Path:
    """Access to one path.

    :ivar sent: the path, as it was sent first.
    :ivar users: how many devices are on it.
    :ivar granted: the VM may have been granted access.
    :ivar foreign: a device is or was on it whose caller sees to the access.
    :ivar error: what the last attempt to revoke it failed with.
    """

    sent: str
    users: int = 0
    granted: bool = False
    foreign: bool = False
    flight: _Flight | None = None
    error: Exception | None = None


@define(eq=False, repr=False)
class Access:
    """The access of one VM to host paths.

    One request per path is in flight at a time; those that grant the same meanwhile share its outcome. It is
    a part of the operation that attaches or detaches, so a task of the VM sends it, which no caller cancels.
    """

    backend: Backend
    link: Link
    _paths: dict[str, _Path] = field(factory=dict, init=False)

    def adopt(self, path: HostName) -> None:
        """Enter access that was granted for as long as the VM exists, such as to a boot disk."""
        self._paths.setdefault(path.key, _Path(path.path, granted=True)).users += 1

    def adopted(self, path: str) -> Need | None:
        """Return the need of a device, of a clone, for access that was adopted; None if there is none.

        :param path: as it was sent.
        """
        found = (HostName(path, (key,)) for key, each in self._paths.items() if each.sent == path)
        return next((Need(self, name) for name in found), None)

    @property
    def unrevoked(self) -> dict[str, Exception]:
        """The paths that could not be revoked, each with why."""
        kept = [path for path in self._paths.values() if not path.users]
        return {path.sent: path.error for path in kept if path.error is not None}

    async def take(self, name: HostName, grant: Grant) -> None:
        """Count one more device on a path; grant access, unless its caller sees to that.

        :raises UVMError: what the host raises; the device is not counted.
        """
        path = self._paths.setdefault(name.key, _Path(name.path))
        path.users += 1
        if not grant:
            path.foreign = True
            return
        to = VM_GROUP if grant == VM_GROUP else self.link.vm_id
        while path.flight is not None and (path.flight.revokes or path.flight.to != to):
            await path.flight.landed.wait()
        flight = path.flight
        if flight is None:
            flight = await self._fly(path, to, revokes=False)
        else:
            await flight.landed.wait()
        if flight.error is not None:
            await self.leave(name)
            raise own(flight.error)

    async def leave(self, name: HostName) -> None:
        """Count one device less; revoke access after the last one."""
        path = self._paths[name.key]
        path.users -= 1
        if path.users:
            return
        if path.granted and not path.foreign:
            path.error = (await self._fly(path, self.link.vm_id, revokes=True)).error
            if path.error is not None:
                _log.warning(self.link.vm_id, "access to %s was not revoked: %s", path.sent, path.error)
        if not path.granted and not path.users:
            del self._paths[name.key]

    async def _fly(self, path: _Path, to: str, *, revokes: bool) -> _Flight:
        """Send one request; its error is a part of what is returned."""
        flight = path.flight = _Flight(to, revokes)
        had, own = path.granted, to == self.link.vm_id
        # Noted before it is requested: an answer that is lost may have been a yes.
        path.granted = had or own
        send = self.backend.revoke_access if revokes else self.backend.grant_access
        try:
            await send(path.sent, to)
            path.granted = not revokes if own else had
        except Exception as error:
            flight.error = error
            path.granted = had or revokes or (own and not is_refusal(error))
        finally:
            path.flight = None
            flight.landed.set()
        return flight

    @property
    def any_granted(self) -> bool:
        """Whether the VM has, or may have, access to a path."""
        return any(path.granted for path in self._paths.values())

    async def revoke_all(self) -> list[Exception]:
        """Revoke everything that was granted; return the errors of what was not revoked."""

        async def revoke(key: str, sent: str) -> None:
            await self.backend.revoke_access(sent, self.link.vm_id)
            # What was revoked is not revoked again if the call is cut off and made again.
            self._paths.pop(key, None)

        paths = [(key, path.sent) for key, path in self._paths.items() if path.granted]
        errors = await errors_of((partial(revoke, *each) for each in paths), _AT_ONCE)
        self._paths.clear()
        return errors
