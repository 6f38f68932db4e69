"""The options of a VM with a Windows guest (hcsshim's ``OptionsWCOW`` and ``ConfidentialWCOWOptions``)."""

from __future__ import annotations

import ntpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from uvm._arguments import refuse_twice
from uvm._checks import (
    I32,
    Checked,
    check_fields,
    choice,
    each,
    flag,
    go,
    instance,
    items_or_value,
    path,
    text,
    whole,
    without_mark,
)
from uvm._names import HostPath, windows_upper
from uvm.errors import OptionsError
from uvm.options.common import Options, check_policy, decode_policy, together


def _paths(values: Iterable[HostPath]) -> tuple[str, ...]:
    """Return paths as text."""
    given: Any = items_or_value(values)
    return tuple(map(path, given)) if isinstance(given, tuple) else given


@frozen(kw_only=True, repr=False)
class VmbFSBootFiles(Checked):
    """Boot from a directory of the host; of an image, :class:`LayerBootFiles` find it.

    :ivar os_files_path: the directory with the operating system's files.
    :ivar os_relative_boot_directory: the directory in there with ``bootmgfw.efi`` and the BCD.
    :ivar scratch_vhd_path: the VM's scratch disk.
    """

    os_files_path: str = field(converter=path, metadata=go("OSFilesPath", text))
    os_relative_boot_directory: str = field(converter=path, metadata=go("OSRelativeBootDirPath", text))
    scratch_vhd_path: str = field(converter=path, metadata=go("ScratchVHDPath", text))


@frozen(kw_only=True, repr=False)
class BlockCIMBootFiles(Checked):
    """Boot from disks, for confidential VMs.

    :ivar boot_cim_vhd_path: the disk with a block CIM of the operating system's files; empty: ``rootfs.vhd``
        under ``boot_files_root_path``.
    :ivar efi_vhd_path: the disk with the EFI partition; empty: ``boot.vhd`` in there.
    :ivar scratch_vhd_path: the VM's scratch disk, not formatted.
    """

    boot_cim_vhd_path: str = field(default="", converter=path, metadata=go("BootCIMVHDPath", text))
    efi_vhd_path: str = field(default="", converter=path, metadata=go("EFIVHDPath", text))
    scratch_vhd_path: str = field(converter=path, metadata=go("ScratchVHDPath", text))

    @classmethod
    def of_layer(cls, cim_vhd_path: HostPath, scratch_directory: HostPath) -> BlockCIMBootFiles:
        """Return the boot files of an image that is a single block CIM, as hcsshim finds them.

        The EFI disk is ``boot.vhd`` beside that of the CIM, and the scratch disk ``sandbox.vhdx``.
        """
        disk = path(cim_vhd_path)
        return cls(
            boot_cim_vhd_path=disk,
            efi_vhd_path=ntpath.join(ntpath.dirname(disk), "boot.vhd"),
            scratch_vhd_path=ntpath.join(path(scratch_directory), "sandbox.vhdx"),
        )


@frozen(kw_only=True, repr=False)
class LayerBootFiles(Checked):
    r"""Boot from the layers of an image: from the top-most one with a ``UtilityVM`` directory.

    :ivar layers: the directories of the layers on the host, top-most first.
    :ivar scratch_directory: the host's directory of the VM's scratch disk, ``sandbox.vhdx``. One that is not
        there is copied from the layer's ``UtilityVM\SystemTemplate.vhdx``, and deleted with the VM.
    """

    layers: tuple[str, ...] = field(converter=_paths, metadata=go(None, each(text)))
    scratch_directory: str = field(converter=path, metadata=go(None, text))

    def __attrs_post_init__(self) -> None:
        check_fields(self)
        if not self.layers or not all((*self.layers, self.scratch_directory)):
            raise OptionsError(
                "LayerBootFiles needs one layer at least and scratch_directory, none of them empty"
            )


