"""The compute-system document: the VM itself, its chipset, topology, security and registry.

Class and JSON names are those of the HCS v2 schema; attribute names are theirs in PEP 8. Memory is in
mebibytes if the name says MB, as in HCS.
"""

from __future__ import annotations

from typing import Any

from uvm.schema.common import RegistryChanges, StorageQoS, Version
from uvm.schema.container import Container
from uvm.schema.devices import Devices
from uvm.schema.field import Model, named


class LinuxKernelDirect(Model):
    """Boot of a Linux kernel without firmware; the paths are the host's."""

    kernel_file_path: str = named("KernelFilePath", default="")
    initrd_path: str = named("InitRdPath", default="")
    kernel_cmd_line: str = named("KernelCmdLine", default="")


class FirmwareFile(Model):
    """Parameters for the firmware: base64 of their bytes."""

    parameters: str = named("Parameters", default="")


class UefiBootEntry(Model):
    """A boot entry of the firmware: ``device_type`` is ``VmbFs``, ``ScsiDrive``, ``File`` or ``Network``."""

    device_type: str = named("DeviceType", default="")
    device_path: str = named("DevicePath", default="")
    disk_number: int = named("DiskNumber", default=0)
    optional_data: str = named("OptionalData", default="")
    vmbfs_root_path: str = named("VmbFsRootPath", default="")


class Uefi(Model):
    """UEFI firmware. ``console`` is ``Default``, ``Disabled``, ``ComPort1`` or ``ComPort2``."""

    enable_debugger: bool = named("EnableDebugger", default=False)
    apply_secure_boot_template: str = named("ApplySecureBootTemplate", default="")
    secure_boot_template_id: str = named("SecureBootTemplateId", default="")
    boot_this: UefiBootEntry | None = named("BootThis", default=None)
    console: str = named("Console", default="")


class Chipset(Model):
    """Firmware and identity of the mainboard."""

    uefi: Uefi | None = named("Uefi", default=None)
    is_num_lock_disabled: bool = named("IsNumLockDisabled", default=False)
    base_board_serial_number: str = named("BaseBoardSerialNumber", default="")
    chassis_serial_number: str = named("ChassisSerialNumber", default="")
    chassis_asset_tag: str = named("ChassisAssetTag", default="")
    use_utc: bool = named("UseUtc", default=False)
    linux_kernel_direct: LinuxKernelDirect | None = named("LinuxKernelDirect", default=None)
    firmware_file: FirmwareFile | None = named("FirmwareFile", default=None)


class CpuGroup(Model):
    """The CPU group of a VM; the null GUID means none."""

    id: str = named("Id", default="")


class Range(Model):
    """The bound of a processor count."""

    max: int = named("max", default=0)


class NumaProcessors(Model):
    """The distribution of processors over virtual NUMA nodes."""

    count_per_node: Range = named("count_per_node", factory=Range, always=True)
    node_per_socket: int = named("node_per_socket", default=0)


class VirtualMachineProcessor(Model):
    """Processors of a VM.

    ``limit`` is in 1/100,000 of a processor (100,000 is no limit), ``weight`` is relative to other VMs
    (the platform's default is 100), ``reservation`` in 1/100,000.
    """

    count: int = named("Count", default=0)
    limit: int = named("Limit", default=0)
    weight: int = named("Weight", default=0)
    reservation: int = named("Reservation", default=0)
    cpu_group: CpuGroup | None = named("CpuGroup", default=None)
    numa_processors_settings: NumaProcessors | None = named("NumaProcessorsSettings", default=None)


class VirtualMachineMemory(Model):
    """Memory of a VM, in MB. ``slit_type`` is a virtual SLIT's source, ``backing`` a memory backing type."""

    size_in_mb: int = named("SizeInMB", default=0)
    backing: str | None = named("Backing", default=None)
    allow_overcommit: bool = named("AllowOvercommit", default=False)
    enable_hot_hint: bool = named("EnableHotHint", default=False)
    enable_cold_hint: bool = named("EnableColdHint", default=False)
    enable_cold_discard_hint: bool = named("EnableColdDiscardHint", default=False)
    enable_deferred_commit: bool = named("EnableDeferredCommit", default=False)
    low_mmio_gap_in_mb: int = named("LowMmioGapInMB", default=0)
    high_mmio_base_in_mb: int = named("HighMmioBaseInMB", default=0)
    high_mmio_gap_in_mb: int = named("HighMmioGapInMB", default=0)
    slit_type: str | None = named("SlitType", default=None)


