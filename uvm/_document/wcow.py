"""The document of a VM with a Windows guest (hcsshim's ``create_wcow.go``)."""

from __future__ import annotations

import base64
import ntpath

from attrs import evolve, frozen

from uvm._document import common
from uvm._document.confidential import default_files, with_default_files
from uvm._document.layers import boot_files_of_layers, layer_files_to_stat
from uvm._document.paths import Files, join, need, with_host_paths
from uvm._document.plan import CopyFile, CreationPlan, GrantAccess, MakeDirectory, Preparation, SetDiskId
from uvm._names import host_path
from uvm._wire.ports import WINDOWS_LOG_SERVICE
from uvm.backend import HostInfo
from uvm.options import BlockCIMBootFiles, LayerBootFiles, VmbFSBootFiles, WCOWOptions
from uvm.schema import common as schema
from uvm.schema import devices, system
from uvm.schema.requests import SCSI_CONTROLLER_GUIDS

#: The options that hold paths of the host, and those of what it boots from.
_HOST_PATHS = (
    "dump_directory",
    "bundle_directory",
    "scratch_directory",
    "debug_data_path",
    "boot_files_root_path",
    "guest_state_file",
    "uvm_reference_info_file",
    "uvm_hash_envelope_reference_info_file",
)
_BOOT_DIRECTORY = ("os_files_path", "scratch_vhd_path")

#: The identifier of a scratch disk that a confidential guest has to format.
_UNFORMATTED_SCRATCH = "a7b3c5d1-4e2f-4a8b-9c6d-1e3f5a7b9c2d"
_DIRECT_FILE_MAPPING_MB = 1024


def wcow_files_to_stat(options: WCOWOptions, host: HostInfo) -> tuple[str, ...]:
    """Return the host paths that the plan depends on."""
    directory, boot = options.dump_directory, options.boot_files
    of_boot = layer_files_to_stat(boot, host) if isinstance(boot, LayerBootFiles) else ()
    if isinstance(boot, BlockCIMBootFiles):
        of_boot = tuple(default_files(options, boot, host).values())
    return (*((host_path(directory, host.paths, "dump_directory"),) if directory else ()), *of_boot)


@frozen(eq=False, repr=False)
class _Boot:
    """The parts of the plan that depend on the boot files; the disks are on the first LUNs, in order."""

    chipset: system.Chipset
    share: devices.VirtualSmbShare
    disks: tuple[devices.Attachment, ...]
    preparations: tuple[Preparation, ...]
    copies_on_exit: tuple[Preparation, ...] = ()
    temporary_files: tuple[str, ...] = ()


def plan_wcow(options: WCOWOptions, host: HostInfo, files: Files, *, id: str) -> CreationPlan:
    """Plan the creation of a VM with a Windows guest."""
    options, boot = _boot(with_host_paths(options, _HOST_PATHS, host), host, files, id)
    vm = system.VirtualMachine(
        chipset=boot.chipset,
        compute_topology=common.topology(options, host),
        devices=_devices(options, host, boot, id),
        registry_changes=schema.RegistryChanges(add_values=_registry_values(options)),
        guest_connection=None if options.external_guest_connection else system.GuestConnection(),
        resource_partition_id=options.resource_partition_id.lower(),
    )
    preparations = boot.preparations
    if options.dump_directory:
        need(files, options.dump_directory, "dump_directory", directory=True)
        without_dump = _dump_file(options, host, id, "savedstate_nocrashdump.vmrs")
        vm.debug_options = system.DebugOptions(
            bugcheck_saved_state_file_name=_dump_file(options, host, id, "savedstate.vmrs"),
            bugcheck_no_crashdump_saved_state_file_name=without_dump,
        )
        preparations = (GrantAccess(options.dump_directory, to_vm_group=True, mask="all"), *preparations)
    if options.security_policy_enabled:
        _make_confidential(vm, options)
    if options.clone_of is not None:
        from uvm._document.clone import plan_clone

        # It has no scratch disk of its own.
        kept = tuple(step for step in preparations if step not in boot.preparations)
        return plan_clone(options, options.clone_of.document, host, vm, id, kept)
    return evolve(
        common.finish(options, host, vm, id=id, minor=5 if options.security_policy_enabled else 1),
        reserved_scsi=tuple((0, lun) for lun in range(len(boot.disks))),
        preparations=preparations,
        temporary_files=boot.temporary_files,
        copies_on_exit=boot.copies_on_exit,
    )


