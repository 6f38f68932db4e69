"""The classes of :mod:`uvm.sync`: faces of the objects of :mod:`uvm`, made by introspection.

How it works
------------

A class of :mod:`uvm` with a method that is awaited, entered, or iterated over has a *face*: a class of the
same name, with the same public members and docstrings, made when it is first needed. A face holds its object.
Each call and property is made in the loop's thread, its arguments without faces, and what it returns with
them::

    vm.scsi.attach(path)  -->  a task:  await vm.scsi.attach(path)  -->  the face of a lease

So a method that is added to :mod:`uvm` is in :mod:`uvm.sync` at once, and nothing is written twice. What is
entered is hosted by a task (:class:`~uvm._sync.loop.Hosted`); what is iterated over has a call for each step;
streams are files (:mod:`uvm._sync.files`); ``aclose`` is ``close``. A function that the caller passes to be
called, and maybe awaited, is called in a thread of its own, with faces.

Others generate code (httpx and urllib3, by unasync) or proxy with a portal (asgiref, anyio's and trio's). A
copy of 10,000 lines that wait, and of the tasks behind them, would not be a synchronous program: tasks go on
between the calls here. So it is a proxy; its types are a stub, ``uvm/sync.pyi``, which a test derives anew.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import cached_property, lru_cache, partial, wraps
from types import FunctionType, MappingProxyType
from typing import Any, Final

import anyio
import anyio.abc
import anyio.to_thread

from uvm._async import Opening
from uvm._guest.process import Process
from uvm._sync.annotations import faced_names, has_awaited, is_awaited, is_context, signature_of
from uvm._sync.files import ProcessInput, ProcessOutput
from uvm._sync.loop import Hosted, Task, current, in_loop, running
from uvm._vm.base import ClosedOnLeaving
from uvm.options import Template

_PLAIN: Final = (type(None), str, int, float, bytes, bool)
_END: Final = object()
_faces: Final[weakref.WeakValueDictionary[int, Face]] = weakref.WeakValueDictionary()


class Face:
    """The face of an object; see :mod:`uvm._sync.faces`."""

    __slots__ = ("__weakref__", "_hosted", "_kept", "_real")
    _real: Any
    _kept: dict[str, Any]
    _hosted: list[Hosted]

    def __repr__(self) -> str:
        return at_once(lambda: repr(self._real))  # type: ignore[no-any-return]

    def __str__(self) -> str:
        return at_once(lambda: str(self._real))  # type: ignore[no-any-return]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Face) and bool(self._real == other._real)

    def __hash__(self) -> int:
        return hash(self._real)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}", name=name)
        return at_once(lambda: show(getattr(self._real, name)))


@lru_cache(None)
def face_of(cls: type) -> type[Face]:
    """Return the class of the faces of a class's objects."""
    bases = tuple(face_of(base) for base in cls.__bases__ if has_awaited(base)) or (Face,)
    members: dict[str, Any] = {"__slots__": (), "__module__": "uvm.sync", "__doc__": cls.__doc__}
    members["__init__"] = _constructor(cls)
    for name in faced_names(cls):
        called = "close" if name == "aclose" and not hasattr(cls, "close") else name
        members[called] = _member(cls, name)
    if hasattr(cls, "__aenter__"):
        members |= {"__enter__": _enter, "__exit__": _leave}
    return type(cls.__name__, bases, members)


def _constructor(cls: type) -> Callable[..., None]:
    @wraps(cls.__init__)  # type: ignore[misc]
    def construct(self: Face, *args: Any, **kwargs: Any) -> None:
        given, named = _without_faces(args, kwargs)
        _hold(self, cls(*given, **named))

    return construct


def _hold(face: Face, real: object) -> Face:
    face._real, face._kept, face._hosted = real, {}, []
    _faces[id(real)] = face
    return face


def _member(cls: type, name: str) -> Any:
    """Return the member of a face that is another's of its class."""
    member = inspect.getattr_static(cls, name)
    if isinstance(member, classmethod):
        return staticmethod(function_face(getattr(cls, name)))
    if isinstance(member, FunctionType):
        return _method(name, member)
    keep = isinstance(member, cached_property)

    def get(self: Face) -> Any:
        if name in self._kept:
            return self._kept[name]
        value = at_once(lambda: show(getattr(self._real, name)))
        # Of a stream there is one file, which holds what was read ahead.
        if keep or isinstance(value, ProcessInput | ProcessOutput):
            self._kept[name] = value
        return value

    return property(get, doc=member.__doc__)