_TYPES = ("None", "String", "ExpandedString", "MultiString", "Binary", "DWord", "QWord", "CustomType")
#: The types that use each value of a registry value; without a type, HCS chooses.
_TYPES_OF_VALUES = {
    "string_value": ("", "String", "ExpandedString", "MultiString"),
    "binary_value": ("", "Binary", "CustomType"),
    "dword_value": ("", "DWord"),
    "qword_value": ("", "QWord"),
    "custom_type": ("", "CustomType"),
}


@frozen(kw_only=True, repr=False)
class RegistryValue(Checked):
    """A value to set in the guest's registry before it boots; ``type`` selects the value in use.

    ``binary_value`` is base64, ``custom_type`` the number of a type that has no name. An empty ``hive`` or
    ``type`` is left out of the document, for HCS to choose.
    """

    hive: str = field(metadata=go("Key.Hive", choice("System", "Software", "Security", "Sam", "")))
    key: str = field(metadata=go("Key.Name", text))
    volatile: bool = field(default=False, metadata=go("Key.Volatile", flag))
    name: str = field(default="", metadata=go("Name", text))
    type: str = field(default="", metadata=go("Type", choice(*_TYPES, "")))
    string_value: str = field(default="", metadata=go("StringValue", text))
    binary_value: str = field(default="", metadata=go("BinaryValue", text))
    dword_value: int = field(default=0, metadata=go("DWordValue", whole(I32, -I32 - 1)))
    qword_value: int = field(default=0, metadata=go("QWordValue", whole(I32, -I32 - 1)))
    custom_type: int = field(default=0, metadata=go("CustomType", whole(I32, -I32 - 1)))

    def __attrs_post_init__(self) -> None:
        given = check_fields(self)
        wrong = [name for name, types in _TYPES_OF_VALUES.items() if name in given and self.type not in types]
        if wrong:
            raise OptionsError(
                f"RegistryValue.{', '.join(wrong)}: no effect with type {self.type!r}; leave it out"
            )

    def place(self) -> str:
        """Return the value's place in the registry, in one spelling: the registry ignores case."""
        return windows_upper("\\".join((self.hive, self.key.strip("\\"), self.name)))


_FIRMWARE = ("isolation_type", "disable_secure_boot", "firmware_parameters", "writable_efi")
#: The options of confidential VMs alone.
_CONFIDENTIAL = (
    *_FIRMWARE,
    "security_policy",
    "guest_state_file",
    "bundle_directory",
    "boot_files_root_path",
    "debug_mode",
    "debug_data_path",
)


#: Of a confidential VM, by what it may be called; hcsshim internal/oci/uvm.go.
_ISOLATION_TYPES = {
    "SecureNestedPaging": "SecureNestedPaging",
    "SNP": "SecureNestedPaging",
    "VirtualizationBasedSecurity": "VirtualizationBasedSecurity",
    "VBS": "VirtualizationBasedSecurity",
    "GuestStateOnly": "GuestStateOnly",
}
_CONFIDENTIAL_MB = 2048


#: The default of what only a clone may leave out.
_OF_TEMPLATE: Any = None


