"""The devices of a compute-system document.

The same structures are the settings of the requests that attach and detach devices of a running VM.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import field

from uvm.schema.json import Model

#: The guest may not write.
PLAN9_READ_ONLY = 0x1
#: Linux metadata (mode, owner, symbolic links) is kept.
PLAN9_LINUX_METADATA = 0x4
#: Only the allowed files are visible.
PLAN9_RESTRICT_FILE_ACCESS = 0x80


class ComPort(Model):
    """A serial port on a named pipe."""

    named_pipe: str = ""
    optimize_for_debugger: bool = False


class Attachment(Model):
    """A disk on a SCSI controller.

    ``type`` is ``VirtualDisk``, ``Iso``, ``PassThru`` or ``ExtensibleVirtualDisk``; the last names its
    kind in ``extensible_virtual_disk_type``.
    """

    type: str = ""
    path: str = ""
    ignore_flushes: bool = False
    caching_mode: str = ""
    no_write_hardening: bool = False
    disable_expansion_optimization: bool = False
    ignore_relative_locator: bool = False
    capture_io_attribution_context: bool = False
    read_only: bool = False
    support_compressed_volumes: bool = False
    always_allow_sparse_files: bool = False
    extensible_virtual_disk_type: str = ""


class Scsi(Model):
    """A SCSI controller; the keys of the attachments are LUNs."""

    attachments: dict[str, Attachment] = {}


class VirtualPMemMapping(Model):
    """A file mapped into a part of a persistent-memory device."""

    host_path: str = ""
    image_format: str = ""


class VirtualPMemDevice(Model):
    """A file as a persistent-memory device, or files mapped by their offsets.

    ``image_format`` is ``Vhd1`` or ``Vhdx``.
    """

    host_path: str = ""
    read_only: bool = False
    image_format: str = ""
    mappings: dict[str, VirtualPMemMapping] = {}


class VirtualPMemController(Model):
    """The controller of the persistent-memory devices.

    ``maximum_size_bytes`` is the size of each device at most; the keys of ``devices`` are device numbers.
    """

    devices: dict[str, VirtualPMemDevice] = {}
    maximum_count: int = 0
    maximum_size_bytes: int = 0
    backing: str = ""


#: The names of interrupt moderation by its numbers in HCN's policies; hcsshim
#: ``schema2/interrupt_moderation_mode.go``.
INTERRUPT_MODERATION: Final = {
    0: "Default",
    1: "Adaptive",
    2: "Off",
    100: "Low",
    200: "Medium",
    300: "High",
}


class IovSettings(Model):
    """SR-IOV of a network adapter; ``interrupt_moderation`` is one of :data:`INTERRUPT_MODERATION`."""

    offload_weight: int | None = None
    queue_pairs_requested: int | None = None
    interrupt_moderation: str | None = None


class NetworkAdapter(Model):
    """A network adapter, connected to an HCN endpoint."""

    endpoint_id: str = ""
    mac_address: str = ""
    iov_settings: IovSettings | None = None


class VideoMonitor(Model):
    """The monitor of the video console, in pixels."""

    horizontal_resolution: int = 0
    vertical_resolution: int = 0
    connection_options: Any = None


class Keyboard(Model):
    """A keyboard."""


class EnhancedModeVideo(Model):
    """The video console over RDP."""

    connection_options: Any = None


class HvSocketServiceConfig(Model):
    """The SDDL descriptors for binding and connecting to a Hyper-V socket service."""

    bind_security_descriptor: str = ""
    connect_security_descriptor: str = ""
    allow_wildcard_binds: bool = False
    disabled: bool = False


class HvSocketSystemConfig(Model):
    """Hyper-V sockets of a VM; the keys of the service table are service GUIDs."""

    default_bind_security_descriptor: str = ""
    default_connect_security_descriptor: str = ""
    service_table: dict[str, HvSocketServiceConfig] = {}


class HvSocket2(Model):
    """The Hyper-V socket device of a VM."""

    hv_socket_config: HvSocketSystemConfig | None = None


class WindowsCrashReporting(Model):
    """The destination of a Windows guest's crash dump; the size is in bytes."""

    dump_file_name: str = ""
    max_dump_size: int = 0
    dump_type: str = ""


class GuestCrashReporting(Model):
    """The reaction to a crash of the guest."""

    windows_crash_settings: WindowsCrashReporting | None = None


class VirtualSmbShareOptions(Model):
    """The options of an SMB share between host and guest."""

    read_only: bool = False
    share_read: bool = False
    cache_io: bool = False
    no_oplocks: bool = False
    take_backup_privilege: bool = False
    use_share_root_identity: bool = False
    no_directmap: bool = False
    no_locks: bool = False
    no_dirnotify: bool = False
    vm_shared_memory: bool = False
    restrict_file_access: bool = False
    force_level_ii_oplocks: bool = field(name="ForceLevelIIOplocks", default=False)
    reparse_base_layer: bool = False
    pseudo_oplocks: bool = False
    non_cache_io: bool = False
    pseudo_dirnotify: bool = False
    single_file_mapping: bool = False


def saveable_options(options: VirtualSmbShareOptions) -> VirtualSmbShareOptions:
    """Return the options with which a share is saved with its VM (hcsshim's ``SetSaveableVSMBOptions``)."""
    read_only = options.read_only
    return options.replaced(
        share_read=read_only,
        cache_io=read_only,
        pseudo_oplocks=read_only,
        no_oplocks=not read_only,
        no_locks=True,
        pseudo_dirnotify=True,
        no_directmap=True,
    )


class VirtualSmbShare(Model):
    """A directory of the host, shared with the guest over SMB."""

    name: str = ""
    path: str = ""
    allowed_files: list[str] = []
    options: VirtualSmbShareOptions | None = None


class VirtualSmb(Model):
    """The SMB server of a VM. ``direct_file_mapping_in_mb`` is the window for direct maps."""

    shares: list[VirtualSmbShare] = []
    direct_file_mapping_in_mb: int = field(name="DirectFileMappingInMB", default=0)


class Plan9Share(Model):
    """A directory of the host, shared with the guest over 9p; ``flags`` are ``PLAN9_*`` values."""

    name: str = ""
    access_name: str = ""
    path: str = ""
    port: int = 0
    flags: int = 0
    allowed_files: list[str] = []


class Plan9(Model):
    """The 9p server of a VM."""

    shares: list[Plan9Share] = []


class VirtualPciFunction(Model):
    """One function of a host PCI device."""

    device_instance_path: str = ""
    virtual_function: int = 0


class VirtualPciDevice(Model):
    """Host PCI functions assigned to a VM."""

    functions: list[VirtualPciFunction] = []
    propagate_numa_affinity: bool | None = None


class Devices(Model):
    """The devices of a VM; the keys of ``scsi`` and ``virtual_pci`` are VMBus GUIDs."""

    com_ports: dict[str, ComPort] = {}
    scsi: dict[str, Scsi] = {}
    virtual_pmem: VirtualPMemController | None = field(name="VirtualPMem", default=None)
    network_adapters: dict[str, NetworkAdapter] = {}
    video_monitor: VideoMonitor | None = None
    keyboard: Keyboard | None = None
    mouse: Any = None
    hv_socket: HvSocket2 | None = None
    enhanced_mode_video: EnhancedModeVideo | None = None
    guest_crash_reporting: GuestCrashReporting | None = None
    virtual_smb: VirtualSmb | None = None
    plan9: Plan9 | None = None
    battery: Any = None
    flexible_iov: dict[str, Any] = {}
    shared_memory: Any = None
    virtual_pci: dict[str, VirtualPciDevice] = {}
