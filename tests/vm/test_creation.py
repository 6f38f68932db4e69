"""What creating a VM refuses before it does anything, and what of the host it leaves as it was."""

from __future__ import annotations

from pathlib import PureWindowsPath
from typing import Any

import attrs
import pytest

import uvm
from tests.vm.support import MIB, SHARED, host_backend, lcow, running, wcow
from uvm.backends.fake import FakeBackend
from uvm.errors import HostError, NotSupportedError, OptionsError
from uvm.options import BlockCIMBootFiles, HvSocketService, RegistryValue

pytestmark = pytest.mark.anyio

GUID = "6fb1ab1e-3c4b-4d8d-8d0c-2d6a4a9b8c11"


def isolated(backend: FakeBackend, **options: Any) -> uvm.LCOWOptions:
    for name in ("kernel.vmgs", "rootfs.vhd"):
        backend.files.add(rf"C:\boot\{name}", size=MIB)
    given = {
        "guest_state_file": "kernel.vmgs",
        "dm_verity_rootfs_vhd": "rootfs.vhd",
        "rootfs_type": "none",
        "bundle_directory": r"C:\bundles\vm1",
    }
    return lcow(**{**given, **options})


def confidential(backend: FakeBackend, **options: Any) -> uvm.WCOWOptions:
    for name in ("rootfs.vhd", "boot.vhd", "scratch.vhdx", "state.vmgs"):
        backend.files.add(rf"C:\cim\{name}", size=MIB)
    boot = BlockCIMBootFiles(
        boot_cim_vhd_path=r"C:\cim\rootfs.vhd",
        efi_vhd_path=r"C:\cim\boot.vhd",
        scratch_vhd_path=r"C:\cim\scratch.vhdx",
    )
    given = {
        "boot_files": boot,
        "guest_state_file": r"C:\cim\state.vmgs",
        "security_policy_enabled": True,
        "bundle_directory": r"C:\bundles\vm1",
    }
    return wcow(**{**given, **options})


def tree(backend: FakeBackend) -> list[str]:
    """Every path of the host."""
    return sorted(backend.files._nodes)


async def create(options: Any, backend: FakeBackend, **settings: Any) -> None:
    async with uvm.UtilityVM.create(options, backend=backend, **settings):
        pass


async def refused(options: Any, backend: FakeBackend, match: str) -> None:
    """It is refused, and nothing is sent, made, copied or granted."""
    before = tree(backend)
    with pytest.raises((OptionsError, NotSupportedError), match=match):
        await create(options, backend)
    assert len(backend.request_log) == 0
    assert tree(backend) == before
    assert backend.leftovers() == []


# Where a VM's own files go.


@pytest.mark.parametrize("make", [isolated, confidential])
@pytest.mark.parametrize(
    ("directory", "problem"),
    [
        ("", "bundle_directory"),
        ("bundle", "relative"),
        ("D:", "no root"),
        ("D:x", "no root"),
        (r"\x", "drive"),
    ],
)
async def test_an_isolated_vm_needs_an_absolute_directory_of_its_own(
    make: Any, directory: str, problem: str
) -> None:
    backend = host_backend()
    await refused(make(backend, bundle_directory=directory), backend, problem)


@pytest.mark.parametrize("directory", [r"c:\BOOT", "C:/boot/", r"C:\x\..\boot", r"\\?\C:\boot", r"C:\boot."])
async def test_the_directory_of_the_boot_files_is_recognised_however_it_is_spelled(directory: str) -> None:
    backend = host_backend()
    await refused(isolated(backend, bundle_directory=directory), backend, "must not be boot_files_path")


async def test_the_directory_of_the_boot_files_is_recognised_through_a_link() -> None:
    backend = host_backend()
    backend.files.add_link(r"C:\link", r"C:\boot")
    await refused(isolated(backend, bundle_directory=r"C:\link"), backend, "must be apart")


@pytest.mark.parametrize("make", [isolated, confidential])
async def test_directories_that_creation_made_go_with_the_vm(make: Any) -> None:
    backend = host_backend()
    options = make(backend)
    before = tree(backend)
    async with uvm.UtilityVM.create(options, backend=backend) as vm:
        await vm.start()
        assert await backend.files.stat(r"C:\bundles\vm1") is not None
    assert tree(backend) == before
    assert backend.leftovers() == []


