"""Replay of a recorded script of device operations on a VM of the in-memory backend.

The operations are described in the README next to the recorded data. What hcsshim leaves to its caller is
done here as by its callers: access is granted only if the script does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any

from attrs import Factory, define, evolve, frozen

from uvm._buses.lease import Lease
from uvm._document.plan import CreationPlan
from uvm._vm.vm import UtilityVM
from uvm.backends.fake import Checks, FakeBackend
from uvm.devices.scsi import DiskType, Mount
from uvm.errors import NotAttachedError, UVMError
from uvm.options import HvSocketService, LCOWOptions, WCOWOptions, from_hcsshim
from uvm.schema.requests import SCSI_CONTROLLER_GUIDS

#: What a VM boots from unless the script states it; none of these files affects the requests.
_LINUX_BOOT = {"BootFilesPath": "C:\\boot", "KernelFile": "kernel", "RootFSFile": "initrd.img"}
_WINDOWS_BOOT = {
    "BootFiles": {
        "BootType": 0,
        "VmbFSFiles": {
            "OSFilesPath": "C:\\layers\\base\\UtilityVM\\Files",
            "OSRelativeBootDirPath": "\\EFI\\Microsoft\\Boot",
            "ScratchVHDPath": "C:\\scratch\\sandbox.vhdx",
        },
    },
}
_CONFIDENTIAL_WINDOWS_BOOT = {
    "GuestStateFilePath": "C:\\boot\\cwcow.vmgs",
    "BundleDirectory": "C:\\bundle",
    "BootFiles": {
        "BootType": 1,
        "BlockCIMFiles": {
            "BootCIMVHDPath": "C:\\boot\\bootcim.vhd",
            "EFIVHDPath": "C:\\boot\\efi.vhd",
            "ScratchVHDPath": "C:\\scratch\\sandbox.vhdx",
        },
    },
}
_INITRD = 0
_RECORDED_VALUES = ("controller", "lun", "guest_path")


class ScriptError(ValueError):
    """A script that cannot be carried out as written."""


@frozen
class StepResult:
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


@define(eq=False)
class Replay:
    """A VM that carries out a script, operation by operation. Enter it with ``async with``.

    :ivar settings: the script's ``vm``: options by hcsshim's names, and ``reserved_slots``.
    """

    backend: FakeBackend
    os: str
    settings: Mapping[str, Any]
    vm_id: str = "vm1"
    owner: str = "replay"
    _vm: UtilityVM | None = None
    _leases: dict[str, Lease] = Factory(dict)
    _stack: AsyncExitStack = Factory(AsyncExitStack)

    @staticmethod
    def checks() -> Checks:
        """Return the checks of the recording host: none."""
        return Checks.accepting()

    @property
    def vm(self) -> UtilityVM:
        """The VM; only while entered."""
        assert self._vm is not None, "enter the replay first"
        return self._vm

    async def __aenter__(self) -> Replay:
        files = self.backend.files
        if dumps := self.settings.get("DumpDirectoryPath"):
            files.add_directory(dumps)
        # The host has what the VM is created from; the rest is made by the script.
        files.permissive = True
        created = UtilityVM.create(self._options(), backend=self.backend, amend=self._place_disks)
        self._vm = await self._stack.enter_async_context(created)
        await self._vm.start()
        files.permissive = False
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._stack.__aexit__(exc_type, exc, traceback)

    def _options(self) -> LCOWOptions | WCOWOptions:
        given = {name: value for name, value in self.settings.items() if name != "reserved_slots"}
        if self.os == "linux":
            given = {"PreferredRootFSType": _INITRD, **_LINUX_BOOT, **given}
            return from_hcsshim("linux", given, id=self.vm_id, owner=self.owner)
        boot = _CONFIDENTIAL_WINDOWS_BOOT if given.get("SecurityPolicyEnabled") else _WINDOWS_BOOT
        # See _place_disks: a Windows VM is created with one at most.
        given.pop("SCSIControllerCount", None)
        return from_hcsshim(self.os, {**boot, **given}, id=self.vm_id, owner=self.owner)

    def _place_disks(self, plan: CreationPlan) -> CreationPlan:
        """Set exactly the script's SCSI controllers and occupied slots."""
        count = plan.scsi_controllers
        if plan.os == "windows":
            count = self.settings.get("SCSIControllerCount", count)
        reserved = tuple((slot[0], slot[1]) for slot in self.settings.get("reserved_slots") or ())
        scsi: dict[str, Any] = {guid: {"Attachments": {}} for guid in SCSI_CONTROLLER_GUIDS[:count]}
        for controller, lun in reserved:
            path = f"C:\\reserved\\{controller}-{lun}.vhdx"
            disk = {"Type": "VirtualDisk", "Path": path}
            scsi[SCSI_CONTROLLER_GUIDS[controller]]["Attachments"][str(lun)] = disk
        document = plan.document
        document["VirtualMachine"]["Devices"]["Scsi"] = scsi
        return evolve(plan, document=document, scsi_controllers=count, reserved_scsi=reserved)

    async def run(self, op: Mapping[str, Any]) -> StepResult:
        """Carry out one operation, and return its requests and results.

        :raises ScriptError: there is no such operation, or it lacks an argument.
        """
        do: Callable[[Mapping[str, Any]], Awaitable[dict[str, Any] | None]] | None
        do = getattr(self, f"_do_{op.get('op')}", None)
        if do is None:
            raise ScriptError(f"there is no operation {op.get('op')!r}")
        last = max((entry.seq for entry in self.backend.request_log), default=0)
        values: dict[str, Any] = {}
        error = None
        try:
            values = await do(op) or {}
        except UVMError as refusal:
            error = str(refusal)
        except KeyError as missing:
            if missing.args[0] in op:
                raise
            raise ScriptError(f"{op['op']} needs {missing.args[0]!r}") from missing
        requests = [
            {"to": entry.to, "doc": entry.document}
            for entry in self.backend.request_log.entries(to=("grant", "host", "guest"))
            if entry.seq > last
        ]
        return StepResult(requests, values, error)

    def _keep(self, op: Mapping[str, Any], lease: Lease) -> None:
        if "as" in op:
            self._leases[op["as"]] = lease

    # The operations, by their names in scripts.

    async def _do_mkfile(self, op: Mapping[str, Any]) -> None:
        self.backend.files.add(op["path"], size=op.get("size", 0))

    async def _do_mkdir(self, op: Mapping[str, Any]) -> None:
        self.backend.files.add_directory(op["path"])

    async def _do_scsi_add(self, op: Mapping[str, Any]) -> dict[str, Any]:
        disk_type = DiskType(op.get("type", "VirtualDisk"))
        if (
            disk_type is not DiskType.EXTENSIBLE_VIRTUAL_DISK
            and await self.backend.files.stat(op["path"]) is None
        ):
            # hcsshim does not look for a disk, and the recording host had them all.
            self.backend.files.add(op["path"], size=1 << 20)
        lease = await self.vm.scsi.attach(
            op["path"],
            read_only=op.get("read_only", False),
            type=disk_type,
            mount=_mount(op),
            grant_access=op.get("grant", False),
        )
        self._keep(op, lease)
        return {"controller": lease.controller, "lun": lease.lun, "guest_path": lease.guest_path}

    async def _do_vpmem_add(self, op: Mapping[str, Any]) -> dict[str, Any]:
        lease = await self.vm.vpmem.add(op["path"], grant_access=False)
        self._keep(op, lease)
        return {"guest_path": lease.guest_path}

    async def _do_vsmb_add(self, op: Mapping[str, Any]) -> dict[str, Any]:
        lease = await self.vm.vsmb.add(op["path"], read_only=op.get("read_only", False))
        self._keep(op, lease)
        return {"guest_path": lease.guest_path, "share_path": lease.share_path}

    async def _do_plan9_add(self, op: Mapping[str, Any]) -> None:
        lease = await self.vm.plan9.add(
            op["path"],
            op.get("guest_path", ""),
            read_only=op.get("read_only", False),
            restrict=op.get("restrict", False),
            allowed_names=op.get("allowed_names") or (),
        )
        self._keep(op, lease)

    async def _do_pipe_add(self, op: Mapping[str, Any]) -> None:
        self._keep(op, await self.vm.pipes.add(op["path"]))

    async def _do_vpci_add(self, op: Mapping[str, Any]) -> None:
        lease = await self.vm.vpci.assign(
            op["device"], op.get("function", 0), vmbus_guid=op.get("vmbus_guid", "")
        )
        self._keep(op, lease)

    async def _do_release(self, op: Mapping[str, Any]) -> None:
        lease = self._leases.get(op["ref"])
        if lease is None:
            raise NotAttachedError(f"nothing was attached as {op['ref']!r}")
        await lease.release()

    async def _do_netns_add(self, op: Mapping[str, Any]) -> None:
        await self.vm.network.add_namespace(op["namespace"])

    async def _do_endpoint_add(self, op: Mapping[str, Any]) -> None:
        await self.vm.network.add_endpoint(op["namespace"], op["endpoint"])

    async def _do_netns_remove(self, op: Mapping[str, Any]) -> None:
        await self.vm.network.remove_namespace(op["namespace"])

    async def _do_update_memory(self, op: Mapping[str, Any]) -> None:
        await self.vm.update_memory(op["bytes"])

    async def _do_update_cpu_limits(self, op: Mapping[str, Any]) -> None:
        await self.vm.update_cpu_limits(
            limit=op.get("limit", 0),
            weight=op.get("weight", 0),
            reservation=op.get("reservation", 0),
            maximum_frequency_mhz=op.get("maximum_frequency_mhz", 0),
        )

    async def _do_set_cpu_group(self, op: Mapping[str, Any]) -> None:
        await self.vm.set_cpu_group(op["id"])

    async def _do_release_cpu_group(self, op: Mapping[str, Any]) -> None:
        await self.vm.release_cpu_group()

    async def _do_hvsocket_update(self, op: Mapping[str, Any]) -> None:
        sddl = op.get("sddl", "")
        service = HvSocketService(
            bind_security_descriptor=sddl,
            connect_security_descriptor=sddl,
            allow_wildcard_binds=True,
        )
        await self.vm.update_hvsocket_service(op["service"], service)

    async def _do_hvsocket_remove(self, op: Mapping[str, Any]) -> None:
        await self.vm.remove_hvsocket_service(op["service"])

    async def _do_combine_layers(self, op: Mapping[str, Any]) -> None:
        layers = [_layer(text) if self.os == "windows" else text for text in op.get("layers") or ()]
        await self.vm.layers.combine(
            op["rootfs"],
            layers,
            scratch_path=op.get("scratch", op.get("scratch_path", "")),
            container_id=op.get("container", ""),
        )

    async def _do_remove_combined_layers(self, op: Mapping[str, Any]) -> None:
        await self.vm.layers.remove(op["rootfs"])

    async def _do_share(self, op: Mapping[str, Any]) -> None:
        await self.vm.share(op["path"], op["guest_path"], read_only=op.get("read_only", False))


def _layer(text: str) -> tuple[str, str]:
    layer_id, _, path = text.partition("=")
    return layer_id, path


def _mount(op: Mapping[str, Any]) -> Mount | None:
    """Return a script's mount; its keys may be spelled as in hcsshim's ``MountConfig`` or as here."""
    if op.get("mount") is None:
        return None
    given = {key.replace("_", "").lower(): value for key, value in op["mount"].items()}
    return Mount(
        partition=given.get("partition", 0),
        encrypted=given.get("encrypted", False),
        options=tuple(given.get("options") or ()),
        ensure_filesystem=given.get("ensurefilesystem", False),
        filesystem=given.get("filesystem", ""),
        block_device=given.get("blockdev", given.get("blockdevice", False)),
        format_with_refs=given.get("formatwithrefs", False),
        guest_path=op.get("guest_path") or given.get("guestpath", ""),
    )
