"""Cgroups of VMs: what is written, in a tree of files; and the kernel's, if there is one to use."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.backends.qemu.standin import StandInBackend, StandInLauncher
from tests.backends.qemu.test_vm import document
from uvm.backends.qemu import cgroups
from uvm.backends.qemu.cgroups import Cgroup, delegated, has_limits
from uvm.backends.qemu.launch import Launcher
from uvm.errors import HostError, HostPathError, NotSupportedError
from uvm.schema.common import MIB
from uvm.schema.system import Topology, VirtualMachineMemory, VirtualMachineProcessor

RUNTIME_ID = "5eed0000-0000-0000-0000-000000000001"
LIMITS = "VirtualMachine/ComputeTopology/Processor/Limits"


def topology(limit: int = 0, weight: int = 0) -> Topology:
    processor = VirtualMachineProcessor(count=2, limit=limit, weight=weight)
    return Topology(memory=VirtualMachineMemory(size_in_mb=256), processor=processor)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A cgroup that may be used, in which nothing is enabled yet."""
    made = tmp_path / "delegated"
    made.mkdir()
    for name, text in (("controllers", "cpuset cpu io memory pids"), ("subtree_control", ""), ("procs", "")):
        (made / f"cgroup.{name}").write_text(text)
    return made


def files(path: Path) -> dict[str, str]:
    return {each.name: each.read_text() for each in path.iterdir() if each.is_file()}


def emptied(path: Path) -> None:
    """Remove the files of a cgroup, which the kernel removes with it."""
    for each in path.iterdir():
        each.unlink()


def made_in(parent: Path, shape: Topology, *, emulated: bool) -> Cgroup:
    made = Cgroup.of(parent, RUNTIME_ID)
    made.make(shape, emulated=emulated)
    return made


@pytest.mark.parametrize(
    ("processor", "maximum", "weight"),
    [
        ({}, "max 100000", "100"),
        ({"limit": 100_000}, "max 100000", "100"),
        ({"limit": 50_000}, "100000 100000", "100"),
        ({"limit": 1, "weight": 10_000}, "1000 100000", "10000"),
    ],
)
def test_a_vm_is_bounded_in_processors_and_in_memory(
    tree: Path, processor: dict[str, int], maximum: str, weight: str
) -> None:
    made = made_in(tree, topology(**processor), emulated=False)
    assert made.path == tree / f"uvm-{RUNTIME_ID}"
    written = {"memory.max": str(768 * MIB), "cpu.max": maximum, "cpu.weight": weight}
    assert files(made.path) == written
    assert files(tree)["cgroup.subtree_control"] == "+cpu +memory"
    emptied(made.path)
    made.remove()
    made.remove()
    assert not made.path.exists()


def test_translated_code_has_room(tree: Path) -> None:
    made = made_in(tree, topology(), emulated=True)
    assert files(made.path)["memory.max"] == str((256 + 512 + 1024) * MIB)


def test_what_is_enabled_is_left_as_it_is(tree: Path) -> None:
    (tree / "cgroup.subtree_control").write_text("memory cpu pids")
    made_in(tree, topology(), emulated=False)
    assert files(tree)["cgroup.subtree_control"] == "memory cpu pids"


def test_processes_of_the_cgroup_move_into_a_leaf(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "cgroup.procs").write_text("17\n18\n")
    write = Path.write_text

    def written(path: Path, text: str) -> int:
        if path == tree / "cgroup.subtree_control" and not (tree / "uvm-host").exists():
            raise OSError(errno.EBUSY, "busy")
        with path.open("a") as file:
            return file.write(text) if path.name == "cgroup.procs" else write(path, text)

    monkeypatch.setattr(Path, "write_text", written)
    made_in(tree, topology(), emulated=False)
    assert files(tree / "uvm-host") == {"cgroup.procs": "1718"}
    assert files(tree)["cgroup.subtree_control"] == "+cpu +memory"


def test_a_cgroup_without_the_controllers_is_refused_and_nothing_is_left(tree: Path) -> None:
    (tree / "cgroup.controllers").write_text("cpu pids")
    with pytest.raises(NotSupportedError, match=r"lacks the controllers memory; nothing was started; run "):
        made_in(tree, topology(), emulated=False)
    assert not (tree / f"uvm-{RUNTIME_ID}").exists()


