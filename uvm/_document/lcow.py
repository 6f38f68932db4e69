"""The document of a VM with a Linux guest (hcsshim's ``create_lcow.go``)."""

from __future__ import annotations

from collections.abc import Callable

from attrs import evolve, frozen

from uvm._document import common
from uvm._document.boot import (
    KERNEL_DIRECT_BUILD,
    LinuxBoot,
    boot_directory,
    boot_files_to_stat,
    kernel_command_line,
    resolve_boot,
)
from uvm._document.paths import Files, join, need, with_host_paths
from uvm._document.plan import AssignedDevice, CopyFile, CreationPlan, GrantAccess
from uvm._names import host_path_key
from uvm._wire import ports
from uvm.backend import HostInfo
from uvm.errors import NotSupportedError, OptionsError
from uvm.options import LCOWOptions
from uvm.options.lcow import LARGEST_VPMEM_BYTES
from uvm.schema import devices, system
from uvm.schema.common import RS5, V19H1
from uvm.schema.requests import SCSI_CONTROLLER_GUIDS

#: The options that hold paths of the host.
_HOST_PATHS = ("boot_files_path", "bundle_directory")

_EVERYONE = "D:P(A;;FA;;;WD)"

_DM_VERITY_ROOTFS = "rootfs.vhd"
_DEFAULT_VPMEM_COUNT = 64

_COLD_DISCARD_BUILD = 18967


@frozen(eq=False, repr=False)
class _Counts:
    """The numbers of controllers and devices, with hcsshim's defaults filled in."""

    scsi: int
    vpmem: int
    multi_mapping: bool


def lcow_files_to_stat(options: LCOWOptions, host: HostInfo) -> tuple[str, ...]:
    """Return the host paths that the plan depends on."""
    if not options.guest_state_file:
        return boot_files_to_stat(options, host)
    directory = boot_directory(options, host)
    templates = (options.guest_state_file, options.dm_verity_rootfs_vhd)
    return tuple(join(host, directory, name) for name in templates if name)


def plan_lcow(
    options: LCOWOptions, host: HostInfo, files: Files, *, id: str, new_id: Callable[[], str]
) -> CreationPlan:
    """Plan the creation of a VM with a Linux guest."""
    options = with_host_paths(options, _HOST_PATHS, host)
    counts = _counts(options, host)
    if options.cold_discard_hint:
        common.need_build(host, _COLD_DISCARD_BUILD, "cold_discard_hint")
    if options.kernel_direct:
        common.need_build(host, KERNEL_DIRECT_BUILD, "kernel_direct")
    if options.guest_state_file:
        return _plan_isolated(options, host, files, counts, id)
    return _plan_plain(options, host, files, counts, id, new_id)


def _counts(options: LCOWOptions, host: HostInfo) -> _Counts:
    vpmem = options.vpmem_count
    if vpmem is None:
        vpmem = 0 if host.machine == "arm64" else _DEFAULT_VPMEM_COUNT
    if vpmem and host.machine == "arm64":
        raise NotSupportedError(f"vpmem_count is {vpmem}, but arm64 hosts have no VPMEM devices")
    # Without VPMEM, layers are on SCSI.
    many = vpmem == 0 and host.build >= RS5
    multi = options.vpmem_multi_mapping
    if multi is None:
        # The guest refuses it under a policy: layers that share a device cannot be measured.
        multi = host.build >= V19H1 and not options.security_policy_enabled
    return _Counts(4 if many else options.scsi_controllers, vpmem, multi)