@frozen(kw_only=True, repr=False)
class WCOWOptions(Options):
    """The options of a VM with a Windows guest.

    :ivar boot_files: what it boots from; confidential VMs boot from disks, the others from a directory, or
        from the layers of an image. Only a clone may leave it out: it has that of its template.
    :ivar boot_files_root_path: the host's directory of those files of a confidential VM that are not named:
        its boot disks, its guest state file and its signed measurements. The VM has its own copies, in
        ``bundle_directory``, of what it may write there: the guest state file, and with ``writable_efi`` the
        EFI disk.
    :ivar no_direct_map: map no SMB share directly into the guest.
    :ivar inherit_time_zone: have the guest use the host's time zone; False: UTC.
    :ivar registry_values: more registry values.
    :ivar log_sources: the ETW providers whose events are forwarded: base64 of JSON.
    :ivar log_forwarding: forward the guest's log to the host.
    :ivar default_log_sources: forward the default providers' events as well.
    :ivar isolation_type: how a confidential VM is isolated; empty: ``SecureNestedPaging``.
    :ivar disable_secure_boot: boot a confidential VM without Secure Boot. For debugging.
    :ivar firmware_parameters: parameters for the firmware. For debugging.
    :ivar writable_efi: let a confidential VM write its EFI disk. For debugging.
    :ivar debug_mode: keep a confidential VM's scratch and EFI disks when it has gone.
    :ivar debug_data_path: the host's directory in which they are kept.
    """

    boot_files: VmbFSBootFiles | LayerBootFiles | BlockCIMBootFiles = field(
        default=_OF_TEMPLATE,
        metadata=go("BootFiles", instance(VmbFSBootFiles, LayerBootFiles, BlockCIMBootFiles)),
    )
    boot_files_root_path: str = field(default="", converter=path, metadata=go("BootFilesRootPath", text))
    no_direct_map: bool = field(default=False, metadata=go("NoDirectMap", flag))
    inherit_time_zone: bool = field(default=True, metadata=go("NoInheritHostTimezone", flag, inverted=True))
    registry_values: tuple[RegistryValue, ...] = field(
        default=(),
        converter=items_or_value,
        metadata=go("AdditionalRegistryKeys", each(instance(RegistryValue))),
    )
    log_sources: str = field(default="", converter=without_mark, metadata=go("LogSources", text))
    log_forwarding: bool = field(default=True, metadata=go("LogForwardingEnabled", flag))
    default_log_sources: bool = field(default=True, metadata=go("DefaultLogSourcesEnabled", flag))
    isolation_type: str = field(default="", metadata=go("IsolationType", text))
    disable_secure_boot: bool = field(default=False, metadata=go("DisableSecureBoot", flag))
    firmware_parameters: str = field(default="", metadata=go("FirmwareParameters", text))
    writable_efi: bool = field(default=False, metadata=go("WritableEFI", flag))
    debug_mode: bool = field(default=False, metadata=go("DebugMode", flag))
    debug_data_path: str = field(default="", converter=path, metadata=go("DebugDataPath", text))

    @classmethod
    def confidential(
        cls,
        security_policy: str,
        *,
        scratch_vhd_path: HostPath = "",
        isolation_type: str = "",
        security_hardware: bool = True,
        **options: Any,
    ) -> WCOWOptions:
        """Return the options of a confidential VM, with hcsshim's defaults of what belongs together.

        The VM boots from the files in ``boot_files_root_path``: ``boot.vhd``, ``rootfs.vhd``, and a copy of
        its guest state file, which is ``cwcow.snp.vmgs``, ``cwcow.vbs.vmgs`` or ``cwcow.gso.vmgs``, in
        ``bundle_directory``. It has at least 2,048 MB, all physical, and does not forward its log.

        :param security_policy: base64.
        :param scratch_vhd_path: its scratch disk, not formatted, unless ``boot_files`` has it.
        :param isolation_type: ``SecureNestedPaging`` or ``SNP``; ``VirtualizationBasedSecurity`` or ``VBS``;
            ``GuestStateOnly``. Empty: the first, or without the hardware the last.
        :param security_hardware: there is the hardware for ``SecureNestedPaging``.
        :param options: other options.
        :raises OptionsError: there is no policy; a file is not named; an option excludes another, or has no
            effect.
        """
        check_policy(security_policy)
        default = "SecureNestedPaging" if security_hardware else "GuestStateOnly"
        isolation = _ISOLATION_TYPES.get(isolation_type or default)
        if isolation is None:
            allowed = ", ".join(_ISOLATION_TYPES)
            raise OptionsError(f"isolation_type is one of {allowed}, not {isolation_type!r}")
        given: dict[str, Any] = {"memory_mb": _CONFIDENTIAL_MB, "log_forwarding": False, **options}
        if "boot_files" not in given:
            if not path(scratch_vhd_path):
                raise OptionsError("a confidential Windows VM needs scratch_vhd_path, or boot_files")
            given["boot_files"] = BlockCIMBootFiles(scratch_vhd_path=path(scratch_vhd_path))
        elif scratch_vhd_path:
            raise OptionsError("scratch_vhd_path: boot_files has that of the VM; leave it out")
        if not given.get("bundle_directory"):
            raise OptionsError("a confidential VM needs bundle_directory, for the files that are made for it")
        forced = {
            "security_policy": security_policy,
            "security_policy_enabled": True,
            "allow_overcommit": False,
            "isolation_type": isolation,
        }
        made = cls(**together(given, forced, "in a confidential VM"))
        if made.memory_mb < _CONFIDENTIAL_MB:
            raise OptionsError(f"a confidential VM has at least {_CONFIDENTIAL_MB} MB, not {made.memory_mb}")
        made.check_effects()
        return made

    def _check_together(self) -> None:
        self._check_guest_of_template("windows")
        if self.boot_files is _OF_TEMPLATE:
            if self.clone_of is None:
                raise OptionsError(
                    "boot_files is missing: it is VmbFSBootFiles, LayerBootFiles or BlockCIMBootFiles"
                )
            saved = self.clone_of.document.options["boot_files"]
            boot_files = LayerBootFiles if "layers" in saved else VmbFSBootFiles
            object.__setattr__(self, "boot_files", boot_files(**saved))
        Options._check_together(self)
        if self.scsi_controllers != 1:
            raise OptionsError(f"a Windows VM has exactly 1 SCSI controller, not {self.scsi_controllers}")
        if self.debug_mode and not self.debug_data_path:
            raise OptionsError("debug_mode needs debug_data_path, the directory to keep the disks in")
        if self.isolation_type == "SecureNestedPaging" and self.graphics_console:
            raise OptionsError("a graphics console is not available with isolation_type SecureNestedPaging")
        self._check_boot_files()
        refuse_twice("registry_values", map(RegistryValue.place, self.registry_values))

    def _without_effect(self, given: Mapping[str, Any]) -> Iterator[tuple[Sequence[str], str]]:
        if not given.get("security_policy_enabled"):
            yield _CONFIDENTIAL, "without security_policy_enabled"
        named = (
            self.guest_state_file,
            self.uvm_reference_info_file,
            self.uvm_hash_envelope_reference_info_file,
        )
        if all((*self._confidential_boot_disks(), *named)):
            yield ("boot_files_root_path",), "if every file in it is named"
        yield from Options._without_effect(self, given)

    def _check_boot_files(self) -> None:
        if self.security_policy_enabled:
            if not self.guest_state_file and not self.boot_files_root_path:
                raise OptionsError(
                    "security_policy_enabled needs guest_state_file, or boot_files_root_path, in which it is"
                )
            decode_policy(self.security_policy)
        boot, confidential = self.boot_files, self.security_policy_enabled
        if isinstance(boot, BlockCIMBootFiles) is not confidential:
            wanted = "BlockCIMBootFiles" if confidential else "VmbFSBootFiles or LayerBootFiles"
            raise OptionsError(
                f"with security_policy_enabled={confidential} a Windows VM boots from {wanted}, not from "
                f"{type(boot).__name__}"
            )
        if not all(self._confidential_boot_disks()) and not self.boot_files_root_path:
            raise OptionsError("boot_files needs boot_cim_vhd_path and efi_vhd_path, or boot_files_root_path")

    def _confidential_boot_disks(self) -> tuple[str, ...]:
        boot = self.boot_files
        return (boot.boot_cim_vhd_path, boot.efi_vhd_path) if isinstance(boot, BlockCIMBootFiles) else ()
