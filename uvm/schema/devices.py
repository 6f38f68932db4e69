"""The devices of a compute-system document.

The same structures are the settings of the requests that attach and detach devices of a running VM.
"""

from __future__ import annotations

from typing import Any

from uvm.schema.field import Model, named

#: The guest may not write.
PLAN9_READ_ONLY = 0x1
#: Linux metadata (mode, owner, symbolic links) is kept.
PLAN9_LINUX_METADATA = 0x4
#: Only the allowed files are visible.
PLAN9_RESTRICT_FILE_ACCESS = 0x80


class ComPort(Model):
    """A serial port on a named pipe."""

    named_pipe: str = named("NamedPipe", default="")
    optimize_for_debugger: bool = named("OptimizeForDebugger", default=False)


class Attachment(Model):
    """A disk on a SCSI controller.

    ``type`` is ``VirtualDisk``, ``Iso``, ``PassThru`` or ``ExtensibleVirtualDisk``; the last names its
    kind in ``extensible_virtual_disk_type``.
    """

    type: str = named("Type", default="")
    path: str = named("Path", default="")
    ignore_flushes: bool = named("IgnoreFlushes", default=False)
    caching_mode: str = named("CachingMode", default="")
    no_write_hardening: bool = named("NoWriteHardening", default=False)
    disable_expansion_optimization: bool = named("DisableExpansionOptimization", default=False)
    ignore_relative_locator: bool = named("IgnoreRelativeLocator", default=False)
    capture_io_attribution_context: bool = named("CaptureIoAttributionContext", default=False)
    read_only: bool = named("ReadOnly", default=False)
    support_compressed_volumes: bool = named("SupportCompressedVolumes", default=False)
    always_allow_sparse_files: bool = named("AlwaysAllowSparseFiles", default=False)
    extensible_virtual_disk_type: str = named("ExtensibleVirtualDiskType", default="")


class Scsi(Model):
    """A SCSI controller; the keys of the attachments are LUNs."""

    attachments: dict[str, Attachment] = named("Attachments", factory=dict)


class VirtualPMemDevice(Model):
    """A file as a persistent-memory device; ``image_format`` is ``Vhd1`` or ``Vhdx``."""

    host_path: str = named("HostPath", default="")
    read_only: bool = named("ReadOnly", default=False)
    image_format: str = named("ImageFormat", default="")


class VirtualPMemMapping(Model):
    """A file mapped into a part of a persistent-memory device."""

    host_path: str = named("HostPath", default="")
    image_format: str = named("ImageFormat", default="")


class VirtualPMemController(Model):
    """The controller of the persistent-memory devices.

    ``maximum_size_bytes`` is the size of each device at most; the keys of ``devices`` are device numbers.
    """

    devices: dict[str, VirtualPMemDevice] = named("Devices", factory=dict)
    maximum_count: int = named("MaximumCount", default=0)
    maximum_size_bytes: int = named("MaximumSizeBytes", default=0)
    backing: str = named("Backing", default="")


class IovSettings(Model):
    """SR-IOV of a network adapter."""

    offload_weight: int | None = named("OffloadWeight", default=None)
    queue_pairs_requested: int | None = named("QueuePairsRequested", default=None)
    interrupt_moderation: str | None = named("InterruptModeration", default=None)


class NetworkAdapter(Model):
    """A network adapter, connected to an HCN endpoint."""

    endpoint_id: str = named("EndpointId", default="")
    mac_address: str = named("MacAddress", default="")
    iov_settings: IovSettings | None = named("IovSettings", default=None)


class VideoMonitor(Model):
    """The monitor of the video console, in pixels."""

    horizontal_resolution: int = named("HorizontalResolution", default=0)
    vertical_resolution: int = named("VerticalResolution", default=0)
    connection_options: Any = named("ConnectionOptions", default=None)


class Keyboard(Model):
    """A keyboard."""


class EnhancedModeVideo(Model):
    """The video console over RDP."""

    connection_options: Any = named("ConnectionOptions", default=None)


class HvSocketServiceConfig(Model):
    """The SDDL descriptors for binding and connecting to a Hyper-V socket service."""

    bind_security_descriptor: str = named("BindSecurityDescriptor", default="")
    connect_security_descriptor: str = named("ConnectSecurityDescriptor", default="")
    allow_wildcard_binds: bool = named("AllowWildcardBinds", default=False)
    disabled: bool = named("Disabled", default=False)


class HvSocketSystemConfig(Model):
    """Hyper-V sockets of a VM; the keys of the service table are service GUIDs."""

    default_bind_security_descriptor: str = named("DefaultBindSecurityDescriptor", default="")
    default_connect_security_descriptor: str = named("DefaultConnectSecurityDescriptor", default="")
    service_table: dict[str, HvSocketServiceConfig] = named("ServiceTable", factory=dict)


