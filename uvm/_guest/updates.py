"""Updates of a running VM or container: several settings changed as one, or all of them changed back.

How it works
------------

What a setting was is known from the document that the VM, or the container, was created with, and from what
was set since; ``modify`` is not followed. An update sends its settings one after the other::

    set -- set -- failed ------> the failed one, unless it was refused, and those before it are set back,
     |                           the last first
     `-- a VM that has exited --> nothing is set back

A setting that was changed anew meanwhile is left at that. Of two updates the second waits for the first. What
cannot be set back is reported, together with why.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import anyio
from attrs import define, evolve, field, frozen

from uvm.errors import UndoFailedError, UndoUnknownError, UVMError, VMExitedError, is_refusal


@frozen(eq=False)
class Setting:
    """A setting: the path of its resource, and its value; None where that is not known.

    :ivar then: what follows of it in the guest.
    """

    path: str
    value: Any
    then: Callable[[], Awaitable[None]] | None = None


@frozen(eq=False)
class Change:
    """A setting before a change and after it, and what follows in the guest if it is changed back."""

    before: Setting
    after: Setting
    then: Callable[[], Awaitable[None]] | None


@define(eq=False, repr=False)
class Settings:
    """The settings in force.

    :param created: the values from the start, by path.
    :param send: sends a setting.
    """

    _created: Mapping[str, Any]
    _send: Callable[[Setting], Awaitable[None]]
    _in_force: dict[str, Setting] = field(init=False)
    #: The paths of those that may have been changed, since there was no answer.
    _doubtful: set[str] = field(factory=set, init=False)
    _turn: anyio.Lock = field(factory=anyio.Lock, init=False)

    @_in_force.default
    def _as_created(self) -> dict[str, Setting]:
        return {path: Setting(path, value) for path, value in self._created.items()}

    def value(self, path: str) -> Any:
        """Return the value of a setting."""
        return self._in_force[path].value

    def was_set(self, path: str) -> bool:
        """Return whether a setting has another value than from the start."""
        return self._in_force[path].value is not self._created[path]

    async def set(self, setting: Setting) -> None:
        """Change a setting."""
        doubted = setting.path in self._doubtful
        self._doubtful.add(setting.path)
        try:
            await self._send(setting)
        except Exception as error:
            if is_refusal(error) and not doubted:
                self._doubtful.discard(setting.path)
            raise
        self._doubtful.discard(setting.path)
        self._in_force[setting.path] = setting

    def left_by(self, tried: Iterable[Change]) -> str:
        """Return what an update that was cut off has changed, for people."""
        said = ""
        for path, after in {change.after.path: change.after for change in tried}.items():
            if path in self._doubtful:
                said += f"; {path} may have been changed"
            elif self._in_force[path] is after:
                said += f"; {path} was changed"
        return said or "; nothing was changed"

    async def update(self, asked: Callable[[], Sequence[Setting]], tried: list[Change]) -> None:
        """Change several settings, in order, or none.

        :param asked: returns them, once no other update is under way.
        :param tried: gets the changes that were begun, in order.
        :raises UndoFailedError: a change failed, and changing back what had been changed as well.
        """
        async with self._turn:
            for setting in asked():
                tried.append(Change(self._in_force[setting.path], setting, setting.then))
                try:
                    await self._carry_out(setting)
                except VMExitedError:
                    raise
                except Exception as error:
                    if is_refusal(error):
                        self._forget_refused(tried)
                    await self._set_back(tried, error)
                    raise

    def _forget_refused(self, tried: list[Change]) -> None:
        """Leave what the last change was refused, the setting or what follows of it, as it is."""
        last = tried.pop()
        if self._in_force[last.after.path] is last.after:
            tried.append(evolve(last, then=None))

    async def _carry_out(self, setting: Setting) -> None:
        await self.set(setting)
        if setting.then is not None:
            await setting.then()

    async def _set_back(self, tried: list[Change], error: Exception) -> None:
        failed: list[tuple[str, Exception]] = []
        for change in reversed(tried):
            before = change.before
            # Changed anew meanwhile, it is left at that.
            if self._in_force[before.path] not in (before, change.after):
                continue
            what = before.path
            try:
                if before.value is None:
                    raise UVMError("what it was is not known")
                await self.set(Setting(before.path, before.value))
                if change.then is not None:
                    what = f"what follows of {before.path} in the guest"
                    await change.then()
            except VMExitedError:
                raise error from None
            except UVMError as undo_error:
                failed.append((what, undo_error))
        if failed:
            whats = " and ".join(what for what, _ in failed)
            whys = "; ".join(str(each) for _, each in failed)
            unknown = any(not is_refusal(each) or what in self._doubtful for what, each in failed)
            kind = UndoUnknownError if unknown else UndoFailedError
            holds = "may have been changed" if unknown else "stays changed"
            raise kind(
                f"{error}; and {whats} {holds}, since changing it back failed: {whys}",
                [error, *(each for _, each in failed)],
            ) from error
