"""The create document of a VM with a Linux guest."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.planning import (
    CONTROLLER,
    GUID,
    INITRD,
    MIB,
    VHD,
    init_arguments,
    kernel_arguments,
    lcow,
    machine,
    plan,
    wcow,
)
from uvm._document import files_to_stat, plan_creation
from uvm._document.plan import AssignedDevice
from uvm.backend import FileInfo, HostInfo
from uvm.errors import NotSupportedError, OptionsError
from uvm.options import (
    LCOWOptions,
    PCIDevice,
)

# Boot files of Linux


def test_the_default_boot_files_are_those_of_lcow() -> None:
    looked = files_to_stat(LCOWOptions(), HostInfo())
    assert "C:\\Program Files\\Linux Containers\\vmlinux" in looked
    with pytest.raises(OptionsError, match="boot_files_path must be given"):
        files_to_stat(LCOWOptions(), HostInfo(paths="posix"))


def test_a_host_with_an_image_of_its_own_asks_for_no_boot_files() -> None:
    host = HostInfo(paths="posix", guest_images=("linux",))
    assert files_to_stat(LCOWOptions(), host) == ()
    made = plan_creation(LCOWOptions(), host, {}, id="vm1", new_id=lambda: GUID)
    kernel = made.document["VirtualMachine"]["Chipset"]["LinuxKernelDirect"]
    assert "KernelFilePath" not in kernel
    assert "InitRdPath" not in kernel
    assert "nr_cpus=" in kernel["KernelCmdLine"]


@pytest.mark.parametrize(
    "named",
    [{"boot_files_path": "/boot/uvm"}, {"boot_files_path": "/boot/uvm", "kernel_file": "bzImage"}],
    ids=str,
)
def test_boot_files_that_are_named_are_taken_in_place_of_the_hosts_own_image(named: dict[str, Any]) -> None:
    host = HostInfo(paths="posix", guest_images=("linux",))
    looked = files_to_stat(LCOWOptions(**named), host)
    assert f"/boot/uvm/{named.get('kernel_file', 'vmlinux')}" in looked


@pytest.mark.parametrize(
    "asked", [{"kernel_file": "bzImage"}, {"rootfs_type": "vhd"}, {"kernel_direct": False}], ids=str
)
def test_what_the_hosts_own_image_is_not_needs_boot_files(asked: dict[str, Any]) -> None:
    host = HostInfo(paths="posix", guest_images=("linux",))
    with pytest.raises(OptionsError, match="boot_files_path must be given"):
        files_to_stat(LCOWOptions(**asked), host)


def test_a_vhd_is_preferred_to_an_initrd_and_vmlinux_to_kernel() -> None:
    made = machine(lcow((*INITRD, "rootfs.vhd")))
    assert made["Chipset"]["LinuxKernelDirect"]["KernelFilePath"] == "C:\\boot\\vmlinux"
    assert made["Devices"]["VirtualPMem"]["Devices"]["0"]["HostPath"] == "C:\\boot\\rootfs.vhd"
    assert "InitRdPath" not in made["Chipset"]["LinuxKernelDirect"]


def test_each_default_is_decided_by_itself() -> None:
    custom = lcow((*INITRD, "my.vhd"), rootfs_file="my.vhd")
    assert machine(custom)["Chipset"]["LinuxKernelDirect"]["InitRdPath"] == "C:\\boot\\my.vhd"
    beside_a_vhd = lcow((*VHD, "my.img"), rootfs_file="my.img")
    assert machine(beside_a_vhd)["Devices"]["VirtualPMem"]["Devices"]["0"]["HostPath"] == "C:\\boot\\my.img"
    typed = lcow(VHD, rootfs_type="initrd")
    assert machine(typed)["Chipset"]["LinuxKernelDirect"]["InitRdPath"] == "C:\\boot\\rootfs.vhd"


def test_a_host_that_cannot_boot_kernels_directly_boots_kernel_with_uefi() -> None:
    made = lcow(host={"build": 17763})
    entry = machine(made)["Chipset"]["Uefi"]["BootThis"]
    assert (entry["DevicePath"], entry["VmbFsRootPath"]) == ("\\kernel", "C:\\boot")
    assert entry["OptionalData"].startswith("initrd=/initrd.img initcall_blacklist=")


def test_a_boot_file_of_a_volume_without_a_letter_is_found_in_a_subdirectory() -> None:
    volume = "\\\\?\\Volume{6fb1ab1e-3c4b-4d8d-8d0c-2d6a4a9b8c11}\\"
    looked = files_to_stat(LCOWOptions(boot_files_path=volume, kernel_file="x64/kernel"), HostInfo())
    assert f"{volume}x64\\kernel" in looked


def test_the_boot_directory_is_cleaned() -> None:
    made = lcow(boot_files_path="C:/boot/x/..\\", kernel_direct=False)
    assert machine(made)["Chipset"]["Uefi"]["BootThis"]["VmbFsRootPath"] == "C:\\boot"


def test_host_paths_may_be_posix() -> None:
    options = LCOWOptions(boot_files_path="/boot/")
    made = plan(options, {"/boot/kernel": 1, "/boot/initrd.img": 1}, paths="posix")
    assert machine(made)["Chipset"]["LinuxKernelDirect"]["InitRdPath"] == "/boot/initrd.img"


def test_boot_files_have_to_be_files_that_are_there() -> None:
    with pytest.raises(OptionsError, match=r"the kernel: C:\\boot\\bzImage was not found"):
        lcow(kernel_file="bzImage")
    with pytest.raises(OptionsError, match=r"the root file system: C:\\boot\\initrd.img was not found"):
        lcow(("kernel",))
    directory = {"C:\\boot\\kernel": FileInfo(is_dir=True)}
    with pytest.raises(OptionsError, match=r"the kernel: C:\\boot\\kernel is a directory"):
        plan(LCOWOptions(boot_files_path="C:\\boot"), directory)


def test_without_a_root_file_system_of_a_type_the_kernel_is_told_of_none() -> None:
    made = lcow(rootfs_type="none")
    assert kernel_arguments(made).startswith(" initcall_blacklist=")
    assert "InitRdPath" not in machine(made)["Chipset"]["LinuxKernelDirect"]


# The root file system on VPMEM or SCSI


def test_a_vhd_on_vpmem_takes_device_0() -> None:
    made = lcow(VHD)
    assert made.boot_vpmem_bytes == MIB
    assert (made.vpmem_count, made.vpmem_size_bytes, made.reserved_scsi) == (64, 2**32, ())


def test_the_image_format_is_vhd1_whatever_the_name_as_in_hcsshim() -> None:
    made = lcow((*INITRD, "r.vhdx"), rootfs_file="r.vhdx", rootfs_type="vhd")
    assert machine(made)["Devices"]["VirtualPMem"]["Devices"]["0"]["ImageFormat"] == "Vhd1"


@pytest.mark.parametrize("size", [0, 2**32 + 1])
def test_a_vhd_that_does_not_fit_a_packed_device_is_refused(size: int) -> None:
    files = {"C:\\boot\\vmlinux": 1, "C:\\boot\\rootfs.vhd": size}
    with pytest.raises(OptionsError, match=f"has {size} bytes; on VPMEM it may have 1 to 4294967296"):
        plan(LCOWOptions(boot_files_path="C:\\boot"), files)
    unpacked = LCOWOptions(boot_files_path="C:\\boot", vpmem_multi_mapping=False)
    assert plan(unpacked, files).boot_vpmem_bytes == size


def test_without_vpmem_a_vhd_takes_the_first_scsi_slot_of_four_controllers() -> None:
    made = lcow(VHD, vpmem_count=0)
    assert (made.scsi_controllers, made.reserved_scsi, made.boot_vpmem_bytes) == (4, ((0, 0),), None)
    disk = {"Type": "VirtualDisk", "Path": "C:\\boot\\rootfs.vhd", "ReadOnly": True}
    assert machine(made)["Devices"]["Scsi"][CONTROLLER] == {"Attachments": {"0": disk}}
    assert "VirtualPMem" not in machine(made)["Devices"]
    assert kernel_arguments(made).startswith("root=/dev/sda ro rootwait init=/init initcall_blacklist")


def test_before_build_17763_the_controllers_stay_as_they_were_asked_for() -> None:
    assert lcow(VHD, vpmem_count=0, scsi_controllers=2, host={"build": 17134}).scsi_controllers == 2
    with pytest.raises(OptionsError, match="the root file system is on SCSI, but scsi_controllers is 0"):
        lcow(VHD, vpmem_count=0, scsi_controllers=0, host={"build": 17134})


def test_a_vm_may_have_no_scsi_controller_at_all() -> None:
    assert "Scsi" not in machine(lcow(scsi_controllers=0))["Devices"]


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        ("root,,,ro,0 100 verity", '"root,,,ro,0 100 verity"'),
        ('a"b\\c', '"a\\"b\\\\c"'),
        ("tab\tnew\n\x01\x7f", '"tab\\tnew\\n\\x01\\x7f"'),
        ("é \u00ad\U000e0001", '"é \\u00ad\\U000e0001"'),
    ],
)
def test_dm_verity_arguments_are_quoted_as_go_quotes(arguments: str, quoted: str) -> None:
    made = lcow(VHD, vpmem_count=0, dm_verity_mode=True, dm_verity_create_args=arguments)
    assert kernel_arguments(made).startswith(f"root=/dev/dm-0 dm-mod.create={quoted} init=/init initcall")


def test_dm_verity_on_scsi_needs_its_arguments() -> None:
    with pytest.raises(OptionsError, match="needs dm_verity_create_args"):
        lcow(VHD, vpmem_count=0, dm_verity_mode=True)
    assert "root=/dev/pmem0" in kernel_arguments(lcow(VHD, dm_verity_mode=True))


# The kernel's command line


def test_the_kernel_is_told_the_processors_asked_for_and_the_vm_gets_the_hosts() -> None:
    made = lcow(processors=16)
    assert " nr_cpus=16 " in kernel_arguments(made)
    assert machine(made)["ComputeTopology"]["Processor"] == {"Count": 8}
    assert made.processors == 8


def test_by_default_there_are_two_processors_or_the_only_one() -> None:
    assert lcow().processors == 2
    assert " nr_cpus=1 " in kernel_arguments(lcow(host={"processors": 1}))


def test_a_graphics_console_has_a_keyboard_and_keeps_the_vm_on_a_panic() -> None:
    made = lcow(graphics_console=True)
    devices = machine(made)["Devices"]
    assert (devices["Keyboard"], devices["EnhancedModeVideo"], devices["VideoMonitor"]) == ({}, {}, {})
    assert kernel_arguments(made).startswith(
        " initcall_blacklist=virtio_vsock_init 8250_core.nr_uarts=0 console=tty pci=off nr_cpus=2 "
    )
    assert init_arguments(made).startswith('-e 1 sh -c "/bin/vsockexec -e 109 /bin/gcs ')
    assert init_arguments(made).endswith(' & exec sh"')


def test_init_runs_what_the_options_say() -> None:
    made = lcow(
        VHD,
        kernel_boot_options="debug x=1",
        vpci_enabled=True,
        forward_stdout=True,
        forward_stderr=False,
        guest_log_level="debug",
        disable_time_sync=True,
        scrub_guest_logs=False,
        process_dump_location="/dumps",
        writable_overlay_dirs=True,
    )
    assert kernel_arguments(made) == (
        "root=/dev/pmem0 ro rootwait init=/init initcall_blacklist=virtio_vsock_init 8250_core.nr_uarts=0"
        " panic=-1 quiet debug x=1 nr_cpus=2 brd.rd_nr=0 pmtmr=0 -- -e 1 -w /bin/vsockexec -o 109"
        " /bin/gcs -v4 -log-format json -loglevel debug -disable-time-sync -scrub-logs=false"
        " -core-dump-location /dumps"
    )


def test_an_initrd_is_writable_already() -> None:
    assert init_arguments(lcow(writable_overlay_dirs=True)).startswith("-e 1 /bin/vsockexec")


def test_another_program_may_run_instead_of_the_compute_service() -> None:
    assert init_arguments(lcow(exec_command_line="/bin/true -x")) == "-e 1 /bin/vsockexec -e 109 /bin/true -x"


# arm64


def test_an_arm64_host_has_neither_vpmem_nor_direct_boot_by_default() -> None:
    made = lcow(host={"machine": "arm64"})
    assert (made.vpmem_count, made.scsi_controllers) == (0, 4)
    assert machine(made)["Chipset"]["Uefi"]["BootThis"]["DevicePath"] == "\\kernel"
    assert kernel_arguments(made).startswith(
        "initrd=/initrd.img initcall_blacklist=virtio_vsock_init panic=-1 quiet pci=off nr_cpus=2"
    )
    console = lcow(host={"machine": "arm64"}, console_pipe="\\\\.\\pipe\\p")
    assert " console=ttyAMA0,115200 pci=off" in kernel_arguments(console)
    with pytest.raises(NotSupportedError, match="vpmem_count is 2, but arm64 hosts have no VPMEM"):
        lcow(host={"machine": "arm64"}, vpmem_count=2)


# Builds


@pytest.mark.parametrize(
    ("options", "build"),
    [
        ({"cold_discard_hint": True}, 18967),
        ({"kernel_direct": True}, 18286),
        ({"cpu_group_id": GUID}, 19043),
        (
            {
                "allow_overcommit": False,
                "numa_max_processors_per_node": 2,
                "numa_max_memory_per_node_mb": 512,
            },
            26100,
        ),
    ],
)
def test_what_needs_a_newer_build_says_which(options: dict[str, Any], build: int) -> None:
    assert lcow(host={"build": build}, **options).document
    with pytest.raises(
        NotSupportedError, match=f"needs Windows build {build} or newer; the host has {build - 1}"
    ):
        lcow(host={"build": build - 1}, **options)


def test_several_layers_share_a_vpmem_device_from_build_18362_on() -> None:
    assert lcow(host={"build": 18362}).vpmem_multi_mapping
    assert not lcow(host={"build": 18361}).vpmem_multi_mapping
    assert lcow(host={"build": 17763}, vpmem_multi_mapping=True).vpmem_multi_mapping


# Memory, NUMA, assigned devices


@given(st.integers(0, 2**40))
def test_memory_is_even_and_at_most_one_more_than_asked_for(asked: int) -> None:
    made = lcow(memory_mb=asked)
    assert made.memory_mb % 2 == 0
    assert asked <= made.memory_mb <= asked + 1
    assert machine(made)["ComputeTopology"]["Memory"].get("SizeInMB", 0) == made.memory_mb


def test_hints_of_memory_in_use_depend_on_the_guest() -> None:
    assert machine(lcow(cold_discard_hint=True))["ComputeTopology"]["Memory"] == {
        "SizeInMB": 1024,
        "AllowOvercommit": True,
        "EnableColdDiscardHint": True,
    }
    assert machine(wcow(allow_overcommit=False))["ComputeTopology"]["Memory"] == {"SizeInMB": 1024}


NUMA: dict[str, Any] = {
    "allow_overcommit": False,
    "numa_mapped_physical_nodes": [1, 0],
    "numa_processor_counts": [1, 1],
    "numa_memory_blocks": [256, 768],
}


def test_explicit_numa_nodes_are_listed() -> None:
    topology = machine(lcow(**NUMA, numa_preferred_physical_nodes=[1]))["ComputeTopology"]
    assert topology["Memory"] == {"SizeInMB": 1024, "SlitType": "FirmwareFallbackMeasured"}
    assert topology["Processor"] == {"Count": 2}
    assert topology["Numa"] == {
        "VirtualNodeCount": 2,
        "PreferredPhysicalNodes": [1],
        "Settings": [
            {
                "PhysicalNodeNumber": 1,
                "CountOfProcessors": 1,
                "CountOfMemoryBlocks": 256,
                "MemoryBackingType": "Physical",
            },
            {
                "VirtualNodeNumber": 1,
                "VirtualSocketNumber": 1,
                "CountOfProcessors": 1,
                "CountOfMemoryBlocks": 768,
                "MemoryBackingType": "Physical",
            },
        ],
    }


def test_explicit_numa_nodes_have_to_add_up_to_the_vm() -> None:
    with pytest.raises(OptionsError, match="the virtual NUMA nodes have 3 processors, the VM has 2"):
        lcow(**{**NUMA, "numa_processor_counts": [1, 2]})
    with pytest.raises(OptionsError, match="nodes have 1025 MB of memory, the VM has 1026"):
        lcow(**{**NUMA, "numa_memory_blocks": [256, 769]}, memory_mb=1025)


def test_without_processors_per_node_or_mapped_nodes_there_is_no_numa() -> None:
    made = lcow(numa_max_memory_per_node_mb=512, numa_preferred_physical_nodes=[1], numa_processor_counts=[2])
    assert set(machine(made)["ComputeTopology"]) == {"Memory", "Processor"}


def test_assigned_devices_get_guids_and_follow_numa_nodes() -> None:
    devices = [PCIDevice("PCIP\\A"), PCIDevice("PCIP\\A", 1)]
    made = lcow(assigned_devices=devices)
    assert made.assigned_devices == (
        AssignedDevice("PCIP\\A", 0, "guid-0"),
        AssignedDevice("PCIP\\A", 1, "guid-1"),
    )
    assert machine(made)["Devices"]["VirtualPci"] == {
        "guid-0": {"Functions": [{"DeviceInstancePath": "PCIP\\A"}]},
        "guid-1": {"Functions": [{"DeviceInstancePath": "PCIP\\A", "VirtualFunction": 1}]},
    }
    with_numa = machine(lcow(**NUMA, assigned_devices=devices[:1]))["Devices"]["VirtualPci"]
    assert with_numa["guid-0"]["PropagateNumaAffinity"] is True
