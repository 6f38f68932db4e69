"""OCI resources: what a caller may ask for, and what that is in HCS's terms.

How it works
------------

A VM and its containers are updated by the ``LinuxResources`` or ``WindowsResources`` of an OCI runtime
specification, as JSON. All of it is checked before anything is sent; what is absent, or null, stays as it is.

==============  =============================  ==================================================
resource        a VM                           a Windows container
==============  =============================  ==================================================
memory.limit    even MiB: down, then up        even MiB, up
cpu.quota       of Linux: of all processors,
                in 1/100,000 per ``period``
cpu.maximum     times ten: 1/100,000           1/10,000 of the VM's processors
cpu.shares      Linux: 1,024 is weight 100;    the weight
                Windows: the weight
cpu.count                                      at most the VM's processors
==============  =============================  ==================================================

A Linux container gets its resources as they are: its guest's kernel knows their units.

Source: hcsshim internal/uvm/update_uvm.go, cmd/containerd-shim-runhcs-v1/task_hcs.go; its VMs get quota and
shares unconverted. The ranges are those of the Linux kernel and of the OCI runtime specification.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from attrs import frozen

from uvm._arguments import kind_of
from uvm._checks import check_names, checked, flag, instance, number, text, whole
from uvm._guest.specs import check_writable
from uvm._names import GuestOS
from uvm.backend import JSON
from uvm.errors import NotSupportedError, OptionsError
from uvm.schema.common import MIB

_I64: Final = (1 << 63) - 1
_U64: Final = (1 << 64) - 1
#: All of the processors, in HCS's unit for VMs, and in OCI's for Windows.
_ALL_OF_VM: Final = 100_000
_ALL: Final = 10_000
_MAX_WEIGHT: Final = 10_000
#: The weight of a VM with the default shares of a Linux cgroup, which are these.
_DEFAULT_WEIGHT: Final = 100
_DEFAULT_SHARES: Final = 1024
_DEFAULT_PERIOD_US: Final = 100_000

_LIMIT: Final = number("a whole number from -1, for no limit", -1, _I64, kind=int)
_TIME: Final = whole(_I64)
_OBJECT: Final = instance(dict)
_LIST: Final = instance(list, tuple)


def _quota(value: Any) -> str | None:
    allowed = "a time in us, 1,000 at least, or -1 for no limit"
    return number(allowed, 1000, _I64, kind=int)(value) if value not in (0, -1) else _LIMIT(value)


def _shares(value: Any) -> str | None:
    return (
        number("a whole number from 2 to 262144", 2, 262_144, kind=int)(value) if value != 0 else _TIME(value)
    )


#: What OCI resources have, by the operating system of the guest.
_FIELDS: Final[Mapping[GuestOS, Mapping[str, Any]]] = {
    "linux": {
        "devices": _LIST,
        "memory": {
            **dict.fromkeys(("limit", "reservation", "swap", "kernel", "kernelTCP"), _LIMIT),
            "swappiness": whole(100),
            **dict.fromkeys(("disableOOMKiller", "useHierarchy", "checkBeforeUpdate"), flag),
        },
        "cpu": {
            "shares": _shares,
            "quota": _quota,
            "burst": _TIME,
            "period": whole(1_000_000, 1000),
            "realtimeRuntime": _LIMIT,
            "realtimePeriod": _TIME,
            "cpus": text,
            "mems": text,
            "idle": number("0 or 1", -_I64, _I64, kind=int),
        },
        "pids": {"limit": _LIMIT},
        "blockIO": _OBJECT,
        "hugepageLimits": _LIST,
        "network": _OBJECT,
        "rdma": _OBJECT,
        "unified": _OBJECT,
    },
    "windows": {
        "memory": {"limit": whole(_U64)},
        "cpu": {
            "count": whole(_U64),
            "shares": whole(_MAX_WEIGHT),
            "maximum": whole(_ALL),
            "affinity": _LIST,
        },
        "storage": {"iops": whole(_U64), "bps": whole(_U64), "sandboxSize": whole(_U64)},
    },
}
#: What of them a VM has.
_OF_VM: Final[Mapping[GuestOS, frozenset[str]]] = {
    "linux": frozenset({"memory.limit", "cpu.quota", "cpu.period", "cpu.shares"}),
    "windows": frozenset({"memory.limit", "cpu.maximum", "cpu.shares"}),
}
_OF_WINDOWS_CONTAINER: Final = frozenset({"memory.limit", "cpu.count", "cpu.maximum", "cpu.shares"})


def read_resources(resources: object, os: GuestOS) -> JSON:
    """Return a checked copy of the OCI resources of a kind of guest, without what is null.

    :raises OptionsError: they have what there is none of, or a value out of its range; nothing was sent.
    """
    checked_ = _read(resources, _FIELDS[os], "resources")
    copied: JSON = json.loads(check_writable("the resources", checked_))
    return copied


def _read(given: object, fields: Mapping[str, Any], what: str) -> JSON:
    if not isinstance(given, Mapping):
        raise OptionsError(f"{what} must be a JSON object, not {kind_of(given)}; nothing was sent")
    check_names(what, map(str, given), fields)
    found = {}
    for name, value in given.items():
        if value is None:
            continue
        allowed, of = fields[name], f"{what}.{name}"
        found[name] = (
            _read(value, allowed, of) if isinstance(allowed, Mapping) else checked(value, allowed, of)
        )
    return found


def _leaves(resources: JSON) -> dict[str, Any]:
    """Return what is asked for by its path, such as ``memory.limit``; what is empty or 0 asks for nothing."""
    parts = {
        f"{part}.{name}": value
        for part, values in resources.items()
        for name, value in (values.items() if isinstance(values, dict) else {"": values}.items())
    }
    return {path.removesuffix("."): value for path, value in parts.items() if value}


def _only(asked: Mapping[str, Any], known: frozenset[str], whose: str) -> None:
    if unknown := [path for path in asked if path not in known]:
        raise OptionsError(
            f"{', '.join(unknown)}: {whose} has {', '.join(sorted(known))} alone; nothing was sent"
        )


@frozen
class VMResources:
    """What is to be changed of a VM, in HCS's units; None stays as it is.

    :ivar memory_mb: an even number of MiB.
    :ivar limit: the share of each processor that the VM may use, in 1/100,000.
    :ivar weight: against other VMs.
    """

    memory_mb: int | None = None
    limit: int | None = None
    weight: int | None = None


def vm_resources(resources: object, os: GuestOS, processors: int) -> VMResources:
    """Return what OCI resources ask of a VM.

    :param processors: how many it has.
    :raises OptionsError: they have what a VM has not, or a value out of its range; nothing was sent.
    """
    asked = _leaves(read_resources(resources, os))
    _only(asked, _OF_VM[os], "a VM")
    limit = asked.get("memory.limit")
    if limit is not None and limit < MIB:
        raise OptionsError(f"resources.memory.limit must be {MIB} bytes, 1 MiB, at least, not {limit}")
    memory_mb = None if limit is None else limit // MIB + limit // MIB % 2
    shares = asked.get("cpu.shares")
    if os == "windows":
        maximum = asked.get("cpu.maximum")
        return VMResources(memory_mb, maximum and maximum * (_ALL_OF_VM // _ALL), shares)
    return VMResources(memory_mb, _limit_of_quota(asked, processors), shares and _weight(shares))


def _limit_of_quota(asked: Mapping[str, Any], processors: int) -> int | None:
    quota: int | None = asked.get("cpu.quota")
    period: int | None = asked.get("cpu.period")
    if quota is None:
        if period is not None:
            raise OptionsError("resources.cpu.period is without cpu.quota, which it is the period of")
        return None
    if quota < 0:
        return _ALL_OF_VM
    period = period or _DEFAULT_PERIOD_US
    # Up, so that it is never 0, which leaves the limit to the host.
    limit = -(-quota * _ALL_OF_VM // (period * processors))
    if limit > _ALL_OF_VM:
        raise OptionsError(
            f"resources.cpu.quota of {quota} us each {period} us is {quota / period:g} processors; the VM "
            f"has {processors}. Nothing was sent"
        )
    return limit


def _weight(shares: int) -> int:
    weight = max(1, round(shares * _DEFAULT_WEIGHT / _DEFAULT_SHARES))
    if weight > _MAX_WEIGHT:
        most = _MAX_WEIGHT * _DEFAULT_SHARES // _DEFAULT_WEIGHT
        raise OptionsError(f"resources.cpu.shares of a VM are {most} at most, not {shares}; nothing was sent")
    return weight


@frozen
class ContainerResources:
    """What is to be changed of a Windows container, in HCS's units; None stays as it is.

    :ivar memory_mb: an even number of MiB.
    :ivar processor: what of ``Count``, ``Maximum`` and ``Weight``, and to what.
    """

    memory_mb: int | None = None
    processor: tuple[str, int] | None = None


def windows_container_resources(resources: object, processors: int) -> ContainerResources:
    """Return what OCI resources ask of a Windows container.

    :param processors: how many its VM has; 0 if that is not known.
    :raises OptionsError: as :func:`vm_resources`; or more than one of count, maximum and shares is given.
    :raises NotSupportedError: an affinity is given.
    """
    asked = _leaves(read_resources(resources, "windows"))
    if "cpu.affinity" in asked:
        raise NotSupportedError("cpu.affinity: the processors of a container in a VM cannot be chosen")
    _only(asked, _OF_WINDOWS_CONTAINER, "a container in a Windows guest")
    limit = asked.pop("memory.limit", None)
    if len(asked) > 1:
        raise OptionsError(f"{' and '.join(asked)}: one of them can be changed at a time; nothing was sent")
    memory_mb = -(-limit // (2 * MIB)) * 2 if limit else None
    if not asked:
        return ContainerResources(memory_mb)
    [(path, value)] = asked.items()
    if path == "cpu.count" and processors:
        value = min(value, processors)
    name = {"cpu.count": "Count", "cpu.maximum": "Maximum", "cpu.shares": "Weight"}[path]
    return ContainerResources(memory_mb, (name, value))
