"""What ends a command: a wrong command line or file, and errors of uvm in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from uvm.errors import UVMError


class UsageError(Exception):
    """The command line is wrong, or a file that it names. Exit status 2."""


class OutputError(Exception):
    """What a command prints cannot be written, though its reader is there: a disk is full, for instance."""

    @classmethod
    def of(cls, what: str, error: OSError) -> OutputError:
        """Return the error for that of a write."""
        return cls(f"the {what} cannot be written, and is lost in part: {error.strerror or error}")


def read_text(path: Path) -> str:
    """Return the text of a file of the user's, without its byte order mark.

    :raises UsageError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}") from None


def in_one_line(error: UVMError | OutputError) -> str:
    """Return an error with its notes as one line."""
    return printable("; ".join([str(error) or type(error).__name__, *getattr(error, "__notes__", ())]))


def leaves(error: Exception) -> Iterator[Exception]:
    """Yield the exceptions of a group and of its groups; a group of uvm's own is one error."""
    if isinstance(error, ExceptionGroup) and not isinstance(error, UVMError):
        for each in error.exceptions:
            yield from leaves(each)
    else:
        yield error


def printable(text: str) -> str:
    """Replace characters that end a line or control a terminal: a guest may have written the text."""
    return "".join(c if c.isprintable() else " " for c in text)