@pytest.mark.parametrize("make", [isolated, confidential])
async def test_directories_that_creation_made_go_when_it_fails(make: Any) -> None:
    backend = host_backend()
    options = make(backend)
    before = tree(backend)
    backend.faults.refuse(operation="create")
    with pytest.raises(HostError):
        await create(options, backend)
    assert tree(backend) == before
    assert backend.leftovers() == []


@pytest.mark.parametrize("make", [isolated, confidential])
async def test_directories_that_were_there_or_have_another_use_stay(make: Any) -> None:
    backend = host_backend()
    backend.files.add_directory(r"C:\bundles")
    options = make(backend)
    async with uvm.UtilityVM.create(options, backend=backend):
        backend.files.add(r"C:\bundles\vm1\notes.txt", size=1)
    assert backend.files.listing(r"C:\bundles") == ["vm1"]
    assert backend.files.listing(r"C:\bundles\vm1") == ["notes.txt"]


async def test_an_empty_directory_that_was_made_is_told_as_left() -> None:
    backend = host_backend()
    await backend.files.mkdir(r"C:\new\dir")
    assert backend.leftovers() == [r"directory C:\NEW\DIR, empty"]
    await backend.files.remove(r"C:\new\dir")
    await backend.files.remove(r"C:\new")
    assert backend.leftovers() == []


# Options that cannot work.


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"network_config_proxy": r"C:\proxy"}, "network_config_proxy.*is not a named pipe"),
        ({"use_guest_state_file": True}, "use_guest_state_file: no effect without guest_state_file"),
        ({"dump_directory": r"C:\shared"}, "dump_directory: no effect on a Linux guest"),
        ({"extra_vsock_ports": [5]}, "extra_vsock_ports: no effect"),
        ({"revoke_released_files": True}, "revoke_released_files: no effect on a Linux guest"),
        ({"bundle_directory": r"C:\bundle"}, "bundle_directory: no effect"),
        ({"security_policy": "cG9saWN5"}, "security_policy: no effect"),
        ({"uvm_reference_info_file": "x"}, "uvm_reference_info_file: no effect"),
        ({"dm_verity_create_args": "x"}, "dm_verity_create_args: no effect"),
        ({"writable_overlay_dirs": True, "rootfs_type": "initrd"}, "writable_overlay_dirs: no effect"),
        ({"guest_log_level": "debug", "exec_command_line": "x"}, "guest_log_level: no effect"),
        ({"numa_preferred_physical_nodes": [1]}, "numa_preferred_physical_nodes: no effect"),
        ({"memory_mb": 0}, "memory_mb is 0"),
        ({"processors": 0}, "processors is 0"),
        ({"vpmem_size_bytes": 0}, "vpmem_size_bytes is 0"),
        ({"boot_files_path": "boot"}, "boot_files_path: 'boot' is relative"),
        ({"boot_files_path": "C:boot"}, "no root"),
        ({"console_pipe": "vmpipe"}, "console_pipe: 'vmpipe' is not a named pipe"),
    ],
)
async def test_an_option_that_has_no_effect_creates_nothing(options: dict[str, Any], problem: str) -> None:
    await refused(lcow(**options), host_backend(), problem)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"firmware_parameters": "x", "debug_data_path": r"C:\x"}, "firmware_parameters, debug_data_path"),
        ({"boot_files_root_path": r"C:\x"}, "boot_files_root_path: no effect"),
        ({"security_policy": "cG9saWN5"}, "security_policy: no effect"),
        ({"security_policy_enforcer": "x"}, "security_policy_enforcer: no effect"),
        ({"dump_directory": r"\dumps"}, "dump_directory: .* has no drive"),
    ],
)
async def test_an_option_of_another_kind_of_windows_vm_creates_nothing(
    options: dict[str, Any], problem: str
) -> None:
    await refused(wcow(**options), host_backend(), problem)


async def test_an_isolated_vm_has_its_kernel_of_its_guest_state_file() -> None:
    backend = host_backend()
    await refused(
        isolated(backend, console_pipe=r"\\.\pipe\p"), backend, "console_pipe: no effect with guest"
    )


