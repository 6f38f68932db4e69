"""``uvm document``: the document of a VM that is not created, from TOML and from JSON."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from tests.cli.conftest import Run
from tests.cli.support import LCOW, WCOW
from uvm import UtilityVM
from uvm.backends.fake import FakeBackend
from uvm.cli.podfile import read_pod_file
from uvm.cli.podhost import make_host


@pytest.mark.parametrize("file", [LCOW, WCOW], ids=["linux", "windows"])
def test_the_document_is_the_one_that_creates_the_vm(run: Run, file: Path) -> None:
    async def created() -> object:
        pod = read_pod_file(file)
        async with make_host(pod) as backend, UtilityVM.create(pod.options, backend=backend) as vm:
            return backend.vms[vm.id].document

    assert json.loads(run("document", file).output) == anyio.run(created)


def test_a_file_in_json_says_the_same_as_one_in_toml(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "pod.json"
    file.write_text(json.dumps(tomllib.loads(LCOW.read_text("utf-8"))), "utf-8")
    assert run("document", file).output == run("document", LCOW).output


def test_nothing_but_options_is_needed(run: Run, pod_file: Callable[[str], Path]) -> None:
    document = json.loads(run("document", pod_file('vm = {os = "linux", memory_mb = 512}')).output)
    assert document["VirtualMachine"]["ComputeTopology"]["Memory"]["SizeInMB"] == 512


def test_the_facts_are_those_of_the_backend_that_is_named(
    run: Run, pod_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def opened(name: str) -> FakeBackend:
        asked.append(name)
        return FakeBackend()

    monkeypatch.setattr("uvm.cli.podhost.open_backend", opened)
    assert run("document", pod_file('vm = {os = "linux"}'), "--backend", "mine").status == 0
    assert asked == ["mine"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("vm.toml", "vm = ", "is not TOML"),
        ("vm.json", "{", "is not JSON"),
        ("vm.json", "[1]", "must be an object with vm, host"),
        ("vm.json", '{"vm": {"os": "linux", "memory": 1}}', "did you mean memory_mb?"),
        ("vm.toml", 'vm = {os = "linux", boot_files_path = "C:\\\\none"}', "C:\\none"),
    ],
)
def test_a_mistake_is_one_line(run: Run, tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    ran = run("document", tmp_path / name)
    assert ran.status in (1, 2)
    assert ran.output == ""
    assert said in ran.error
    assert ran.error.count("\n") == 1
