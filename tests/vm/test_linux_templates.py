"""Templates of Linux guests, and their clones, on a host that makes them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import uvm
from tests.clocks import jumping_backends
from tests.vm.audit import check_at_rest
from tests.vm.support import (
    DISK,
    LARGE_LAYER,
    LAYER,
    NAMESPACE,
    OTHER_DISK,
    OTHER_LAYER,
    SHARED,
    Running,
    host_backend,
    lcow,
    quiet,
)
from uvm.backend import HostInfo
from uvm.backends.fake import FakeBackend, LinuxGuest
from uvm.errors import NotSupportedError, OptionsError, VMStateError

pytestmark = pytest.mark.anyio
anyio_backend = jumping_backends

DIRECTORY = r"C:\clones\one"
TEMPLATE = lcow(template=True)
_MOUNT = uvm.Mount(filesystem="xfs", options=("noatime",), guest_path="/mnt/data")
_ROOT = "/run/root"


def _backend() -> FakeBackend:
    return host_backend(host=HostInfo(templates=("windows", "linux")))


def _clone(of: uvm.Template, **options: Any) -> uvm.LCOWOptions:
    return lcow(**{"id": "clone", "clone_of": of, "scratch_directory": DIRECTORY, **options})


def _guest(backend: FakeBackend, id: str) -> LinuxGuest:
    guest = backend.vms[id].guest
    assert isinstance(guest, LinuxGuest)
    return guest


@asynccontextmanager
async def _template(backend: FakeBackend, *, full: bool = True) -> AsyncIterator[uvm.Template]:
    async with uvm.UtilityVM.create(TEMPLATE, backend=backend) as vm:
        await vm.start()
        if full:
            await vm.scsi.attach(DISK, mount=_MOUNT)
            layer = await vm.scsi.attach(OTHER_DISK, read_only=True, mount=uvm.Mount())
            await vm.layers.combine(_ROOT, [layer.guest_path], scratch_path="/mnt/data")
        yield await vm.save_template()


async def test_a_clone_has_the_disks_the_mounts_and_the_layers_of_its_template() -> None:
    backend = _backend()
    async with _template(backend) as template:
        assert _guest(backend, "vm1").suspended
        async with uvm.UtilityVM.create(_clone(template), backend=backend) as vm:
            await vm.start()
            assert not _guest(backend, "clone").suspended
            writable, read_only = vm.devices().disks
            assert (writable.host_path.startswith(DIRECTORY), read_only.host_path) == (True, OTHER_DISK)
            assert writable.mounts == ("/mnt/data",)
            [root] = vm.devices().roots
            assert root.root == _ROOT
            # All of it is the clone's own to release, and found as it was asked for.
            await vm.layers.remove(_ROOT)
            again = await vm.scsi.attach(writable.host_path, mount=_MOUNT)
            assert (again.lun, again.guest_path) == (writable.lun, "/mnt/data")
            await again.release()
            await quiet()
            check_at_rest(Running(vm, backend))
        assert DIRECTORY not in " ".join(backend.files._nodes)


async def test_a_template_is_not_deleted_while_its_disks_are_below_those_of_clones() -> None:
    backend = host_backend(host=HostInfo(templates=("linux",), overlays=True))
    other = lcow(id="other")
    async with _template(backend) as template, uvm.UtilityVM.create(other, backend=backend) as unrelated:
        await unrelated.start()
        async with uvm.UtilityVM.create(_clone(template), backend=backend) as vm:
            await vm.start()
            [path] = [disk.host_path for disk in vm.devices().disks if not disk.read_only]
            assert path.startswith(DIRECTORY)
            assert path.endswith(".vhdx.qcow2")
            with pytest.raises(VMStateError, match=r"clones clone; close them first; nothing was changed"):
                await template.delete(backend)
            assert (await vm.run(["true"])).exit_code == 0
        assert DIRECTORY not in " ".join(backend.files._nodes)
        await template.delete(backend)


async def test_a_template_without_disks_of_its_own_is_deleted_under_its_clones() -> None:
    backend = host_backend(host=HostInfo(templates=("linux",), overlays=True))
    async with (
        _template(backend, full=False) as template,
        uvm.UtilityVM.create(_clone(template, scratch_directory=""), backend=backend) as vm,
    ):
        await vm.start()
        await template.delete(backend)
        assert (await vm.run(["true"])).exit_code == 0


async def test_clones_in_one_directory_have_overlays_of_their_own_in_every_slot() -> None:
    backend = host_backend(host=HostInfo(templates=("linux",), overlays=True))
    async with uvm.UtilityVM.create(TEMPLATE, backend=backend) as vm:
        await vm.start()
        lease = await vm.scsi.attach(DISK)
        assert (lease.controller, lease.lun) == (0, 0)
        template = await vm.save_template()
        first, second = (
            uvm.UtilityVM.create(_clone(template, id=name), backend=backend) for name in ("one", "two")
        )
        async with first as one, second as two:
            await one.start()
            await two.start()
            paths = {disk.host_path for each in (one, two) for disk in each.devices().disks}
            assert len(paths) == 2


async def test_the_guest_of_a_clone_is_resumed_first_with_random_bytes_and_the_time() -> None:
    backend = _backend()
    async with (
        _template(backend, full=False) as template,
        uvm.UtilityVM.create(_clone(template, scratch_directory=""), backend=backend) as vm,
    ):
        await vm.start()
        await vm.run(["true"])
        asked = [each.call for each in backend.request_log if each.to == "guest" and each.call.vm == "clone"]
    first = next(call for call in asked if call.operation == "modify")
    assert (first.resource, first.request_type) == ("Suspension", "Remove")
    assert len(first.document["Settings"]["Entropy"]) > 512
    assert first.document["Settings"]["UnixNanoseconds"] > 10**18


async def test_a_clone_with_disks_of_its_own_needs_a_directory_for_them() -> None:
    backend = _backend()
    async with _template(backend) as template:
        with pytest.raises(OptionsError, match="scratch_directory"):
            _clone(template, scratch_directory="")


@pytest.mark.parametrize("packed", [False, True])
async def test_a_clone_has_the_layers_of_its_template_where_they_were(packed: bool) -> None:
    backend = _backend()
    options = {"vpmem_multi_mapping": packed}
    async with uvm.UtilityVM.create(lcow(template=True, **options), backend=backend) as booted:
        await booted.start()
        first = await booted.vpmem.add(OTHER_LAYER)
        await booted.vpmem.add(LARGE_LAYER)
        await booted.vpmem.add(LAYER)
        # There is a gap then.
        await first.release()
        layers = booted.vpmem.layers
        assert len({(each.device, each.offset_bytes) for each in layers}) == 2
        template = uvm.Template.from_json((await booted.save_template()).as_json())
        clone = _clone(template, scratch_directory="", **options)
        async with uvm.UtilityVM.create(clone, backend=backend) as vm:
            await vm.start()
            assert vm.vpmem.layers == layers
            assert _guest(backend, "clone").mount_of(layers[0].guest_path) is not None
            # A new layer is in the gap, and one that is there is shared.
            again = await vm.vpmem.add(OTHER_LAYER)
            assert again.guest_path == first.guest_path
            assert (await vm.vpmem.add(LAYER)).guest_path == layers[1].guest_path
            for path in (LAYER, LAYER, LARGE_LAYER, OTHER_LAYER):
                await vm.vpmem.remove(path)
            assert vm.vpmem.layers == ()
            await quiet()
            check_at_rest(Running(vm, backend))


async def test_what_the_host_shares_is_not_saved() -> None:
    backend = _backend()
    async with uvm.UtilityVM.create(TEMPLATE, backend=backend) as vm:
        await vm.start()
        async with vm.plan9.add(SHARED, "/mnt/shared"):
            with pytest.raises(VMStateError, match="shared"):
                await vm.save_template()
        assert not _guest(backend, "vm1").suspended
        await vm.network.setup(NAMESPACE)
        await vm.save_template()


async def test_a_host_that_makes_none_of_linux_guests_refuses_them() -> None:
    with pytest.raises(NotSupportedError, match="Windows"):
        async with uvm.UtilityVM.create(TEMPLATE, backend=host_backend()):
            pass