async def test_one_disk_is_no_two_boot_disks() -> None:
    backend = host_backend()
    boot = BlockCIMBootFiles(
        boot_cim_vhd_path=r"C:\cim\rootfs.vhd",
        efi_vhd_path="c:/CIM/rootfs.vhd",
        scratch_vhd_path=r"C:\cim\scratch.vhdx",
    )
    await refused(confidential(backend, boot_files=boot), backend, "one disk twice")


async def test_the_root_of_the_boot_files_has_those_that_are_not_named() -> None:
    backend = host_backend()
    boot = BlockCIMBootFiles(scratch_vhd_path=r"C:\cim\scratch.vhdx")
    backend.files.add(r"C:\cim\reference_info.cose", content=b"measured")
    options = confidential(backend, boot_files=boot, boot_files_root_path=r"C:\cim")
    async with uvm.UtilityVM.create(options, backend=backend) as vm:
        (controller,) = vm.plan.document["VirtualMachine"]["Devices"]["Scsi"].values()
        disks = [controller["Attachments"][lun]["Path"] for lun in "012"]
        assert disks == [r"C:\cim\scratch.vhdx", r"C:\cim\boot.vhd", r"C:\cim\rootfs.vhd"]
        await vm.start()
    (policy,) = [e for e in backend.request_log.entries(to="guest") if e.call.resource == "SecurityPolicy"]
    assert policy.document["Settings"]["EncodedUVMReference"] == "bWVhc3VyZWQ="


# What the caller owns.


async def test_a_plan_that_was_amended_is_the_vms_own_copy() -> None:
    kept = []

    def amend(plan: uvm.CreationPlan) -> uvm.CreationPlan:
        kept.append(plan)
        return plan

    backend = host_backend()
    async with uvm.UtilityVM.create(lcow(), backend=backend, amend=amend) as vm:
        kept[0].document["Owner"] = "another"
        assert vm.plan.document["Owner"] == "uvm"


async def test_what_amends_a_plan_has_to_return_one() -> None:
    backend = host_backend()
    nothing: Any = lambda plan: None  # noqa: E731
    with pytest.raises(OptionsError, match="amend returned a NoneType"):
        await create(lcow(), backend, amend=nothing)
    assert len(backend.request_log) == 0


async def test_lists_and_tables_that_options_were_made_of_may_change() -> None:
    ports, services, values = [5], {GUID: HvSocketService()}, [RegistryValue(hive="System", key="k")]
    linux = lcow(extra_vsock_ports=ports, hvsocket_services=services)
    windows = wcow(registry_values=values)
    ports.append(6)
    services.clear()
    values.clear()
    assert (linux.extra_vsock_ports, list(linux.hvsocket_services)) == ((5,), [GUID])
    assert len(windows.registry_values) == 1


# Paths.


async def test_host_paths_may_be_pathlibs() -> None:
    backend = host_backend()
    options = isolated(backend, bundle_directory=PureWindowsPath(r"C:\bundles\vm1"))
    options = attrs.evolve(options, boot_files_path=PureWindowsPath(r"C:\boot"))
    assert (options.bundle_directory, options.boot_files_path) == (r"C:\bundles\vm1", r"C:\boot")
    await create(options, backend)


async def test_layers_are_a_sequence_of_layers_or_of_their_paths() -> None:
    async with running() as run:
        before = len(run.backend.request_log)
        for wrong in (r"C:\layers\base.vhd", PureWindowsPath(r"C:\layers\base.vhd")):
            layers: Any = wrong
            with pytest.raises(OptionsError, match="layers must be a sequence"):
                await run.vm.mount_layers("c1", layers, r"C:\disks\scratch.vhdx")
        with pytest.raises(OptionsError, match="allowed_names must be a sequence"):
            await run.vm.plan9.add(SHARED, "/shared", restrict=True, allowed_names="one.txt")
        assert len(run.backend.request_log) == before
        paths = [PureWindowsPath(r"C:\layers\base.vhd")]
        await run.vm.mount_layers("c1", paths, r"C:\disks\scratch.vhdx")
