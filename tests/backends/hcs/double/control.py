"""The host's side of the double in Python: what ``double.h`` exports for the tests."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import cffi
from attrs import frozen

from tests.backends.hcs.double.build import Libraries, build
from uvm.backends.hcs._bindings import computecore, computenetwork
from uvm.backends.hcs.dlls import Library

__all__ = ["Answer", "Double", "FaultKind", "Question", "the_double"]

_INTERFACE: Final = """
    typedef void (*double_host)(uint64_t, const char *, uint64_t, uint64_t,
                                const char16_t *, const char16_t *, int32_t, int32_t);
    void DoublePlug(double_host host);
    void DoubleAnswer(uint64_t question, int32_t result, const char16_t *document,
                      uint32_t process_id, void *input, void *output, void *error);
    void DoubleEvent(uint64_t object, int32_t type, const char16_t *data);
    void DoubleFault(const char *call, int32_t fault, int32_t result,
                     const char16_t *document, uint32_t count);
    void DoubleDrain(void);
    const char *DoubleMisuses(void);
    const char *DoubleLeaks(void);
    void DoubleReset(void);
    uint64_t DoubleObjects(void);
    uint64_t DoubleStrings(void);
    void *DoubleLocalFree(void *memory);
    void DoubleCoTaskMemFree(void *memory);
"""


class FaultKind(enum.IntEnum):
    """``enum double_fault``."""

    NONE = 0
    AT_ONCE = 1
    LATER = 2
    NEVER = 3
    TWICE = 4
    SYNCHRONOUSLY = 5
    DONE_BUT = 6


@frozen
class Question:
    """What a call asks the host.

    :ivar number: identifies it in the answer.
    :ivar object: the handle of the object that it concerns or makes; 0 if none.
    :ivar parent: the system in which a process is made.
    :ivar subject: an id.
    :ivar document: the text argument.
    """

    number: int
    call: str
    object: int = 0
    parent: int = 0
    subject: str = ""
    document: str = ""
    fault: FaultKind = FaultKind.NONE
    fault_result: int = 0


@frozen
class Answer:
    """The host's answer.

    :ivar result: the HRESULT, signed or not.
    :ivar handles: of a process's streams; they belong to the receiver of the answer.
    """

    result: int = 0
    document: str | None = None
    pid: int = 0
    handles: tuple[int, int, int] = (0, 0, 0)


#: Takes a question, in any thread; must return soon.
Host = Callable[[Question], None]


class Double:
    """The double, of which there is one in a process.

    :ivar core: computecore.dll, in the form that the library takes.
    :ivar network: computenetwork.dll.
    """

    def __init__(self, libraries: Libraries) -> None:
        self._ffi = cffi.FFI()
        self._ffi.cdef(_INTERFACE)
        self._lib: Any = self._ffi.dlopen(str(libraries.computecore))
        self._callback: Any = self._ffi.NULL
        self.core: Library[Any] = Library(
            _load(computecore.ffi, libraries.computecore), computecore.ffi, self._lib.DoubleLocalFree
        )
        self.network: Library[Any] = Library(
            _load(computenetwork.ffi, libraries.computenetwork),
            computenetwork.ffi,
            self._lib.DoubleCoTaskMemFree,
        )

    def plug(self, host: Host) -> None:
        """Set the receiver of questions. The calling thread is the one that must never wait for the host."""

        def ask(number: int, call: Any, obj: int, parent: int, *rest: Any) -> None:
            subject, document, fault, result = rest
            name, texts = self._ffi.string(call).decode(), (self._text(subject), self._text(document))
            host(Question(number, name, obj, parent, *texts, FaultKind(fault), result & 0xFFFFFFFF))

        callback = self._ffi.callback("double_host", ask)
        self._lib.DoublePlug(callback)
        self._callback = callback

    def unplug(self) -> None:
        """Remove the receiver of questions; calls in progress fail: the service is not available."""
        self._lib.DoublePlug(self._ffi.NULL)

    def answer(self, question: int, answer: Answer) -> None:
        """Answer a question, from any thread."""
        streams = [self._ffi.cast("void *", handle) for handle in answer.handles]
        self._lib.DoubleAnswer(
            question, _signed(answer.result), self._wide(answer.document), answer.pid, *streams
        )

    def event(self, obj: int, kind: int, data: str = "") -> None:
        """Send an event to those registered for the events of a handle."""
        self._lib.DoubleEvent(obj, kind, self._wide(data or None))

    def fault(self, call: str, kind: FaultKind, result: int = 0, document: str = "", times: int = 1) -> None:
        """Have the next calls of a name fail."""
        self._lib.DoubleFault(call.encode(), kind, _signed(result), self._wide(document or None), times)

    def drain(self) -> None:
        """Block until every callback has been called."""
        self._lib.DoubleDrain()

    def misuses(self) -> list[str]:
        """Return the misuses, one per line."""
        return self._lines(self._lib.DoubleMisuses())

    def leaks(self) -> list[str]:
        """Return what is still open and what was not freed, one per line."""
        return self._lines(self._lib.DoubleLeaks())

    def reset(self) -> None:
        """Remove the receiver of questions, and forget everything."""
        self._lib.DoubleReset()

    @property
    def objects(self) -> int:
        """The number of open handles and operations."""
        return int(self._lib.DoubleObjects())

    @property
    def strings(self) -> int:
        """The number of strings that were not freed."""
        return int(self._lib.DoubleStrings())

    def _text(self, pointer: Any) -> str:
        return self._ffi.string(pointer) if pointer else ""

    def _wide(self, text: str | None) -> Any:
        return self._ffi.NULL if text is None else self._ffi.new("char16_t[]", text)

    def _lines(self, text: Any) -> list[str]:
        lines: str = self._ffi.string(text).decode(errors="replace")
        return lines.splitlines()


def _load(ffi: Any, path: Path) -> Any:
    return ffi.dlopen(str(path))


def _signed(result: int) -> int:
    return (result & 0xFFFFFFFF) - ((result & 0x80000000) << 1)


@functools.cache
def the_double() -> Double:
    """Return the double, built and loaded; NoCompilerError if that is not possible here."""
    return Double(build())
