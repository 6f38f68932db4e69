"""The state of the Windows guest: Microsoft's GCS and hcsshim's sidecar, as far as the host observes it."""

from __future__ import annotations

import ntpath
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Self

from attrs import define, evolve, field

from uvm._names import GuestOS, guid_key, pipe_key
from uvm.backend import JSON
from uvm.backends.fake.devices.scsi import Disk
from uvm.backends.fake.guest.containers import Container
from uvm.backends.fake.guest.state import FakeGuest, GuestRequest, Handler, Mount
from uvm.backends.fake.guest.windows.changes import check_memory, check_processor, read_change
from uvm.backends.fake.guest.windows.sidecar import check_layers, check_open
from uvm.backends.fake.tree import DeviceTree
from uvm.devices.vsmb import GUEST_PREFIX
from uvm.hresult import HResult
from uvm.schema import container as schema
from uvm.schema import guest, requests
from uvm.schema.container import MappedDirectory
from uvm.schema.network import HostComputeEndpoint, HostComputeNamespace

#: Of the guest paths of volumes, in lower case, what is before their GUID.
_VOLUME: Final = "\\\\?\\volume{"
_BLOCK_DEVICE: Final = 0x10


@define(eq=False, repr=False)
class WindowsGuest(FakeGuest):
    """A Windows guest.

    :ivar namespaces: the documents of the network namespaces (compartments), by id in lower case.
    :ivar adapters: by adapter id in lower case, the endpoint that was announced, and whether it is up.
    :ivar addresses: its Hyper-V socket addresses; None until the host sends them.
    :ivar volumes: the mounted block CIMs, by volume GUID in lower case; and the disks that they are on.
    :ivar directories: the directories that were mapped into running containers, by the id of the container
        and the key of the path there.
    """

    namespaces: dict[str, JSON] = field(factory=dict, init=False)
    adapters: dict[str, tuple[HostComputeEndpoint, bool]] = field(factory=dict, init=False)
    addresses: guest.HvSocketAddress | None = field(default=None, init=False)
    volumes: dict[str, tuple[guest.CWCOWBlockCIMMounts, tuple[Disk, ...]]] = field(factory=dict, init=False)
    directories: dict[str, dict[str, MappedDirectory]] = field(factory=dict, init=False)

    os: ClassVar[GuestOS] = "windows"
    paths: ClassVar[Any] = ntpath
    own_capabilities: ClassVar[Mapping[str, bool]] = {
        "NamespaceAddRequestSupported": True,
        "SignalProcessSupported": True,
        "DumpStacksSupported": True,
        "DeleteContainerStateSupported": False,
        "LogForwardingSupported": True,
        "HostProcessContainerSupported": True,
    }
    failure: ClassVar[int] = HResult.E_INVALIDARG

    def read(self, document: JSON) -> GuestRequest:
        """Return a request, parsed; hcsshim removes an adapter without naming the resource type."""
        request = super().read(document)
        settings = request.settings
        adapter = isinstance(settings, dict) and ("AdapterId" in settings or "AdapterInstanceId" in settings)
        if not request.resource and request.action == "Remove" and adapter:
            return evolve(request, resource="Network")
        return request

    def _disk_at(self, request: GuestRequest, lun: int) -> Disk:
        disk = self.tree.scsi.find((0, lun))
        if disk is None:
            raise request.refuse(HResult.ERROR_NOT_FOUND, f"there is no disk at LUN {lun}")
        return disk

    def _mapped_virtual_disk(self, request: GuestRequest) -> None:
        request.only("Add", "Remove")
        wanted = request.parse(guest.WCOWMappedVirtualDisk)
        disk = self._disk_at(request, wanted.lun)
        if request.action == "Remove":
            self.unmount(request, wanted.container_path, disk)
        else:
            self.mount(request, Mount(wanted.container_path, "disk", disk, disk.settings.read_only))

    def _mapped_directory(self, request: GuestRequest) -> None:
        request.only("Add", "Remove")
        wanted = request.parse(MappedDirectory)
        if request.action == "Remove":
            self.unmount(request, wanted.container_path, None)
            return
        share = self.tree.vsmb.find(wanted.host_path.removeprefix(GUEST_PREFIX).partition("\\")[0])
        if share is None and self.checks.guest:
            raise request.refuse(HResult.ERROR_PATH_NOT_FOUND, f"no share holds {wanted.host_path}")
        self.mount(request, Mount(wanted.container_path, "directory", share, wanted.read_only))

    def _combined_layers(self, request: GuestRequest) -> None:
        self._combine(request, request.parse(guest.WCOWCombinedLayers))

    def _confidential_layers(self, request: GuestRequest) -> None:
        wanted = request.parse(guest.CWCOWCombinedLayers)
        if self.isolated:
            check_layers(request, self, wanted)
        self._combine(request, wanted.combined_layers)

    def _combine(self, request: GuestRequest, wanted: guest.WCOWCombinedLayers) -> None:
        request.only("Add", "Remove")
        # The filter lies on the scratch disk at the same path, which can then not be unmounted.
        root = wanted.container_root_path
        key = self.key(root) + self.paths.sep + "filter"
        if request.action == "Remove":
            if self._mounts.pop(key, None) is None and self.checks.guest:
                raise request.refuse(HResult.ERROR_NOT_FOUND, f"no layers are combined at {root}")
            return
        if not root:
            raise request.fail("ContainerRootPath is missing")
        if key in self._mounts:
            raise request.refuse(HResult.ERROR_ALREADY_EXISTS, f"layers are combined at {root}")
        layers = tuple(layer.path for layer in wanted.layers)
        if self.checks.guest:
            self._check_layers(request, layers, root)
        self._mounts[key] = Mount(root, "overlay", None, False, layers)

    def _check_layers(self, request: GuestRequest, layers: tuple[str, ...], root: str) -> None:
        if not layers:
            raise request.fail("there are no layers to combine")
        for path in (*layers, root):
            if not self.exists(path):
                raise request.refuse(HResult.ERROR_PATH_NOT_FOUND, f"{path} is not on a mount or share")

    def exists(self, path: str) -> bool:
        """Return whether a path lies on something mounted or shared."""
        if self.mount_of(path) is not None:
            return True
        if path.casefold().startswith(_VOLUME):
            return path.casefold().removeprefix(_VOLUME).partition("}")[0] in self.volumes
        name = path.removeprefix(GUEST_PREFIX).partition("\\")[0]
        return path.startswith(GUEST_PREFIX) and self.tree.vsmb.find(name) is not None

    def _network(self, request: GuestRequest) -> None:
        change = self._adapter_change(request)
        key = guid_key(change.adapter_id)
        match change.request_type:
            case "PreAdd":
                self._announce(request, key, change.settings)
            case "Add":
                if key not in self.adapters or self.tree.adapters.find(key) is None:
                    raise request.refuse(HResult.GCN_E_NETADAPTER_NOT_FOUND, change.adapter_id)
                self.adapters[key] = (self.adapters[key][0], True)
            case "Remove":
                if self.adapters.pop(key, None) is None:
                    raise request.refuse(HResult.GCN_E_NETADAPTER_NOT_FOUND, change.adapter_id)
            case other:
                raise request.fail(f"the RequestType {other!r} is not supported")

    def _adapter_change(self, request: GuestRequest) -> requests.NetworkModifyRequest:
        if isinstance(request.settings, dict) and "AdapterInstanceId" in request.settings:
            old = request.parse(requests.RS4NetworkModifyRequest)
            return requests.NetworkModifyRequest(
                adapter_id=old.adapter_instance_id, request_type=old.request_type, settings=old.settings
            )
        return request.parse(requests.NetworkModifyRequest)

    def _announce(self, request: GuestRequest, key: str, settings: Any) -> None:
        endpoint = evolve(request, settings=settings).parse(HostComputeEndpoint)
        if key in self.adapters:
            raise request.refuse(HResult.ERROR_ALREADY_EXISTS, f"adapter {key} was announced")
        namespace = endpoint.host_compute_namespace
        if namespace and guid_key(namespace) not in self.namespaces and self.checks.guest:
            raise request.refuse(HResult.GCN_E_NETCOMPARTMENT_NOT_FOUND, namespace)
        self.adapters[key] = (endpoint, False)

    def _network_namespace(self, request: GuestRequest) -> None:
        request.only("Add", "Remove")
        key = guid_key(request.parse(HostComputeNamespace).id)
        if request.action == "Add":
            if key in self.namespaces:
                raise request.refuse(HResult.ERROR_ALREADY_EXISTS, f"namespace {key} exists")
            self.namespaces[key] = request.settings
            return
        if key not in self.namespaces:
            raise request.refuse(HResult.ERROR_NOT_FOUND, f"there is no namespace {key}")
        if any(guid_key(e.host_compute_namespace) == key for e, _ in self.adapters.values()):
            raise request.refuse(HResult.HCN_E_ENTITY_HAS_REFERENCES, f"namespace {key} has adapters")
        del self.namespaces[key]

    def _hv_socket(self, request: GuestRequest) -> None:
        request.only("Add", "Update")
        self.addresses = request.parse(guest.HvSocketAddress)

    def _block_cims(self, request: GuestRequest) -> None:
        request.only("Add", "Remove")
        wanted = request.parse(guest.CWCOWBlockCIMMounts)
        if self.isolated:
            check_open(request, self, "CIM mount is denied by policy")
        key = guid_key(wanted.volume_guid)
        if request.action == "Remove":
            self._unmount_block_cims(request, key)
            return
        if key in self.volumes:
            raise request.refuse(HResult.ERROR_ALREADY_EXISTS, f"volume {wanted.volume_guid} is mounted")
        if not wanted.block_cims or not all(cim.cim_name for cim in wanted.block_cims):
            raise request.fail("BlockCIMs is empty, or a CimName is missing")
        if not wanted.mount_flags & _BLOCK_DEVICE:
            raise request.fail(f"MountFlags is {wanted.mount_flags:#x}: the images are on block devices")
        disks = tuple(self._disk_at(request, cim.lun) for cim in wanted.block_cims)
        for disk in disks:
            if not disk.settings.read_only and self.checks.guest:
                raise request.refuse(HResult.E_ACCESSDENIED, f"{disk} is writable")
        self.volumes[key] = wanted, disks

    def _unmount_block_cims(self, request: GuestRequest, key: str) -> None:
        if key not in self.volumes:
            raise request.refuse(HResult.ERROR_NOT_FOUND, f"there is no volume {key}")
        for mount in self._mounts.values():
            if self.checks.guest and any(f"{{{key}}}" in layer.casefold() for layer in mount.layers):
                raise request.refuse(
                    HResult.ERROR_SHARING_VIOLATION, f"volume {key} is in use at {mount.path}"
                )
        del self.volumes[key]

    def missing(self, container: schema.Container) -> str:
        """Return what a container is to have and is not in the guest; empty if all of it is."""
        for directory in container.mapped_directories:
            shared = directory.host_path.startswith((GUEST_PREFIX, "c:\\mounts\\"))
            if shared and not self.exists(directory.host_path):
                return f"{directory.host_path}, for {directory.container_path}"
        of_host = f"{GUEST_PREFIX}IPC$\\"
        mapped = {pipe_key(path) for path in self.tree.pipes.pipes}
        for pipe in container.mapped_pipes:
            name = pipe.host_path.removeprefix(of_host)
            if pipe.host_path.startswith(of_host) and pipe_key(f"\\\\.\\pipe\\{name}") not in mapped:
                return f"{pipe.host_path}, for the pipe {pipe.container_pipe_name}"
        network = container.networking
        if network is not None and network.namespace and guid_key(network.namespace) not in self.namespaces:
            return f"the network namespace {network.namespace}"
        return ""

    def change_container(self, container: Container, document: JSON) -> None:
        """Carry out a ``ModifySettingRequest`` on a running container."""
        request = read_change(document, self.failure)
        if container.status != "running":
            stopped = container.status == "stopped"
            code = (
                HResult.ERROR_VMCOMPUTE_SYSTEM_ALREADY_STOPPED
                if stopped
                else HResult.ERROR_VMCOMPUTE_INVALID_STATE
            )
            raise request.refuse(code, f"container {container.id} is {container.status}")
        if request.resource == requests.CONTAINER_DIRECTORIES:
            self._map_directory(container, request)
            return
        request.only("Update")
        topology = self.tree.topology
        if request.resource == requests.CONTAINER_MEMORY:
            check_memory(request, topology.size_in_mb)
            container.resources[requests.CONTAINER_MEMORY] = request.settings
        elif request.resource == requests.CONTAINER_PROCESSOR:
            wanted = check_processor(request, topology.processor.count)
            container.resources.update(
                {f"{requests.CONTAINER_PROCESSOR}/{name}": value for name, value in wanted}
            )
        else:
            raise request.fail(f"unknown resource path {request.resource!r}")

    def _map_directory(self, container: Container, request: GuestRequest) -> None:
        request.only("Add", "Remove")
        wanted = request.parse(MappedDirectory)
        mapped = self.directories.setdefault(container.id, {})
        key = self.key(wanted.container_path)
        if request.action == "Remove":
            if mapped.pop(key, None) is None:
                raise request.refuse(HResult.ERROR_NOT_FOUND, f"nothing is mapped at {wanted.container_path}")
            return
        if not wanted.container_path:
            raise request.fail("ContainerPath is missing")
        if not self.exists(wanted.host_path) and self.checks.guest:
            raise request.refuse(HResult.ERROR_PATH_NOT_FOUND, f"no share holds {wanted.host_path}")
        if key in mapped:
            raise request.refuse(HResult.ERROR_ALREADY_EXISTS, f"{wanted.container_path} is mapped")
        mapped[key] = wanted

    handlers: ClassVar[dict[str, Handler]] = {
        "MappedVirtualDisk": _mapped_virtual_disk,
        "MappedVirtualDiskForContainerScratch": _mapped_virtual_disk,
        "MappedDirectory": _mapped_directory,
        "CombinedLayers": _combined_layers,
        "CWCOWCombinedLayers": _confidential_layers,
        "Network": _network,
        "NetworkNamespace": _network_namespace,
        "HvSocket": _hv_socket,
        "WCOWBlockCims": _block_cims,
        "SecurityPolicy": FakeGuest.set_policy,
        "SecurityPolicyFragment": FakeGuest.inject_fragment,
    }

    def inconsistencies(self) -> list[str]:
        """Return dangling references: mounts, and adapters that are up but that the host has detached."""
        gone = [
            f"adapter {key} is no longer attached"
            for key, (_, up) in self.adapters.items()
            if up and self.tree.adapters.find(key) is None
        ]
        gone += [
            f"{directory.host_path}, mapped into container {container}, is no longer shared"
            for container, mapped in self.directories.items()
            for directory in mapped.values()
            if not self.exists(directory.host_path)
        ]
        gone += [
            f"volume {key} lacks {disk}, which is no longer attached"
            for key, (_, disks) in self.volumes.items()
            for disk in disks
            if not disk.attached
        ]
        return super().inconsistencies() + gone

    def copied(self, tree: DeviceTree) -> Self:
        """Return the same guest in a VM that starts from the memory of this one; it has no adapters."""
        twin = super().copied(tree)
        twin.namespaces.update(self.namespaces)
        twin.addresses = self.addresses
        twin.directories.update({key: dict(mapped) for key, mapped in self.directories.items()})
        return twin

    def end(self) -> None:
        """Remove everything: the VM has exited."""
        super().end()
        self.namespaces.clear()
        self.adapters.clear()
        self.volumes.clear()