def _boot(options: WCOWOptions, host: HostInfo, files: Files, id: str) -> tuple[WCOWOptions, _Boot]:
    """Return options in which each file of a confidential VM is named, and what the boot files add."""
    named, copies = options.boot_files, tuple[CopyFile, ...]()
    if isinstance(named, BlockCIMBootFiles):
        options, disks, copies = with_default_files(options, named, host, files)
        boot = _boot_from_disks(options, disks, host, id)
    elif isinstance(named, LayerBootFiles):
        found, copies = boot_files_of_layers(named, host, files)
        boot = _boot_from_directory(options, found)
    else:
        boot = _boot_from_directory(options, with_host_paths(named, _BOOT_DIRECTORY, host))
    made = tuple(copy.target for copy in copies)
    return options, evolve(boot, preparations=(*copies, *boot.preparations), temporary_files=made)


def _devices(options: WCOWOptions, host: HostInfo, boot: _Boot, id: str) -> devices.Devices:
    sockets = devices.HvSocketSystemConfig(
        default_bind_security_descriptor=common.SYSTEM_AND_ADMINISTRATORS, service_table=_services(options)
    )
    disks = {str(lun): disk for lun, disk in enumerate(boot.disks)}
    vm_devices = devices.Devices(
        scsi={SCSI_CONTROLLER_GUIDS[0]: devices.Scsi(attachments=disks)},
        hv_socket=devices.HvSocket2(hv_socket_config=sockets),
        virtual_smb=devices.VirtualSmb(
            shares=[boot.share], direct_file_mapping_in_mb=_DIRECT_FILE_MAPPING_MB
        ),
    )
    common.add_consoles(vm_devices, options, host)
    if options.dump_directory:
        dump = devices.WindowsCrashReporting(
            dump_file_name=_dump_file(options, host, id, "windows-crash"), dump_type="Full"
        )
        vm_devices.guest_crash_reporting = devices.GuestCrashReporting(windows_crash_settings=dump)
    return vm_devices


def _dump_file(options: WCOWOptions, host: HostInfo, id: str, what: str) -> str:
    return join(host, options.dump_directory, f"{id}-{what}")


def _services(options: WCOWOptions) -> dict[str, devices.HvSocketServiceConfig]:
    table = common.hvsocket_services(options)
    if options.log_forwarding:
        common.add_service(table, WINDOWS_LOG_SERVICE, common.SYSTEM_AND_ADMINISTRATORS)
    return table


def _registry_values(options: WCOWOptions) -> list[schema.RegistryValue]:
    values = []
    if options.process_dump_location:
        # Dumps are saved, not uploaded. WerSvc writes those of every exception only while it runs.
        values.append(_dword("System", "ControlSet001\\Services\\WerSvc", "Start", 2))
        values.append(_dword("Software", "Microsoft\\Windows\\Windows Error Reporting", "Disabled", 1))
    if not options.disable_compartment_namespace:
        gns = "CurrentControlSet\\Services\\gns"
        values.append(_dword("System", gns, "EnableCompartmentNamespace", 1))
    return values + [common.registry_value(value) for value in options.registry_values]


def _dword(hive: str, key: str, name: str, value: int) -> schema.RegistryValue:
    return schema.RegistryValue(
        key=schema.RegistryKey(hive=hive, name=key), name=name, type="DWord", dword_value=value
    )


