"""Comparison of this library, on the in-memory backend, with recorded behaviour of hcsshim.

Two formats, described in the README next to the recorded data: create documents for given options, and
scripts of device operations with the requests of each. Requests are compared as JSON values, after the rules
of comparison described there.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator
from typing import Any

from attrs import Factory, define, frozen

from uvm._document import files_to_stat, plan_creation
from uvm._repr import Value, described
from uvm.backend import FileInfo
from uvm.backends.fake import FakeBackend
from uvm.errors import UVMError
from uvm.options import from_hcsshim
from uvm.schema.requests import Resource, ScsiAttachment, VirtualAdapter, VSMBShares, parse_resource_path
from uvm.testing.replay import OWNER, VM_ID, Replay, StepResult, host_of

BOOT_FILE_BYTES = 1 << 20


@frozen(repr=False)
class CaseResult(Value):
    """The result of a case.

    :ivar difference: lines that say what differs; empty if nothing does.
    """

    name: str
    difference: tuple[str, ...] = ()


def load_cases(text: str) -> list[dict[str, Any]]:
    """Return the cases of a file in either format. A case without a name is named by its number, from 1.

    :raises ValueError: the file is not a JSON list of objects.
    """
    cases = json.loads(text.removeprefix("\ufeff"))
    if not isinstance(cases, list) or not all(isinstance(case, dict) for case in cases):
        raise ValueError("a file of cases is a JSON list of objects")
    return [{"name": f"case {number}", **case} for number, case in enumerate(cases, 1)]


async def check_case(case: dict[str, Any]) -> CaseResult:
    """Run one case and compare. A case that cannot be run counts as different."""
    try:
        found = await _check_script(case) if "ops" in case else list(_check_document(case))
    except Exception as error:
        found = [_not_run(error)]
    return CaseResult(case["name"], tuple(found))


# Documents.


def _check_document(case: dict[str, Any]) -> Iterator[str]:
    host = host_of(case)
    try:
        options = from_hcsshim(case["os"], case["options"], id=VM_ID, owner=OWNER)
        present = {host.path.normcase(path) for path in case["files"]}
        files = {
            path: FileInfo(BOOT_FILE_BYTES) if host.path.normcase(path) in present else None
            for path in files_to_stat(options, host)
        }
        plan = plan_creation(options, host, files, id=VM_ID, new_id=FakeBackend().new_id)
    except UVMError as error:
        if "error" not in case:
            yield f"refused: {error}"
        return
    if "error" in case:
        yield f"accepted, but hcsshim refuses: {case['error']}"
        return
    yield from differences(case["document"], plan.document)


# Scripts.


@frozen
class ComparedStep:
    """One operation of a script: what was recorded of it and what we did, both by the rules of comparison.

    :ivar repeated: how many recorded requests the rules leave out, because they repeat earlier ones.
    :ivar difference: lines that say what differs.
    :ivar failure: why the operation could not be carried out; the script ends with it.
    """

    op: dict[str, Any]
    recorded: StepResult = Factory(StepResult)
    ours: StepResult = Factory(StepResult)
    repeated: int = 0
    difference: tuple[str, ...] = ()
    failure: Exception | None = None


async def replay_script(case: dict[str, Any]) -> list[ComparedStep]:
    """Carry out a script on a fresh in-memory host, and compare each step."""
    ours, theirs = Normalizer(), Normalizer()
    steps = []
    async with Replay.of(case) as replay:
        for op, step in zip(case["ops"], case["steps"], strict=False):
            try:
                recorded, result = theirs.step(StepResult.of_recorded(step)), ours.step(await replay.run(op))
            except Exception as error:
                # The following steps depend on it.
                steps.append(ComparedStep(op, failure=error))
                break
            repeated = len(step.get("requests") or ()) - len(recorded.requests)
            difference = tuple(compare_step(recorded, result))
            steps.append(ComparedStep(op, recorded, result, repeated, difference))
    return steps


async def _check_script(case: dict[str, Any]) -> list[str]:
    ops, steps = len(case["ops"]), len(case["steps"])
    found = [] if ops == steps else [f"{ops} operations, but {steps} steps"]
    for number, step in enumerate(await replay_script(case)):
        lines = step.difference if step.failure is None else [_not_run(step.failure)]
        found += [f"step {number}, {json.dumps(step.op)}: {line}" for line in lines]
    return found


def _not_run(error: Exception) -> str:
    return f"could not be run: {described(error)}"


def compare_step(expected: StepResult, result: StepResult) -> Iterator[str]:
    """Yield, line by line, the differences of a normalized step from the recorded one."""
    if (expected.error is None) != (result.error is None):
        yield f"error: {expected.error!r} was recorded, this library has {result.error!r}"
        return
    # An error that is detected before anything is sent may send nothing.
    if expected.error is None or result.requests:
        yield from differences(expected.requests, result.requests)
    if expected.error is not None:
        return
    for name, value in expected.values.items():
        # For a single shared file, a recording may have the share's path or the file's in it.
        share_path = result.values.get("share_path") if name == "guest_path" else None
        if value not in (result.values.get(name), share_path):
            yield f"{name}: {value!r} was recorded, this library has {result.values.get(name)!r}"


@define
class Normalizer:
    """Applies the rules of comparison to the steps of one script, in order."""

    adapters: dict[str, str] = Factory(dict)
    allowed_files: dict[str, list[str]] = Factory(dict)

    def step(self, step: StepResult) -> StepResult:
        requests = list(self._requests(copy.deepcopy(step.requests)))
        if not any(_attaches_disk(request["doc"]) for request in requests):
            # hcsshim repeats the grant on every add; it counts only for a new attachment.
            requests = [request for request in requests if request["to"] != "grant"]
        return StepResult(requests, step.values, step.error)

    def _requests(self, requests: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for request in requests:
            document = request["doc"]
            self._learn_adapters(document)
            if self._changes_share(document):
                yield {"to": request["to"], "doc": self._renamed(document)}

    def _learn_adapters(self, document: dict[str, Any]) -> None:
        settings = _settings_of(document)
        found = [settings.get("AdapterId"), settings.get("AdapterInstanceId")]
        if document.get("ResourceType") == "Network":
            found.append(settings.get("ID"))
        if isinstance(resource := _resource_of(document), VirtualAdapter):
            found.append(resource.id)
        for adapter in found:
            if adapter:
                self.adapters.setdefault(adapter, f"nic-{len(self.adapters) + 1}")

    def _renamed(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._renamed(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self._renamed(each) for each in value]
        if isinstance(value, str):
            head, slash, tail = value.rpartition("/")
            return head + slash + self.adapters.get(tail, tail)
        return value

    def _changes_share(self, document: dict[str, Any]) -> bool:
        """Count repeated names once, and return whether the request then changes anything."""
        settings = _settings_of(document)
        if not isinstance(_resource_of(document), VSMBShares) or "AllowedFiles" not in settings:
            return True
        files = settings["AllowedFiles"] = list(dict.fromkeys(settings["AllowedFiles"]))
        before = self.allowed_files.get(settings["Name"])
        self.allowed_files[settings["Name"]] = files
        return document.get("RequestType") != "Update" or before != files


def _attaches_disk(document: dict[str, Any]) -> bool:
    return document.get("RequestType") == "Add" and isinstance(_resource_of(document), ScsiAttachment)


def _settings_of(document: dict[str, Any]) -> dict[str, Any]:
    settings = document.get("Settings")
    return settings if isinstance(settings, dict) else {}


def _resource_of(document: dict[str, Any]) -> Resource | None:
    return parse_resource_path(str(document.get("ResourcePath", "")))


# Comparison.


def differences(expected: Any, ours: Any, at: str = "$") -> Iterator[str]:
    """Yield, line by line, the differences of two JSON values."""
    if isinstance(expected, dict) and isinstance(ours, dict):
        for key in sorted({*expected, *ours}):
            if key not in ours:
                yield f"{at}.{key}: missing; {json.dumps(expected[key])} was recorded"
            elif key not in expected:
                yield f"{at}.{key}: {json.dumps(ours[key])} was not recorded"
            else:
                yield from differences(expected[key], ours[key], f"{at}.{key}")
    elif isinstance(expected, list) and isinstance(ours, list):
        if len(expected) != len(ours):
            yield f"{at}: {json.dumps(expected)} was recorded, this library has {json.dumps(ours)}"
            return
        for index, (each, our) in enumerate(zip(expected, ours, strict=True)):
            yield from differences(each, our, f"{at}[{index}]")
    # In JSON, true is not 1.
    elif expected != ours or isinstance(expected, bool) != isinstance(ours, bool):
        yield f"{at}: {json.dumps(expected)} was recorded, this library has {json.dumps(ours)}"
