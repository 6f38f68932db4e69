"""The compute-system document: the VM itself, its chipset, topology, security and registry.

Class and JSON names are those of the HCS v2 schema; attribute names are theirs in PEP 8. Memory is in
mebibytes if the name says MB, as in HCS.
"""

from __future__ import annotations

from typing import Any

from msgspec import field

from uvm.schema.common import RegistryChanges, StorageQoS, Version
from uvm.schema.container import Container
from uvm.schema.devices import Devices
from uvm.schema.json import Model, always


class LinuxKernelDirect(Model):
    """Boot of a Linux kernel without firmware; the paths are the host's."""

    kernel_file_path: str = ""
    initrd_path: str = field(name="InitRdPath", default="")
    kernel_cmd_line: str = ""


class FirmwareFile(Model):
    """Parameters for the firmware: base64 of their bytes."""

    parameters: str = ""


class UefiBootEntry(Model):
    """A boot entry of the firmware: ``device_type`` is ``VmbFs``, ``ScsiDrive``, ``File`` or ``Network``."""

    device_type: str = ""
    device_path: str = ""
    disk_number: int = 0
    optional_data: str = ""
    vmbfs_root_path: str = field(name="VmbFsRootPath", default="")


class Uefi(Model):
    """UEFI firmware. ``console`` is ``Default``, ``Disabled``, ``ComPort1`` or ``ComPort2``."""

    enable_debugger: bool = False
    apply_secure_boot_template: str = ""
    secure_boot_template_id: str = ""
    boot_this: UefiBootEntry | None = None
    console: str = ""


class Chipset(Model):
    """Firmware and identity of the mainboard."""

    uefi: Uefi | None = None
    is_num_lock_disabled: bool = False
    base_board_serial_number: str = ""
    chassis_serial_number: str = ""
    chassis_asset_tag: str = ""
    use_utc: bool = False
    linux_kernel_direct: LinuxKernelDirect | None = None
    firmware_file: FirmwareFile | None = None


class CpuGroup(Model):
    """The CPU group of a VM; the null GUID means none."""

    id: str = ""


class Range(Model):
    """The bound of a processor count."""

    max: int = field(name="max", default=0)


class NumaProcessors(Model):
    """The distribution of processors over virtual NUMA nodes."""

    count_per_node: Range = always(Range, name="count_per_node")
    node_per_socket: int = field(name="node_per_socket", default=0)


class VirtualMachineProcessor(Model):
    """Processors of a VM.

    ``limit`` is in 1/100,000 of a processor (100,000 is no limit), ``weight`` is relative to other VMs
    (the platform's default is 100), ``reservation`` in 1/100,000.
    """

    count: int = 0
    limit: int = 0
    weight: int = 0
    reservation: int = 0
    cpu_group: CpuGroup | None = None
    numa_processors_settings: NumaProcessors | None = None


class VirtualMachineMemory(Model):
    """Memory of a VM, in MB. ``slit_type`` is a virtual SLIT's source, ``backing`` a memory backing type."""

    size_in_mb: int = field(name="SizeInMB", default=0)
    backing: str | None = None
    allow_overcommit: bool = False
    enable_hot_hint: bool = False
    enable_cold_hint: bool = False
    enable_cold_discard_hint: bool = False
    enable_deferred_commit: bool = False
    low_mmio_gap_in_mb: int = field(name="LowMmioGapInMB", default=0)
    high_mmio_base_in_mb: int = field(name="HighMmioBaseInMB", default=0)
    high_mmio_gap_in_mb: int = field(name="HighMmioGapInMB", default=0)
    slit_type: str | None = None


class NumaSetting(Model):
    """One virtual NUMA node; a memory block is one MB."""

    virtual_node_number: int = 0
    physical_node_number: int = 0
    virtual_socket_number: int = 0
    count_of_processors: int = 0
    count_of_memory_blocks: int = 0
    memory_backing_type: str = ""


class Numa(Model):
    """Virtual NUMA nodes; ``max_size_per_node`` is in MB."""

    virtual_node_count: int = 0
    preferred_physical_nodes: list[int] = []
    settings: list[NumaSetting] = []
    max_size_per_node: int = 0


class Topology(Model):
    """Memory, processors and NUMA nodes."""

    memory: VirtualMachineMemory | None = None
    processor: VirtualMachineProcessor | None = None
    numa: Numa | None = None


class GuestState(Model):
    """The guest state (VMGS) file and the runtime state file."""

    guest_state_file_path: str = ""
    guest_state_file_type: str = ""
    runtime_state_file_path: str = ""
    force_transient_state: bool = False


class RestoreState(Model):
    """The saved state, or the template, to start a VM from."""

    save_state_file_path: str = ""
    template_system_id: str = ""


class DebugOptions(Model):
    """The files for saved states after a failure of the guest."""

    bugcheck_saved_state_file_name: str = ""
    bugcheck_no_crashdump_saved_state_file_name: str = ""
    triple_fault_saved_state_file_name: str = ""
    firmware_dump_file_name: str = ""


class GuestConnection(Model):
    """HCS's own connection to the guest; absent if HCS makes none."""

    use_vsock: bool = False
    use_connected_suspend: bool = False


class IsolationSettings(Model):
    """Isolation of a VM; ``launch_data`` is base64."""

    isolation_type: str = ""
    debug_host: str = ""
    debug_port: int = 0
    launch_data: str = ""
    hcl_enabled: bool | None = None


class SecuritySettings(Model):
    """TPM and isolation."""

    enable_tpm: bool = False
    isolation: IsolationSettings | None = None


class VirtualMachine(Model):
    """A virtual machine.

    :ivar is_template: the VM is to be saved as a template. It is no member of HCS's, which makes none of
        Linux guests: documents for other hosts alone have it.
    """

    version: Version | None = None
    stop_on_reset: bool = False
    chipset: Chipset | None = None
    compute_topology: Topology | None = None
    devices: Devices | None = None
    guest_state: GuestState | None = None
    restore_state: RestoreState | None = None
    registry_changes: RegistryChanges | None = None
    storage_qos: StorageQoS | None = field(name="StorageQoS", default=None)
    debug_options: DebugOptions | None = None
    guest_connection: GuestConnection | None = None
    security_settings: SecuritySettings | None = None
    resource_partition_id: str = ""
    migration_options: Any = None
    is_template: bool = False


class ComputeSystem(Model):
    """The document of ``HcsCreateComputeSystem``."""

    owner: str = ""
    schema_version: Version | None = None
    hosting_system_id: str = ""
    hosted_system: Any = None
    container: Container | None = None
    virtual_machine: VirtualMachine | None = None
    should_terminate_on_last_handle_closed: bool = False
