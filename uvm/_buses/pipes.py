"""Named pipes of the host, mapped into a Windows guest."""

from __future__ import annotations

from attrs import define, frozen

from uvm._async import opens
from uvm._buses.context import Bus, Context
from uvm._buses.lease import Lease
from uvm.devices.pipes import Pipes, check_pipe
from uvm.errors import NotAttachedError


@define(eq=False)
class PipeLease(Lease):
    """A mapped pipe.

    :ivar host_path: the pipe on the host.
    """

    host_path: str


@frozen
class MappedPipe:
    """A named pipe of the host that the guest sees.

    :ivar references: how many leases it has.
    """

    host_path: str
    references: int


class PipeBus(Bus):
    """The named pipes that are mapped into a VM."""

    ledgers = ("pipes",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._pipes = self._drive(Pipes(), "pipes")

    @property
    def pipes(self) -> tuple[MappedPipe, ...]:
        """The pipes that are mapped."""
        return tuple(MappedPipe(entry.slot, len(entry.holders)) for entry in self._pipes.attached())

    @opens
    async def add(self, path: str) -> PipeLease:
        r"""Map a named pipe of the host into the guest. Await it, or enter it.

        The same pipe again is the same mapping, with one more reference.

        :param path: such as ``\\.\pipe\docker_engine``.
        :raises OptionsError: it is not the path of a named pipe.
        :raises NotSupportedError: the guest is Linux.
        """
        self._context.need_guest("named pipes", "windows")
        check_pipe(path)
        return PipeLease(await self._pipes.acquire(path, None), path)

    async def remove(self, path: str) -> None:
        """Give up the oldest reference to a mapped pipe.

        :raises NotAttachedError: it is not mapped.
        """
        if not await self._pipes.release_one(path):
            raise NotAttachedError(f"{path} is not mapped into {self._context.vm_id}")
