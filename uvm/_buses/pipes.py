"""Named pipes of the host, mapped into a Windows guest."""

from __future__ import annotations

from attrs import define, frozen

from uvm._async import opens
from uvm._buses.context import Bus, Context
from uvm._buses.lease import Lease
from uvm._names import HostPath, pipe_key, pipe_path
from uvm._repr import Value
from uvm.devices.pipes import Pipes


@define(eq=False, repr=False)
class PipeLease(Lease):
    """A mapped pipe.

    :ivar host_path: the pipe on the host.
    """

    host_path: str


@frozen(repr=False)
class MappedPipe(Value):
    """A named pipe of the host that the guest sees.

    :ivar references: how many leases it has.
    :ivar orphaned: it is an orphan.
    """

    host_path: str
    references: int
    orphaned: bool = False


class PipeBus(Bus):
    """The named pipes that are mapped into a VM."""

    _ledgers = ("pipes",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._pipes = self._drive(Pipes(), "pipes")

    @property
    def pipes(self) -> tuple[MappedPipe, ...]:
        """The pipes that are mapped."""
        return tuple(
            MappedPipe(entry.slot, *self._pipes.standing(entry)) for entry, _ in self._pipes.attached()
        )

    @opens
    async def add(self, path: HostPath) -> PipeLease:
        r"""Map a named pipe of the host into the guest. Await it, or enter it.

        The same pipe again, however its path is spelled, is the same mapping, with one more reference.

        :param path: such as ``\\.\pipe\docker_engine``.
        :raises OptionsError: it is not the path of a named pipe.
        :raises NotSupportedError: the guest is Linux.
        """
        self._context.need_guest("named pipes", "windows")
        await self._pipes.clear(pipe_key(path))
        hold = await self._pipes.acquire(pipe_key(path), pipe_path(path))
        return PipeLease(hold, hold.slot)

    async def remove(self, path: HostPath) -> None:
        """Release the oldest lease of a mapped pipe, however its path is spelled.

        :raises OptionsError: it is not the path of a named pipe.
        :raises NotAttachedError: it is not mapped.
        """
        holds = self._pipes.oldest_on(pipe_key(path))
        await self._release_oldest(holds, f"{path} is not mapped into {self._context.vm_id}")
