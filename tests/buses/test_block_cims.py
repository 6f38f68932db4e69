"""Block CIMs: their disks, the volume that the guest makes of them, and a container's root on it."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import pytest

import uvm
from tests.clocks import jumping_backends
from tests.points import Point, on_this_loop, points, spoil
from tests.vm.audit import check_at_rest
from tests.vm.support import (
    DISK,
    LAYER,
    MIB,
    OTHER_LAYER,
    SCRATCH,
    Running,
    host_backend,
    lcow,
    quiet,
    running,
    wcow,
)
from uvm.backends.fake import FakeBackend
from uvm.errors import AlreadyReleasedError, GuestError, NotSupportedError, OptionsError, UnknownOutcomeError

pytestmark = pytest.mark.anyio
anyio_backend = jumping_backends

MERGED = r"C:\cims\merged.vhd"
CIMS = "WCOWBlockCims"
SCSI = "VirtualMachine/Devices/Scsi/*"
ONE = uvm.BlockCIMLayer([uvm.BlockCIM(LAYER, "base.cim")])
TWO = uvm.BlockCIMLayer(
    [uvm.BlockCIM(OTHER_LAYER, "top.cim"), uvm.BlockCIM(LAYER, "base.cim")],
    merged=uvm.BlockCIM(MERGED, "merged.cim"),
)


def prepared(run: Running) -> Running:
    run.backend.files.add(MERGED, size=MIB)
    run.start = run.last
    return run


def asked(run: Running) -> list[tuple[str, str, Any]]:
    """The requests that were sent, without grants: whom, what, and the settings."""
    return [
        (e.to, e.call.request_type, (e.document or {}).get("Settings", {}).get("Path") or e.call.resource)
        for e in run.sent("host", "guest")
    ]


def settings(run: Running, request_type: str) -> dict[str, Any]:
    (entry,) = [
        e for e in run.sent("guest") if (e.call.resource, e.call.request_type) == (CIMS, request_type)
    ]
    found: dict[str, Any] = entry.document["Settings"]
    return found


async def test_the_disks_are_attached_at_once_and_the_guest_mounts_them_as_one_volume() -> None:
    async with running(wcow()) as run:
        prepared(run)
        lease = await run.vm.block_cims.mount(TWO, container_id="c1")
        disks, paths = asked(run)[:3], (MERGED, OTHER_LAYER, LAYER)
        assert {*disks} == {("host", "Add", path) for path in paths}
        assert asked(run)[3:] == [("guest", "Add", CIMS)]
        attached = {disk.host_path: disk.lun for disk in run.vm.scsi.disks}
        luns = [attached[path] for path in paths]
        assert settings(run, "Add") == {
            "BlockCIMs": [
                {"CimName": f"{name}.cim", "Lun": lun}
                for name, lun in zip(("merged", "top", "base"), luns, strict=True)
            ],
            "VolumeGUID": lease.volume_guid,
            "MountFlags": 16,
            "ContainerID": "c1",
        }
        assert lease.guest_path == f"\\\\?\\Volume{{{lease.volume_guid}}}\\"
        assert all(disk.read_only and disk.mounts == () for disk in run.vm.scsi.disks)
        names = ("merged.cim", "top.cim", "base.cim")
        volume = uvm.BlockCIMVolume(lease.volume_guid, lease.guest_path, names, 1)
        assert (run.vm.block_cims.volumes, run.vm.devices().block_cims) == ((volume,), (volume,))
        check_at_rest(run)

        run.start = run.last
        await lease.release()
        assert settings(run, "Remove") == {"VolumeGUID": lease.volume_guid}
        removed = [f"{e.to} {e.call.resource.rpartition('/')[2]}" for e in run.sent("host", "guest")]
        assert (removed[0], {*removed[1:]}) == (f"guest {CIMS}", {f"host {lun}" for lun in luns})
        assert (lease.state, run.vm.block_cims.volumes, run.vm.scsi.disks) == (uvm.LeaseState.GONE, (), ())
        with pytest.raises(AlreadyReleasedError):
            await lease.release()
        check_at_rest(run)


async def test_the_same_images_are_one_volume_for_all_who_mount_them() -> None:
    async with running(wcow()) as run:
        first = await run.vm.block_cims.mount(ONE, container_id="c1")
        run.start = run.last
        second = await run.vm.block_cims.mount(
            uvm.BlockCIMLayer([uvm.BlockCIM(LAYER.upper(), "base.cim")]), container_id="c2"
        )
        assert (second.volume_guid, run.sent("host", "guest")) == (first.volume_guid, [])
        await first.release()
        assert (first.state, run.sent("host", "guest")) == (uvm.LeaseState.RELEASED, [])
        assert [volume.references for volume in run.vm.block_cims.volumes] == [1]
        async with second:
            pass
        await first.gone()
        assert run.vm.devices().disks == ()


async def test_other_images_on_the_same_disk_are_refused_before_anything_is_sent() -> None:
    async with running(wcow()) as run:
        await run.vm.block_cims.mount(ONE)
        run.start = run.last
        with pytest.raises(OptionsError, match="no block CIM was mounted"):
            await run.vm.block_cims.mount(uvm.BlockCIMLayer([uvm.BlockCIM(LAYER, "other.cim")]))
        assert run.sent() == []


async def test_one_who_mounts_while_the_last_lease_ends_has_a_volume_of_its_own() -> None:
    async with running(wcow()) as run:
        first = await run.vm.block_cims.mount(ONE)
        with run.hold(to="guest", resource=CIMS, request_type="Remove") as gate:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(first.release)
                await gate.wait()
                tasks.start_soon(_mounted, run)
                await quiet()
                gate.close()
        (volume,) = run.vm.block_cims.volumes
        assert volume.volume_guid != first.volume_guid
        check_at_rest(run)


async def _mounted(run: Running) -> None:
    await run.vm.block_cims.mount(ONE)


async def test_a_volume_that_the_guest_does_not_unmount_is_released_again() -> None:
    async with running(wcow()) as run:
        lease = await run.vm.block_cims.mount(ONE)
        rule = run.backend.faults.refuse(to="guest", resource=CIMS, request_type="Remove")
        with pytest.raises(GuestError):
            await lease.release()
        assert (lease.state, len(run.vm.scsi.disks), run.vm.orphans) == (uvm.LeaseState.REFUSED, 1, ())
        rule.remove()
        await lease.release()
        assert run.vm.devices().disks == ()
        check_at_rest(run)


async def test_a_disk_that_the_host_does_not_detach_is_released_again() -> None:
    async with running(wcow()) as run:
        lease = await run.vm.block_cims.mount(ONE)
        rule = run.backend.faults.refuse(to="host", resource=SCSI, request_type="Remove")
        with pytest.raises(uvm.HostError):
            await lease.release()
        assert (lease.state, run.vm.orphans, run.vm.block_cims.volumes) == (uvm.LeaseState.REFUSED, (), ())
        rule.remove()
        await lease.release()
        assert run.vm.devices().disks == ()
        check_at_rest(run)


@pytest.mark.parametrize("to", ["guest", "host"])
async def test_what_a_caller_leaves_that_is_not_removed_is_an_orphan(to: Any) -> None:
    async with running(wcow()) as run:
        rule = run.backend.faults.refuse(to=to, request_type="Remove")
        with pytest.raises((GuestError, uvm.HostError)):
            async with run.vm.block_cims.mount(ONE):
                pass
        (orphan,) = run.vm.orphans
        assert (len(run.vm.scsi.disks), orphan.ledger) == (
            1,
            {"guest": "block_cims.volumes", "host": "scsi.disks"}[to],
        )
        rule.remove()
        await orphan.release()
        await run.vm.settled()
        assert (run.vm.orphans, run.vm.devices().disks) == ((), ())
        check_at_rest(run)


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("request_type", ["Add", "Remove"])
async def test_a_volume_whose_state_is_unknown_keeps_its_disks(request_type: str, applied: bool) -> None:
    # With a connection of its own, a guest whose answer is lost is gone.
    async with running(wcow(external_guest_connection=False)) as run:
        run.backend.faults.lose(to="guest", resource=CIMS, request_type=request_type, applied=applied, nth=1)
        with pytest.raises(UnknownOutcomeError):
            async with run.vm.block_cims.mount(ONE):
                pass
        await run.vm.settled()
        assert len(run.vm.quarantined) == len(run.vm.scsi.disks) == 1
        check_at_rest(run)


async def test_a_linux_guest_has_no_block_cims() -> None:
    async with running(lcow()) as run:
        with pytest.raises(NotSupportedError, match="block CIMs: needs a Windows guest"):
            await run.vm.block_cims.mount(ONE)


async def test_a_vm_with_block_cims_is_not_saved_as_a_template() -> None:
    async with running(wcow(template=True)) as run:
        await run.vm.block_cims.mount(ONE)
        with pytest.raises(uvm.VMStateError, match="it has block CIMs"):
            await run.vm.save_template()


# As the layers of a container.


async def test_a_root_on_block_cims_is_combined_by_unionfs_and_released_in_reverse_order() -> None:
    async with running(wcow()) as run:
        prepared(run)
        root = await run.vm.mount_layers("c1", [TWO], SCRATCH)
        (volume,) = run.vm.block_cims.volumes
        assert asked(run)[4:] == [
            ("host", "Add", SCRATCH),
            ("guest", "Add", "MappedVirtualDisk"),
            ("guest", "Add", "CombinedLayers"),
        ]
        combined = run.sent("guest")[-1].document["Settings"]
        layer = {"Id": volume.volume_guid, "Path": f"{volume.guest_path}Files"}
        assert combined == {"ContainerRootPath": root.root, "Layers": [layer], "FilterType": "UnionFS"}
        assert root.storage.path == root.root
        assert [(each.id, each.path) for each in root.storage.layers] == [
            (volume.volume_guid, volume.guest_path)
        ]
        check_at_rest(run)
        run.start = run.last
        await root.release()
        released = [e.call.resource.rpartition("/")[2] for e in run.sent("host", "guest")]
        assert released[0] == "CombinedLayers"
        assert released.index(CIMS) < min(released.index(lun) for lun in "123")
        assert run.vm.devices().disks == ()
        check_at_rest(run)


async def test_containers_share_the_volume_of_their_images() -> None:
    async with running(wcow()) as run:
        first = await run.vm.mount_layers("c1", [ONE], SCRATCH)
        second = await run.vm.mount_layers("c2", [ONE], DISK)
        assert [volume.references for volume in run.vm.block_cims.volumes] == [2]
        await first.release()
        check_at_rest(run)
        await second.release()
        assert run.vm.devices().disks == ()


@pytest.mark.parametrize(
    ("layers", "options", "problem"),
    [
        ([ONE, ONE], {}, "one or more WCOWLayer, or one BlockCIMLayer"),
        ([ONE, uvm.WCOWLayer(r"C:\shared", "1")], {}, "or one BlockCIMLayer"),
        ([ONE], {"root": r"C:\root"}, "leave out root"),
        ([ONE], {"grant_access": False}, "leave out grant_access"),
    ],
)
async def test_other_layers_beside_block_cims_are_refused(
    layers: Any, options: dict[str, Any], problem: str
) -> None:
    async with running(wcow()) as run:
        with pytest.raises(OptionsError, match=problem):
            await run.vm.mount_layers("c1", layers, SCRATCH, **options)
        assert run.sent() == []


@pytest.mark.parametrize("how", ["refuse", "lose", "cancelled"])
async def test_a_root_that_is_disturbed_at_any_request_is_undone_or_reported(how: str) -> None:
    found = await _points(False)
    assert {point.to for point in found} == {"grant", "guest", "host"}
    for point in found:
        async with running(wcow()) as run:
            prepared(run)
            before = run.vm.devices()
            done = await spoil(run.backend, how, point, partial(run.vm.mount_layers, "c1", [TWO], SCRATCH))
            await run.vm.settled()
            check_at_rest(run)
            assert (done, run.vm.orphans) == (False, ()), point
            assert how == "lose" or run.vm.devices() == before, point


@pytest.mark.parametrize("how", ["refuse", "lose", "cancelled"])
async def test_a_release_that_is_disturbed_at_any_request_goes_on_or_is_reported(how: str) -> None:
    for point in await _points(True):
        async with running(wcow()) as run:
            prepared(run)
            before = run.vm.devices()
            root = await run.vm.mount_layers("c1", [TWO], SCRATCH)
            if not await spoil(run.backend, how, point, root.release) and how == "refuse":
                await root.release()
            await run.vm.settled()
            check_at_rest(run)
            assert run.vm.orphans == (), point
            assert how == "lose" or run.vm.devices() == before, point


async def _points(of_release: bool) -> list[Point]:
    """Return the requests of mounting the layers of a container, or of releasing them."""
    async with running(wcow()) as run:
        prepared(run)
        root = await run.vm.mount_layers("c1", [TWO], SCRATCH)
        found = [*points(run.backend, run.start)]
        begun = run.last
        await root.release()
        found = [*points(run.backend, begun)] if of_release else found
    return on_this_loop([point for point in found if point.to != "revoke"])


# What they are made of.


def test_layers_are_read_from_a_mount_of_containerd() -> None:
    options = [
        r'parentCimPaths=["C:\\cims\\2\\top.vhd\\top.cim", "C:\\cims\\1\\base.vhd\\base.cim"]',
        "blockCIMType=device",
        r"mergedCIMPath=C:\cims\2\merged.vhd\merged.cim",
    ]
    assert uvm.BlockCIMLayer.from_mount(options) == uvm.BlockCIMLayer(
        [
            uvm.BlockCIM(r"C:\cims\2\top.vhd", "top.cim"),
            uvm.BlockCIM(r"C:\cims\1\base.vhd", "base.cim"),
        ],
        merged=uvm.BlockCIM(r"C:\cims\2\merged.vhd", "merged.cim"),
    )
    single = [r'parentCimPaths=["C:\\a.vhd\\a.cim"]', "blockCIMType=file", r"mergedCIMPath=C:\m.vhd\m"]
    assert uvm.BlockCIMLayer.from_mount(single).merged is None


PARENTS = r'parentCimPaths=["C:\\a.vhd\\a.cim", "C:\\b.vhd\\b.cim"]'


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["blockCIMType=device"], "one image at least"),
        ([PARENTS], "blockCIMType= is device or file, not ''"),
        ([PARENTS, "blockCIMType=x"], "not 'x'"),
        ([PARENTS, "blockCIMType=file"], "merged is the image that merges several"),
        (["parentCimPaths=[", "blockCIMType=file"], "is no JSON list of paths"),
        (["parentCimPaths=[3]", "blockCIMType=file"], "is no JSON list of paths"),
        (PARENTS, "options must be a sequence"),
    ],
)
def test_a_mount_that_names_no_layers_is_refused(options: Any, problem: str) -> None:
    with pytest.raises(OptionsError, match=problem):
        uvm.BlockCIMLayer.from_mount(options)


def test_a_single_image_has_no_merged_one() -> None:
    with pytest.raises(OptionsError, match="a single one has none"):
        uvm.BlockCIMLayer(ONE.cims, merged=uvm.BlockCIM(MERGED, "m"))


def test_a_confidential_vm_boots_from_one_image() -> None:
    boot = uvm.BlockCIMBootFiles.of_layer(r"C:\cims\os\os.vhd", r"C:\scratch")
    assert boot == uvm.BlockCIMBootFiles(
        boot_cim_vhd_path=r"C:\cims\os\os.vhd",
        efi_vhd_path=r"C:\cims\os\boot.vhd",
        scratch_vhd_path=r"C:\scratch\sandbox.vhdx",
    )


async def test_a_confidential_guest_formats_the_scratch_disk_and_counts_by_the_container() -> None:
    options: dict[str, Any] = {
        "boot_files": uvm.BlockCIMBootFiles.of_layer(LAYER, r"C:\layers"),
        "security_policy_enabled": True,
        "guest_state_file": r"C:\cims\state.vmgs",
        "bundle_directory": r"C:\bundle",
    }
    async with running(wcow(**options), backend=_confidential_host()) as run:
        layer = uvm.BlockCIMLayer([uvm.BlockCIM(OTHER_LAYER, "app.cim")])
        root = await run.vm.mount_layers("c1", [layer], SCRATCH)
        mounts = [e.call.resource for e in run.sent("guest")]
        assert mounts == [CIMS, "MappedVirtualDiskForContainerScratch", "CWCOWCombinedLayers"]
        assert run.sent("guest")[-1].document["Settings"]["ContainerID"] == "c1"
        await root.release()
        check_at_rest(run)


def _confidential_host() -> FakeBackend:
    backend = host_backend()
    for name in (r"layers\boot.vhd", r"layers\sandbox.vhdx", r"cims\state.vmgs"):
        backend.files.add(rf"C:\{name}", size=MIB)
    return backend