def _method(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def bound(self: Face) -> Callable[..., Any]:
        return getattr(self._real, name)  # type: ignore[no-any-return]

    return _calling(function, bound)


def function_face(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the face of a function, or of a method of a class."""
    return _calling(function, lambda _: function, bound=False)


def _calling(
    function: Callable[..., Any], find: Callable[[Any], Callable[..., Any]], *, bound: bool = True
) -> Callable[..., Any]:
    """Return the function that makes a call of the API as its kind of call is made.

    :param find: returns what to call, of the face if it is `bound`.
    """
    enters, awaits = is_context(function), is_awaited(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        face = args[0] if bound else None
        given, named = _without_faces(args[1:] if bound else args, kwargs)
        made = partial(find(face), *given, **named)
        if enters:
            return Hosted(made, show)
        if awaits:
            return _Awaited(face, made, function.__name__).make()
        return at_once(lambda: show(made()))

    call.__module__ = "uvm.sync"
    call.__signature__ = signature_of(function)  # type: ignore[attr-defined]
    del call.__wrapped__
    return call


def _enter(self: Face) -> Any:
    hosted = Hosted(lambda: _Entered(self._real), show)
    self._hosted.append(hosted)
    return hosted.__enter__()


def _leave(self: Face, *error: Any) -> bool | None:
    try:
        return self._hosted[-1].__exit__(*error)
    finally:
        self._hosted.pop()


def at_once(function: Callable[[], Any]) -> Any:
    """Call a function that waits for nothing: in the loop, if there is one, whose tasks use the same."""
    if in_loop() or not running():
        return function()

    async def call() -> Any:
        return function()

    return Task(call).make()


class _Awaited(Task):
    """A call of the API that is awaited."""

    def __init__(self, face: Face | None, call: Callable[[], Any], name: str) -> None:
        super().__init__(self._await)
        self._real: Any = None if face is None else face._real
        self._call = call
        self._name = name
        self._undo: Callable[[], Any] | None = None

    async def _await(self) -> Any:
        try:
            made = self._call()
            result = await made if inspect.isawaitable(made) else made
            if isinstance(made, Opening) or self._name == "start":
                self._note_opened(result)
            elif self._name == "acquire":
                self._undo = partial(self._real.release, result)
            return show(result)
        finally:
            if self._name == "close":
                current().users.discard(self._real)

    def _note_opened(self, opened: Any) -> None:
        """Keep the loop for a VM or a pool until it is closed."""
        if hasattr(opened, "__aexit__"):
            self._undo = partial(_close, opened)
        if isinstance(opened, ClosedOnLeaving):
            current().users.add(opened)

    def undone_by(self) -> Callable[[], Any] | None:
        undo, self._undo = self._undo, None
        return undo


async def _close(opened: Any) -> None:
    """Close, release or end what was opened for a caller who was interrupted."""
    if isinstance(opened, Process):
        await opened.kill()
    async with _Entered(opened, entered=True):
        pass


class _Entered(AbstractAsyncContextManager[Any]):
    """An object as a context; a VM or a pool does not keep the loop any more when it was left."""

    def __init__(self, real: Any, *, entered: bool = False) -> None:
        self._real = real
        self._entered = entered

    async def __aenter__(self) -> Any:
        return self._real if self._entered else await self._real.__aenter__()

    async def __aexit__(self, *error: Any) -> bool | None:
        try:
            return await self._real.__aexit__(*error)  # type: ignore[no-any-return]
        finally:
            current().users.discard(self._real)


def _without_faces(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return arguments as the objects that faces stand for."""
    named = {
        name: _hook(value, HOOKS[name]) if name in HOOKS and callable(value) else real(value)
        for name, value in kwargs.items()
    }
    return [*map(real, args)], named


def real(value: Any) -> Any:
    """Return the object that a face stands for; lists and tuples with those of their faces."""
    if isinstance(value, Face):
        return value._real
    if type(value) in (list, tuple):
        return type(value)(map(real, value))
    return value


def show(value: Any) -> Any:
    """Return what a thread gets for an object of the loop: its face, if it needs one."""
    kind: Any = type(value)
    if kind in _PLAIN or isinstance(value, Template):
        return value
    if kind in (list, tuple):
        return kind(map(show, value))
    if kind in (dict, MappingProxyType):
        shown = {name: show(each) for name, each in value.items()}
        return shown if any(isinstance(each, Face) for each in shown.values()) else value
    if isinstance(value, anyio.abc.ByteReceiveStream):
        return ProcessOutput(value)
    if isinstance(value, anyio.abc.ByteSendStream):
        return ProcessInput(value)
    if isinstance(value, AsyncIterator):
        return _Iteration(value)
    if not has_awaited(kind):
        return value
    face = _faces.get(id(value))
    if face is None:
        cls = face_of(kind)
        face = _hold(cls.__new__(cls), value)
    return face


class _Iteration(Iterator[Any]):
    """The iteration over what comes one after the other."""

    def __init__(self, coming: AsyncIterator[Any]) -> None:
        self._coming = coming

    def __next__(self) -> Any:
        item = Task(self._next).make()
        if item is _END:
            raise StopIteration
        return item

    async def _next(self) -> Any:
        return show(await anext(self._coming, _END))


#: Keywords whose functions are called, and maybe awaited, whenever something happens; with what of an object.
HOOKS: Final[dict[str, Callable[[Any], Any]]] = {
    **dict.fromkeys(("on_stdout", "on_stderr", "prepare", "prepare_template", "check"), show),
    "guest_output": ProcessOutput,
}


def _hook(function: Callable[..., Any], show: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return what the loop awaits to have a function of the caller called in a thread."""

    @wraps(function)
    async def call(*args: Any) -> Any:
        # One of its own each: they may take as long as they like.
        one = anyio.CapacityLimiter(1)
        shown = [*map(show, args)]
        return await anyio.to_thread.run_sync(lambda: function(*shown), abandon_on_cancel=True, limiter=one)

    return call
