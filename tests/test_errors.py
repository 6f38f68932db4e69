"""Errors travel: to other processes and as copies, with all that they say."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pkgutil import walk_packages
from typing import Any

import pytest

import uvm
from uvm.errors import ErrorRecord, ExitStatus, UndoFailedError, own
from uvm.hresult import HResult

_RECORDS = (ErrorRecord("the disk is full", provider="vmwp", event_id=7),)
_STATUS = ExitStatus("UnexpectedExit", HResult.E_FAIL, {"Attribution": []})

#: What makes each error that is not made of a message alone.
_MADE_OF: dict[type[BaseException], tuple[Any, ...]] = {
    uvm.HostPathError: (r"C:\disk.vhdx", "no such file"),
    uvm.RefusedError: ("modify", HResult.E_FAIL, "no", _RECORDS),
    uvm.HostError: ("modify", HResult.HCS_E_SYSTEM_ALREADY_STOPPED, "no", _RECORDS),
    uvm.GuestError: ("modify", HResult.E_FAIL, "no", _RECORDS),
    uvm.RPCError: ("NetworkConfigProxy.ConfigureNetworking", 9, "no service"),
    uvm.ProcessError: ("failed", ("sh", "-c"), "out", "err"),
    uvm.OutputLimitError: ("wrote too much", ("yes",), b"y" * 10, b""),
    uvm.ProcessTimeoutError: ("ran too long", ("yes",), b"y" * 10, b""),
    uvm.ProcessFailedError: (uvm.CompletedProcess(("false",), 1, b"", b"no"),),
    uvm.StreamClosedError: ("write",),
    uvm.StreamBrokenError: ("write", "the process closed it"),
    uvm.StreamBusyError: ("write",),
    uvm.StreamVMExitedError: ("write", _STATUS),
    uvm.UVMErrorGroup: ("both failed", [uvm.HostError("add", HResult.E_FAIL), ValueError(1)]),
    uvm.UndoFailedError: ("both failed", [uvm.HostError("add", HResult.E_FAIL), ValueError(1)]),
    uvm.UndoUnknownError: ("both failed", [uvm.HostError("add", HResult.E_FAIL), ValueError(1)]),
    uvm.UnknownOptionError: ("Mount", "path", "guest_path"),
    uvm.VMExitedError: ("vm1: the VM has exited", _STATUS),
}


#: What needs what is not installed, or another system.
_ELSEWHERE = ("uvm.backends.hcs", *(() if sys.platform == "linux" else ("uvm.agent", "uvm.backends.qemu")))


def _subclasses(cls: type[uvm.UVMError]) -> Iterator[type[uvm.UVMError]]:
    yield cls
    for each in cls.__subclasses__():
        yield from _subclasses(each)


def _all_errors() -> list[type[uvm.UVMError]]:
    for module in walk_packages(uvm.__path__, "uvm."):
        if not module.name.startswith(_ELSEWHERE) and not module.name.endswith("__main__"):
            import_module(module.name)
    found = dict.fromkeys(_subclasses(uvm.UVMError))
    return [cls for cls in found if cls.__module__.startswith("uvm.")]


ERRORS = _all_errors()


def _pickled(protocol: int) -> Callable[[Any], Any]:
    return lambda value: pickle.loads(pickle.dumps(value, protocol))


TRAVELS: dict[str, Callable[[Any], Any]] = {
    **{f"pickle{n}": _pickled(n) for n in range(pickle.HIGHEST_PROTOCOL + 1)},
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "own": own,
}


def _raised(cls: type[uvm.UVMError]) -> uvm.UVMError:
    """Return an error with notes, as it is caught."""
    error = cls(*_MADE_OF.get(cls, ("it failed",)))
    error.add_note("and then")
    try:
        raise error from KeyError("cause")
    except uvm.UVMError as caught:
        return caught


def _said(error: BaseException) -> dict[str, Any]:
    """Return all that an error says, comparable."""
    parts = error.exceptions if isinstance(error, ExceptionGroup) else ()
    return {
        "class": type(error),
        "message": str(error),
        "args": () if parts else error.args,
        "parts": [_said(part) for part in parts],
        "fields": vars(error),
        "suppressed": error.__suppress_context__,
    }


@pytest.mark.parametrize("cls", ERRORS)
def test_an_error_that_travels_says_all_that_it_said(cls: type[uvm.UVMError]) -> None:
    error = _raised(cls)
    for name, travel in TRAVELS.items():
        there = travel(error)
        assert there is not error, name
        assert _said(there) == _said(error), name
        cause = there.__cause__.__cause__ if travel is own else there.__cause__
        assert _said(cause) == _said(KeyError("cause")), name


@pytest.mark.parametrize("cls", ERRORS)
def test_notes_of_a_copy_are_its_own(cls: type[uvm.UVMError]) -> None:
    error = _raised(cls)
    for name, travel in TRAVELS.items():
        travel(error).add_note("of the copy")
        assert error.__notes__ == ["and then"], name


@pytest.mark.parametrize("cls", ERRORS)
def test_errors_compare_by_identity(cls: type[uvm.UVMError]) -> None:
    error = _raised(cls)
    assert error == error
    assert error != copy.copy(error)
    assert len({error, copy.copy(error)}) == 2


def test_a_context_that_was_suppressed_stays_so() -> None:
    try:
        try:
            raise KeyError("context")
        except KeyError:
            raise uvm.NoSpaceError("no slot") from None
    except uvm.NoSpaceError as error:
        there = copy.copy(error)
    assert there.__suppress_context__
    assert there.__cause__ is None


def test_an_error_of_the_operating_system_keeps_the_file() -> None:
    there = copy.copy(uvm.AccessDeniedError(13, "denied", "disk.vhdx"))
    assert (there.errno, there.strerror, there.filename) == (13, "denied", "disk.vhdx")


def test_the_copy_for_one_caller_is_caused_by_the_original() -> None:
    undecodable = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    found = SyntaxError("no", ("x.py", 1, 1, "?"))
    ours = uvm.HostPathError("disk", "missing")
    for error in (ours, OSError(2, "missing", "disk"), ValueError(1), undecodable, found):
        assert own(error).__cause__ is error
        assert str(own(error)) == str(error)


def test_an_undo_that_failed_travels_with_its_parts() -> None:
    parts = [uvm.GuestError("add", 5, "no"), uvm.HostError("remove", 6)]
    there = _pickled(4)(UndoFailedError.of(*parts))
    assert [_said(part) for part in there.exceptions] == [_said(part) for part in parts]
    assert there.split(uvm.GuestError)[0] is not None


class _NeedsMore(Exception):
    """A foreign exception that is not made again of its ``args``."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")


