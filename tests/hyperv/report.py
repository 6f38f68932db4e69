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

_GUID: Final = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
#: A name in a path, which may have spaces.
_NAME: Final = r"[^\\/\r\n'\";:,<>|]+"
_SEPARATORS: Final = r"[\\/]+"
_PATTERNS: Final = {
    "sid": re.compile(r"\bS-1-5-21(?:-\d+)+"),
    "mac": re.compile(r"\b[0-9a-f]{2}(?:[-:][0-9a-f]{2}){5}\b", re.IGNORECASE),
    "address": re.compile(
        r"\b\d{1,3}(?:\.\d{1,3}){3}\b|(?<!\w)(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]*", re.IGNORECASE
    ),
    # What is left of a path is its last name.
    "path": re.compile(
        rf"(?<!\w)(?:[a-z]:|\\{{2,}}{_NAME})(?:{_SEPARATORS}{_NAME})*(?={_SEPARATORS}{_NAME})", re.IGNORECASE
    ),
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
        known = {each: "directory" for each in directories if each}
        known |= {str(Path.home()): "home", tempfile.gettempdir(): "temp"}
        known |= {str(Path(tempfile.gettempdir()).resolve()): "temp", str(Path.cwd()): "checkout"}
        names = {"user": getpass.getuser(), "machine": platform.node()}
        names |= {"domain": os.environ.get("USERDOMAIN", "")}
        return cls(known | {name: what for what, name in names.items() if name})

    def __call__(self, text: str) -> str:
        """Return a text without what is private."""
        for private in sorted(self.known, key=len, reverse=True):
            text = re.sub(_spelled(private), f"<{self.known[private]}>", text, flags=re.IGNORECASE)
        text = re.sub(rf"\b{_GUID}\b", self._numbered, text, flags=re.IGNORECASE)
        for what, pattern in _PATTERNS.items():
            text = pattern.sub(f"<{what}>", text)
        return text

    def _numbered(self, found: re.Match[str]) -> str:
        """Return the number of an id: one that comes again has the same."""
        return f"<id {self._ids.setdefault(found[0].lower(), len(self._ids) + 1)}>"


def _spelled(private: str) -> str:
    """Return the pattern of a text: of a path with any separators, as a literal has them too; whole words."""
    parts = _SEPARATORS.join(re.escape(part) for part in re.split(_SEPARATORS, private))
    return rf"(?<!\w){parts}(?!\w)"


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
