"""What several documents of the schema share: versions, storage limits, layers, the registry, sizes.

And the builds of Windows, by hcsshim's names (``osversion/windowsbuilds.go``).
"""

from __future__ import annotations

from msgspec import field

from uvm.schema.json import Model

#: Windows 10 1809 and Windows Server 2019.
RS5 = 17763
V19H1 = 18362
V20H1 = 19041
V20H2 = 19042
V21H1 = 19043
#: Windows Server 2022.
V21H2_SERVER = 20348
V21H2_WIN11 = 22000
#: Windows Server 2025.
V25H1_SERVER = 26100

MIB = 1 << 20
GIB = 1 << 30
#: HCS counts memory in pages of this size, whatever the guest's page size.
PAGE_BYTES = 4096


class Version(Model):
    """A schema version: 2.1 for the documents of plain VMs, 2.5 for those of isolated ones."""

    major: int = 0
    minor: int = 0


class RegistryKey(Model):
    """A registry key of a Windows guest."""

    hive: str = ""
    name: str = ""
    volatile: bool = False


class RegistryValue(Model):
    """A registry value of a Windows guest; ``type`` selects the value in use."""

    key: RegistryKey | None = None
    name: str = ""
    type: str = ""
    string_value: str = ""
    binary_value: str = ""
    dword_value: int = field(name="DWordValue", default=0)
    qword_value: int = field(name="QWordValue", default=0)
    custom_type: int = 0


class RegistryChanges(Model):
    """Changes to the registry of a Windows guest before it boots."""

    add_values: list[RegistryValue] = []
    delete_keys: list[RegistryKey] = []


class StorageQoS(Model):
    """Limits of storage: operations and bytes per second."""

    iops_maximum: int = 0
    bandwidth_maximum: int = 0


class Layer(Model):
    """A read-only layer; ``cache`` is ``Disabled``, ``Enabled``, ``Private`` or ``PrivateAllowSharing``."""

    id: str = ""
    path: str = ""
    path_type: str = ""
    cache: str = ""
