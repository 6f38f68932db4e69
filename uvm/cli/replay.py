"""Replaying a recorded hcsshim script: its requests beside ours, each with a mark, and a verdict."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import anyio

from uvm.cli.errors import UsageError, read_text
from uvm.cli.requests import shorten, summarize
from uvm.cli.terminal import Terminal
from uvm.testing.conformance import ComparedStep, differences, load_cases, replay_script


def run(terminal: Terminal, given: Namespace) -> int:
    """Replay a script of a file; return 0 if all that it sends is as recorded, else 1.

    Without a script, list those of the file.

    :raises UsageError: the file cannot be read, or has no such script.
    """
    path, script = given.file, given.script
    scripts = _load(path)
    if script is None:
        rows = [
            (name, case["os"], str(len(case["ops"])), str(sum(_requests(step) for step in case["steps"])))
            for name, case in scripts.items()
        ]
        terminal.write(f"The scripts of {path}; choose one with --script NAME.", "")
        terminal.write(*terminal.table(("script", "guest", "operations", "requests"), rows))
        return 0
    if script not in scripts:
        raise UsageError(f"{path}: there is no script {script!r}; there are {', '.join(scripts)}")
    return anyio.run(_replay, terminal, scripts[script])


def _load(path: Path) -> dict[str, dict[str, Any]]:
    try:
        cases = load_cases(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is no file of recorded scripts: {error}") from None
    scripts = {str(case.get("name")): case for case in cases if "ops" in case}
    if not scripts:
        raise UsageError(f"{path}: has no scripts")
    for name, case in scripts.items():
        if problem := _problem(case):
            raise UsageError(f"{path}: script {name}: {problem}")
    return scripts


def _problem(case: dict[str, Any]) -> str:
    """Return what a script lacks; its operations are checked as they run."""
    if case.get("os") not in ("linux", "windows"):
        return "os must be 'linux' or 'windows'"
    if not isinstance(case.get("build"), int):
        return "build must be a whole number"
    ops, steps = case["ops"], case.get("steps")
    if not isinstance(ops, list) or not isinstance(steps, list) or len(ops) != len(steps):
        return "ops and steps must be lists of the same length"
    return ""


def _requests(step: dict[str, Any]) -> int:
    return len(step.get("requests") or ())


async def _replay(terminal: Terminal, case: dict[str, Any]) -> int:
    terminal.write(
        terminal.paint(f"script {case['name']}", "bold"),
        "What hcsshim was recorded to send, and what uvm sends: "
        f"a {case['os'].capitalize()} VM, build {case['build']}.",
        "",
        terminal.paint(f"       {'recorded'.ljust(_column(terminal))} {terminal.glyphs.bar} ours", "dim"),
    )
    steps = await replay_script(case)
    if steps and (failure := steps[-1].failure):
        what = f"operation {len(steps)} cannot be replayed: {steps[-1].op}: {failure!r}"
        raise UsageError(f"script {case['name']}: {what}") from failure
    for number, step in enumerate(steps, 1):
        terminal.write(*draw_step(terminal, number, step))
    terminal.write("", *_verdict(terminal, case["name"], steps), "")
    return 1 if any(step.difference for step in steps) else 0


# Drawing.


def draw_step(terminal: Terminal, number: int, step: ComparedStep) -> Iterator[str]:
    """Draw an operation: its arguments, the requests in pairs, the error, the differences."""
    asked = terminal.fit(" ".join(_words(step.op)), terminal.width - 26)
    # What is refused before anything is sent counts as the same, whatever hcsshim sent until it refused.
    early = step.recorded.error is not None and not step.ours.requests
    pairs = [] if early else list(zip_longest(step.recorded.requests, step.ours.requests))
    nothing = "" if pairs or step.repeated else terminal.paint("  (nothing is sent)", "dim")
    yield f"{number:>3}  {terminal.paint(asked, 'bold')}{nothing}"
    for recorded, ours in pairs:
        yield from _pair(terminal, recorded, ours)
    if step.repeated:
        what = "1 recorded request" if step.repeated == 1 else f"{step.repeated} recorded requests"
        yield terminal.paint(f"       {what} repeated: by the rules not compared", "dim")
    if step.recorded.error and step.ours.error:
        yield terminal.paint(terminal.fit(f"       refused: {step.ours.error}", terminal.width), "dim")
    for line in step.difference:
        for part in terminal.wrap(line, terminal.width - 7):
            yield "       " + terminal.paint(part, "red")


def _words(op: dict[str, Any]) -> Iterator[str]:
    """Return an operation as text: what it names first, then how."""
    names = ("path", "ref", "namespace", "endpoint")
    yield op["op"]
    yield from (_name(op[key]) for key in names if key in op)
    for key, value in op.items():
        if value is True or value == {}:
            yield key.replace("_", "-")
        elif key not in ("op", "as", *names) and value is not False:
            yield f"{key}={value}"
    if "as" in op:
        yield f"as {op['as']}"


def _name(value: Any) -> str:
    # Namespaces and endpoints are named by their HCN documents.
    return shorten(str(value.get("Name") or value.get("ID") if isinstance(value, dict) else value))


def _column(terminal: Terminal) -> int:
    return (terminal.width - 5 - 2 - 3) // 2


def _pair(terminal: Terminal, recorded: Any, ours: Any) -> Iterator[str]:
    """Draw two requests side by side, with a mark that says whether they are the same."""
    same = recorded is not None and ours is not None and not list(differences(recorded, ours))
    glyphs, width = terminal.glyphs, _column(terminal)
    mark = terminal.paint("=", "green") if same else terminal.paint(glyphs.differs, "red")
    left, right = (_described(terminal, request, width) for request in (recorded, ours))
    bar = terminal.paint(glyphs.bar, "dim")
    for line, (one, other) in enumerate(zip_longest(left, right, fillvalue="")):
        yield f"     {' ' if line else mark} {one.ljust(width)} {bar} {other}"


def _described(terminal: Terminal, request: Any, width: int) -> list[str]:
    if request is None:
        return ["nothing"]
    summary = summarize(request["to"], request["doc"])
    head = f"{summary.to:<5} {summary.verb:<6} {summary.resource}"
    line = f"{head}  {', '.join(summary.settings)}"
    if len(line) <= width:
        return [line]
    settings = terminal.flow(summary.settings, width - 6, 2) if summary.settings else []
    return [terminal.fit(head, width), *(f"      {line}" for line in settings)]


def _verdict(terminal: Terminal, name: str, steps: list[ComparedStep]) -> Iterator[str]:
    requests = sum(len(step.ours.requests) for step in steps)
    wrong = sum(bool(step.difference) for step in steps)
    if wrong:
        mark = terminal.paint(f"{terminal.glyphs.no} different", "red")
        yield f"{mark}: {wrong} of the {len(steps)} operations of {name} are not as recorded."
        return
    mark = terminal.paint(f"{terminal.glyphs.yes} the same", "green")
    yield f"{mark}: all {requests} requests of {name}, in {len(steps)} operations, are those of hcsshim."
