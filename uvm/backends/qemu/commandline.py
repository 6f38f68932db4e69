"""From a create document and facts of the host to QEMU's command line. Pure: no I/O.

How it works
------------

The document is HCS's, as it would go to Windows. :func:`check_document` refuses what this hypervisor does not
have, before anything is started; :func:`command_line` is the rest::

    q35, no default devices, no configuration files, paused until `cont`
      00:02.0         virtio-serial: one port, for the mux
      00:03.0 - 05.0  virtio-rng, pvpanic, virtio-balloon (none in a template, nor in its clones)
      00:08.0 ...     PCI root ports, for the devices that come and go
      00:10.0 - 13.0  virtio-scsi, one for each SCSI controller of the document
      00:14.0         virtio-scsi, for the VPMEM devices
    fsdevs: slots for shares, each writable and read-only, at paths that are made later

Disks, shares and adapters of the document are not on the command line: they are attached as others are,
before the VM starts. Whatever a guest can cause to be written goes to rings of fixed size.

QEMU's options end a value at a comma, so commas of paths are doubled.

Source: ``qemu-system-x86_64 -help``; the figures behind it are in ``docs/performance.md``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, Literal

from attrs import frozen

from uvm._repr import Value
from uvm.errors import NotSupportedError, OptionsError
from uvm.schema import devices, system

Acceleration = Literal["kvm", "tcg"]

#: The name of the port that carries the mux.
MUX_PORT: Final = "uvm.mux"
#: The slots on PCI bus 0 of the SCSI controllers, and of the one of the VPMEM devices.
FIRST_SCSI_SLOT: Final = 0x10
VPMEM_SLOT: Final = 0x14
_FIRST_ROOT_PORT_SLOT: Final = 0x8
#: How many functions a slot has: so many root ports share one.
_FUNCTIONS: Final = 8
MAX_ROOT_PORTS: Final = _FUNCTIONS * (FIRST_SCSI_SLOT - _FIRST_ROOT_PORT_SLOT)
MAX_SCSI_CONTROLLERS: Final = VPMEM_SLOT - FIRST_SCSI_SLOT
#: How many of a guest's last bytes on its console are kept; a power of two.
CONSOLE_BYTES: Final = 1 << 16

#: The processor of a guest. Without ERMS and FSRM, Linux copies memory by loops; with them, by an instruction
#: that QEMU emulates byte by byte.
PROCESSORS: Final[Mapping[Acceleration, str]] = {"kvm": "host", "tcg": "max,erms=off,fsrm=off"}

#: What the document's kernel arguments say of Hyper-V, and does not hold here: the devices are on PCI, vsock
#: is not hv_sock's, the console is the serial port.
_NOT_HERE: Final = re.compile(r"pci=off|8250_core\.nr_uarts=\d+|initcall_blacklist=virtio_vsock_init|pmtmr=0")


@frozen(repr=False)
class Launch(Value):
    """The facts of one start of QEMU.

    :ivar name: the id of the compute system.
    :ivar runtime_id: the VM's GUID.
    :ivar binary: the program.
    :ivar kernel: the kernel to boot, and the initramfs; empty for none.
    :ivar shares: the path in QEMU of the directory with the links to what is shared.
    :ivar qmp: the argument of the ``-chardev`` of QMP, without its id: a descriptor, or a socket's path.
    :ivar mux: that of the mux.
    :ivar memory: the descriptor of the file that is the guest's memory, which QEMU inherits.
    :ivar console: the argument of the ``-chardev`` of the serial port, without its id; empty for a ring.
    :ivar restores: the VM starts from a state that was saved.
    :ivar is_clone: the memory is that of a template, and the VM copies what it writes.
    :ivar as_root: QEMU runs as root: owners and modes that guests set are kept beside a file, not set.
    :ivar root_ports: how many devices can be plugged into PCI at once.
    :ivar share_slots: how many shares there can be at once, of each kind: writable and read-only.
    """

    name: str
    runtime_id: str
    binary: str
    acceleration: Acceleration
    kernel: str
    initrd: str
    shares: str
    qmp: str
    mux: str
    memory: int
    console: str = ""
    restores: bool = False
    is_clone: bool = False
    as_root: bool = False
    root_ports: int = 8
    share_slots: int = 8


def check_document(document: system.VirtualMachine) -> None:
    """Refuse a VM that this hypervisor cannot run.

    :raises NotSupportedError: the document asks for what QEMU, or this backend, does not have.
    :raises OptionsError: it is no whole document of a VM.
    """
    for reason in _lacking(document):
        raise NotSupportedError(f"create a VM with QEMU: {reason}; nothing was started")
    topology = document.compute_topology
    if topology is None or topology.memory is None or topology.memory.size_in_mb <= 0:
        raise OptionsError("create a VM with QEMU: the document states no memory; nothing was started")


def _lacking(document: system.VirtualMachine) -> Iterator[str]:
    """Yield what the document asks for and is not there."""
    chipset = document.chipset or system.Chipset()
    if document.registry_changes is not None:
        yield "Windows guests are not supported, only Linux ones; they need the backend hcs, on Windows"
    if document.security_settings is not None or document.guest_state is not None:
        yield "confidential VMs are not supported; they need the backend hcs"
    if chipset.linux_kernel_direct is None:
        yield "the guest must boot a Linux kernel directly (LinuxKernelDirect): there is no firmware"
    if document.storage_qos is not None:
        yield "limits of the storage (StorageQoS) are not supported"
    if document.resource_partition_id:
        yield "resource partitions are Windows's"
    yield from _lacking_of_topology(document.compute_topology or system.Topology())
    yield from _lacking_of_devices(document.devices or devices.Devices())


def _lacking_of_topology(topology: system.Topology) -> Iterator[str]:
    processor = topology.processor or system.VirtualMachineProcessor()
    if topology.numa is not None:
        yield "virtual NUMA nodes are not supported"
    if processor.cpu_group is not None:
        yield "CPU groups are Windows's"
    if processor.reservation:
        yield "processors cannot be reserved here, only limited and weighed"


def _lacking_of_devices(each: devices.Devices) -> Iterator[str]:
    if each.virtual_smb is not None and each.virtual_smb.shares:
        yield "VSMB shares are Windows's; Linux guests have Plan9 shares"
    if each.virtual_pci:
        yield "assigned PCI devices (vPCI) need VFIO, which this backend does not have yet"
    if each.keyboard is not None or each.enhanced_mode_video is not None or each.video_monitor is not None:
        yield "there is no graphics console; the serial one is console_pipe"
    if set(each.com_ports) - {"0"}:
        yield "there is one serial port, number 0"
    if len(each.scsi) > MAX_SCSI_CONTROLLERS:
        yield f"there are at most {MAX_SCSI_CONTROLLERS} SCSI controllers, not {len(each.scsi)}"


def command_line(document: system.VirtualMachine, launch: Launch) -> list[str]:
    """Return the program and the arguments that start QEMU with a VM, paused.

    :param document: one that :func:`check_document` takes.
    """
    return [launch.binary, *_machine(document, launch), *_boot(document, launch), *_devices(document, launch)]


def _machine(document: system.VirtualMachine, launch: Launch) -> Iterator[str]:
    topology = document.compute_topology or system.Topology()
    memory = topology.memory or system.VirtualMachineMemory()
    processor = topology.processor or system.VirtualMachineProcessor()
    # What ends the guest leaves QEMU stopped, so that its last words can be read.
    yield from ("-action", "panic=pause,shutdown=pause,reboot=shutdown,watchdog=none")
    yield from ("-nodefaults", "-no-user-config", "-display", "none", "-S")
    yield from ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
    yield from ("-name", f"guest={_escaped(launch.name)},process=uvm-vm,debug-threads=on")
    yield from ("-uuid", launch.runtime_id)
    yield from ("-machine", "q35,usb=off,vmport=off,smbus=off,sata=off,graphics=off,memory-backend=ram")
    yield from ("-accel", launch.acceleration)
    yield from ("-cpu", PROCESSORS[launch.acceleration])
    yield from ("-smp", str(max(1, processor.count)), "-m", f"{memory.size_in_mb}M")
    kind = "share=off" if launch.is_clone else "share=on"
    reserved = "" if memory.allow_overcommit or launch.restores else ",prealloc=on"
    path = f"mem-path=/proc/self/fd/{launch.memory}"
    yield from ("-object", f"memory-backend-file,id=ram,size={memory.size_in_mb}M,{path},{kind}{reserved}")
    if launch.restores:
        yield from ("-incoming", "defer")


def _boot(document: system.VirtualMachine, launch: Launch) -> Iterator[str]:
    yield from ("-kernel", launch.kernel)
    if launch.initrd:
        yield from ("-initrd", launch.initrd)
    direct = (document.chipset or system.Chipset()).linux_kernel_direct or system.LinuxKernelDirect()
    has_port = bool((document.devices or devices.Devices()).com_ports)
    yield from ("-append", kernel_arguments(direct.kernel_cmd_line, has_port=has_port))


def kernel_arguments(line: str, *, has_port: bool = False) -> str:
    """Return the kernel's arguments here, from those of the document; init's own, after ``--``, are dropped.

    :param has_port: the document has a serial port, and its arguments say how it is used.
    """
    words = [word for word in f"{line} ".partition(" -- ")[0].split() if not _NOT_HERE.fullmatch(word)]
    if not has_port:
        words.append("console=ttyS0")
    # The NMI of a crash that is asked for.
    words.append("unknown_nmi_panic=1")
    # The kernel counts a few interrupts of its timer, and panics without them: on a busy machine, an emulated
    # processor may not have run meanwhile.
    words.append("no_timer_check")
    if "fips=1" not in words and not any(word.startswith("cryptomgr.notests") for word in words):
        # A tenth of an emulated boot: tests of the kernel's own ciphers, with the same outcome at each boot.
        words += ("cryptomgr.notests", "initcall_blacklist=crypto_kdf108_init")
    return " ".join(words)


def _devices(document: system.VirtualMachine, launch: Launch) -> Iterator[str]:
    wanted = document.devices or devices.Devices()
    yield from ("-chardev", f"socket,id=qmp,{launch.qmp}", "-mon", "chardev=qmp,mode=control")
    yield from ("-chardev", f"socket,id=mux,{launch.mux}")
    yield from ("-device", "virtio-serial-pci,id=serial,addr=0x2,max_ports=2")
    yield from ("-device", f"virtserialport,id=mux,chardev=mux,name={MUX_PORT}")
    yield from ("-device", "virtio-rng-pci,addr=0x3", "-device", "pvpanic-pci,addr=0x4")
    if not document.is_template and not launch.is_clone:
        yield from ("-device", "virtio-balloon-pci,id=balloon,addr=0x5")
    yield from _serial_port(launch.console)
    for number in range(len(wanted.scsi)):
        yield from ("-device", _controller(f"scsi{number}", FIRST_SCSI_SLOT + number))
    if wanted.virtual_pmem is not None:
        yield from ("-device", _controller("vpmem", VPMEM_SLOT))
    for number in range(launch.root_ports):
        yield from ("-device", _root_port(number))
    for number in range(launch.share_slots):
        yield from ("-fsdev", _share(f"share{number}", number, launch))
        yield from ("-fsdev", f"{_share(f'roshare{number}', number, launch)},readonly=on")


def _serial_port(console: str) -> tuple[str, ...]:
    # QEMU listens, as Hyper-V does at the named pipe.
    backing = f"socket,id=console,{console}" if console else f"ringbuf,id=console,size={CONSOLE_BYTES}"
    return ("-chardev", backing, "-serial", "chardev:console")


def _controller(name: str, slot: int) -> str:
    return f"virtio-scsi-pci,id={name},addr={slot:#x}"


def _root_port(number: int) -> str:
    slot, function = divmod(number, _FUNCTIONS)
    at = f"addr={_FIRST_ROOT_PORT_SLOT + slot:#x}.{function:#x}"
    several = ",multifunction=on" if function == 0 else ""
    return f"pcie-root-port,id=port{number},chassis={number + 1},slot={number + 1},{at}{several}"


def _share(name: str, number: int, launch: Launch) -> str:
    model = "mapped-xattr" if launch.as_root else "none"
    return f"local,id={name},path={launch.shares}/share{number},security_model={model},multidevs=remap"


def _escaped(text: str) -> str:
    """Return a text as a value of one of QEMU's options."""
    return text.replace(",", ",,")
