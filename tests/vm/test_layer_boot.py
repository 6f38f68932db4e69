"""A Windows VM boots from the layers of an image: what is found in them, what is made, and what stays."""

from __future__ import annotations

import re
from pathlib import PureWindowsPath
from typing import Any

import pytest

import uvm
from tests.points import points, spoil
from tests.vm.support import MIB, host_backend, quiet, wcow
from uvm.backends.fake import FakeBackend
from uvm.errors import HostError, OptionsError
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio

TOP, BASE, OTHER_BASE = r"C:\layers\top", r"C:\layers\base", r"C:\layers\other"
SCRATCH = r"C:\scratch\vm1\sandbox.vhdx"


def image(**settings: Any) -> FakeBackend:
    """A host with an image of two layers, the lower of which has a utility VM."""
    backend = host_backend(**settings)
    backend.files.add_directory(TOP)
    for base in (BASE, OTHER_BASE):
        backend.files.add_directory(rf"{base}\UtilityVM\Files")
        backend.files.add(rf"{base}\UtilityVM\SystemTemplate.vhdx", size=MIB, content=base.encode())
    return backend


def options(*layers: str, scratch: str = r"C:\scratch\vm1", **others: Any) -> uvm.WCOWOptions:
    boot = uvm.LayerBootFiles(layers=layers or (TOP, BASE), scratch_directory=scratch)
    return wcow(boot_files=boot, **others)


def tree(backend: FakeBackend) -> list[str]:
    return sorted(backend.files._nodes)


async def create(backend: FakeBackend, given: uvm.WCOWOptions) -> None:
    async with uvm.UtilityVM.create(given, backend=backend):
        pass


async def test_the_layers_of_an_image_are_enough_to_start() -> None:
    backend = image()
    before = tree(backend)
    async with uvm.UtilityVM.create(options(), backend=backend) as vm:
        machine = vm.plan.document["VirtualMachine"]
        (share,) = machine["Devices"]["VirtualSmb"]["Shares"]
        assert (share["Name"], share["Path"]) == ("os", rf"{BASE}\UtilityVM\Files")
        loader = machine["Chipset"]["Uefi"]["BootThis"]["DevicePath"]
        assert loader == r"\EFI\Microsoft\Boot\bootmgfw.efi"
        (controller,) = machine["Devices"]["Scsi"].values()
        assert controller["Attachments"]["0"] == {"Type": "VirtualDisk", "Path": SCRATCH}
        await vm.start()
        assert (await backend.files.read(SCRATCH, MIB)).startswith(BASE.encode())
        assert (await vm.run(["echo", "hello"])).stdout == b"hello\n"
    assert tree(backend) == before
    assert backend.leftovers() == []


async def test_of_several_layers_with_a_utility_vm_the_top_most_counts() -> None:
    backend = image()
    given = options(TOP, OTHER_BASE, BASE)
    async with uvm.UtilityVM.create(given, backend=backend) as vm:
        share = vm.plan.document["VirtualMachine"]["Devices"]["VirtualSmb"]["Shares"][0]
        assert share["Path"] == rf"{OTHER_BASE}\UtilityVM\Files"
        assert (await backend.files.read(SCRATCH, MIB)).startswith(OTHER_BASE.encode())


async def test_a_scratch_disk_that_is_there_is_used_and_stays() -> None:
    backend = image()
    backend.files.add(SCRATCH, size=MIB, content=b"mine")
    before = tree(backend)
    await create(backend, options())
    assert tree(backend) == before
    assert (await backend.files.read(SCRATCH, MIB)).startswith(b"mine")


@pytest.mark.parametrize(
    ("missing", "problem"),
    [
        (rf"{BASE}\UtilityVM\Files", r"UtilityVM\\Files was not found"),
        (rf"{BASE}\UtilityVM\SystemTemplate.vhdx", r"SystemTemplate.vhdx was not found"),
        (rf"{BASE}\UtilityVM", r"none of C:\\layers\\top, C:\\layers\\base has a directory UtilityVM"),
    ],
)
async def test_layers_that_lack_a_part_are_refused_by_their_names(missing: str, problem: str) -> None:
    backend = image()
    for path in tree(backend):
        if path.startswith(missing.upper()):
            backend.files.delete(path)
    before = tree(backend)
    with pytest.raises(OptionsError, match=problem):
        await create(backend, options())
    assert (len(backend.request_log), tree(backend)) == (0, before)