def _boot_from_directory(options: WCOWOptions, files: VmbFSBootFiles) -> _Boot:
    """Boot from a directory of the host, which is a share."""
    loader = ntpath.normpath(ntpath.join(files.os_relative_boot_directory, "bootmgfw.efi"))
    share_options = devices.VirtualSmbShareOptions(
        read_only=True,
        share_read=True,
        cache_io=True,
        pseudo_oplocks=True,
        take_backup_privilege=True,
        no_directmap=options.fully_physically_backed or options.no_direct_map,
    )
    if options.template:
        share_options = devices.saveable_options(share_options)
    return _Boot(
        chipset=system.Chipset(
            uefi=system.Uefi(boot_this=system.UefiBootEntry(device_type="VmbFs", device_path=loader))
        ),
        share=devices.VirtualSmbShare(name="os", path=files.os_files_path, options=share_options),
        disks=(devices.Attachment(type="VirtualDisk", path=files.scratch_vhd_path),),
        preparations=(GrantAccess(files.scratch_vhd_path),),
    )


def _boot_from_disks(options: WCOWOptions, files: BlockCIMBootFiles, host: HostInfo, id: str) -> _Boot:
    """Boot a confidential VM from disks; its scratch has to be the first of them."""
    share_path = join(host, options.bundle_directory, "EmptyDoNotModify")
    share_options = devices.VirtualSmbShareOptions(read_only=True, share_read=True, no_oplocks=True)
    return _Boot(
        chipset=_confidential_chipset(options),
        share=devices.VirtualSmbShare(name="defaultEmptyShare", path=share_path, options=share_options),
        disks=(
            devices.Attachment(type="VirtualDisk", path=files.scratch_vhd_path),
            devices.Attachment(
                type="VirtualDisk", path=files.efi_vhd_path, read_only=not options.writable_efi
            ),
            devices.Attachment(type="VirtualDisk", path=files.boot_cim_vhd_path, read_only=True),
        ),
        preparations=(
            GrantAccess(options.guest_state_file),
            GrantAccess(files.efi_vhd_path),
            GrantAccess(files.boot_cim_vhd_path),
            GrantAccess(files.scratch_vhd_path),
            SetDiskId(files.scratch_vhd_path, _UNFORMATTED_SCRATCH),
            MakeDirectory(share_path),
            GrantAccess(share_path),
        ),
        copies_on_exit=_copies_on_exit(options, files, host, id),
    )


def _confidential_chipset(options: WCOWOptions) -> system.Chipset:
    uefi = system.Uefi(apply_secure_boot_template="Skip")
    if not options.disable_secure_boot:
        uefi = system.Uefi(
            apply_secure_boot_template="Apply", secure_boot_template_id=common.SECURE_BOOT_TEMPLATE
        )
    if not options.firmware_parameters:
        return system.Chipset(uefi=uefi)
    parameters = base64.b64encode(options.firmware_parameters.encode()).decode("ascii")
    return system.Chipset(uefi=uefi, firmware_file=system.FirmwareFile(parameters=parameters))


def _make_confidential(vm: system.VirtualMachine, options: WCOWOptions) -> None:
    """Isolate the VM, and have the hardware attest its security policy."""
    # The first VM version with the SNP features.
    vm.version = schema.Version(major=12)
    vm.guest_state = system.GuestState(
        guest_state_file_path=options.guest_state_file, guest_state_file_type="BlockStorage"
    )
    vm.security_settings = system.SecuritySettings(
        isolation=system.IsolationSettings(
            isolation_type=options.isolation_type or "SecureNestedPaging",
            launch_data=common.launch_data(options),
            hcl_enabled=True,
        )
    )


def _copies_on_exit(
    options: WCOWOptions, files: BlockCIMBootFiles, host: HostInfo, id: str
) -> tuple[Preparation, ...]:
    """Return the copies that ``debug_mode`` keeps: the scratch and the EFI disk of a confidential VM."""
    if not options.debug_mode:
        return ()
    copies = (
        CopyFile(path, join(host, options.debug_data_path, f"{id}_{host.path.basename(path)}"))
        for path in (files.scratch_vhd_path, files.efi_vhd_path)
    )
    return (MakeDirectory(options.debug_data_path), *copies)
