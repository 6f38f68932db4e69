"""The backend is found by its entry point, and passes its level on both event loops."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path

import pytest
import tinybackend

import uvm
from uvm.cli import main
from uvm.testing.backends import SCENARIOS, Control, Level, Scenario

HERE = Path(__file__).parent
SKIPPED = {Control.NETWORKS, Control.PIPES, Control.UPDATES}
LEVEL = [scenario for scenario in SCENARIOS if scenario.level is Level.HOST and not scenario.needs & SKIPPED]


@pytest.mark.anyio
@pytest.mark.parametrize("scenario", LEVEL, ids=str)
async def test_tiny_passes_its_level(scenario: Scenario) -> None:
    async with tinybackend.make_rig() as rig:
        assert scenario.lacks(rig) == []
        await scenario.play(rig)


def test_the_command_finds_it_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tomllib.loads((HERE / "pyproject.toml").read_text("utf-8"))["project"]
    # As pip installs it.
    installed = tmp_path / f"tinybackend-{project['version']}.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Name: tinybackend\nVersion: {project['version']}\n", "utf-8")
    points = [f"{name} = {value}" for name, value in project["entry-points"]["uvm.backends"].items()]
    (installed / "entry_points.txt").write_text("\n".join(["[uvm.backends]", *points]), "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert isinstance(uvm.open_backend("tiny"), tinybackend.TinyBackend)
    assert main(["conform", "tiny", "--level", "host"]) == 0
    assert "holds    ids are fresh guids" in capsys.readouterr().out


@pytest.mark.anyio
async def test_what_it_does_not_have_is_refused_by_name() -> None:
    async with tinybackend.TinyBackend() as backend:
        with pytest.raises(uvm.NotSupportedError, match="tiny has no VMs yet"):
            await backend.create("vm1", {"VirtualMachine": {}})
