"""The devices of a VM as attributes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from uvm._async import Opening, suggesting
from uvm._buses.context import Bus
from uvm._buses.driver import Driver
from uvm._buses.holds import Hold
from uvm._buses.lease import Orphan
from uvm._buses.link import StuckDevice
from uvm._checks import checked, seconds, text
from uvm._names import HostPath
from uvm._vm.base import Part
from uvm.devices.base import LedgerState, Quarantined

if TYPE_CHECKING:
    from uvm._buses.blockcims import BlockCIMBus
    from uvm._buses.directories import DirectoryBus, SharedLease, SharedPath
    from uvm._buses.layers import LayersBus
    from uvm._buses.network import NetworkBus
    from uvm._buses.pipes import PipeBus
    from uvm._buses.plan9 import Plan9Bus
    from uvm._buses.scsi import ScsiBus
    from uvm._buses.vpci import VPCIBus
    from uvm._buses.vpmem import VPMemBus
    from uvm._buses.vsmb import VSMBBus
    from uvm._vm.attached import VMDevices
    from uvm._vm.networksetup import NetworkSetup

#: As long as the proxy of hcsshim waits for the service that it asks (``cmd/ncproxy/ncproxy.go``).
PROXY_SECONDS = 300.0


class Devices(Part):
    """The devices of a VM as attributes, each made when it is first used. A part of UtilityVM."""

    # Those that live on others come first.

    @cached_property
    def _directories(self) -> DirectoryBus:
        from uvm._buses.directories import DirectoryBus

        return DirectoryBus(self._context, self.plan9, self.vsmb)

    @cached_property
    def layers(self) -> LayersBus:
        """Combined root file systems."""
        from uvm._buses.layers import LayersBus

        return LayersBus(self._context)

    @cached_property
    def block_cims(self) -> BlockCIMBus:
        """Block CIMs, mounted as volumes (Windows guests)."""
        from uvm._buses.blockcims import BlockCIMBus

        return BlockCIMBus(self._context, self.scsi)

    @cached_property
    def scsi(self) -> ScsiBus:
        """SCSI disks and their mounts."""
        from uvm._buses.scsi import ScsiBus

        return ScsiBus(self._context)

    @cached_property
    def vpmem(self) -> VPMemBus:
        """VPMEM layers (Linux guests)."""
        from uvm._buses.vpmem import VPMemBus

        return VPMemBus(self._context)

    @cached_property
    def vsmb(self) -> VSMBBus:
        """VSMB shares (Windows guests)."""
        from uvm._buses.vsmb import VSMBBus

        return VSMBBus(self._context)

    @cached_property
    def plan9(self) -> Plan9Bus:
        """Plan9 shares (Linux guests)."""
        from uvm._buses.plan9 import Plan9Bus

        return Plan9Bus(self._context)

    @cached_property
    def vpci(self) -> VPCIBus:
        """Assigned PCI devices."""
        from uvm._buses.vpci import VPCIBus

        return VPCIBus(self._context)

    @cached_property
    def pipes(self) -> PipeBus:
        """Mapped named pipes (Windows guests)."""
        from uvm._buses.pipes import PipeBus

        return PipeBus(self._context)

    @cached_property
    def network(self) -> NetworkBus:
        """Network namespaces and adapters. Only once the VM runs: what it does depends on the guest."""
        from uvm._buses.network import NetworkBus

        return NetworkBus(self._context)

    def network_setup(
        self, container_id: str = "", *, agent_address: str = "", timeout_seconds: float = PROXY_SECONDS
    ) -> NetworkSetup:
        r"""Return what sets up the network of the VM, which has to run.

        With the option ``network_config_proxy`` that is the proxy. It is asked over ttrpc, and calls back a
        compute agent, which is served from the set-up to the tear-down, and until the VM exits at most. Only
        the object that set a network up tears it down. The arguments are for the proxy alone. Without the
        option, each endpoint of a namespace gets an adapter.

        :param container_id: the id under which the proxy knows the VM; by default the VM's own. The agent
            refuses calls for others.
        :param agent_address: the pipe at which the agent is served; by default
            ``\\.\pipe\computeagent-<container_id>``, and ``/run/computeagent-<container_id>.sock`` on POSIX
            hosts.
        :param timeout_seconds: how long the proxy may take for each call, and each call of the proxy.
        :raises OptionsError: an argument is of the wrong kind, or the address is no pipe.
        """
        from uvm._vm.networksetup import InternalNetworkSetup, external_network_setup

        checked(container_id, text, "container_id")
        checked(agent_address, text, "agent_address")
        checked(timeout_seconds, seconds, "timeout_seconds")
        self._link.check_running()
        if not self._context.options.network_config_proxy:
            return InternalNetworkSetup(self.network)
        buses = self._context, self.network, self.vpci
        return external_network_setup(*buses, container_id or self.id, agent_address, timeout_seconds)

    @suggesting
    def share(self, path: HostPath, guest_path: HostPath, *, read_only: bool = False) -> Opening[SharedLease]:
        """Show a directory, or a single file, of the host in the guest. Await it, or enter it.

        Over Plan9 in a Linux guest, over VSMB in a Windows guest. A Linux guest has a single file in a
        directory at `guest_path`; the lease's ``guest_path`` is that of the file.

        :raises HostPathError: nothing is at that path of the host.
        :raises AccessDeniedError: it is writable, and the VM denies writable shares.
        :raises OptionsError: the guest path is empty, or another share is shown there in a Windows guest.
        :raises GuestError: a Linux guest has something mounted there.
        """
        return self._directories.share(path, guest_path, read_only=read_only)

    @property
    def shared(self) -> tuple[SharedPath, ...]:
        """The directories and files that :meth:`share` shows; in a Linux guest, every Plan9 share."""
        return self._directories.shared

    def _drivers(self) -> Iterator[tuple[str, Driver[Any, Any, Any, Any]]]:
        """Yield the names and drivers of the ledgers in use, those that live on others first."""
        for name, bus in self._in_use():
            for ledger, driver in bus._drivers():
                yield f"{name.strip('_')}.{ledger}", driver

    def _in_use(self) -> Iterator[tuple[str, Bus]]:
        # A bus is made when it is first used; the order is that of their definition.
        made = {name: value for name, value in vars(self).items() if isinstance(value, Bus)}
        yield from ((name, made[name]) for name in vars(Devices) if name in made)

    @property
    def quarantined(self) -> tuple[Quarantined[Hashable, object], ...]:
        """The slots that are withheld, since what is in them is unknown."""
        return tuple(withheld for withheld, _ in self._link.quarantined)

    @property
    def orphans(self) -> tuple[Orphan, ...]:
        """The devices that are attached but held by no caller, since their removal was refused.

        Directories that are, or may be, mounted in a container are among them.
        """
        left: Iterable[Hold[object]] = self._link.left
        found = [
            Orphan(
                name,
                hold.ticket.key,
                hold.ticket.entry.slot,
                *hold.describe(),
                hold.error,
                hold.since,
                hold.release,
            )
            for name, driver in self._drivers()
            for hold in left
            if hold.is_orphan and hold.since is not None and driver.owns(hold)
        ]
        if not self._link.exited.is_set():
            found += [orphan for mount in self._link.mounts if (orphan := mount._orphan()) is not None]
        return tuple(found)

    def devices(self) -> VMDevices:
        """Return all that is attached now, orphans and quarantined slots included, as a value.

        ``print`` shows it as text, ``rich.print`` in colours, and a notebook as HTML.
        """
        from uvm._vm.attached import VMDevices
        from uvm._vm.rows import UnrevokedAccess, recent_requests, withheld_scsi, withheld_vpmem
        from uvm.devices.scsi import ScsiSlot

        plan = self._context.plan
        # Only a VM that runs can have a network bus.
        network: NetworkBus | None = self.__dict__.get("network")
        return VMDevices(
            vm_id=plan.id,
            scsi_controllers=plan.scsi_controllers,
            reserved_scsi=tuple(ScsiSlot(*slot) for slot in plan.reserved_scsi),
            disks=self.scsi.disks,
            vpmem_count=plan.vpmem_count,
            vpmem_size_bytes=plan.vpmem_size_bytes,
            vpmem_multi_mapping=plan.vpmem_multi_mapping,
            boot_vpmem_bytes=plan.boot_vpmem_bytes,
            layers=self.vpmem.layers,
            vsmb_shares=self.vsmb.shares,
            plan9_shares=self.plan9.shares,
            shared=self.shared,
            roots=self.layers.roots,
            block_cims=self.block_cims.volumes,
            pipes=self.pipes.pipes,
            pci_devices=self.vpci.devices,
            namespaces=() if network is None else network.namespaces,
            adapters=() if network is None else network.adapters,
            orphans=tuple(StuckDevice(o.what, o.where, str(o.error), o.since) for o in self.orphans),
            quarantined=tuple(stuck for _, stuck in self._link.quarantined),
            quarantined_scsi=withheld_scsi(self.quarantined),
            quarantined_vpmem=withheld_vpmem(self.quarantined, plan.vpmem_size_bytes),
            unrevoked_access=tuple(
                UnrevokedAccess(path, str(error)) for path, error in self._context.access.unrevoked.items()
            ),
            requests=recent_requests(self._link.recent or ()),
        )

    def ledgers(self) -> dict[str, LedgerState[Hashable, object, object, object]]:
        """Return the state of each ledger, as values."""
        return {name: driver.ledger.dump() for name, driver in self._drivers()}

    def _adopt_boot_devices(self) -> None:
        """Enter what is attached from the start of the VM into the ledgers."""
        for device in self._context.plan.assigned_devices:
            self.vpci._adopt(device.instance_path, device.function, device.vmbus_guid)
        restored = self._context.plan.restored
        if restored is not None:
            self.scsi._adopt(restored.disks)
            self.vpmem._adopt(restored.layers)
            self.vsmb._adopt(restored.shares, restored.shares_named)
            self.layers._adopt(restored.roots)
            if restored.namespace is not None:
                self.network._adopt(restored.namespace)