def test_a_cgroup_is_named_or_this_processs_own_if_it_is_delegated(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert delegated(str(tree)) == tree
    with pytest.raises(NotSupportedError, match=r"is no cgroup of version 2; nothing was started"):
        delegated(str(tmp_path))
    (tmp_path / "cgroup").write_text("5:memory:/x\n0::/delegated\n")
    (tmp_path / "mountinfo").write_text(f"30 23 0:26 / {tmp_path} rw shared:4 - cgroup2 cgroup2 rw\n")
    marks = {"user.delegate": b"1"}
    monkeypatch.setattr(os, "getxattr", lambda path, name: _mark(marks, path == tree, name))
    assert delegated("", str(tmp_path)) == tree
    # As the first VM leaves this process.
    (tmp_path / "cgroup").write_text("0::/delegated/uvm-host\n")
    assert delegated("", str(tmp_path)) == tree
    marks.clear()
    with pytest.raises(NotSupportedError, match="none is delegated to this process; nothing was started"):
        delegated("", str(tmp_path))
    (tmp_path / "mountinfo").write_text("30 23 0:26 / / rw - ext4 /dev/vda rw\n")
    with pytest.raises(NotSupportedError):
        delegated("", str(tmp_path))


def _mark(marks: dict[str, bytes], here: bool, name: str) -> bytes:
    if not here or name not in marks:
        raise OSError(errno.ENODATA, "no data")
    return marks[name]


def test_a_limit_or_a_weight_needs_a_cgroup() -> None:
    assert not has_limits(Topology())
    assert not has_limits(topology(limit=100_000))
    assert has_limits(topology(limit=99_999))
    assert has_limits(topology(weight=1))


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    (tmp_path / "vmlinux").touch()
    return str(tmp_path / "vmlinux")


def _limited(kernel: str, **processor: Any) -> dict[str, Any]:
    shape = {"Memory": {"SizeInMB": 512}, "Processor": {"Count": 1, **processor}}
    return document(kernel, ComputeTopology=shape)


@pytest.mark.anyio
async def test_a_vm_with_limits_has_a_cgroup_until_it_ends(
    tree: Path, tmp_path: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = os.rmdir

    def as_the_kernel_does(path: Path | str, **where: Any) -> None:
        if Path(path).parent == tree:
            emptied(Path(path))
        remove(path, **where)

    monkeypatch.setattr(os, "rmdir", as_the_kernel_does)
    async with StandInBackend(StandInLauncher(), tmp_path / "run", cgroup=tree) as backend:
        system = await backend.create("vm1", _limited(kernel, Limit=10_000))
        await system.start()
        path = tree / f"uvm-{system.runtime_id}"
        assert backend.launcher.cgroups == [str(path / "cgroup.procs")]
        assert files(path)["cpu.max"] == "10000 100000"
        change = {"ResourcePath": LIMITS, "RequestType": "Update"}
        await system.modify({**change, "Settings": {"Limit": 20_000, "Weight": 7}})
        assert (files(path)["cpu.max"], files(path)["cpu.weight"]) == ("20000 100000", "7")
        with pytest.raises(HostError, match=r"ERROR_NOT_SUPPORTED.*cannot be reserved"):
            await system.modify({**change, "Settings": {"Reservation": 1}})
        await system.terminate()
        assert not path.exists()


@pytest.mark.anyio
async def test_a_cgroup_is_noted_before_it_is_made_so_that_it_is_always_found(
    tree: Path, tmp_path: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[str] = []

    def make(cgroup: Cgroup, shape: Topology, *, emulated: bool) -> None:
        [record] = (tmp_path / "run").glob("*/vm.json")
        noted.append(json.loads(record.read_text())["cgroup"])
        raise NotSupportedError("as if this process had been killed")

    monkeypatch.setattr(Cgroup, "make", make)
    async with StandInBackend(StandInLauncher(), tmp_path / "run", cgroup=tree) as backend:
        with pytest.raises(NotSupportedError, match="been killed"):
            await backend.create("vm1", _limited(kernel, Limit=10_000))
    [path] = noted
    assert Path(path).parent == tree


@pytest.mark.anyio
async def test_a_cgroup_that_cannot_be_noted_is_not_made(
    tree: Path, tmp_path: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_text

    def full(path: Path, text: str, *how: str) -> int:
        if f"{tree}/uvm-" in text:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, text, *how)

    async with StandInBackend(StandInLauncher(), tmp_path / "run", cgroup=tree) as backend:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_text", full)
            with pytest.raises(HostPathError, match="No space left"):
                await backend.create("vm1", _limited(kernel, Limit=10_000))
        assert [name for name in os.listdir(tree) if name.startswith("uvm-")] == []
        await backend.create("vm1", _limited(kernel, Limit=10_000))


@pytest.mark.anyio
async def test_without_a_delegated_cgroup_limits_are_refused_before_anything_starts(
    tmp_path: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "_is_delegated", lambda path: False)
    async with StandInBackend(StandInLauncher(), tmp_path / "run") as backend:
        with pytest.raises(NotSupportedError, match=r"need a cgroup.*nothing was started"):
            await backend.create("vm1", _limited(kernel, Weight=7))
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]
        assert backend.launcher.started == {}


@pytest.mark.anyio
async def test_the_kernel_has_a_process_in_its_cgroup_and_lets_it_be_removed_after_its_end() -> None:
    try:
        parent = delegated(os.environ.get("UVM_CGROUP", ""))
        made = made_in(parent, topology(limit=50_000), emulated=False)
    except NotSupportedError as error:
        pytest.skip(str(error))
    launcher = Launcher()
    child = await launcher.start(["sh", "-c", "cat /proc/self/cgroup >&2"], (), cgroup=made)
    assert await child.wait() == 0
    launcher.close()
    assert f"/uvm-{RUNTIME_ID}\n" in f"{child.last_words}\n"
    assert (made.path / "cpu.max").read_text() == "100000 100000\n"
    made.remove()
    assert not made.path.exists()
