"""Bad input: each its own clear error, before anything is sent where that can be known; nothing changes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from attrs import evolve

import uvm
from tests.vm.support import (
    DISK,
    ENDPOINT,
    FILE,
    LARGE_LAYER,
    LAYER,
    NAMESPACE,
    OTHER_DISK,
    OTHER_LAYER,
    OTHER_SHARED,
    PIPE,
    SHARED,
    Running,
    host_backend,
    lcow,
    running,
    wcow,
)
from uvm._document.plan import CreationPlan
from uvm.backend import HostInfo
from uvm.errors import (
    AccessDeniedError,
    AlreadyReleasedError,
    HostError,
    HostPathError,
    NoSpaceError,
    NotAttachedError,
    NotSupportedError,
    OptionsError,
    UVMError,
    VMExitedError,
)
from uvm.schema.devices import VirtualSmbShareOptions

pytestmark = pytest.mark.anyio

Use = Callable[[Any], Awaitable[Any]]
MISSING = r"C:\missing\disk.vhdx"


async def expect_refusal(run: Running, use: Use, error: type[UVMError], match: str | None = None) -> None:
    """Nothing is sent, and nothing changes, when this is refused."""
    before = run.state()
    with pytest.raises(error, match=match):
        await use(run.vm)
    assert run.state() == before
    assert run.vm.quarantined == ()


# Options.


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (lambda: lcow(memory_mb=-2), OptionsError, "memory_mb must be a whole number from 0"),
        (lambda: lcow(processors=2**31), OptionsError, "processors"),
        (lambda: lcow(processor_limit=100_001), OptionsError, "processor_limit"),
        (lambda: lcow(scsi_controllers=5), OptionsError, "scsi_controllers"),
        (lambda: lcow(vpmem_count=129), OptionsError, "vpmem_count"),
        (lambda: lcow(deferred_commit=True, allow_overcommit=False), OptionsError, "deferred_commit"),
        (
            lambda: lcow(
                cpu_group_id="6fb1ab1e-3c4b-4d8d-8d0c-2d6a4a9b8c11",
                resource_partition_id="6fb1ab1e-3c4b-4d8d-8d0c-2d6a4a9b8c11",
            ),
            OptionsError,
            "not in both",
        ),
        (lambda: wcow(scsi_controllers=2), OptionsError, "exactly 1 SCSI controller"),
        (lambda: lcow(additional_json="{"), OptionsError, "additional_json must be a JSON object"),
        (
            lambda: lcow(additional_json="[1]"),
            OptionsError,
            "additional_json must be a JSON object, not list",
        ),
        (lambda: lcow(additional_json={"a": {1, 2}}), OptionsError, "additional_json must be a JSON object"),
        (lambda: lcow(additional_json='{"a": NaN}'), OptionsError, "additional_json must be a JSON object"),
    ],
)
def test_options_that_cannot_work_are_refused_when_they_are_made(
    options: Callable[[], Any], error: type[UVMError], match: str
) -> None:
    with pytest.raises(error, match=match):
        options()


@pytest.mark.parametrize(
    ("options", "host", "error", "match"),
    [
        (lcow(boot_files_path=r"C:\nowhere"), {}, UVMError, "nowhere"),
        (lcow(kernel_file="nothing"), {}, UVMError, "nothing"),
        (lcow(cold_discard_hint=True), {"build": 17763}, NotSupportedError, "18967"),
        (lcow(vpmem_count=1), {"machine": "arm64"}, NotSupportedError, "arm64"),
        (wcow(dump_directory=r"C:\nowhere"), {}, UVMError, "nowhere"),
    ],
)
async def test_options_that_do_not_fit_the_host_create_nothing(
    options: Any, host: dict[str, Any], error: type[UVMError], match: str
) -> None:
    backend = host_backend(host=HostInfo(**host))
    with pytest.raises(error, match=match):
        await uvm.UtilityVM.create(options, backend=backend).__aenter__()
    assert len(backend.request_log) == 0
    assert backend.leftovers() == []


async def test_a_merged_document_that_the_host_cannot_read_is_refused_by_the_host() -> None:
    backend = host_backend()
    options = wcow(additional_json={"VirtualMachine": {"Devices": {"Nonsense": 1}}})
    with pytest.raises(HostError, match="HCS_E_INVALID_JSON"):
        await uvm.UtilityVM.create(options, backend=backend).__aenter__()
    assert backend.leftovers() == []


# Paths.

LINUX_PATHS: dict[str, tuple[Use, str]] = {
    "no such disk": (lambda vm: vm.scsi.attach(MISSING), "no such file"),
    "no such disk, mounted": (lambda vm: vm.scsi.attach(MISSING, mount=uvm.Mount()), "no such file"),
    "a directory as a disk": (lambda vm: vm.scsi.attach(SHARED), "is a directory"),
    "no such layer": (lambda vm: vm.vpmem.add(MISSING), "no such file"),
    "a directory as a layer": (lambda vm: vm.vpmem.add(SHARED), "is a directory"),
    "nothing to share": (lambda vm: vm.share(MISSING, "/mnt"), "no such file or directory"),
    "no such layer of a root": (lambda vm: vm.mount_layers("c1", [LAYER, MISSING], DISK), "no such file"),
    "no such scratch of a root": (lambda vm: vm.mount_layers("c1", [LAYER], MISSING), "no such file"),
}


@pytest.mark.parametrize("what", list(LINUX_PATHS))
async def test_a_path_that_is_not_there_or_of_the_wrong_kind_is_not_sent(what: str) -> None:
    use, match = LINUX_PATHS[what]
    async with running() as run:
        await expect_refusal(run, use, HostPathError, match)


WINDOWS_PATHS: dict[str, tuple[Use, str]] = {
    "nothing to share": (lambda vm: vm.vsmb.add(MISSING), "no such file or directory"),
    "nothing to show": (lambda vm: vm.share(MISSING, r"C:\there"), "no such file or directory"),
    "a directory as a disk": (lambda vm: vm.scsi.attach(SHARED), "is a directory"),
    "no such layer of a root": (
        lambda vm: vm.mount_layers("c1", [uvm.WCOWLayer(SHARED, "a"), uvm.WCOWLayer(MISSING, "b")], DISK),
        "no such file",
    ),
    "no such scratch of a root": (
        lambda vm: vm.mount_layers("c1", [uvm.WCOWLayer(SHARED, "a")], MISSING),
        "no such file",
    ),
}


@pytest.mark.parametrize("what", list(WINDOWS_PATHS))
async def test_the_same_holds_for_a_windows_guest(what: str) -> None:
    use, match = WINDOWS_PATHS[what]
    async with running(wcow()) as run:
        await expect_refusal(run, use, HostPathError, match)


# Arguments.

LINUX_ARGUMENTS: dict[str, tuple[Use, str]] = {
    "a path of no extensible disk": (
        lambda vm: vm.scsi.attach("evd://", type=uvm.DiskType.EXTENSIBLE_VIRTUAL_DISK),
        "evd://<type>/<path>",
    ),
    "a share at no path": (lambda vm: vm.plan9.add(SHARED, ""), "guest path"),
    "shown at no path": (lambda vm: vm.share(SHARED, ""), "guest path"),
    "a flag in words": (lambda vm: vm.scsi.attach(DISK, read_only="no"), "True or False, not 'no'"),
    "a share by a flag in words": (lambda vm: vm.share(SHARED, "/x", read_only="no"), "True or False"),
    "restricted in words": (lambda vm: vm.plan9.add(SHARED, "/x", restrict="no"), "True or False"),
    "a root at no path": (lambda vm: vm.layers.combine("", ["/a"]), "root of combined layers"),
    "a root of no layers": (lambda vm: vm.mount_layers("c1", [], DISK), "one or more LCOWLayer"),
    "a root of no container": (lambda vm: vm.mount_layers("", [LAYER], DISK), "id of a container"),
    "a root elsewhere": (lambda vm: vm.mount_layers("..", [LAYER], DISK), "name of a directory"),
    "a container elsewhere": (
        lambda vm: vm.create_container("../c1", {"process": {"args": ["true"], "cwd": "/"}, "linux": {}}),
        "name of a directory",
    ),
    "a root of the other kind of layer": (
        lambda vm: vm.mount_layers("c1", [uvm.WCOWLayer(SHARED, "a")], DISK),
        "LCOWLayer",
    ),
    "no memory": (lambda vm: vm.update_memory(0), "at least"),
    "no CPU group": (lambda vm: vm.set_cpu_group(""), "CPU group id"),
    "a service that is no GUID": (lambda vm: vm.remove_hvsocket_service("me"), "GUID"),
    "a mount that is none": (lambda vm: vm.scsi.attach(DISK, mount="/mnt"), "a Mount"),
    "a filter of a Linux guest": (
        lambda vm: vm.layers.combine("/r", ["/a"], filter_type="UnionFS"),
        "filter_type: no effect",
    ),
    "an id of a Linux layer": (lambda vm: vm.layers.combine("/r", [("a", "/a")]), "ids of layers: no effect"),
    "a layer that is none": (lambda vm: vm.layers.combine("/r", [5]), "neither a str"),
    "files of a share that is not restricted": (
        lambda vm: vm.plan9.add(SHARED, "/mnt", allowed_names=["a"]),
        "no effect without restrict",
    ),
    "files elsewhere": (
        lambda vm: vm.plan9.add(SHARED, "/mnt", restrict=True, allowed_names=["..\\a"]),
        "no name of a file",
    ),
    "layers at a relative root": (
        lambda vm: vm.mount_layers("c", [LAYER], DISK, root="run"),
        "root: 'run' is relative",
    ),
    "a container's id of another type": (
        lambda vm: vm.layers.combine("/r", ["/a"], scratch_path="/s", container_id=5),
        "container_id must be a string",
    ),
    "a namespace that is no document": (lambda vm: vm.network.add_namespace(None), "namespace must be str"),
    "an endpoint that is no document": (
        lambda vm: vm.network.add_endpoint(NAMESPACE, [ENDPOINT]),
        "endpoint must be str",
    ),
    "a moderation of another type": (
        lambda vm: vm.network.update_adapter("a", interrupt_moderation=True),
        "interrupt_moderation must be one of",
    ),
    "a VMBus GUID that is none": (lambda vm: vm.vpci.assign("PCI\\A", vmbus_guid="me"), "GUID"),
    "no function of a device": (lambda vm: vm.vpci.assign("PCI\\A", -1), "function"),
    "a device at no path": (lambda vm: vm.vpci.assign(""), "empty"),
    "a device of another type": (lambda vm: vm.vpci.remove(5), "a PCI device"),
    "a function of another type": (lambda vm: vm.vpci.remove("PCI\\A", [0]), "function"),
    "a namespace of another type": (lambda vm: vm.network.remove_namespace(5), "a GUID is a str"),
    "an endpoint of another type": (lambda vm: vm.network.remove_endpoint("a", b"e"), "a GUID is a str"),
    "an adapter's id that is no GUID": (
        lambda vm: vm.network.add_endpoint(NAMESPACE, {"ID": "e"}, nic_id="me"),
        "GUID",
    ),
}


@pytest.mark.parametrize("what", list(LINUX_ARGUMENTS))
async def test_an_argument_that_cannot_work_is_not_sent(what: str) -> None:
    use, match = LINUX_ARGUMENTS[what]
    async with running() as run:
        await expect_refusal(run, use, OptionsError, match)


WINDOWS_ARGUMENTS: dict[str, tuple[Use, str]] = {
    "no named pipe": (lambda vm: vm.pipes.add(r"C:\pipe"), "not a named pipe"),
    "a named pipe without a name": (lambda vm: vm.pipes.add("\\\\.\\pipe\\"), "not a named pipe"),
    "shown at no path": (lambda vm: vm.share(SHARED, ""), "guest path"),
    "options that are none": (lambda vm: vm.vsmb.add(SHARED, options={"ReadOnly": True}), "are VirtualSmb"),
    "read-only, by other options": (
        lambda vm: vm.vsmb.add(SHARED, read_only=True, options=VirtualSmbShareOptions()),
        "options.read_only is False",
    ),
    "a scratch of a Windows root": (
        lambda vm: vm.layers.combine(r"C:\r", [("a", r"C:\a")], scratch_path=r"C:\s"),
        "scratch_path: no effect",
    ),
    "no filter": (lambda vm: vm.layers.combine(r"C:\r", [("a", r"C:\a")], filter_type="zfs"), "filter_type"),
    "a root of choice": (
        lambda vm: vm.mount_layers("c1", [uvm.WCOWLayer(SHARED, "a")], DISK, root=r"C:\r"),
        "leave out root",
    ),
}


@pytest.mark.parametrize("what", list(WINDOWS_ARGUMENTS))
async def test_nor_is_it_for_a_windows_guest(what: str) -> None:
    use, match = WINDOWS_ARGUMENTS[what]
    async with running(wcow()) as run:
        await expect_refusal(run, use, OptionsError, match)


async def test_a_guest_path_that_is_taken_is_refused_before_anything_is_sent() -> None:
    async with running() as run:
        await run.vm.scsi.attach(DISK, mount=uvm.Mount(guest_path="/mnt"))
        use: Use = lambda vm: vm.scsi.attach(OTHER_DISK, mount=uvm.Mount(guest_path="/mnt"))  # noqa: E731
        await expect_refusal(run, use, OptionsError, "where the disk at controller 0, LUN 0 is mounted")


async def test_a_path_of_a_windows_guest_that_is_taken_is_refused_before_anything_is_sent() -> None:
    async with running(wcow()) as run:
        await run.vm.share(SHARED, r"C:\there")
        await expect_refusal(
            run, lambda vm: vm.share(OTHER_SHARED, r"C:\there"), OptionsError, "another share"
        )
        await expect_refusal(
            run, lambda vm: vm.share(SHARED, r"C:\there", read_only=True), OptionsError, "another share"
        )
        sent = len(run.sent())
        await run.vm.share(SHARED, r"C:\there")
        assert len(run.sent()) == sent, "the same again is one more reference"


async def test_other_layers_at_a_root_are_refused() -> None:
    async with running() as run:
        root = await run.vm.mount_layers("c1", [LAYER], DISK)
        use: Use = lambda vm: vm.layers.combine(root.root, ["/other"])  # noqa: E731
        await expect_refusal(run, use, OptionsError, "other layers are combined there")


async def test_a_namespace_or_an_endpoint_that_is_not_there_is_refused() -> None:
    async with running() as run:
        await expect_refusal(
            run, lambda vm: vm.network.add_namespace("nowhere"), HostError, "ERROR_NOT_FOUND"
        )
        await expect_refusal(run, lambda vm: vm.network.setup("nowhere"), HostError, "ERROR_NOT_FOUND")
        await expect_refusal(
            run, lambda vm: vm.network.add_endpoint(NAMESPACE, "none"), HostError, "HCN_E_ENDPOINT_NOT_FOUND"
        )
        document = {"ID": "22222222-0000-0000-0000-000000000001"}
        await expect_refusal(
            run, lambda vm: vm.network.add_endpoint(NAMESPACE, document), NotAttachedError, "is not in"
        )


# What is not there.


async def test_the_removal_of_what_is_not_there_is_refused() -> None:
    linux: list[Use] = [
        lambda vm: vm.scsi.detach(DISK),
        lambda vm: vm.vpmem.remove(LAYER),
        lambda vm: vm.vpci.remove("none"),
        lambda vm: vm.layers.remove("/root"),
        lambda vm: vm.network.remove_endpoint(NAMESPACE, "none"),
    ]
    async with running() as run:
        for use in linux:
            await expect_refusal(run, use, NotAttachedError)
        with pytest.raises(NotAttachedError):
            run.vm.scsi.guest_path(DISK)
        with pytest.raises(NotAttachedError):
            run.vm.vpmem.guest_path(LAYER)
        assert run.vm.scsi.find(DISK) is None
    windows: list[Use] = [
        lambda vm: vm.vsmb.remove(SHARED, read_only=True),
        lambda vm: vm.vsmb.guest_path(SHARED, read_only=True),
        lambda vm: vm.pipes.remove(PIPE),
    ]
    async with running(wcow()) as run:
        await run.vm.vsmb.add(SHARED)
        await run.vm.vsmb.add(FILE)
        for use in windows:
            await expect_refusal(run, use, NotAttachedError)


# Space.


def _one_slot(plan: CreationPlan) -> CreationPlan:
    return evolve(plan, reserved_scsi=tuple((0, lun) for lun in range(64) if lun != 5))


async def test_every_scsi_slot_taken_is_an_error_of_its_own() -> None:
    async with running(amend=_one_slot) as run:
        disk = await run.vm.scsi.attach(DISK)
        assert disk.lun == 5
        await expect_refusal(run, lambda vm: vm.scsi.attach(OTHER_DISK), NoSpaceError, "no SCSI slot is free")
        await disk.release()
        assert (await run.vm.scsi.attach(OTHER_DISK)).lun == 5


async def test_a_vm_without_controllers_has_no_slot() -> None:
    async with running(lcow(scsi_controllers=0)) as run:
        await expect_refusal(run, lambda vm: vm.scsi.attach(DISK), NoSpaceError, "no SCSI slot is free")


@pytest.mark.parametrize("packed", [True, False])
async def test_no_room_for_a_layer_is_an_error_of_its_own(packed: bool) -> None:
    options = lcow(vpmem_count=1, vpmem_size_bytes=1 << 20, vpmem_multi_mapping=packed)
    async with running(options) as run:
        await run.vm.vpmem.add(LAYER)
        await expect_refusal(run, lambda vm: vm.vpmem.add(OTHER_LAYER), NoSpaceError, "was not added")
        await expect_refusal(run, lambda vm: vm.vpmem.add(LARGE_LAYER), NoSpaceError, str(5 << 20))


async def test_an_empty_layer_is_refused() -> None:
    async with running() as run:
        run.backend.files.add(r"C:\layers\empty.vhd", size=0)
        await expect_refusal(run, lambda vm: vm.vpmem.add(r"C:\layers\empty.vhd"), OptionsError, "is empty")


# What the VM denies, or does not have.


async def test_a_writable_share_is_refused_where_the_vm_denies_those() -> None:
    async with running(lcow(no_writable_file_shares=True)) as run:
        for use in (lambda vm: vm.plan9.add(SHARED, "/mnt"), lambda vm: vm.share(SHARED, "/mnt")):
            await expect_refusal(run, use, AccessDeniedError, "share it with read_only=True")
        await run.vm.share(SHARED, "/mnt", read_only=True)
    async with running(wcow(no_writable_file_shares=True)) as run:
        for use in (lambda vm: vm.vsmb.add(SHARED), lambda vm: vm.share(SHARED, r"C:\there")):
            await expect_refusal(run, use, AccessDeniedError, "share it with read_only=True")
        await run.vm.share(SHARED, r"C:\there", read_only=True)


async def test_devices_of_the_other_kind_of_guest_are_refused() -> None:
    windows: dict[str, Use] = {
        "VPMEM": lambda vm: vm.vpmem.add(LAYER),
        "Plan9": lambda vm: vm.plan9.add(SHARED, "/mnt"),
        "PodCgroupMemoryLimit": lambda vm: vm.update_container_memory_limits(),
    }
    async with running(wcow()) as run:
        for what, use in windows.items():
            await expect_refusal(run, use, NotSupportedError, f"{what}: needs a Linux guest")
    linux: dict[str, Use] = {
        "VSMB": lambda vm: vm.vsmb.add(SHARED),
        "named pipes": lambda vm: vm.pipes.add(PIPE),
    }
    async with running() as run:
        for what, use in linux.items():
            await expect_refusal(run, use, NotSupportedError, f"{what}: needs a Windows guest")


@pytest.mark.parametrize(
    "mount",
    [
        uvm.Mount(partition=1),
        uvm.Mount(encrypted=True),
        uvm.Mount(options=("ro",)),
        uvm.Mount(filesystem="ext4"),
        uvm.Mount(ensure_filesystem=True),
    ],
)
async def test_a_mount_that_a_windows_guest_cannot_make_is_refused(mount: uvm.Mount) -> None:
    async with running(wcow()) as run:
        await expect_refusal(
            run, lambda vm: vm.scsi.attach(DISK, mount=mount), NotSupportedError, "does not support"
        )


async def test_a_host_that_is_too_old_for_a_change_is_named() -> None:
    async with running(backend=host_backend(host=HostInfo(build=17763))) as run:
        await expect_refusal(run, lambda vm: vm.update_cpu_limits(limit=1), NotSupportedError, "19042.*17763")
        await expect_refusal(run, lambda vm: vm.share(FILE, "/mnt"), NotSupportedError, "18362.*17763")


# Too often, or too late.


async def test_releasing_twice_is_an_error() -> None:
    async with running() as run:
        lease = await run.vm.vpmem.add(LAYER)
        await lease.release()
        await expect_refusal(run, lambda vm: lease.release(), AlreadyReleasedError, "released before")


async def test_use_after_close_is_an_error() -> None:
    async with running() as run:
        await run.vm.close()
        with pytest.raises(VMExitedError):
            await run.vm.scsi.attach(DISK)
        with pytest.raises(VMExitedError):
            await run.vm.properties("Memory")