async def test_a_directory_in_place_of_the_scratch_disk_is_refused() -> None:
    backend = image()
    backend.files.add_directory(SCRATCH)
    with pytest.raises(OptionsError, match=re.escape(f"{SCRATCH} is a directory")):
        await create(backend, options())
    assert len(backend.request_log) == 0


@pytest.mark.parametrize(
    ("layers", "scratch", "problem"),
    [
        ((), r"C:\scratch", "needs one layer at least"),
        (("",), r"C:\scratch", "none of them empty"),
        ((BASE,), "", "none of them empty"),
        (BASE, r"C:\scratch", "layers must be a sequence"),
        ((BASE, 3), r"C:\scratch", "each item a string without NUL"),
    ],
)
def test_layers_are_a_sequence_of_paths_and_the_scratch_directory_is_named(
    layers: Any, scratch: str, problem: str
) -> None:
    with pytest.raises(OptionsError, match=problem):
        uvm.LayerBootFiles(layers=layers, scratch_directory=scratch)


@pytest.mark.parametrize(("layer", "scratch"), [("base", r"C:\scratch"), (BASE, "scratch")])
async def test_a_relative_path_is_refused(layer: str, scratch: str) -> None:
    with pytest.raises(OptionsError, match=r"boot_files\.(layers|scratch_directory): .* is relative"):
        await create(image(), options(layer, scratch=scratch))


def test_paths_may_be_pathlibs() -> None:
    boot: Any = {"layers": [PureWindowsPath(BASE)], "scratch_directory": PureWindowsPath(r"C:\s")}
    assert uvm.LayerBootFiles(**boot).layers == (BASE,)
    assert uvm.LayerBootFiles(**boot).scratch_directory == r"C:\s"


def test_a_confidential_vm_does_not_boot_from_directories() -> None:
    with pytest.raises(OptionsError, match="boots from BlockCIMBootFiles, not from LayerBootFiles"):
        options(security_policy_enabled=True, guest_state_file=r"C:\state.vmgs")


@pytest.mark.parametrize("how", ["refuse", "lose", "cancelled"])
async def test_a_vm_that_cannot_be_created_leaves_the_host_as_it_was(how: str) -> None:
    backend = image()
    given = options()
    before = tree(backend)
    await create(backend, given)
    made = [p for p in points(backend, 0) if p.to in ("grant", "lifecycle") and p.operation != "terminate"]
    assert {point.operation for point in made} == {"grant", "create"}
    for point in made:
        assert not await spoil(backend, how, point, lambda: create(backend, given)), point
        await quiet()
        assert (tree(backend), sorted(backend.access.entries()), dict(backend.vms)) == (before, [], {}), point
    await create(backend, given)


@pytest.mark.parametrize("operation", ["mkdir", "copy"])
@pytest.mark.parametrize("done", [False, True])
async def test_a_scratch_disk_that_cannot_be_made_is_not_left(
    operation: str, done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = image()
    before = tree(backend)
    carry_out = getattr(backend.files, operation)

    async def fail(*paths: str) -> None:
        if done:
            await carry_out(*paths)
        raise uvm.UnknownOutcomeError("no answer") if done else HostError(operation, HResult.E_FAIL)

    monkeypatch.setattr(backend.files, operation, fail)
    with pytest.raises((HostError, uvm.UnknownOutcomeError)):
        await create(backend, options())
    assert (tree(backend), sorted(backend.access.entries())) == (before, [])


async def test_clones_have_a_template_that_boots_from_layers() -> None:
    backend = image()
    async with uvm.UtilityVM.create(options(template=True), backend=backend) as vm:
        await vm.start()
        template = uvm.Template.from_json((await vm.save_template()).as_json())
        own = uvm.WCOWOptions(id="clone", clone_of=template, scratch_directory=r"C:\clones\one")
        assert own.boot_files == options().boot_files
        async with uvm.UtilityVM.create(own, backend=backend) as clone:
            await clone.start()
            assert (await clone.run(["echo", "hello"])).stdout == b"hello\n"
        assert await backend.files.stat(SCRATCH) is not None
    assert backend.leftovers() == []
