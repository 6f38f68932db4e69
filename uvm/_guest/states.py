"""The order in which a Linux container ends: itself, then its layers, then its state.

How it works
------------

A Linux guest deletes the state of a container by removing its bundle directory, with all that is in it. What
is mounted there would be emptied, and the removal would fail: ``device or resource busy``. A confidential
guest refuses while the root file system is mounted, wherever that is. So the state of a container that is
closed while something is mounted in these directories is kept::

    ENDED -- nothing is mounted there --------------------------------> DELETING -- answered --> deleted
      |                                                                    ^
      `----- something is --> KEPT -- the last of it was unmounted --------'

and the id stays taken until the state is deleted. The caller that closes a container may leave before it has
ended: another of its id is created, and what its document names is unmounted, after that.

Source: hcsshim internal/controller/linuxcontainer/container.go (``releaseResources``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator
from functools import partial

import anyio.abc
from attrs import define, field

from uvm._async import Flag, Work
from uvm._index import Index
from uvm._log import Log
from uvm._names import guest_path, lineage, trimmed
from uvm.errors import OptionsError, UVMError, VMStateError

_log = Log("uvm.gcs")


@define(eq=False, repr=False)
class Closing:
    """A container that is being closed.

    :ivar named: returns the keys of the guest paths that its document names.
    :ivar directories: what is in them is in use too.
    :ivar ended: set once it was closed, or that failed.
    """

    named: Callable[[], Iterable[str]]
    directories: tuple[str, ...]
    ended: Flag = field(factory=Flag, init=False)

    def uses(self) -> Iterator[tuple[str, str]]:
        """Yield what it is found by."""
        for path in self.named():
            yield from (("under", place) for place in lineage(path))
        yield from (("above", trimmed(directory)) for directory in self.directories)


@define(eq=False, repr=False)
class Deletion:
    """The deletion of one state, to be.

    :ivar begun: nothing keeps it any more.
    :ivar done: it was deleted, or that failed.
    :ivar error: what failed.
    """

    directories: tuple[str, ...]
    forget: Callable[[], Awaitable[None]]
    tasks: anyio.abc.TaskGroup
    begun: bool = field(default=False, init=False)
    done: Flag = field(factory=Flag, init=False)
    error: UVMError | None = field(default=None, init=False)


@define(eq=False, repr=False)
class ContainerStates:
    """The states of one guest's containers that have ended and are not deleted yet.

    :ivar mounted: returns a path in a directory of the guest at which something is mounted, the directory
        itself included; empty where there is none.
    """

    mounted: Callable[[str], str] = lambda directory: ""
    #: Whose guest it is, for the log.
    name: str = ""
    #: What the tasks of the guest's VM have in flight.
    work: Work = field(factory=Work)
    _closing: dict[str, Closing] = field(factory=dict, init=False)
    #: The same, by the guest paths that they use.
    _users: Index[Closing] = field(factory=Index, init=False)
    _deletions: dict[str, Deletion] = field(factory=dict, init=False)
    #: The containers whose state is kept, by their directories.
    _kept: Index[str] = field(factory=Index, init=False)

    def busy(self, directories: tuple[str, ...]) -> str:
        """Return a path in these directories at which something is mounted; empty if none."""
        return next(filter(None, map(self.mounted, directories)), "")

    def check_unmounted(self, container_id: str, directories: tuple[str, ...]) -> None:
        """Raise VMStateError where something is mounted in the container's directories."""
        if path := self.busy(directories):
            raise VMStateError(
                f"delete the state of container {container_id}: something of it is mounted at {path}; "
                "nothing was sent. Release that first, or close the container: its state is deleted then "
                "when all of that was released"
            )

    def keep(
        self,
        container_id: str,
        directories: tuple[str, ...],
        forget: Callable[[], Awaitable[None]],
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        """Keep a state until nothing is mounted in the container's directories any more.

        :param forget: deletes it, in a task of `tasks`.
        """
        if container_id not in self._deletions:
            self._deletions[container_id] = Deletion(directories, forget, tasks)
            places = [trimmed(guest_path(each, "linux")) for each in directories]
            self._kept.add(container_id, lambda _: places)

    def unmounted(self, places: Iterable[Hashable]) -> None:
        """Begin to delete the states that nothing keeps any more: something was unmounted.

        :param places: the keys of its path and of the directories above.
        """
        for container_id in self._kept.at(places):
            deletion = self._deletions[container_id]
            if not self.busy(deletion.directories):
                deletion.begun = True
                self._kept.remove(container_id)
                self.work.start_soon(deletion.tasks, partial(self._delete, container_id, deletion))

    async def _delete(self, container_id: str, deletion: Deletion) -> None:
        try:
            await deletion.forget()
        except UVMError as error:
            _log.warning(self.name, "deleting the state of container %s: %s", container_id, error)
            deletion.error = error
        finally:
            self._deletions.pop(container_id, None)
            deletion.done.set()

    def clear(self) -> None:
        """Drop them all: the guest has gone."""
        for deletion in self._deletions.values():
            deletion.done.set()
        self._deletions.clear()
        self._kept.clear()

    def pending(self, container_id: str) -> Deletion | None:
        """Return the deletion of that container's state that is to be, or in flight."""
        return self._deletions.get(container_id)

    def begin_closing(self, container_id: str, closing: Closing) -> None:
        """Note that a container is being closed."""
        self._closing[container_id] = closing
        self._users.add(closing, Closing.uses)

    def end_closing(self, container_id: str) -> None:
        """Note that a container was closed, or that this failed."""
        closing = self._closing.pop(container_id)
        self._users.remove(closing)
        closing.ended.set()

    @property
    def any_closing(self) -> bool:
        """Whether a container is being closed."""
        return bool(self._closing)

    async def closed(self, container_id: str) -> None:
        """Wait until that container is not being closed any more, whatever came of it."""
        while (closing := self._closing.get(container_id)) is not None:
            await closing.ended.wait()

    def users(self, paths: set[str]) -> list[Flag]:
        """Return, for each container being closed that uses some guest paths, what its end sets."""
        if not self._closing:
            return []
        keys = [("under", trimmed(path)) for path in paths]
        keys += (("above", place) for path in paths for place in lineage(path))
        return [closing.ended for closing in self._users.at(keys)]

    async def settled(self, container_id: str) -> None:
        """Wait for that container to end, and its state to be deleted, if that is in flight."""
        await self.closed(container_id)
        deletion = self.pending(container_id)
        if deletion is not None and deletion.begun:
            await deletion.done.wait()

    async def check_free(self, container_id: str) -> None:
        """Wait for the last container of that id to end, and its state to be deleted, if that is in flight.

        :raises OptionsError: it is kept.
        """
        await self.closed(container_id)
        deletion = self.pending(container_id)
        if deletion is not None and not deletion.begun:
            raise OptionsError(
                f"create container {container_id}: the last one of that id has ended, and its state is kept "
                f"while something is mounted at {self.busy(deletion.directories)}; nothing was sent. Release "
                "that first"
            )
        await self.settled(container_id)
