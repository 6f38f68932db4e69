"""The report of a run: what a user sends us, with nothing private in it.

It has facts of the machine that behaviour depends on (the build of Windows, the processor's architecture),
what the checks found, and each scenario with its outcome. Of what errors say, names, paths, ids and addresses
are replaced by what they are.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from attrs import define, field, frozen

import uvm
from tests.hyperv.host import Means
from uvm.backend import HostInfo
from uvm.cli.doctor import Examination
from uvm.testing.backends.play import Played

#: Of what the report is made; to be raised when a name in it changes.
VERSION: Final = 1

#: What is known by its text, and begins a path.
_DIRECTORIES: Final = ("home", "temp", "checkout", "directory")
#: The variables that name the user, the machine and its domain, which may be the machine itself.
_VARIABLES: Final = {
    "USERDNSDOMAIN": "domain",
    "USERDOMAIN": "domain",
    "COMPUTERNAME": "machine",
    "USERNAME": "user",
}
#: Of a word, in which ``_`` is none of its letters.
_BEGIN: Final = r"(?<![^\W_])"
_END: Final = r"(?![^\W_])"
#: What private texts were replaced by.
_REPLACED: Final = rf"<(?:{'|'.join(_DIRECTORIES)}|user|machine|domain|sid|mac|address|path|id \d+)>"
#: A name in a path, which may have spaces and quotes.
_NAME: Final = rf"(?:[^\\/\r\n\":<>|]|{_REPLACED})+"
_SEPARATORS: Final = r"[\\/]+"
_PART: Final = rf"(?:[a-z]:|{_NAME})"
#: What a path begins with: a directory that is known, a drive, a server, a device. No scheme is before it.
_ROOT: Final = rf"(?:(?P<known><(?:{'|'.join(_DIRECTORIES)})>)|[a-z]:|(?:\\+|(?<!\w:)(?<!/)//+){_PART})"
_PATTERNS: Final = {
    "id": r"(?<![0-9a-f])[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![0-9a-f])",
    # Those of the users and services that each Windows has are shorter.
    "sid": rf"{_BEGIN}s-1-\d+(?:-\d+){{3,}}",
    "mac": r"(?<![0-9a-f])(?:[0-9a-f]{12}|[0-9a-f]{2}(?:[-:][0-9a-f]{2}){5})(?![0-9a-f])",
    "address": r"(?<!\d)\d{1,3}(?:\.\d{1,3}){3}(?!\d)|(?<!\w)(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]*",
    # What is left of a path is its last name.
    "path": rf"{_BEGIN}{_ROOT}(?:{_SEPARATORS}{_PART})*(?={_SEPARATORS}{_NAME})",
}


@define
class Scrubber:
    """Replaces what is private in texts, by what it is.

    :ivar known: what each private text is; longer ones are replaced first.
    """

    known: Mapping[str, str] = field(factory=dict)
    _ids: dict[str, int] = field(factory=dict, init=False)

    @classmethod
    def of_this_machine(cls, directories: Iterable[str] = ()) -> Scrubber:
        """Return one that knows the names of the user and of the machine, and where their files are.

        :param directories: further ones, that the user named.
        """
        known = {path: "directory" for each in directories if each for path in (each, os.path.abspath(each))}
        known |= {str(Path.home()): "home", tempfile.gettempdir(): "temp"}
        known |= {str(Path(tempfile.gettempdir()).resolve()): "temp", str(Path.cwd()): "checkout"}
        known |= {os.environ.get(name, ""): what for name, what in _VARIABLES.items()}
        return cls(known | {platform.node(): "machine", getpass.getuser(): "user"})

    def __call__(self, text: str) -> str:
        """Return a text without what is private. What was scrubbed already stays as it is."""
        text = self._without_known(text)
        for what, pattern in _PATTERNS.items():
            text = re.sub(pattern, partial(self._replacement, what), text, flags=re.IGNORECASE)
        return text

    def _without_known(self, text: str) -> str:
        known = {each.rstrip("\\/"): what for each, what in self.known.items()}
        longest_first = sorted(filter(None, known), key=len, reverse=True)
        pattern = "|".join([_REPLACED, *(f"({_spelled(each)})" for each in longest_first)])

        def replacement(found: re.Match[str]) -> str:
            return f"<{known[longest_first[found.lastindex - 1]]}>" if found.lastindex else found[0]

        return re.sub(pattern, replacement, text, flags=re.IGNORECASE)

    def _replacement(self, what: str, found: re.Match[str]) -> str:
        if what == "id":
            # One that comes again has the same number.
            return f"<id {self._ids.setdefault(found[0].lower(), len(self._ids) + 1)}>"
        return found.groupdict().get("known") or f"<{what}>"


def _spelled(private: str) -> str:
    """Return the pattern of a text: of a path with any separators, as a literal has them too; whole words."""
    parts = _SEPARATORS.join(re.escape(part) for part in re.split(_SEPARATORS, private))
    return f"{_BEGIN}{parts}{_END}"


@frozen
class Machine:
    """The machine of a run."""

    found: Examination
    host: HostInfo


def report(
    machine: Machine, means: Means, played: Sequence[tuple[Played, float]], scrub: Scrubber
) -> dict[str, Any]:
    """Return the report.

    :param played: each scenario with its seconds.
    """
    return {
        "report": VERSION,
        "uvm": uvm.__version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "windows": {"build": machine.host.build, "machine": machine.host.machine},
        "checks": {name: [each.status, scrub(each.text)] for name, each in machine.found.findings.items()},
        "has": sorted(each.value for each in means.controls),
        "lacks": [scrub(each) for each in means.lacks],
        "others": [scrub(each) for each in means.others],
        "outcomes": dict(Counter(each.outcome for each, _ in played)),
        "scenarios": [
            {
                "scenario": each.scenario.name,
                "level": each.scenario.level.name.lower(),
                "outcome": each.outcome,
                "seconds": round(seconds, 1),
                "why": scrub(each.why),
            }
            for each, seconds in played
        ],
    }


def summary(made: Mapping[str, Any]) -> list[str]:
    """Return a report as lines of Markdown: the counts, and what failed."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in made["outcomes"].items()) or "none played"
    failed = [each for each in made["scenarios"] if each["outcome"] == "fails"]
    return [
        f"uvm {made['uvm']}, {made['python']}, Windows build {made['windows']['build']}: {counts}",
        *(f"- {each['scenario']}: {each['why']}" for each in failed),
        *(f"- not played: {each}" for each in made["lacks"]),
    ]


def write(made: Mapping[str, Any], path: Path) -> None:
    """Write a report as JSON."""
    path.write_text(json.dumps(made, indent=2) + "\n", "utf-8")
