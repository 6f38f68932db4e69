"""The state of the Linux guest: hcsshim's ``internal/guest``, as far as the host can observe it."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Self

from attrs import define, field

from uvm._names import GuestOS, guid_key
from uvm.backends.fake.devices.scsi import Disk
from uvm.backends.fake.devices.vpmem import PMem
from uvm.backends.fake.guest.linux.confidential import check_disk, check_layers, check_pmem
from uvm.backends.fake.guest.state import FakeGuest, GuestRequest, Handler, Mount
from uvm.backends.fake.tree import DeviceTree
from uvm.hresult import HResult
from uvm.schema import guest as schema

_FILESYSTEMS: Final = ("ext4", "xfs")


@define(eq=False, repr=False)
class LinuxGuest(FakeGuest):
    """A Linux guest. Most of its errors are E_FAIL with a message, as hcsshim's guest answers them.

    :ivar namespaces: adapters by id, in order, by network namespace (both in lower case).
    :ivar suspended: all that runs in it is suspended, for a template (:mod:`uvm.agent`; not hcsshim's guest).
    """

    namespaces: dict[str, dict[str, schema.LCOWNetworkAdapter]] = field(factory=dict, init=False)
    suspended: bool = field(default=False, init=False)

    os: ClassVar[GuestOS] = "linux"
    paths: ClassVar[Any] = posixpath
    own_capabilities: ClassVar[Mapping[str, bool]] = {
        "NamespaceAddRequestSupported": True,
        "SignalProcessSupported": True,
        "DumpStacksSupported": True,
        "DeleteContainerStateSupported": True,
    }
    failure: ClassVar[int] = HResult.E_FAIL

    @property
    def block_devices(self) -> list[Disk]:
        """The disks that the guest sees: the attached ones, without those that were ejected."""
        return [disk for disk in self.tree.scsi.disks.values() if not disk.ejected]

    def _disk_at(self, controller: int, lun: int) -> Disk | None:
        disk = self.tree.scsi.find((controller, lun))
        return None if disk is None or disk.ejected else disk

    def _scsi_device(self, request: GuestRequest) -> None:
        request.only("Remove")
        slot = request.parse(schema.SCSIDevice)
        disk = self._disk_at(slot.controller, slot.lun)
        if disk is None:
            return  # the guest's UnplugDevice succeeds if there is no device
        on_it = self._mounts.on(disk)
        if on_it is not None and self.checks.guest:
            raise request.fail(f"the device is busy: {on_it} is mounted")
        disk.ejected = True

    def _mapped_virtual_disk(self, request: GuestRequest) -> None:
        request.only("Add", "Remove")
        wanted = request.parse(schema.LCOWMappedVirtualDisk)
        if self.confidential:
            check_disk(request, wanted)
        disk = self._disk_at(wanted.controller, wanted.lun)
        if disk is None:
            # The real guest waits for the device until the host stops waiting.
            raise request.fail(f"there is no disk {wanted.controller}:{wanted.lun}")
        if request.action == "Remove":
            self.unmount(request, wanted.mount_path, disk)
            return
        if wanted.ensure_filesystem and wanted.filesystem not in _FILESYSTEMS:
            raise request.fail(f"unsupported filesystem {wanted.filesystem}")
        if disk.settings.read_only and not (wanted.read_only or wanted.block_dev):
            raise request.fail(f"read-only file system: {disk} is attached read-only")
        mount = Mount(wanted.mount_path, "blockdev" if wanted.block_dev else "disk", disk, wanted.read_only)
        self.mount(request, mount)

    def _vpmem_device(self, request: GuestRequest) -> None:
        request.only("Add", "Remove")
        wanted = request.parse(schema.LCOWMappedVPMemDevice)
        if self.confidential:
            check_pmem(request, wanted)
        pmem = self._pmem(request, wanted)
        if request.action == "Remove":
            self.unmount(request, wanted.mount_path, pmem)
        else:
            self.mount(request, Mount(wanted.mount_path, "pmem", pmem, read_only=True))

    def _pmem(self, request: GuestRequest, wanted: schema.LCOWMappedVPMemDevice) -> PMem:
        info = wanted.mapping_info
        offset = None if info is None else info.device_offset_in_bytes
        pmem = self.tree.vpmem.find((wanted.device_number, offset))
        if pmem is None:
            at = "" if offset is None else f" at {offset}"
            raise request.fail(f"there is nothing on /dev/pmem{wanted.device_number}{at}")
        if info is not None and pmem.length and info.device_size_in_bytes > pmem.length:
            raise request.fail(f"{pmem} has {pmem.length} bytes, not {info.device_size_in_bytes}")
        return pmem

    def _mapped_directory(self, request: GuestRequest) -> None:
        request.only("Add", "Remove")
        wanted = request.parse(schema.LCOWMappedDirectory)
        share = self.tree.plan9.find(wanted.share_name)
        if request.action == "Remove":
            self.unmount(request, wanted.mount_path, share)
            return
        if share is None or share.settings.port != wanted.port:
            raise request.fail(f"there is no share {wanted.share_name!r} at port {wanted.port}")
        self.mount(request, Mount(wanted.mount_path, "plan9", share, wanted.read_only))

    def _combined_layers(self, request: GuestRequest) -> None:
        request.only("Add", "Remove")
        wanted = request.parse(schema.LCOWCombinedLayers)
        root = wanted.container_root_path
        if request.action == "Remove":
            self.unmount(request, root, None)
            return
        if self.confidential:
            check_layers(request, wanted)
        layers = [layer.path for layer in wanted.layers]
        if self.checks.guest:
            self._check_layers(request, layers, wanted.scratch_path)
        scratch = [wanted.scratch_path] if wanted.scratch_path else []
        self.mount(request, Mount(root, "overlay", None, not scratch, tuple(layers + scratch)))

    def _check_layers(self, request: GuestRequest, layers: list[str], scratch: str) -> None:
        if not layers:
            raise request.fail("an overlay needs a layer")
        missing = [path for path in layers if not self.exists(path)]
        if missing:
            raise request.fail(f"{missing[0]}: no such file or directory")
        if not scratch:
            return
        on = self.mount_of(scratch)
        if on is None:
            raise request.fail(f"nothing is mounted at the scratch path {scratch}")
        if on.read_only:
            raise request.fail(f"{scratch}: read-only file system: {on}")

    def _network(self, request: GuestRequest) -> None:
        request.only("Add", "Remove")
        wanted = request.parse(schema.LCOWNetworkAdapter)
        namespace, adapter = guid_key(wanted.namespace_id), guid_key(wanted.id)
        if request.action == "Remove":
            # As in the guest: neither an unknown namespace nor an unknown adapter is an error.
            there = self.namespaces.pop(namespace, {})
            there.pop(adapter, None)
            if there:
                self.namespaces[namespace] = there
            return
        there = self.namespaces.get(namespace, {})
        if adapter in there:
            raise request.fail(f"adapter {wanted.id} is already present in the namespace")
        on_host = self.tree.pci if wanted.vpci_assigned else self.tree.adapters
        if on_host.find(wanted.id) is None:
            raise request.fail(f"the host has not added adapter {wanted.id}")
        self.namespaces.setdefault(namespace, there)[adapter] = wanted

    def _vpci_device(self, request: GuestRequest) -> None:
        request.only("Add")
        wanted = request.parse(schema.LCOWMappedVPCIDevice)
        if self.tree.pci.find(wanted.vmbus_guid) is None:
            raise request.fail(f"no PCI device with VMBus GUID {wanted.vmbus_guid!r}")

    def _container_constraints(self, request: GuestRequest) -> None:
        request.parse(schema.LCOWContainerConstraints)
        # The guest itself is none of its containers.
        code = HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND
        raise request.refuse(code, f"HRESULT: 0x{code:x}")

    def _pod_cgroup_memory_limit(self, request: GuestRequest) -> None:
        request.only("Update")

    def _suspension(self, request: GuestRequest) -> None:
        request.only("Add", "Remove")
        if request.action == "Remove":
            resumption = request.parse(schema.LCOWResumption)
            if not resumption.entropy or not resumption.unix_nanoseconds:
                raise request.fail("what is resumed needs random bytes and the time")
        self.suspended = request.action == "Add"

    handlers: ClassVar[dict[str, Handler]] = {
        "SCSIDevice": _scsi_device,
        "MappedVirtualDisk": _mapped_virtual_disk,
        "VPMemDevice": _vpmem_device,
        "MappedDirectory": _mapped_directory,
        "CombinedLayers": _combined_layers,
        "Network": _network,
        "VPCIDevice": _vpci_device,
        "ContainerConstraints": _container_constraints,
        "SecurityPolicy": FakeGuest.set_policy,
        "SecurityPolicyFragment": FakeGuest.inject_fragment,
        "PodCgroupMemoryLimit": _pod_cgroup_memory_limit,
        "Suspension": _suspension,
    }

    def inconsistencies(self) -> list[str]:
        """Return dangling references: mounts, and adapters that the host has detached."""
        gone = [
            f"adapter {adapter.id} in namespace {namespace} is no longer attached"
            for namespace, adapters in self.namespaces.items()
            for adapter in adapters.values()
            if (self.tree.pci if adapter.vpci_assigned else self.tree.adapters).find(adapter.id) is None
        ]
        return super().inconsistencies() + gone

    def copied(self, tree: DeviceTree) -> Self:
        """Return the same guest in a VM that starts from the memory of this one; it has no adapters."""
        twin = super().copied(tree)
        twin.suspended = self.suspended
        return twin

    def end(self) -> None:
        """Remove everything: the VM has exited."""
        super().end()
        self.namespaces.clear()