class _HoldsLock(Exception):
    def __init__(self) -> None:
        super().__init__(threading.Lock())


class _SaysNothing(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")

    def __reduce__(self) -> str:
        raise ValueError("no")


_FOREIGN = [
    pytest.param(_NeedsMore(5, "no disk"), "_NeedsMore: 5: no disk", id="needs more"),
    pytest.param(_HoldsLock(), "_HoldsLock: <unlocked", id="holds a lock"),
    pytest.param(_SaysNothing(), "_SaysNothing", id="says nothing"),
    pytest.param(ExceptionGroup("two", [_HoldsLock(), _NeedsMore(5, "")]), "two", id="group"),
    pytest.param(KeyboardInterrupt(threading.Lock()), "KeyboardInterrupt", id="no Exception"),
]


@pytest.mark.parametrize(("cause", "said"), _FOREIGN)
@pytest.mark.parametrize("travel", [TRAVELS[name] for name in TRAVELS if name not in ("copy", "own")])
def test_a_cause_that_cannot_be_pickled_says_what_it_was(
    travel: Callable[[Any], Any], cause: BaseException, said: str
) -> None:
    error = uvm.NoSpaceError("no slot")
    error.__cause__ = uvm.GuestError("add", 5)
    error.__cause__.__cause__ = cause
    there = travel(error)
    assert _said(there.__cause__) == _said(error.__cause__)
    assert said in str(there.__cause__.__cause__)
    assert copy.copy(error.__cause__).__cause__ is cause


def test_a_part_of_a_group_that_cannot_be_pickled_says_what_it_was() -> None:
    there = _pickled(4)(uvm.UVMErrorGroup("both", [_NeedsMore(5, "no disk"), uvm.NoSpaceError("full")]))
    foreign, ours = there.exceptions
    assert "_NeedsMore: 5: no disk" in str(foreign)
    assert _said(ours) == _said(uvm.NoSpaceError("full"))


def _fail(error: Exception) -> None:
    raise error


def test_an_error_comes_out_of_another_process() -> None:
    errors = [_raised(cls) for cls in ERRORS]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for error in errors:
            there = pool.submit(_fail, error).exception()
            assert there is not None
            assert (type(there), str(there)) == (type(error), str(error))
