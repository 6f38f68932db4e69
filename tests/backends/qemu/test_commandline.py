"""From a create document to QEMU's command line."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from attrs import evolve

from uvm._document import plan_creation
from uvm.backend import HostInfo
from uvm.backends.qemu.commandline import Launch, check_document, command_line, kernel_arguments
from uvm.errors import NotSupportedError, OptionsError
from uvm.options import LCOWOptions
from uvm.schema.json import from_json
from uvm.schema.system import ComputeSystem, VirtualMachine

HOST = HostInfo(paths="posix", processors=8, guest_images=("linux",))
LAUNCH = Launch(
    name="vm1",
    runtime_id="11111111-2222-3333-4444-555555555555",
    binary="qemu-system-x86_64",
    acceleration="tcg",
    kernel="/image/vmlinux",
    initrd="/image/initrd",
    shares="/proc/self/fd/8",
    qmp="fd=5",
    mux="fd=6",
    memory=7,
)


def machine(**options: Any) -> VirtualMachine:
    """The machine of the document that options become on such a host."""
    document = plan_creation(LCOWOptions(**options), HOST, {}, id="vm1", new_id=lambda: "").document
    read = from_json(ComputeSystem, document, forbid_extra=True).virtual_machine
    assert read is not None
    return read


def line(document: VirtualMachine | None = None, **facts: Any) -> list[str]:
    """The command line of a machine."""
    return command_line(machine() if document is None else document, evolve(LAUNCH, **facts))


def values(arguments: list[str], name: str) -> list[str]:
    """The values of an option that may be there more than once."""
    return [value for option, value in pairwise(arguments) if option == name]


def test_a_default_vm_is_a_q35_without_default_devices_that_boots_the_image_paused() -> None:
    arguments = line()
    assert arguments[0] == "qemu-system-x86_64"
    assert {"-nodefaults", "-no-user-config", "-S"} <= {*arguments}
    assert values(arguments, "-machine")[0].startswith("q35,")
    assert values(arguments, "-kernel") == ["/image/vmlinux"]
    assert values(arguments, "-initrd") == ["/image/initrd"]
    assert values(arguments, "-m") == ["1024M"]
    assert values(arguments, "-smp") == ["2"]
    assert values(arguments, "-uuid") == [LAUNCH.runtime_id]


def test_emulation_has_what_qemu_emulates_well_and_kvm_the_hosts_processor() -> None:
    assert (values(line(), "-accel"), values(line(), "-cpu")) == (["tcg"], ["max,erms=off,fsrm=off"])
    kvm = line(acceleration="kvm")
    assert (values(kvm, "-accel"), values(kvm, "-cpu")) == (["kvm"], ["host"])


def test_qemu_is_confined_and_starts_no_process() -> None:
    [sandbox] = values(line(), "-sandbox")
    assert sandbox == "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def test_what_ends_the_guest_leaves_qemu_stopped_for_its_last_words() -> None:
    [actions] = values(line(), "-action")
    assert {"panic=pause", "shutdown=pause", "reboot=shutdown"} <= {*actions.split(",")}
    assert "pvpanic-pci,addr=0x4" in values(line(), "-device")


def test_monitor_and_mux_are_the_descriptors_that_are_handed_over() -> None:
    arguments = line(qmp="fd=11", mux="fd=12")
    assert {"socket,id=qmp,fd=11", "socket,id=mux,fd=12"} <= {*values(arguments, "-chardev")}
    assert values(arguments, "-mon") == ["chardev=qmp,mode=control"]
    assert "virtserialport,id=mux,chardev=mux,name=uvm.mux" in values(arguments, "-device")


@pytest.mark.parametrize("count", range(5))
def test_each_scsi_controller_has_its_own_address_and_the_vpmem_devices_the_fifth(count: int) -> None:
    document = machine(scsi_controllers=count, vpmem_count=0 if count == 4 else 8)
    controllers = [each for each in values(line(document), "-device") if each.startswith("virtio-scsi-pci")]
    expected = [f"virtio-scsi-pci,id=scsi{n},addr={0x10 + n:#x}" for n in range(count)]
    assert controllers == [*expected, *([] if count == 4 else ["virtio-scsi-pci,id=vpmem,addr=0x14"])]


def test_root_ports_share_slots_below_the_controllers() -> None:
    ports = [each for each in values(line(root_ports=20), "-device") if each.startswith("pcie-root-port")]
    assert len(ports) == 20
    assert "addr=0x8.0x0,multifunction=on" in ports[0]
    assert ports[7].endswith("addr=0x8.0x7")
    assert "addr=0xa.0x0,multifunction=on" in ports[16]
    chassis = [each.partition("chassis=")[2].partition(",")[0] for each in ports]
    assert len({*chassis}) == 20


def test_each_slot_for_a_share_is_there_writable_and_read_only() -> None:
    shares = values(line(share_slots=2), "-fsdev")
    assert [each.split(",")[1] for each in shares] == [
        "id=share0", "id=roshare0", "id=share1", "id=roshare1"
    ]  # fmt: skip
    assert [each.endswith(",readonly=on") for each in shares] == [False, True] * 2
    assert all("path=/proc/self/fd/8/share" in each for each in shares)


def test_a_guest_of_a_qemu_of_roots_sets_no_owner_or_mode_of_a_file() -> None:
    assert all("security_model=none" in each for each in values(line(), "-fsdev"))
    assert all("security_model=mapped-xattr" in each for each in values(line(as_root=True), "-fsdev"))


def test_a_comma_in_a_name_ends_no_value() -> None:
    assert values(line(name="a,b"), "-name")[0].startswith("guest=a,,b,")


def test_memory_without_overcommit_is_there_from_the_start() -> None:
    assert "prealloc=on" not in values(line(machine(allow_overcommit=True)), "-object")[0]
    assert values(line(machine(allow_overcommit=False, memory_mb=512)), "-object")[0] == (
        "memory-backend-file,id=ram,size=512M,mem-path=/proc/self/fd/7,share=on,prealloc=on"
    )


def test_kernel_arguments_of_hyper_v_and_those_of_init_are_left_out() -> None:
    [appended] = values(line(machine(processors=3, kernel_boot_options="quiet loglevel=3")), "-append")
    words = appended.split()
    assert not {
        "pci=off",
        "8250_core.nr_uarts=0",
        "pmtmr=0",
        "initcall_blacklist=virtio_vsock_init",
        "--",
    } & {*words}
    assert {"panic=-1", "quiet", "loglevel=3", "nr_cpus=3", "console=ttyS0"} <= {*words}
    assert not any("vsockexec" in word for word in words)


def test_arguments_after_two_dashes_at_the_end_are_none() -> None:
    assert kernel_arguments("quiet --").split()[0] == "quiet"
    assert "--" not in kernel_arguments("quiet --").split()


def test_a_kernel_that_a_busy_machine_does_not_run_in_time_does_not_panic() -> None:
    assert "no_timer_check" in kernel_arguments("quiet").split()


def test_a_boot_does_not_test_ciphers_unless_fips_asks_for_that() -> None:
    assert "cryptomgr.notests" in kernel_arguments("quiet").split()
    assert not {word for word in kernel_arguments("quiet fips=1").split() if "crypt" in word}


@pytest.mark.parametrize("asked", ["cryptomgr.notests=0", "cryptomgr.notests"])
def test_a_caller_says_whether_a_boot_tests_ciphers(asked: str) -> None:
    assert [word for word in kernel_arguments(f"quiet {asked}").split() if "crypt" in word] == [asked]


def test_the_console_is_a_ring_or_the_socket_that_the_document_names() -> None:
    assert "ringbuf,id=console,size=65536" in values(line(), "-chardev")
    arguments = line(machine(console_pipe="/tmp/a,b"), console="fd=9,server=on,wait=off")
    assert "socket,id=console,fd=9,server=on,wait=off" in values(arguments, "-chardev")
    assert "console=ttyS0,115200" in values(arguments, "-append")[0].split()


def test_documents_of_linux_vms_are_taken() -> None:
    for options in ({}, {"scsi_controllers": 4}, {"vpmem_count": 0}, {"console_pipe": "/tmp/c"}):
        check_document(machine(**options))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "firmware": ({"Chipset": {"Uefi": {}}}, "LinuxKernelDirect"),
    "windows": ({"RegistryChanges": {}}, "Windows guests"),
    "confidential": ({"SecuritySettings": {"EnableTpm": True}}, "confidential"),
    "guest state": ({"GuestState": {"GuestStateFilePath": "/s"}}, "confidential"),
    "vsmb": ({"Devices": {"VirtualSmb": {"Shares": [{"Name": "a"}]}}}, "VSMB"),
    "vpci": ({"Devices": {"VirtualPci": {"a": {}}}}, "VFIO"),
    "video": ({"Devices": {"VideoMonitor": {}}}, "console"),
    "port": ({"Devices": {"ComPorts": {"1": {"NamedPipe": "/a"}}}}, "serial port"),
    "controllers": ({"Devices": {"Scsi": {str(n): {} for n in range(5)}}}, "at most 4 SCSI"),
    "numa": ({"ComputeTopology": {"Numa": {"VirtualNodeCount": 2}}}, "NUMA"),
    "reservation": ({"ComputeTopology": {"Processor": {"Reservation": 5}}}, "cannot be reserved"),
    "group": ({"ComputeTopology": {"Processor": {"CpuGroup": {"Id": "a"}}}}, "CPU groups"),
    "qos": ({"StorageQoS": {"IopsMaximum": 5}}, "StorageQoS"),
    "partition": ({"ResourcePartitionId": "a"}, "partitions"),
}


@pytest.mark.parametrize(("asked", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_qemu_does_not_have_is_refused_with_the_reason(asked: dict[str, Any], reason: str) -> None:
    direct: dict[str, Any] = {"Chipset": {"LinuxKernelDirect": {"KernelFilePath": "/k"}}}
    document = from_json(VirtualMachine, {**direct, **asked}, forbid_extra=True)
    with pytest.raises(NotSupportedError, match=rf"{reason}.*nothing was started"):
        check_document(document)


def test_a_clone_copies_what_it_writes_to_the_memory_of_its_template() -> None:
    clone = evolve(LAUNCH, restores=True, is_clone=True)
    found = command_line(machine(allow_overcommit=False, memory_mb=512), clone)
    assert values(found, "-object")[0] == (
        "memory-backend-file,id=ram,size=512M,mem-path=/proc/self/fd/7,share=off"
    )
    assert values(found, "-incoming") == ["defer"]


def test_neither_a_template_nor_its_clones_have_a_balloon() -> None:
    document, balloon = machine(memory_mb=512), "virtio-balloon-pci,id=balloon,addr=0x5"
    assert balloon in line(document)
    assert balloon not in line(document.replaced(is_template=True))
    assert balloon not in command_line(document, evolve(LAUNCH, restores=True, is_clone=True))


def test_what_starts_from_a_saved_file_has_a_memory_of_its_own() -> None:
    found = command_line(machine(memory_mb=512), evolve(LAUNCH, restores=True))
    assert values(found, "-object")[0].endswith("mem-path=/proc/self/fd/7,share=on")
    assert values(found, "-incoming") == ["defer"]
    assert "-incoming" not in line(machine(memory_mb=512))


def test_a_document_without_memory_is_refused() -> None:
    document = from_json(VirtualMachine, {"Chipset": {"LinuxKernelDirect": {"KernelFilePath": "/k"}}})
    with pytest.raises(OptionsError, match="memory"):
        check_document(document)
