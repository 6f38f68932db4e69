"""What several documents of the schema share: versions, storage limits, layers, the registry."""

from __future__ import annotations

from attrs import define

from uvm.schema.field import named

__all__ = [
    "Layer",
    "RegistryChanges",
    "RegistryKey",
    "RegistryValue",
    "StorageQoS",
    "Version",
]


@define(kw_only=True)
class Version:
    """A schema version; 2.1 is what the documents of plain VMs carry, 2.5 those of isolated ones."""

    major: int = named("Major", default=0)
    minor: int = named("Minor", default=0)


@define(kw_only=True)
class RegistryKey:
    """A registry key of a Windows guest."""

    hive: str = named("Hive", default="")
    name: str = named("Name", default="")
    volatile: bool = named("Volatile", default=False)


@define(kw_only=True)
class RegistryValue:
    """A registry value of a Windows guest; ``type`` says which of the values counts."""

    key: RegistryKey | None = named("Key", default=None)
    name: str = named("Name", default="")
    type: str = named("Type", default="")
    string_value: str = named("StringValue", default="")
    binary_value: str = named("BinaryValue", default="")
    dword_value: int = named("DWordValue", default=0)
    qword_value: int = named("QWordValue", default=0)
    custom_type: int = named("CustomType", default=0)


@define(kw_only=True)
class RegistryChanges:
    """Changes to the registry of a Windows guest before it boots."""

    add_values: list[RegistryValue] = named("AddValues", factory=list)
    delete_keys: list[RegistryKey] = named("DeleteKeys", factory=list)


@define(kw_only=True)
class StorageQoS:
    """Limits of storage: operations and bytes per second."""

    iops_maximum: int = named("IopsMaximum", default=0)
    bandwidth_maximum: int = named("BandwidthMaximum", default=0)


@define(kw_only=True)
class Layer:
    """A read-only layer; ``cache`` is ``Disabled``, ``Enabled``, ``Private`` or ``PrivateAllowSharing``."""

    id: str = named("Id", default="")
    path: str = named("Path", default="")
    path_type: str = named("PathType", default="")
    cache: str = named("Cache", default="")
