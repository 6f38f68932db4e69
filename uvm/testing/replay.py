"""Replay of a recorded script of device operations on a VM of the in-memory backend.

The operations are described in the README next to the recorded data. What hcsshim leaves to its caller is
done here as by its callers: access is granted only if the script does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from attrs import Factory, define, evolve, field, fields, frozen

from uvm._buses.lease import Lease
from uvm._document.plan import CreationPlan
from uvm._names import GuestOS
from uvm._repr import Value
from uvm._vm.vm import UtilityVM
from uvm.backend import HCS_CONCURRENCY, HostInfo
from uvm.backends.fake import Checks, FakeBackend
from uvm.devices.scsi import DiskType, Mount
from uvm.errors import NotAttachedError, UVMError
from uvm.options import HvSocketService, LCOWOptions, WCOWOptions, from_hcsshim
from uvm.schema.requests import SCSI_CONTROLLER_GUIDS

#: What a VM boots from unless the script states it; none of these files affects the requests.
_LINUX_BOOT = {"BootFilesPath": "C:\\boot", "KernelFile": "kernel", "RootFSFile": "initrd.img"}
_WINDOWS_BOOT_FILES = {
    "VmbFSFiles": {
        "OSFilesPath": "C:\\layers\\base\\UtilityVM\\Files",
        "OSRelativeBootDirPath": "\\EFI\\Microsoft\\Boot",
        "ScratchVHDPath": "C:\\scratch\\sandbox.vhdx",
    },
    "BlockCIMFiles": {
        "BootCIMVHDPath": "C:\\boot\\bootcim.vhd",
        "EFIVHDPath": "C:\\boot\\efi.vhd",
        "ScratchVHDPath": "C:\\scratch\\sandbox.vhdx",
    },
}
_CONFIDENTIAL = {"GuestStateFilePath": "C:\\boot\\cwcow.vmgs", "BundleDirectory": "C:\\bundle"}
_INITRD = 0
#: The parameters of the recordings.
VM_ID, OWNER, HOST_PROCESSORS = "vm1", "golden", 8
_RECORDED_VALUES = ("controller", "lun", "guest_path")
#: For a single shared file, a recording may have the share's path or the file's in it as ``guest_path``.
_OUR_VALUES = (*_RECORDED_VALUES, "share_path")


class ScriptError(ValueError):
    """A script that cannot be carried out as written."""


@frozen(repr=False)
class StepResult(Value):
    """The requests and results of one operation.

    :ivar requests: each with ``to`` (host, guest or grant) and ``doc``.
    :ivar values: ``controller``, ``lun``, ``guest_path``, as far as the operation has them.
    """

    requests: list[dict[str, Any]] = Factory(list)
    values: dict[str, Any] = Factory(dict)
    error: str | None = None

    @classmethod
    def of_recorded(cls, step: Mapping[str, Any]) -> StepResult:
        """Return the result of a recorded step."""
        values = {name: step[name] for name in _RECORDED_VALUES if name in step}
        return cls(list(step.get("requests") or []), values, step.get("error"))


def host_of(case: Mapping[str, Any]) -> HostInfo:
    """Return the host that a case was recorded on."""
    return HostInfo(build=case["build"], processors=HOST_PROCESSORS, concurrency=HCS_CONCURRENCY)


@define(eq=False)
class Replay:
    """A VM of the in-memory backend that carries out a script, operation by operation."""

    vm: UtilityVM
    backend: FakeBackend
    _leases: dict[str, Lease] = field(factory=dict, repr=False)

    @classmethod
    @asynccontextmanager
    async def of(cls, case: Mapping[str, Any]) -> AsyncIterator[Replay]:
        """Start the VM of a recorded script: its ``os``, ``build`` and ``vm``.

        ``vm`` has options by hcsshim's names, and ``reserved_slots``.
        """
        settings = case.get("vm") or {}
        # The recording host checked nothing.
        backend = FakeBackend(host=host_of(case), checks=Checks.accepting())
        files = backend.files
        if dumps := settings.get("DumpDirectoryPath"):
            files.add_directory(dumps)
        # The host has what the VM is created from; the rest is made by the script.
        files.permissive = True
        options, amend = _options(case["os"], settings), partial(_place_disks, settings)
        async with UtilityVM.create(options, backend=backend, amend=amend) as vm:
            await vm.start()
            files.permissive = False
            yield cls(vm, backend)

    async def run(self, op: Mapping[str, Any]) -> StepResult:
        """Carry out one operation, and return its requests and results.

        :raises ScriptError: there is no such operation, or it lacks an argument.
        """
        do = _OPERATIONS.get(str(op.get("op")))
        if do is None:
            raise ScriptError(f"there is no operation {op.get('op')!r}")
        self.backend.request_log.clear()
        values: dict[str, Any] = {}
        error = None
        try:
            lease = await do(self, op)
            values = {name: getattr(lease, name) for name in _OUR_VALUES if hasattr(lease, name)}
            if "as" in op and isinstance(lease, Lease):
                self._leases[op["as"]] = lease
        except UVMError as refusal:
            error = str(refusal)
        except KeyError as missing:
            if missing.args[0] in op:
                raise
            raise ScriptError(f"{op['op']} needs {missing.args[0]!r}") from missing
        entries = self.backend.request_log.entries(to=("grant", "host", "guest"))
        return StepResult([{"to": entry.to, "doc": entry.document} for entry in entries], values, error)

    async def _mkfile(self, op: Mapping[str, Any]) -> None:
        self.backend.files.add(op["path"], size=op.get("size", 0))

    async def _mkdir(self, op: Mapping[str, Any]) -> None:
        self.backend.files.add_directory(op["path"])

    async def _scsi_add(self, op: Mapping[str, Any]) -> Lease:
        files, path, disk_type = self.backend.files, op["path"], DiskType(op.get("type", "VirtualDisk"))
        if disk_type is not DiskType.EXTENSIBLE_VIRTUAL_DISK and await files.stat(path) is None:
            # hcsshim does not look for a disk, and the recording host had them all.
            files.add(path, size=1 << 20)
        return await self.vm.scsi.attach(
            path,
            read_only=op.get("read_only", False),
            type=disk_type,
            mount=_mount(op),
            grant_access=op.get("grant", False),
        )

    async def _release(self, op: Mapping[str, Any]) -> None:
        lease = self._leases.get(op["ref"])
        if lease is None:
            raise NotAttachedError(f"nothing was attached as {op['ref']!r}")
        await lease.release()

    async def _hvsocket_update(self, op: Mapping[str, Any]) -> None:
        sddl = op.get("sddl", "")
        service = HvSocketService(
            bind_security_descriptor=sddl,
            connect_security_descriptor=sddl,
            allow_wildcard_binds=True,
        )
        await self.vm.update_hvsocket_service(op["service"], service)

    async def _combine_layers(self, op: Mapping[str, Any]) -> Lease:
        layers = op.get("layers") or ()
        return await self.vm.layers.combine(
            op["rootfs"],
            [_layer(text) for text in layers] if self.vm.os == "windows" else layers,
            scratch_path=op.get("scratch", op.get("scratch_path", "")),
            container_id=op.get("container", ""),
        )


#: The operations of scripts by their names; each returns its lease, if it attaches something.
_OPERATIONS: Final[dict[str, Callable[[Replay, Mapping[str, Any]], Awaitable[object]]]] = {
    "mkfile": Replay._mkfile,
    "mkdir": Replay._mkdir,
    "scsi_add": Replay._scsi_add,
    "vpmem_add": lambda replay, op: replay.vm.vpmem.add(op["path"], grant_access=False),
    "vsmb_add": lambda replay, op: replay.vm.vsmb.add(op["path"], **_given(op, "read_only")),
    "plan9_add": lambda replay, op: replay.vm.plan9.add(
        op["path"],
        op.get("guest_path", ""),
        **_given(op, "read_only", "restrict", "allowed_names"),
    ),
    "pipe_add": lambda replay, op: replay.vm.pipes.add(op["path"]),
    "vpci_add": lambda replay, op: replay.vm.vpci.assign(
        op["device"], **_given(op, "function", "vmbus_guid")
    ),
    "release": Replay._release,
    "netns_add": lambda replay, op: replay.vm.network.add_namespace(op["namespace"]),
    "netns_remove": lambda replay, op: replay.vm.network.remove_namespace(op["namespace"]),
    "endpoint_add": lambda replay, op: replay.vm.network.add_endpoint(op["namespace"], op["endpoint"]),
    "update_memory": lambda replay, op: replay.vm.update_memory(op["bytes"]),
    "update_cpu_limits": lambda replay, op: replay.vm.update_cpu_limits(
        **_given(op, "limit", "weight", "reservation", "maximum_frequency_mhz")
    ),
    "set_cpu_group": lambda replay, op: replay.vm.set_cpu_group(op["id"]),
    "release_cpu_group": lambda replay, op: replay.vm.release_cpu_group(),
    "hvsocket_update": Replay._hvsocket_update,
    "hvsocket_remove": lambda replay, op: replay.vm.remove_hvsocket_service(op["service"]),
    "combine_layers": Replay._combine_layers,
    "remove_combined_layers": lambda replay, op: replay.vm.layers.remove(op["rootfs"]),
    "share": lambda replay, op: replay.vm.share(op["path"], op["guest_path"], **_given(op, "read_only")),
}


def _given(op: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: op[name] for name in names if op.get(name) is not None}


def _options(os: GuestOS, settings: Mapping[str, Any]) -> LCOWOptions | WCOWOptions:
    # See _place_disks: a Windows VM is created with one controller at most.
    left_out = ("reserved_slots",) if os == "linux" else ("reserved_slots", "SCSIControllerCount")
    given = {name: value for name, value in settings.items() if name not in left_out}
    boot: dict[str, Any] = {"PreferredRootFSType": _INITRD, **_LINUX_BOOT}
    if os == "windows":
        confidential = bool(given.get("SecurityPolicyEnabled"))
        boot = {"BootFiles": {"BootType": int(confidential), **_WINDOWS_BOOT_FILES}}
        boot |= _CONFIDENTIAL if confidential else {}
    return from_hcsshim(os, {**boot, **given}, id=VM_ID, owner=OWNER)


def _place_disks(settings: Mapping[str, Any], plan: CreationPlan) -> CreationPlan:
    """Set exactly the script's SCSI controllers and occupied slots."""
    count = plan.scsi_controllers
    if plan.os == "windows":
        count = settings.get("SCSIControllerCount", count)
    reserved = tuple((slot[0], slot[1]) for slot in settings.get("reserved_slots") or ())
    scsi: dict[str, Any] = {guid: {"Attachments": {}} for guid in SCSI_CONTROLLER_GUIDS[:count]}
    for controller, lun in reserved:
        disk = {"Type": "VirtualDisk", "Path": f"C:\\reserved\\{controller}-{lun}.vhdx"}
        scsi[SCSI_CONTROLLER_GUIDS[controller]]["Attachments"][str(lun)] = disk
    document = plan.document
    document["VirtualMachine"]["Devices"]["Scsi"] = scsi
    return evolve(plan, document=document, scsi_controllers=count, reserved_scsi=reserved)


def _layer(text: str) -> tuple[str, str]:
    layer_id, _, path = text.partition("=")
    return layer_id, path


def _mount(op: Mapping[str, Any]) -> Mount | None:
    """Return a script's mount; its keys may be spelled as in hcsshim's ``MountConfig`` or as here."""
    if op.get("mount") is None:
        return None
    names = {field.name.replace("_", ""): field.name for field in fields(Mount)}
    names["blockdev"] = "block_device"
    spelled = ((names.get(key.replace("_", "").lower()), value) for key, value in op["mount"].items())
    given = {name: value for name, value in spelled if name and value is not None}
    return Mount(**given | ({"guest_path": op["guest_path"]} if op.get("guest_path") else {}))
