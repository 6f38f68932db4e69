"""Options under hcsshim's names, for users of hcsshim and for the conformance runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, overload

import attrs

from uvm._checks import HCSSHIM, INVERTED, checked, choice, whole
from uvm.errors import OptionsError
from uvm.options.common import HvSocketService
from uvm.options.lcow import LCOWOptions, PCIDevice
from uvm.options.wcow import BlockCIMBootFiles, RegistryValue, VmbFSBootFiles, WCOWOptions

#: hcsshim's ``PreferredRootFSType`` and ``WCOWBootFilesType``, by number.
_ROOTFS_TYPES = ("initrd", "vhd", "none")
_BOOT_TYPES = (("VmbFSFiles", VmbFSBootFiles), ("BlockCIMFiles", BlockCIMBootFiles))


@overload
def from_hcsshim(
    os: Literal["linux"], options: Mapping[str, Any], *, id: str = "", owner: str = "uvm"
) -> LCOWOptions: ...
@overload
def from_hcsshim(
    os: Literal["windows"], options: Mapping[str, Any], *, id: str = "", owner: str = "uvm"
) -> WCOWOptions: ...
@overload
def from_hcsshim(
    os: str, options: Mapping[str, Any], *, id: str = "", owner: str = "uvm"
) -> LCOWOptions | WCOWOptions: ...
def from_hcsshim(
    os: str, options: Mapping[str, Any], *, id: str = "", owner: str = "uvm"
) -> LCOWOptions | WCOWOptions:
    """Return options made from the fields of hcsshim's ``OptionsLCOW`` or ``OptionsWCOW``, as JSON values.

    Fields of embedded structures stand at the top, as Go writes them; those that are missing keep hcsshim's
    defaults.

    :param os: ``"linux"`` or ``"windows"``.
    :raises OptionsError: a field that hcsshim does not have, or a value that is refused.
    """
    checked(os, choice("linux", "windows"), "the guest's operating system")
    cls = LCOWOptions if os == "linux" else WCOWOptions
    given = {"id": id, "owner": owner, **_arguments(cls, options)}
    if cls is WCOWOptions:
        given.setdefault("boot_files", None)
        if not given.get("debug_data_path"):
            # Without a directory to keep a VM's disks in, hcsshim keeps none.
            given.pop("debug_mode", None)
    if not given.get("guest_state_file" if cls is LCOWOptions else "security_policy_enabled"):
        # hcsshim's shim names the bundle for every VM, and only isolated ones have files there.
        given.pop("bundle_directory", None)
    made: LCOWOptions | WCOWOptions = cls(**given)
    return made


@cache
def _fields(cls: type) -> dict[str, attrs.Attribute[Any]]:
    return {f.metadata[HCSSHIM]: f for f in attrs.fields(cls) if HCSSHIM in f.metadata}


def _arguments(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a class for values under hcsshim's names."""
    if not isinstance(values, Mapping):
        raise OptionsError(f"hcsshim's fields of {cls.__name__} must be a mapping, not {values!r}")
    fields, arguments = _fields(cls), {}
    for name, value in values.items():
        field = fields.get(name)
        if field is None:
            raise OptionsError(f"hcsshim has no option {name!r} for {cls.__name__}")
        if value is None and field.default is not attrs.NOTHING and field.default is not None:
            continue
        if field.metadata.get(INVERTED) and isinstance(value, bool):
            value = not value
        arguments[field.name] = _read(name, value)
    return arguments


def _read(name: str, value: Any) -> Any:
    reader = _READERS.get(name)
    if reader is None:
        return value
    try:
        return reader(value)
    except OptionsError:
        raise
    except (AttributeError, TypeError, ValueError) as e:
        raise OptionsError(f"hcsshim's {name} has another form than {value!r}") from e


def _made(cls: type, values: Any) -> Any:
    """Return a part of the options; missing or null strings are empty, as in Go."""
    empty = {name: "" for name, field in _fields(cls).items() if field.default is attrs.NOTHING}
    given = {name: value for name, value in values.items() if value is not None}
    return cls(**_arguments(cls, empty | given))


def _rootfs_type(number: Any) -> Any:
    return number if whole(len(_ROOTFS_TYPES) - 1)(number) else _ROOTFS_TYPES[number]


def _boot_files(value: Any) -> Any:
    number: Any = (value.get("BootType") or 0) if isinstance(value, Mapping) else None
    if whole(len(_BOOT_TYPES) - 1)(number):
        raise OptionsError(f"BootFiles.BootType must be 0 (VmbFS) or 1 (block CIM), not {number!r}")
    name, cls = _BOOT_TYPES[number]
    if value.get(name) is None:
        raise OptionsError(f"BootFiles.BootType is {number}, but BootFiles.{name} is missing")
    return _made(cls, value[name])


def services(value: Any) -> Any:
    """Return the entries of the Hyper-V socket service table."""
    return {k: _made(HvSocketService, {} if v is None else v) for k, v in dict(value).items()}


def registry_value(value: Any) -> Any:
    """Return a registry value."""
    key = value.get("Key")
    if key is None:
        raise OptionsError("RegistryValue needs Key")
    # The field is Type_ in Go, and Type in its JSON.
    flat = {"Type" if k == "Type_" else k: v for k, v in value.items() if k != "Key"}
    return _made(RegistryValue, flat | {f"Key.{k}": v for k, v in key.items()})


def _device(value: Any) -> Any:
    if not value.get("deviceInstanceID"):
        raise OptionsError("PCIDevice needs deviceInstanceID")
    return _made(PCIDevice, value)


#: The readers of structured values, by hcsshim's name.
_READERS: dict[str, Callable[[Any], Any]] = {
    "PreferredRootFSType": _rootfs_type,
    "BootFiles": _boot_files,
    "AdditionalHyperVConfig": services,
    "AdditionalRegistryKeys": lambda values: tuple(map(registry_value, values)),
    "AssignedDevices": lambda values: tuple(map(_device, values)),
}
