"""What the host's compute service tells of itself and of its host.

Source: the HCS schema (``GetPropertyType``, ``BasicInformation``, ``CpuGroupConfigurations``, ...).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from uvm.backend import JSON, HostInfo
from uvm.backends.fake.properties import host_processors
from uvm.backends.fake.vm import FakeVM
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema.common import RS5, V19H1, V20H1, V21H2_SERVER, V21H2_WIN11
from uvm.schema.json import to_json

#: The minor number of the newest version 2 of the schema that a build of Windows knows, newest first.
_SCHEMAS: Final = ((V21H2_WIN11, 6), (V21H2_SERVER, 5), (V20H1, 3), (V19H1, 2), (RS5, 1))


def service_property(name: str, info: HostInfo, vms: Mapping[str, FakeVM]) -> JSON:
    """Return one property; HCS_E_INVALID_JSON where its type is not known."""
    match name:
        case "Basic":
            return {"SupportedSchemaVersions": _schema_versions(info.build)}
        case "ProcessorTopology":
            return to_json(host_processors(info))
        case "CpuGroup":
            groups = sorted({vm.tree.topology.cpu_group for vm in vms.values()} - {""})
            return {"CpuGroups": [{"GroupId": group} for group in groups]}
        case "ContainerCredentialGuard":
            return {"Instances": []}
        case "QoSCapabilities":
            return {"ProcessorQoSSupported": True}
        case _:
            raise HostError(
                "query the compute service",
                HResult.HCS_E_INVALID_JSON,
                f"the fake knows no property {name!r}",
            )


def _schema_versions(build: int) -> list[JSON]:
    """Return the newest version of each schema; the older ones are meant with it."""
    minor = next((minor for since, minor in _SCHEMAS if build >= since), 0)
    return [{"Major": 1, "Minor": 0}, {"Major": 2, "Minor": minor}]
