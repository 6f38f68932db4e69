"""The options of a VM with a Linux guest (hcsshim's ``OptionsLCOW`` and ``ConfidentialLCOWOptions``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from attrs import field, frozen

from uvm._arguments import refuse_twice
from uvm._checks import (
    U16,
    U32,
    U64,
    Checked,
    choice,
    each,
    flag,
    go,
    instance,
    items_or_value,
    optional_path,
    path,
    text,
    whole,
)
from uvm._names import pci_function, pci_key
from uvm.errors import OptionsError
from uvm.options.common import NUMA, Options, check_policy, decode_policy, together
from uvm.schema.common import GIB, PAGE_BYTES

MAX_VPMEM_DEVICES = 128
#: The command of the guest's compute service, with its log level.
GCS_COMMAND = "/bin/gcs -v4 -log-format json -loglevel {}"
LARGEST_VPMEM_BYTES = 4 * GIB


@frozen(repr=False)
class PCIDevice(Checked):
    """A PCI device of the host: its instance path, and which of its virtual functions.

    The path may be ``<path>/<function>``, as a specification names it.
    """

    instance_path: str = field(metadata=go("deviceInstanceID", text))
    function: int = field(default=0, metadata=go("virtualFunctionIndex", whole(U16)))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        path, function = pci_function(self.instance_path, self.function)
        object.__setattr__(self, "instance_path", path)
        object.__setattr__(self, "function", function)


_WINDOWS = ("dump_directory", "disable_compartment_namespace", "revoke_released_files")
_ISOLATED = (
    "bundle_directory",
    "dm_verity_rootfs_vhd",
    "extra_vsock_ports",
    "hcl_enabled",
    "use_guest_state_file",
)
_KERNEL = ("kernel_file", "kernel_direct", "kernel_boot_options", "rootfs_file", "vpci_enabled")
_INIT = ("exec_command_line", "guest_log_level", "scrub_guest_logs", "disable_time_sync")
_DISKS = ("writable_overlay_dirs", "dm_verity_create_args", "vpmem_size_bytes", "vpmem_multi_mapping")
_CONSOLES = ("graphics_console", "console_pipe", "process_dump_location")
#: What an isolated VM has of its guest state file, or not at all.
_NOT_ISOLATED = (*_KERNEL, *_INIT, *_DISKS, *_CONSOLES, "assigned_devices", "resource_partition_id", *NUMA)


#: What a confidential VM on its hardware has, and what it has by default (hcsshim internal/oci/uvm.go).
_HARDWARE = {"vpmem_count": 0, "allow_overcommit": False, "rootfs_type": "none", "kernel_boot_options": ""}
_HARDWARE_DEFAULTS = {
    "guest_state_file": "kernel.vmgs",
    "dm_verity_rootfs_vhd": "rootfs.vhd",
    "dm_verity_mode": True,
}


@frozen(kw_only=True, repr=False)
class LCOWOptions(Options):
    r"""The options of a VM with a Linux guest.

    Defaults of None depend on the host, as in hcsshim: see each. With ``guest_state_file`` the VM boots
    isolated from that file; options of the kernel, the root file system, VPMEM, NUMA, the consoles, assigned
    devices and the resource partition are refused then.

    :ivar boot_files_path: the host's directory of the boot files.
        None: ``C:\Program Files\Linux Containers``.
    :ivar kernel_file: the kernel, in there. None: ``vmlinux`` if it is there and the host can boot it
        directly, else ``kernel``.
    :ivar kernel_direct: boot the kernel without UEFI. None: on x64 from build 18286 on.
    :ivar rootfs_file: the root file system, in there.
        None: ``rootfs.vhd`` if it is there, else ``initrd.img``.
    :ivar rootfs_type: how it is used. None: ``vhd`` if ``rootfs.vhd`` is there, else ``initrd``.
        ``none`` is needed with ``guest_state_file``.
    :ivar kernel_boot_options: more kernel options.
    :ivar use_guest_connection: connect to the guest's compute service at all.
    :ivar exec_command_line: what init executes; None: the guest's compute service, with ``guest_log_level``.
    :ivar guest_log_level: the log level of the guest's compute service.
    :ivar scrub_guest_logs: have the guest leave secrets out of its log.
    :ivar forward_stdout: send its standard output to the host.
    :ivar forward_stderr: send its standard error, its log, to the host.
    :ivar vpmem_count: VPMEM devices, at most 128; 0: layers go to SCSI. None: 64, on arm64 0.
    :ivar vpmem_size_bytes: the size of each at most, in whole pages of 4 KiB.
    :ivar vpmem_multi_mapping: pack several layers on a VPMEM device. None: from build 18362 on, but not with
        a security policy, with which the guest refuses it.
    :ivar cold_discard_hint: hint to the host which memory is unused (build 18967 and newer).
    :ivar vpci_enabled: let the kernel use PCI.
    :ivar scratch_encryption: encrypt container scratches.
    :ivar disable_time_sync: run without the time synchronisation service.
    :ivar hcl_enabled: enable the host compatibility layer; None: leave it to the platform.
    :ivar extra_vsock_ports: more vsock ports that an isolated guest may use.
    :ivar assigned_devices: PCI devices to assign at boot.
    :ivar policy_based_routing: use policy-based routing for the guest's adapters.
    :ivar writable_overlay_dirs: lay writable overlays over /var and /etc of a VHD root file system.
    :ivar use_guest_state_file: require ``guest_state_file``, which by itself has the VM boot from it.
    :ivar dm_verity_rootfs_vhd: the dm-verity root file system of an isolated VM, under ``boot_files_path``.
    :ivar dm_verity_mode: boot with a dm-verity root file system.
    :ivar dm_verity_create_args: the kernel's ``dm-mod.create``, for that on SCSI.
    """

    uvm_reference_info_file: str = field(
        default="reference_info.cose", converter=path, metadata=go("UVMReferenceInfoFile", text)
    )
    uvm_hash_envelope_reference_info_file: str = field(
        default="reference_info_hash_envelope.cose",
        converter=path,
        metadata=go("UVMHashEnvelopeReferenceInfoFile", text),
    )
    boot_files_path: str | None = field(
        default=None, converter=optional_path, metadata=go("BootFilesPath", text)
    )
    kernel_file: str | None = field(default=None, converter=optional_path, metadata=go("KernelFile", text))
    kernel_direct: bool | None = field(default=None, metadata=go("KernelDirect", flag))
    rootfs_file: str | None = field(default=None, converter=optional_path, metadata=go("RootFSFile", text))
    rootfs_type: Literal["initrd", "vhd", "none"] | None = field(
        default=None, metadata=go("PreferredRootFSType", choice("initrd", "vhd", "none"))
    )
    kernel_boot_options: str = field(default="", metadata=go("KernelBootOptions", text))
    use_guest_connection: bool = field(default=True, metadata=go("UseGuestConnection", flag))
    exec_command_line: str | None = field(default=None, metadata=go("ExecCommandLine", text))
    guest_log_level: Literal["trace", "debug", "info", "warning", "error", "fatal", "panic"] = field(
        default="info",
        metadata=go(None, choice("trace", "debug", "info", "warning", "error", "fatal", "panic")),
    )
    scrub_guest_logs: bool = field(default=True, metadata=go(None, flag))
    forward_stdout: bool = field(default=False, metadata=go("ForwardStdout", flag))
    forward_stderr: bool = field(default=True, metadata=go("ForwardStderr", flag))
    vpmem_count: int | None = field(default=None, metadata=go("VPMemDeviceCount", whole(MAX_VPMEM_DEVICES)))
    vpmem_size_bytes: int = field(default=LARGEST_VPMEM_BYTES, metadata=go("VPMemSizeBytes", whole(U64)))
    vpmem_multi_mapping: bool | None = field(
        default=None, metadata=go("VPMemNoMultiMapping", flag, inverted=True)
    )
    cold_discard_hint: bool = field(default=False, metadata=go("EnableColdDiscardHint", flag))
    vpci_enabled: bool = field(default=False, metadata=go("VPCIEnabled", flag))
    scratch_encryption: bool = field(default=False, metadata=go("EnableScratchEncryption", flag))
    disable_time_sync: bool = field(default=False, metadata=go("DisableTimeSyncService", flag))
    hcl_enabled: bool | None = field(default=None, metadata=go("HclEnabled", flag))
    extra_vsock_ports: tuple[int, ...] = field(
        default=(), converter=items_or_value, metadata=go("ExtraVSockPorts", each(whole(U32)))
    )
    assigned_devices: tuple[PCIDevice, ...] = field(
        default=(), converter=items_or_value, metadata=go("AssignedDevices", each(instance(PCIDevice)))
    )
    policy_based_routing: bool = field(default=False, metadata=go("PolicyBasedRouting", flag))
    writable_overlay_dirs: bool = field(default=False, metadata=go("WritableOverlayDirs", flag))
    use_guest_state_file: bool = field(default=False, metadata=go("UseGuestStateFile", flag))
    dm_verity_rootfs_vhd: str = field(default="", converter=path, metadata=go("DmVerityRootFsVhd", text))
    dm_verity_mode: bool = field(default=False, metadata=go("DmVerityMode", flag))
    dm_verity_create_args: str = field(default="", metadata=go("DmVerityCreateArgs", text))

    @classmethod
    def confidential(
        cls, security_policy: str, *, security_hardware: bool = True, **options: Any
    ) -> LCOWOptions:
        """Return the options of a confidential VM, with hcsshim's defaults of what belongs together.

        The VM boots, isolated, from ``kernel.vmgs`` with the dm-verity root file system ``rootfs.vhd``, both
        in ``boot_files_path``; it has its own copies, in ``bundle_directory``, which has to be given. Its
        memory is physical, its layers are on SCSI, and the scratches of containers are encrypted.

        :param security_policy: base64.
        :param security_hardware: False: boot a plain VM, whose guest enforces the policy all the same. For
            development: there is no isolation, and nothing attests the policy.
        :param options: other options, and other values of these: ``guest_state_file``,
            ``dm_verity_rootfs_vhd``, ``dm_verity_mode``, ``scratch_encryption``.
        :raises OptionsError: there is no policy; an option excludes another, or has no effect.
        """
        check_policy(security_policy)
        given: dict[str, Any] = {"scratch_encryption": True, **options}
        if security_hardware:
            given = _HARDWARE_DEFAULTS | together(given, _HARDWARE, "in a confidential VM on its hardware")
            if not given.get("bundle_directory"):
                raise OptionsError("a confidential VM needs bundle_directory, for copies of its boot files")
        enabled = {"security_policy": security_policy, "security_policy_enabled": True}
        made = cls(**together(given, enabled, "in a confidential VM"))
        made.check_effects()
        return made

    def _check_together(self) -> None:
        self._check_guest_of_template("linux")
        Options._check_together(self)
        if self.vpmem_count != 0 and self.vpmem_size_bytes % PAGE_BYTES:
            raise OptionsError(
                f"vpmem_size_bytes must be a multiple of {PAGE_BYTES}, not {self.vpmem_size_bytes}"
            )
        devices = ((pci_key(device.instance_path), device.function) for device in self.assigned_devices)
        refuse_twice("assigned_devices", (f"{path}, function {function}," for path, function in devices))
        if self.guest_state_file:
            decode_policy(self.security_policy)

    def _without_effect(self, given: Mapping[str, Any]) -> Iterator[tuple[Sequence[str], str]]:
        yield _WINDOWS, "on a Linux guest"
        yield from Options._without_effect(self, given)
        if self.guest_state_file:
            yield _NOT_ISOLATED, "with guest_state_file, from which the VM boots"
            return
        yield _ISOLATED, "without guest_state_file"
        if not self.security_policy_enabled:
            yield ("security_policy",), "without security_policy_enabled or guest_state_file"
        if not self.dm_verity_mode:
            yield ("dm_verity_create_args",), "without dm_verity_mode"
        if self.rootfs_type in ("initrd", "none"):
            yield ("writable_overlay_dirs", "dm_verity_mode"), f"with rootfs_type {self.rootfs_type!r}"
        if self.exec_command_line is not None:
            yield ("guest_log_level",), "with exec_command_line, which has its own arguments"

    @property
    def has_numa(self) -> bool:
        """Whether the VM gets virtual NUMA nodes; an isolated one does not."""
        return not self.guest_state_file and super().has_numa
