"""A container of a pod: created and started, and ended with all that is attached for it.

Theory of operation
-------------------

::

    resources attached --> CREATED -- start --> RUNNING
                              |                    |
                              `------- aclose -----+--> the container ends, then the resources are released
                                                              ^                    |
                                                              `-- closed again ----'  where a part failed

Tasks of the VM create it and end it. One that fails in between, or whose caller has left, is undone in the
order of an end.

Source: hcsshim ``internal/hcsoci/create.go``, ``cmd/containerd-shim-runhcs-v1/exec_hcs.go``.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

from attrs import define, field

from uvm._async import end_after, errors_of
from uvm._errands import Release
from uvm._guest.clock import GuestClock
from uvm._guest.container import Container, ContainerExit
from uvm._guest.process import Process
from uvm._guest.run import ProcessHost
from uvm._guest.specs import Command, pipes_of
from uvm._repr import brief
from uvm._vm.pods.plan import Member, Role
from uvm._vm.pods.resources import ContainerResources
from uvm._vm.vm import UtilityVM
from uvm.errors import RefusedError, UVMError, VMExitedError, together


class Members(Protocol):
    """The pod, as its containers see it."""

    def _check_end(self, member: Member) -> None:
        """Refuse the end of a member that others need."""

    def _left(self, member: Member) -> None:
        """Note that a member has ended, and that all that was attached for it was released."""


@define(eq=False, repr=False)
class PodContainer(ProcessHost):
    """A container of a pod, with what is attached for it. It ends with :meth:`aclose`, or with the pod.

    :ivar container: the container itself.
    :ivar resources: what is attached for it.
    :ivar init: its own, first process; None until it is started.
    """

    _vm: UtilityVM
    _pod: Members
    _member: Member
    container: Container
    resources: ContainerResources
    init: Process | None = field(default=None, init=False)
    _ending: Release = field(init=False)
    _unshared: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        link = self._vm._link
        self._ending = Release(link.vm_id, "end pod container", self._end, link.start_soon)

    def __repr__(self) -> str:
        return brief(f"<PodContainer of {self._vm.id}: {self.container!r}, {self.resources!r}>")

    @property
    def id(self) -> str:
        """The id of it."""
        return self.container.id

    @property
    def role(self) -> Role:
        """What it is in its pod."""
        return self._member.role

    @property
    def exit(self) -> ContainerExit | None:
        """How it ended; None while it has not, and where that is unknown."""
        return self.container.exit

    @property
    def closed(self) -> bool:
        """Whether it has ended, and all that was attached for it was released."""
        return self._ending.done or self._vm._link.exited.is_set()

    @property
    def _clock(self) -> GuestClock:
        return self.container._clock

    @property
    def _guest_os(self) -> str:
        return self._vm.os

    async def _start(self, wanted: Command, pipes: Mapping[str, bool]) -> Process:
        return await self.container._start(wanted, pipes)

    async def start(self, *, stdin: bool = False, stdout: bool = True, stderr: bool = True) -> Process | None:
        """Start it with its own, first process, which is returned: None if its specification has none.

        What is not read of the output of that process may hold it up; :meth:`wait` reads ahead.

        :raises GuestError: the guest refused.
        :raises UnknownOutcomeError: the answer was lost; it may run.
        """
        await self.container.start()
        own = self.resources._plan.init
        if self._vm.os == "linux":
            self.init = await self.container.open_init(stdin=stdin, stdout=stdout, stderr=stderr)
        elif own is not None:
            pipes = pipes_of(own.terminal, stdin=stdin, stdout=stdout, stderr=stderr)
            self.init = await self.container._start(own, pipes)
        return self.init

    async def wait(self) -> ContainerExit:
        """Wait for its exit, as :meth:`uvm.Container.wait` does; what is attached for it stays.

        A Windows container is shut down when its own process has exited; what that writes is to be read.
        """
        if self._vm.os == "windows" and self.init is not None and self.exit is None:
            await self.init.wait()
            await self.container.shutdown()
        return await self.container.wait()

    async def aclose(self) -> None:
        """End it, and then release what is attached for it. Closed again, it does nothing.

        A task of the VM does that; a caller that is cancelled stops only the waiting. Where a part failed,
        the next call goes on with what is left.

        :raises VMStateError: it is the sandbox of others; nothing was ended.
        :raises UVMError: part of that failed.
        """
        if not self.closed:
            self._pod._check_end(self._member)
        await self._ending.wait()

    async def __aenter__(self) -> PodContainer:
        return self

    async def __aexit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        await end_after(exc, self.aclose, f"ending {self.id}")

    async def _end(self) -> None:
        errors: list[Exception] = []
        try:
            await self.container.aclose()
        except UVMError as error:
            if not self.container._handle.exit.settled:
                # What it uses cannot be released.
                raise
            errors.append(error)
        if self.init is not None:
            await self.init.aclose()
        if self.role is Role.SANDBOX and self._vm.os == "linux":
            errors += await self._unshare()
        if not self.resources.released:
            errors += await errors_of([self.resources.release])
        if errors:
            raise together(f"ending container {self.id}", errors)
        self._pod._left(self._member)

    async def _unshare(self) -> list[Exception]:
        """Have a Linux guest unmount the directories that the pod shared; return what failed.

        They are in the bundle of the sandbox, where its scratch disk is mounted. The guest unmounts them when
        it deletes the sandbox's state, and then refuses to remove the bundle, which is in use.
        """
        root = self.resources.root
        if root is None or self._unshared:
            return []
        combined = root._combined
        errors = [] if combined.released else await errors_of([combined.release])
        # It may have been unmounted, if the answer was lost.
        if combined.released:
            errors += await errors_of([self._forget])
        return [error for error in errors if not isinstance(error, VMExitedError)]

    async def _forget(self) -> None:
        with suppress(RefusedError):
            await self.container._forget()
        self._unshared = True


async def create(vm: UtilityVM, resources: ContainerResources, member: Member, pod: Members) -> PodContainer:
    """Attach everything for a container and create it: in a task of the VM."""
    async with vm.container_creation():
        await resources._attach_all()
        root = resources.root if vm.os == "linux" else None
        try:
            container = await vm.create_container(member.id, resources.document(), root=root)
        except Exception as failure:
            await resources._undo(failure)
            raise
    return PodContainer(vm, pod, member, container, resources)


async def run(made: PodContainer, streams: Mapping[str, bool]) -> PodContainer:
    """Start a container that was created just now, and end it if that fails: in a task of the VM."""
    try:
        await made.start(**streams)
    except Exception as failure:
        try:
            await made._ending.wait()
        except UVMError as error:
            failure.add_note(f"and ending {made.id} failed: {error}")
        raise
    return made