def _plan_plain(
    options: LCOWOptions,
    host: HostInfo,
    files: Files,
    counts: _Counts,
    id: str,
    new_id: Callable[[], str],
) -> CreationPlan:
    boot = resolve_boot(options, host, files)
    rootfs_bytes = _rootfs_bytes(boot, files)
    on_vpmem = boot.rootfs_type == "vhd" and counts.vpmem > 0
    on_scsi = boot.rootfs_type == "vhd" and not on_vpmem
    if on_vpmem and counts.multi_mapping:
        _check_fits_vpmem(boot, rootfs_bytes)
    nodes = common.topology(options, host)
    assigned = tuple(AssignedDevice(d.instance_path, d.function, new_id()) for d in options.assigned_devices)
    vm_devices = devices.Devices(
        scsi=_scsi(counts, boot.rootfs_path if on_scsi else None),
        virtual_pmem=_vpmem(options, counts, boot.rootfs_path if on_vpmem else None),
        hv_socket=devices.HvSocket2(hv_socket_config=_sockets(options)),
        plan9=devices.Plan9(),
        virtual_pci={d.vmbus_guid: _pci_device(d, nodes) for d in assigned},
    )
    common.add_consoles(vm_devices, options, host)
    vm = system.VirtualMachine(
        chipset=_chipset(boot, kernel_command_line(options, host, boot, vpmem=counts.vpmem > 0)),
        compute_topology=nodes,
        devices=vm_devices,
        guest_connection=_guest_connection(options),
        resource_partition_id=options.resource_partition_id.lower(),
        is_template=options.template,
    )
    if options.clone_of is None:
        plan = evolve(common.finish(options, host, vm, id=id), reserved_scsi=((0, 0),) if on_scsi else ())
    else:
        from uvm._document.clone import plan_clone

        template = options.clone_of.document
        plan = plan_clone(options, template, host, vm, id, (), packs_layers=counts.multi_mapping)
    return evolve(
        plan,
        scsi_controllers=counts.scsi,
        vpmem_count=counts.vpmem,
        vpmem_size_bytes=options.vpmem_size_bytes,
        vpmem_multi_mapping=counts.multi_mapping,
        boot_vpmem_bytes=rootfs_bytes if on_vpmem else None,
        assigned_devices=assigned,
    )


def _rootfs_bytes(boot: LinuxBoot, files: Files) -> int:
    """Return the size of the root file system; OptionsError if a boot file is missing."""
    if not boot.kernel_path:
        return 0
    need(files, boot.kernel_path, "the kernel")
    return need(files, boot.rootfs_path, "the root file system").size


def _sockets(options: LCOWOptions) -> devices.HvSocketSystemConfig:
    return devices.HvSocketSystemConfig(
        # uvm, which an administrator runs, listens for the guest's log.
        default_bind_security_descriptor=common.SYSTEM_AND_ADMINISTRATORS,
        service_table=common.hvsocket_services(options),
    )


def _scsi(counts: _Counts, boot_disk: str | None) -> dict[str, devices.Scsi]:
    """Return the SCSI controllers, the disk that the guest boots from in the first slot."""
    controllers = {guid: devices.Scsi() for guid in SCSI_CONTROLLER_GUIDS[: counts.scsi]}
    if boot_disk is None:
        return controllers
    if not controllers:
        raise OptionsError("the root file system is on SCSI, but scsi_controllers is 0")
    disk = devices.Attachment(type="VirtualDisk", path=boot_disk, read_only=True)
    controllers[SCSI_CONTROLLER_GUIDS[0]].attachments["0"] = disk
    return controllers


def _vpmem(
    options: LCOWOptions, counts: _Counts, boot_disk: str | None
) -> devices.VirtualPMemController | None:
    """Return the VPMEM controller, the disk that the guest boots from at device 0."""
    if not counts.vpmem:
        return None
    controller = devices.VirtualPMemController(
        maximum_count=counts.vpmem, maximum_size_bytes=options.vpmem_size_bytes
    )
    if boot_disk is not None:
        # hcsshim sends Vhd1 for a .vhdx too: its test of the extension is never true.
        device = devices.VirtualPMemDevice(host_path=boot_disk, read_only=True, image_format="Vhd1")
        controller.devices["0"] = device
    return controller


def _pci_device(device: AssignedDevice, nodes: system.Topology) -> devices.VirtualPciDevice:
    function = devices.VirtualPciFunction(
        device_instance_path=device.instance_path, virtual_function=device.function
    )
    # Every build that has virtual NUMA knows the affinity.
    affinity = None if nodes.numa is None else True
    return devices.VirtualPciDevice(functions=[function], propagate_numa_affinity=affinity)


def _check_fits_vpmem(boot: LinuxBoot, size_bytes: int) -> None:
    if not 0 < size_bytes <= LARGEST_VPMEM_BYTES:
        raise OptionsError(
            f"the root file system {boot.rootfs_path} has {size_bytes} bytes;"
            f" on VPMEM it may have 1 to {LARGEST_VPMEM_BYTES}"
        )


def _chipset(boot: LinuxBoot, command_line: str) -> system.Chipset:
    if boot.kernel_direct:
        kernel = system.LinuxKernelDirect(kernel_file_path=boot.kernel_path, kernel_cmd_line=command_line)
        if boot.rootfs_type == "initrd":
            kernel.initrd_path = boot.rootfs_path
        return system.Chipset(linux_kernel_direct=kernel)
    entry = system.UefiBootEntry(
        device_type="VmbFs",
        device_path=f"\\{boot.kernel_file}",
        vmbfs_root_path=boot.directory,
        optional_data=command_line,
    )
    return system.Chipset(uefi=system.Uefi(boot_this=entry))