class HvSocket2(Model):
    """The Hyper-V socket device of a VM."""

    hv_socket_config: HvSocketSystemConfig | None = named("HvSocketConfig", default=None)


class WindowsCrashReporting(Model):
    """The destination of a Windows guest's crash dump; the size is in bytes."""

    dump_file_name: str = named("DumpFileName", default="")
    max_dump_size: int = named("MaxDumpSize", default=0)
    dump_type: str = named("DumpType", default="")


class GuestCrashReporting(Model):
    """The reaction to a crash of the guest."""

    windows_crash_settings: WindowsCrashReporting | None = named("WindowsCrashSettings", default=None)


class VirtualSmbShareOptions(Model):
    """The options of an SMB share between host and guest."""

    read_only: bool = named("ReadOnly", default=False)
    share_read: bool = named("ShareRead", default=False)
    cache_io: bool = named("CacheIo", default=False)
    no_oplocks: bool = named("NoOplocks", default=False)
    take_backup_privilege: bool = named("TakeBackupPrivilege", default=False)
    use_share_root_identity: bool = named("UseShareRootIdentity", default=False)
    no_directmap: bool = named("NoDirectmap", default=False)
    no_locks: bool = named("NoLocks", default=False)
    no_dirnotify: bool = named("NoDirnotify", default=False)
    vm_shared_memory: bool = named("VmSharedMemory", default=False)
    restrict_file_access: bool = named("RestrictFileAccess", default=False)
    force_level_ii_oplocks: bool = named("ForceLevelIIOplocks", default=False)
    reparse_base_layer: bool = named("ReparseBaseLayer", default=False)
    pseudo_oplocks: bool = named("PseudoOplocks", default=False)
    non_cache_io: bool = named("NonCacheIo", default=False)
    pseudo_dirnotify: bool = named("PseudoDirnotify", default=False)
    single_file_mapping: bool = named("SingleFileMapping", default=False)


class VirtualSmbShare(Model):
    """A directory of the host, shared with the guest over SMB."""

    name: str = named("Name", default="")
    path: str = named("Path", default="")
    allowed_files: list[str] = named("AllowedFiles", factory=list)
    options: VirtualSmbShareOptions | None = named("Options", default=None)


class VirtualSmb(Model):
    """The SMB server of a VM. ``direct_file_mapping_in_mb`` is the window for direct maps."""

    shares: list[VirtualSmbShare] = named("Shares", factory=list)
    direct_file_mapping_in_mb: int = named("DirectFileMappingInMB", default=0)


class Plan9Share(Model):
    """A directory of the host, shared with the guest over 9p; ``flags`` are ``PLAN9_*`` values."""

    name: str = named("Name", default="")
    access_name: str = named("AccessName", default="")
    path: str = named("Path", default="")
    port: int = named("Port", default=0)
    flags: int = named("Flags", default=0)
    allowed_files: list[str] = named("AllowedFiles", factory=list)


class Plan9(Model):
    """The 9p server of a VM."""

    shares: list[Plan9Share] = named("Shares", factory=list)


class VirtualPciFunction(Model):
    """One function of a host PCI device."""

    device_instance_path: str = named("DeviceInstancePath", default="")
    virtual_function: int = named("VirtualFunction", default=0)


class VirtualPciDevice(Model):
    """Host PCI functions assigned to a VM."""

    functions: list[VirtualPciFunction] = named("Functions", factory=list)
    propagate_numa_affinity: bool | None = named("PropagateNumaAffinity", default=None)


class Devices(Model):
    """The devices of a VM; the keys of ``scsi`` and ``virtual_pci`` are VMBus GUIDs."""

    com_ports: dict[str, ComPort] = named("ComPorts", factory=dict)
    scsi: dict[str, Scsi] = named("Scsi", factory=dict)
    virtual_pmem: VirtualPMemController | None = named("VirtualPMem", default=None)
    network_adapters: dict[str, NetworkAdapter] = named("NetworkAdapters", factory=dict)
    video_monitor: VideoMonitor | None = named("VideoMonitor", default=None)
    keyboard: Keyboard | None = named("Keyboard", default=None)
    mouse: Any = named("Mouse", default=None)
    hv_socket: HvSocket2 | None = named("HvSocket", default=None)
    enhanced_mode_video: EnhancedModeVideo | None = named("EnhancedModeVideo", default=None)
    guest_crash_reporting: GuestCrashReporting | None = named("GuestCrashReporting", default=None)
    virtual_smb: VirtualSmb | None = named("VirtualSmb", default=None)
    plan9: Plan9 | None = named("Plan9", default=None)
    battery: Any = named("Battery", default=None)
    flexible_iov: dict[str, Any] = named("FlexibleIov", factory=dict)
    shared_memory: Any = named("SharedMemory", default=None)
    virtual_pci: dict[str, VirtualPciDevice] = named("VirtualPci", factory=dict)
