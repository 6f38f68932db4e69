"""Replaying a recorded hcsshim script: its requests beside ours, each with a mark, and a verdict."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import anyio

from uvm._drawing.blocks import Line, Part, Span, Table, line, table
from uvm._repr import described
from uvm._vm.requestsummary import shorten, summarize
from uvm.cli.errors import UsageError, read_text
from uvm.cli.terminal import Terminal
from uvm.errors import UVMError
from uvm.testing.conformance import ComparedStep, differences, load_cases, replay_script

#: How wide the recorded request of a pair is at least, so that pairs stand below each other.
_COLUMN: Final = 40


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
        scripts_drawn = table(("script", "guest", "operations", "requests"), rows, indent=2, right=(2, 3))
        terminal.write(f"The scripts of {path}; choose one with --script NAME.", "", scripts_drawn)
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
    if not all(isinstance(step, dict) and isinstance(step.get("requests"), list | None) for step in steps):
        return "each of steps must be an object, and its requests a list"
    if not all(_is_request(each) for step in steps for each in step.get("requests") or ()):
        return "each of requests must be an object with 'to', a text, and 'doc', an object"
    return ""


def _is_request(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("to"), str) and isinstance(value.get("doc"), dict)


def _requests(step: dict[str, Any]) -> int:
    return len(step.get("requests") or ())


async def _replay(terminal: Terminal, case: dict[str, Any]) -> int:
    terminal.write(
        Span(f"script {case['name']}", "bold"),
        "What hcsshim was recorded to send, and what uvm sends: "
        f"a {case['os'].capitalize()} VM, build {case['build']}.",
        "",
        table((), [("", Span("recorded", "dim"), Span("│ ours", "dim"))], indent=5, least=(1, _COLUMN)),
    )
    try:
        steps = await replay_script(case)
    except UVMError:
        raise
    # Its host and options may be anything.
    except Exception as error:
        raise UsageError(f"script {case['name']}: its host cannot be made: {described(error)}") from error
    if steps and (failure := steps[-1].failure):
        what = f"operation {len(steps)} cannot be replayed: {steps[-1].op}: {failure!r}"
        raise UsageError(f"script {case['name']}: {what}") from failure
    for number, step in enumerate(steps, 1):
        terminal.write(*draw_step(number, step))
    terminal.write("", _verdict(case["name"], steps), "")
    return 1 if any(step.difference for step in steps) else 0


# Drawing.


def draw_step(number: int, step: ComparedStep) -> Iterator[Line | Table]:
    """Draw an operation: its arguments, the requests in pairs, the error, the differences."""
    # What is refused before anything is sent counts as the same, whatever hcsshim sent until it refused.
    early = step.recorded.error is not None and not step.ours.requests
    pairs = [] if early else list(zip_longest(step.recorded.requests, step.ours.requests))
    nothing = "" if pairs or step.repeated else "  (nothing is sent)"
    yield line(f"{number:>3}  ", Span(" ".join(_words(step.op)), "bold"), Span(nothing, "dim"))
    if pairs:
        rows = [_pair(recorded, ours) for recorded, ours in pairs]
        yield table((), rows, indent=5, least=(1, _COLUMN))
    if step.repeated:
        what = "1 recorded request" if step.repeated == 1 else f"{step.repeated} recorded requests"
        yield line(Span(f"{what} repeated: by the rules not compared", "dim"), indent=7)
    if step.recorded.error and step.ours.error:
        yield line(Span(f"refused: {step.ours.error}", "dim"), indent=7)
    for difference in step.difference:
        yield line(Span(difference, "red"), indent=7)


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


def _pair(recorded: Any, ours: Any) -> tuple[Part, ...]:
    """Return two requests side by side, with a mark that says whether they are the same."""
    same = recorded is not None and ours is not None and not list(differences(recorded, ours))
    mark = Span("=", "green") if same else Span("≠", "red")
    return mark, _described(recorded), Span("│", "dim"), _described(ours)


def _described(request: Any) -> str:
    if request is None:
        return "nothing"
    summary = summarize(request["to"], request["doc"])
    return f"{summary.to:<5} {summary.verb:<6} {summary.resource}  {', '.join(summary.settings)}".rstrip()


def _verdict(name: str, steps: list[ComparedStep]) -> Line:
    requests = sum(len(step.ours.requests) for step in steps)
    wrong = sum(bool(step.difference) for step in steps)
    if wrong:
        said = f": {wrong} of the {len(steps)} operations of {name} are not as recorded."
        return line(Span("✗ different", "red"), said)
    said = f": all {requests} requests of {name}, in {len(steps)} operations, are those of hcsshim."
    return line(Span("✓ the same", "green"), said)
