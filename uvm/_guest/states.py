"""The order in which a Linux container ends: itself, then its layers, then its state.

How it works
------------

A Linux guest deletes the state of a container by removing its bundle directory, with all that is in it. What
is mounted there would be emptied, and the removal would fail: ``device or resource busy``. So the state of a
container that is closed while something is mounted in its bundle is kept::

    ENDED -- nothing is mounted in its bundle ------------------------> DELETING -- answered --> deleted
      |                                                                    ^
      `----- something is --> KEPT -- the last of it was unmounted --------'

and the id stays taken until the state is deleted.

Source: hcsshim internal/controller/linuxcontainer/container.go (``releaseResources``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import anyio.abc
from attrs import define, field

from uvm._async import Flag
from uvm.errors import OptionsError, UVMError, VMStateError

_log = logging.getLogger("uvm.gcs")


class Ended(Protocol):
    """A container that has ended."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def bundle(self) -> str:
        """Its directory in the guest; empty for a Windows container."""

    async def forget(self) -> None:
        """Delete its state."""


def _nothing(directory: str) -> str:
    return ""


@define(eq=False)
class _Deletion:
    """The deletion of one state, in its task."""

    done: Flag = field(factory=Flag)
    error: UVMError | None = None


@define(eq=False)
class ContainerStates:
    """The states of one guest's containers that have ended and are not deleted yet.

    :ivar mounted: returns a path in a directory of the guest at which something is mounted, the directory
        itself included; empty where there is none.
    """

    mounted: Callable[[str], str] = _nothing
    _kept: dict[str, tuple[Ended, anyio.abc.TaskGroup]] = field(factory=dict, init=False)
    _deleting: dict[str, _Deletion] = field(factory=dict, init=False)

    def busy(self, container: Ended) -> str:
        """Return a path in the container's bundle at which something is mounted; empty if none."""
        return self.mounted(container.bundle) if container.bundle else ""

    def check_unmounted(self, container: Ended) -> None:
        """Raise VMStateError where something is mounted in the container's bundle."""
        if path := self.busy(container):
            raise VMStateError(
                f"delete the state of container {container.id}: something is mounted at {path}, in its "
                "bundle; nothing was sent. Release it first, or close the container: its state is deleted "
                "then when the last of it was released"
            )

    def keep(self, container: Ended, tasks: anyio.abc.TaskGroup) -> None:
        """Keep a state until nothing is mounted in its bundle any more.

        :param tasks: runs its deletion.
        """
        self._kept[container.id] = (container, tasks)

    def unmounted(self) -> None:
        """Begin to delete the states that nothing holds any more: something was unmounted."""
        for container, tasks in list(self._kept.values()):
            if not self.busy(container):
                del self._kept[container.id]
                self._deleting[container.id] = _Deletion()
                tasks.start_soon(self._delete, container)

    def clear(self) -> None:
        """Drop them all: the guest has gone."""
        self._kept.clear()
        for deletion in self._deleting.values():
            deletion.done.set()
        self._deleting.clear()

    async def _delete(self, container: Ended) -> None:
        deletion = self._deleting[container.id]
        try:
            await container.forget()
        except UVMError as error:
            _log.warning("deleting the state of container %s: %s", container.id, error)
            deletion.error = error
        finally:
            self._deleting.pop(container.id, None)
            deletion.done.set()

    async def check_free(self, container_id: str) -> None:
        """Wait for a deletion in flight of that id.

        :raises OptionsError: the last container of that id has ended, and its state is kept.
        """
        if container_id in self._kept:
            container, _ = self._kept[container_id]
            raise OptionsError(
                f"create container {container_id}: the last one of that id has ended, and its state is kept "
                f"while something is mounted at {self.busy(container)}; nothing was sent. Release that first"
            )
        await self.settled(container_id)

    async def settled(self, container_id: str) -> None:
        """Wait for a deletion in flight of that id, whatever comes of it."""
        if (deletion := self._deleting.get(container_id)) is not None:
            await deletion.done.wait()

    async def deleted(self, container_id: str) -> None:
        """Wait for a deletion in flight of that id; raises what it raised."""
        if (deletion := self._deleting.get(container_id)) is not None:
            await deletion.done.wait()
            if deletion.error is not None:
                raise deletion.error