def _guest_connection(options: LCOWOptions) -> system.GuestConnection | None:
    if options.external_guest_connection or not options.use_guest_connection:
        return None
    return system.GuestConnection(use_vsock=True, use_connected_suspend=True)


def _plan_isolated(
    options: LCOWOptions, host: HostInfo, files: Files, counts: _Counts, id: str
) -> CreationPlan:
    """Plan a VM that boots from a guest state file, isolated by SNP; it has no VPMEM controller."""
    if options.rootfs_type != "none":
        raise OptionsError("guest_state_file brings the root file system: rootfs_type must be 'none'")
    if not options.dm_verity_rootfs_vhd:
        raise OptionsError("guest_state_file needs dm_verity_rootfs_vhd")
    if not options.bundle_directory:
        raise OptionsError(
            "guest_state_file needs bundle_directory, for the VM's own copies of its boot files"
        )
    directory = boot_directory(options, host)
    state_template = join(host, directory, options.guest_state_file)
    need(files, state_template, "the guest state file")
    rootfs_template = join(host, directory, options.dm_verity_rootfs_vhd)
    need(files, rootfs_template, "the dm-verity root file system")
    state = join(host, options.bundle_directory, options.guest_state_file)
    rootfs = join(host, options.bundle_directory, _DM_VERITY_ROOTFS)
    if (
        len({host_path_key(path, host.paths) for path in (state, rootfs, state_template, rootfs_template)})
        < 4
    ):
        raise OptionsError(
            f"the VM's own copies {state} and {rootfs} would overwrite each other, or {state_template} or"
            f" {rootfs_template}: bundle_directory must not be boot_files_path"
        )
    on_scsi = options.dm_verity_mode and counts.scsi > 0
    vm_devices = devices.Devices(
        scsi=_scsi(counts, rootfs if on_scsi else None),
        hv_socket=devices.HvSocket2(hv_socket_config=_isolated_sockets(options)),
        plan9=devices.Plan9(),
    )
    return evolve(
        common.finish(options, host, _isolated_machine(options, host, vm_devices, state), id=id, minor=5),
        scsi_controllers=counts.scsi,
        reserved_scsi=((0, 0),) if on_scsi else (),
        preparations=(
            CopyFile(state_template, state),
            CopyFile(rootfs_template, rootfs),
            GrantAccess(state, to_vm_group=True, mask="all"),
            GrantAccess(rootfs, to_vm_group=True, mask="all"),
        ),
        temporary_files=(state, rootfs),
    )


def _isolated_machine(
    options: LCOWOptions, host: HostInfo, vm_devices: devices.Devices, state: str
) -> system.VirtualMachine:
    isolation = system.IsolationSettings(
        isolation_type="SecureNestedPaging",
        launch_data=common.launch_data(options),
        hcl_enabled=options.hcl_enabled,
    )
    return system.VirtualMachine(
        chipset=system.Chipset(
            uefi=system.Uefi(
                apply_secure_boot_template="Apply", secure_boot_template_id=common.SECURE_BOOT_TEMPLATE
            )
        ),
        compute_topology=common.topology(options, host),
        devices=vm_devices,
        # Transient: the guest's state is not written to the file, which is the source of the images.
        guest_state=system.GuestState(
            guest_state_file_path=state, guest_state_file_type="FileMode", force_transient_state=True
        ),
        guest_connection=_guest_connection(options),
        security_settings=system.SecuritySettings(isolation=isolation),
    )


def _isolated_sockets(options: LCOWOptions) -> devices.HvSocketSystemConfig:
    """Open the vsock ports that an isolated guest needs, one by one."""
    table = common.hvsocket_services(options)
    needed = (ports.LINUX_ENTROPY_PORT, ports.LINUX_LOG_PORT, ports.LINUX_GCS_PORT, ports.FIRST_STDIO_PORT)
    for port in dict.fromkeys((*needed, *options.extra_vsock_ports)):
        common.add_service(table, ports.vsock_service_id(port), _EVERYONE)
    return devices.HvSocketSystemConfig(
        default_bind_security_descriptor=_EVERYONE,
        default_connect_security_descriptor=common.SYSTEM_AND_ADMINISTRATORS,
        service_table=table,
    )
