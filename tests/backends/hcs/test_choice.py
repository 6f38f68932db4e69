"""The backend that ``open_backend`` chooses, and what it logs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import subprocess
import sys
import types
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints

import pytest

import uvm.backends as base
from tests.backends.hcs.environment import Imagined
from tests.backends.qemu.environment import ImaginedLinux
from uvm.backends import open_backend
from uvm.backends.fake import FakeBackend
from uvm.backends.hcs import availability
from uvm.errors import NotSupportedError, OptionsError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Imagined:
    """Set the machine that the choice examines; the log is kept."""
    imagined = Imagined()
    monkeypatch.setattr(availability, "this_machine", lambda: imagined)
    without_qemu = ImaginedLinux(programs=set())
    monkeypatch.setattr("uvm.backends.qemu.availability.this_machine", lambda: without_qemu)
    caplog.set_level(logging.INFO, "uvm")
    return imagined


def elsewhere_than_on_windows(machine: Imagined) -> str:
    machine.system = "linux"
    return "HCS needs Windows, and this is linux"


def on_windows_without_hcs(machine: Imagined) -> str:
    del machine.libraries["computecore"]
    return "there is no computecore.dll"


@pytest.mark.parametrize("without", [elsewhere_than_on_windows, on_windows_without_hcs])
def test_without_hcs_the_fake_is_named_but_not_chosen(
    machine: Imagined, without: Callable[[Imagined], str]
) -> None:
    reason = without(machine)
    with pytest.raises(NotSupportedError, match=f'hcs: {reason}.*ask for it by name: "fake"'):
        open_backend()


def test_the_simulation_is_opened_by_name(machine: Imagined, caplog: pytest.LogCaptureFixture) -> None:
    machine.system = "linux"
    assert isinstance(open_backend("fake"), FakeBackend)
    assert "backend fake: asked for by name" in caplog.text


def test_an_entry_point_is_chosen_by_name_only(machine: Imagined, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.system = "linux"
    point = EntryPoint("other", "uvm.backends.fake:FakeBackend", "uvm.backends")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: EntryPoints([point]))
    with pytest.raises(NotSupportedError):
        open_backend()
    assert isinstance(open_backend("other"), FakeBackend)
    assert "other" in base.backend_names()


def without_rights(machine: Imagined) -> None:
    machine.groups.clear()


def with_a_python_of_32_bits(machine: Imagined) -> None:
    machine.bits = 32


@pytest.mark.parametrize("take_away", [without_rights, with_a_python_of_32_bits])
def test_on_windows_with_hcs_that_cannot_be_used_it_is_not_the_fake(
    machine: Imagined,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    take_away: Callable[[Imagined], None],
) -> None:
    chosen: list[str] = []
    monkeypatch.setattr("uvm.backends.backend_factory", lambda name: lambda: chosen.append(name))
    take_away(machine)
    open_backend()
    assert chosen == ["hcs"]
    assert "backend hcs: the first that this machine has" in caplog.text


def test_hcs_that_cannot_be_used_says_all_that_is_missing(machine: Imagined) -> None:
    machine.groups.clear()
    del machine.services["vmcompute"]
    with pytest.raises(NotSupportedError) as caught:
        open_backend()
    assert "does not have the rights" in str(caught.value)
    assert "vmcompute" in str(caught.value)


@pytest.mark.parametrize(("name", "system"), [("hcs", "linux"), ("qemu", "win32"), ("qemu", "darwin")])
def test_a_backend_by_name_is_refused_elsewhere_with_what_it_needs_before_it_is_loaded(
    machine: Imagined, monkeypatch: pytest.MonkeyPatch, name: str, system: str
) -> None:
    machine.system = system
    elsewhere = ImaginedLinux(system=system)
    monkeypatch.setattr("uvm.backends.qemu.availability.this_machine", lambda: elsewhere)
    # As on such a system, to which modules of the standard library are missing.
    monkeypatch.setitem(sys.modules, f"uvm.backends.{name}.backend", None)
    needed = {"hcs": "HCS needs Windows", "qemu": "VMs with QEMU need Linux"}[name]
    with pytest.raises(NotSupportedError, match=f"'{name}' cannot be used.*: {needed}, and this is {system}"):
        open_backend(name)


@pytest.mark.parametrize("system", ["win32", "darwin"])
@pytest.mark.parametrize("missing", [True, False], ids=["module", "name"])
def test_the_factory_of_a_backend_says_too_what_it_needs_where_it_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch, system: str, missing: bool
) -> None:
    monkeypatch.setattr("uvm.backends.qemu.availability.this_machine", lambda: ImaginedLinux(system=system))
    module = None if missing else types.ModuleType("uvm.backends.qemu.backend")
    monkeypatch.setitem(sys.modules, "uvm.backends.qemu.backend", module)
    with pytest.raises(NotSupportedError, match=f"VMs with QEMU need Linux, and this is {system}"):
        base.backend_factory("qemu")


def test_a_name_that_a_backend_lacks_is_no_fault_of_a_machine_that_has_what_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("uvm.backends.qemu.availability.this_machine", ImaginedLinux)
    monkeypatch.setitem(sys.modules, "uvm.backends.qemu.backend", types.ModuleType("empty"))
    with pytest.raises(AttributeError):
        base.backend_factory("qemu")


def test_without_cffi_it_is_not_the_fake_either(machine: Imagined, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotSupportedError, match="the package cffi is not installed"):
        open_backend()


def test_an_unknown_backend_is_refused_with_the_list_of_known_ones() -> None:
    assert {"fake", "hcs", "qemu"} <= set(base.backend_names())
    with pytest.raises(OptionsError, match="fake, hcs, qemu"):
        open_backend("xen")


def test_what_is_needed_for_hcs_is_loaded_only_with_it() -> None:
    code = (
        "import sys, uvm; uvm.open_backend('fake'); "
        "print(*(m for m in sys.modules if 'cffi' in m or 'pycparser' in m))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == []
