"""What is printed of all that a user holds: what it is and how it stands, shortly, and no secret."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

import pytest

import uvm
from tests.session import CONTAINER, ROOT, SECRET, UNSTARTED, WAYS, play, reachable
from tests.test_surface import SURFACE
from tests.vm.support import DEVICE, DISK, NAMESPACE, SCRATCH
from uvm.backends.fake import FakeBackend, Latency
from uvm.errors import OptionsError, RPCCode
from uvm.options import container_annotations
from uvm.schema.devices import Attachment
from uvm.schema.template import TemplateDocument
from uvm.testing.backends import SCENARIOS, FakeHost, HostCall, Network, Rig

MAX_CHARACTERS = 300


def faults_of(value: Any) -> Iterator[str]:
    """Yield what is wrong with how an object is printed."""
    text = repr(value)
    if " object at 0x" in text:
        yield "has an address"
    if re.search(r"\b_\w+=", text):
        yield "has a private name"
    if SECRET in text:
        yield "has a secret"
    if len(text) > MAX_CHARACTERS:
        yield f"has {len(text)} characters"


def look(found: dict[str, list[str]], classes: set[type], **held: Any) -> None:
    for path, each in reachable(held, "held", {}):
        classes.add(type(each))
        if faults := [*faults_of(each)]:
            found[f"{path}: {type(each).__name__}"] = [*faults, repr(each)[:400]]


#: Public values that no session comes by.
MADE: tuple[object, ...] = (
    uvm.GuestTimeouts(),
    uvm.Pool(uvm.LCOWOptions(), backend="fake"),
    uvm.LCOWLayer(DISK),
    uvm.UnrevokedAccess(DISK, "E_FAIL"),
    uvm.WCOWLayer(DISK, "1"),
    uvm.BlockCIMLayer([uvm.BlockCIM(DISK, "base.cim")]),
    uvm.BlockCIM(DISK, "base.cim"),
    uvm.LayerBootFiles(layers=[DISK], scratch_directory=DISK),
    uvm.FileInfo(),
    uvm.ErrorRecord("message"),
    uvm.HvSocketService(),
    container_annotations({}),
    uvm.Template(TemplateDocument(system_id="vm1", os="windows")),
    uvm.PCIDevice(DEVICE),
    uvm.BlockCIMBootFiles(boot_cim_vhd_path=DISK, efi_vhd_path=DISK, scratch_vhd_path=DISK),
    uvm.RegistryValue(hive="System", key="k", name="n", type="DWord", dword_value=1),
    Rig(FakeBackend(), FakeHost(FakeBackend())),
    Latency(),
    SCENARIOS[0],
    HostCall("modify"),
    Network(NAMESPACE, (), NAMESPACE),
    RPCCode.UNKNOWN,
)


STANDING = {
    "vm": [f"<UtilityVM vm1 (linux, {state})>" for state in ("created", "running", "exited", "closed")],
    "disk": [
        f"<ScsiLease of vm1: host_path={DISK!r}, controller=0, lun=1,"
        f" guest_path='/run/mounts/scsi/m1' ({state})>"
        for state in ("held", "gone")
    ],
    "root": [
        rf"<RootFileSystem of vm1: /run/gcs/c/{ROOT}/rootfs, 1 layer, scratch {SCRATCH} ({state})>"
        for state in ("held", "gone")
    ],
    "unstarted": [f"<Container {UNSTARTED} ({state})>" for state in ("created", "lost")],
    "container": [f"<Container {CONTAINER} ({state})>" for state in ("running", "exited: ForcedExit")],
    "process": [f"<Process 1002 ['sleep', '3600'] ({state})>" for state in ("running", "exited: 4294967295")],
    "init": [f"<Process 1001 of a container's own ({state})>" for state in ("running", "exited: 137")],
}


def public_classes() -> set[type]:
    modules = [import_module(name) for name in (*SURFACE, "uvm.backends.fake", "uvm.testing.backends")]
    named = {getattr(module, each) for module in modules for each in getattr(module, "__all__", ())}
    return {each for each in named if isinstance(each, type) and not issubclass(each, BaseException)}


@pytest.mark.anyio
async def test_what_stands_where_is_said() -> None:
    said: dict[str, list[str]] = {}

    def note(**held: Any) -> None:
        for name, each in held.items():
            texts = said.setdefault(name, [])
            if (text := repr(each)) not in texts:
                texts.append(text)

    await play(note, "linux")
    assert {name: said[name] for name in STANDING} == STANDING


@pytest.mark.anyio
async def test_all_that_a_session_yields_is_printed_shortly_and_without_secrets_and_is_every_class() -> None:
    found: dict[str, list[str]] = {}
    classes: set[type] = set()
    look(found, classes, made=MADE)
    for os, options in WAYS.values():
        await play(partial(look, found, classes), os, **options)
    assert found == {}
    bases = {base for each in classes for base in each.__mro__}
    assert [each for each in public_classes() - bases if not getattr(each, "_is_protocol", False)] == []


def test_what_is_long_is_cut() -> None:
    done = uvm.CompletedProcess(("cat",), 1, b"x" * 10_000, b"")
    assert list(faults_of(done)) == []
    assert repr(done).startswith("CompletedProcess(args=('cat',), exit_code=1, stdout=b'xxx")
    assert repr(done).endswith("xxx...)")


def test_models_show_what_is_set() -> None:
    assert repr(Attachment(type="Iso", path=DISK)) == rf"Attachment(type='Iso', path={DISK!r})"


def test_collections_are_counted() -> None:
    backend = uvm.FakeBackend()
    backend.faults.refuse(operation="modify", nth=1)
    assert repr(backend) == "<FakeBackend vms=0 hosted_systems=0 request_log=0>"
    assert repr(backend.faults) == "<Faults rules=1>"
    assert repr(backend.faults.rules) == "(<Rule matcher=Matcher(operation='modify', nth=1) seen=0 fired=0>,)"


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("not ready")


def test_an_error_says_what_was_given_also_if_that_cannot_be_printed() -> None:
    for value, said in ((10**5000, "<int>"), (Unprintable(), "<Unprintable>")):
        for make in (
            lambda value: uvm.LCOWOptions(memory_mb=value),
            lambda value: uvm.GuestTimeouts(boot_seconds=value),
        ):
            with pytest.raises(OptionsError, match=f"not {said}$"):
                make(value)