class NumaSetting(Model):
    """One virtual NUMA node; a memory block is one MB."""

    virtual_node_number: int = named("VirtualNodeNumber", default=0)
    physical_node_number: int = named("PhysicalNodeNumber", default=0)
    virtual_socket_number: int = named("VirtualSocketNumber", default=0)
    count_of_processors: int = named("CountOfProcessors", default=0)
    count_of_memory_blocks: int = named("CountOfMemoryBlocks", default=0)
    memory_backing_type: str = named("MemoryBackingType", default="")


class Numa(Model):
    """Virtual NUMA nodes; ``max_size_per_node`` is in MB."""

    virtual_node_count: int = named("VirtualNodeCount", default=0)
    preferred_physical_nodes: list[int] = named("PreferredPhysicalNodes", factory=list)
    settings: list[NumaSetting] = named("Settings", factory=list)
    max_size_per_node: int = named("MaxSizePerNode", default=0)


class Topology(Model):
    """Memory, processors and NUMA nodes."""

    memory: VirtualMachineMemory | None = named("Memory", default=None)
    processor: VirtualMachineProcessor | None = named("Processor", default=None)
    numa: Numa | None = named("Numa", default=None)


class GuestState(Model):
    """The guest state (VMGS) file and the runtime state file."""

    guest_state_file_path: str = named("GuestStateFilePath", default="")
    guest_state_file_type: str = named("GuestStateFileType", default="")
    runtime_state_file_path: str = named("RuntimeStateFilePath", default="")
    force_transient_state: bool = named("ForceTransientState", default=False)


class RestoreState(Model):
    """The saved state, or the template, to start a VM from."""

    save_state_file_path: str = named("SaveStateFilePath", default="")
    template_system_id: str = named("TemplateSystemId", default="")


class DebugOptions(Model):
    """The files for saved states after a failure of the guest."""

    bugcheck_saved_state_file_name: str = named("BugcheckSavedStateFileName", default="")
    bugcheck_no_crashdump_saved_state_file_name: str = named(
        "BugcheckNoCrashdumpSavedStateFileName", default=""
    )
    triple_fault_saved_state_file_name: str = named("TripleFaultSavedStateFileName", default="")
    firmware_dump_file_name: str = named("FirmwareDumpFileName", default="")


class GuestConnection(Model):
    """HCS's own connection to the guest; absent if HCS makes none."""

    use_vsock: bool = named("UseVsock", default=False)
    use_connected_suspend: bool = named("UseConnectedSuspend", default=False)


class IsolationSettings(Model):
    """Isolation of a VM; ``launch_data`` is base64."""

    isolation_type: str = named("IsolationType", default="")
    debug_host: str = named("DebugHost", default="")
    debug_port: int = named("DebugPort", default=0)
    launch_data: str = named("LaunchData", default="")
    hcl_enabled: bool | None = named("HclEnabled", default=None)


class SecuritySettings(Model):
    """TPM and isolation."""

    enable_tpm: bool = named("EnableTpm", default=False)
    isolation: IsolationSettings | None = named("Isolation", default=None)


class VirtualMachine(Model):
    """A virtual machine."""

    version: Version | None = named("Version", default=None)
    stop_on_reset: bool = named("StopOnReset", default=False)
    chipset: Chipset | None = named("Chipset", default=None)
    compute_topology: Topology | None = named("ComputeTopology", default=None)
    devices: Devices | None = named("Devices", default=None)
    guest_state: GuestState | None = named("GuestState", default=None)
    restore_state: RestoreState | None = named("RestoreState", default=None)
    registry_changes: RegistryChanges | None = named("RegistryChanges", default=None)
    storage_qos: StorageQoS | None = named("StorageQoS", default=None)
    debug_options: DebugOptions | None = named("DebugOptions", default=None)
    guest_connection: GuestConnection | None = named("GuestConnection", default=None)
    security_settings: SecuritySettings | None = named("SecuritySettings", default=None)
    resource_partition_id: str = named("ResourcePartitionId", default="")
    migration_options: Any = named("MigrationOptions", default=None)


class ComputeSystem(Model):
    """The document of ``HcsCreateComputeSystem``."""

    owner: str = named("Owner", default="")
    schema_version: Version | None = named("SchemaVersion", default=None)
    hosting_system_id: str = named("HostingSystemId", default="")
    hosted_system: Any = named("HostedSystem", default=None)
    container: Container | None = named("Container", default=None)
    virtual_machine: VirtualMachine | None = named("VirtualMachine", default=None)
    should_terminate_on_last_handle_closed: bool = named("ShouldTerminateOnLastHandleClosed", default=False)
