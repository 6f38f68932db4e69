"""Network namespaces of the host, and adapters for the endpoints in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

from attrs import define, frozen

from uvm._async import Opening, errors_of, opens
from uvm._buses.context import Bus, Context
from uvm._buses.holds import Hold, released_by_one
from uvm._buses.lease import Lease, all_gone
from uvm._checks import U32, checked, guid_of, instance, whole
from uvm._names import guid_key, guid_text
from uvm._repr import Value
from uvm.backend import JSON
from uvm.devices.network import (
    Adapter,
    AdapterKey,
    Adapters,
    AnyAdapter,
    GuestAdapter,
    Namespaces,
    adapter_key,
)
from uvm.errors import AlreadyReleasedError, NotAttachedError, NotSupportedError, OptionsError, together
from uvm.options import LCOWOptions
from uvm.schema.devices import INTERRUPT_MODERATION, IovSettings
from uvm.schema.guest import LCOWIPConfig, LCOWNetworkAdapter
from uvm.schema.json import from_json, to_json
from uvm.schema.network import HostComputeEndpoint, HostComputeNamespace, IpConfig
from uvm.schema.requests import UPDATE, ModifySettingRequest, VirtualAdapter

#: The id of the namespace of templates and clones, in their guests (hcsshim v0.8.16 ``internal/uvm``).
TEMPLATE_NAMESPACE: Final = "89EB8A86-E253-41FD-9800-E6D88EB2E18A"

_NAME_OR_DOCUMENT: Final = instance(str, Mapping)


@define(eq=False, repr=False)
class AdapterLease(Lease):
    """A network adapter of the VM.

    :ivar nic_id: its id, a GUID.
    :ivar endpoint_id: the endpoint that it connects to; empty for one in the guest alone.
    """

    nic_id: str
    endpoint_id: str
    namespace_id: str


@define(eq=False, repr=False)
class NamespaceLease(Lease):
    """A network namespace of the host that the VM is in. It is released with its adapters.

    :ivar id: its id, a GUID.
    """

    _bus: NetworkBus
    id: str
    #: What the release dropped: the adapters and the namespace.
    _dropped: tuple[Hold[object], ...] = ()

    def add_endpoint(self, endpoint: str | Mapping[str, Any]) -> Opening[AdapterLease]:
        """Add an adapter for an endpoint; see :meth:`NetworkBus.add_endpoint`."""
        return self._bus.add_endpoint(self.id, endpoint)

    @property
    def _all_holds(self) -> tuple[Hold[object], ...]:
        return self._dropped or (self._hold,)

    async def release(self) -> None:
        """Remove its adapters, in the order in which they came, and then itself.

        It takes effect at once: cancelling it stops only the waiting, and a further release waits for the
        same outcome. If some of that is refused, the rest is done all the same, the errors are raised, and a
        further release goes on with what is left.

        :raises AlreadyReleasedError: a release of it has succeeded before.
        """
        if self._hold.link.exited.is_set():
            return
        if self._hold.reported and self.released:
            raise AlreadyReleasedError(f"{self!r} was released before")
        self._dropped = self._dropped or self._holds()
        for hold in self._dropped:
            hold.drop()
        # A refusal that came already is not tried again by the same call.
        held = (hold for hold in self._dropped if not hold.reported)
        await released_by_one(held, f"removing namespace {self.id}")

    async def gone(self) -> None:
        """Wait until its adapters are off the host, and then itself; see :meth:`uvm.Lease.gone`."""
        await all_gone(self._dropped or self._holds())

    def _holds(self) -> tuple[Hold[object], ...]:
        return (*self._bus._adapter_holds(self.id), self._hold)


@frozen(repr=False)
class AttachedAdapter(Value):
    """A network adapter of the VM.

    :ivar nic_id: its id, a GUID.
    :ivar endpoint_id: the endpoint that it connects to; empty for one in the guest alone.
    :ivar endpoint_name: the endpoint's name, if it has one.
    :ivar addresses: with their prefix lengths, such as ``10.0.0.2/24``.
    :ivar references: how many leases it has.
    :ivar orphaned: it is an orphan.
    """

    nic_id: str
    endpoint_id: str
    endpoint_name: str
    namespace_id: str
    mac_address: str
    addresses: tuple[str, ...]
    references: int
    orphaned: bool = False


class NetworkBus(Bus):
    """The network of a VM: namespaces of the host, with one adapter for each endpoint."""

    _ledgers = ("adapters", "namespaces")

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        plan, options = context.plan, context.options
        supported = bool(context.link.capabilities().get("NamespaceAddRequestSupported"))
        self._in_guest = supported
        # A template and its clones have one namespace, whose id in the guest is the same in all of them.
        self._in_template = TEMPLATE_NAMESPACE if options.template or options.clone_of is not None else ""
        #: Of a clone whose guest was in a namespace when it was saved: it stays in that.
        self._inherited: Hold[str] | None = None
        self._namespaces = self._drive(Namespaces(plan.os, supported), "network")
        routing = isinstance(options, LCOWOptions) and options.policy_based_routing
        self._adapters = self._drive(
            Adapters(plan.os, context.host.build, supported, routing), "network", part_of_parent=False
        )

    def _key(self, namespace_id: str) -> str:
        """Return the key of a namespace: all are one in a template and its clones."""
        key = guid_key(namespace_id)
        return guid_key(self._in_template) or key

    def _adopt(self, namespace: HostComputeNamespace) -> None:
        """Enter the namespace that the guest of a clone is in from the start."""
        self._inherited = self._namespaces.adopt(guid_key(self._in_template), namespace, namespace)
        # No caller has it.
        self._inherited.leave()

    def _saved(self) -> HostComputeNamespace | None:
        """Return the namespace that the guest of a template is in, for clones."""
        return next((namespace for _, namespace in self._namespaces.attached()), None)

    @property
    def namespaces(self) -> tuple[str, ...]:
        """The ids of the network namespaces that the VM is in."""
        return tuple(entry.slot for entry, _ in self._namespaces.attached())

    @property
    def adapters(self) -> tuple[AttachedAdapter, ...]:
        """The adapters that are attached."""
        return tuple(
            AttachedAdapter(entry.slot, *_said(adapter), *self._adapters.standing(entry))
            for entry, adapter in self._adapters.attached()
        )

    @opens
    async def add_namespace(self, namespace: str | Mapping[str, Any]) -> NamespaceLease:
        """Put the VM into a network namespace of the host. Await it, or enter it.

        A template and its clones are in one namespace at most, which has the id of :data:`TEMPLATE_NAMESPACE`
        in the guest, and in the lease; the guest of a clone may be in it from the start.

        :param namespace: its id, or its HCN document.
        :raises OptionsError: the VM is in it already, or the document has no ID.
        """
        network = self._context.backend.network
        checked(namespace, _NAME_OR_DOCUMENT, "namespace")
        self._context.link.check_running()
        document = await network.namespace(namespace) if isinstance(namespace, str) else namespace
        model = from_json(HostComputeNamespace, document)
        if not model.id:
            raise OptionsError("no network namespace was added: its document has no ID")
        key = self._key(model.id)
        model.id = self._in_template or guid_text(model.id)
        await self._namespaces.clear(key)
        if self._namespaces.in_use(key):
            raise OptionsError(f"{self._context.vm_id} is in the network namespace {model.id} already")
        return NamespaceLease(await self._namespaces.acquire(key, model), self, model.id)

    @opens
    async def add_endpoint(
        self, namespace_id: str, endpoint: str | Mapping[str, Any], *, nic_id: str = ""
    ) -> AdapterLease:
        """Add an adapter for an endpoint to one of the VM's namespaces. Await it, or enter it.

        The same endpoint again is the same adapter, with one more reference.

        :param endpoint: its id, its name, or its HCN document.
        :param nic_id: the adapter's id; a fresh GUID by default.
        :raises OptionsError: the document has no ID, or `nic_id` is no GUID or that of another adapter.
        :raises NotAttachedError: the VM is not in that namespace.
        """
        backend, key = self._context.backend, self._key(namespace_id)
        nic_id = guid_of(nic_id or backend.new_id(), "the id of an adapter")
        checked(endpoint, _NAME_OR_DOCUMENT, "endpoint")
        self._context.link.check_running()
        document = await backend.network.endpoint(endpoint) if isinstance(endpoint, str) else endpoint
        model = from_json(HostComputeEndpoint, document)
        if not model.id:
            raise OptionsError("no adapter was added: the document of its endpoint has no ID")
        wanted = adapter_key(key, model.id)
        await self._adapters.clear(wanted)
        return await self._join(wanted, namespace_id, partial(Adapter.joining, nic_id, model))

    @opens
    async def add_guest_adapter(self, adapter: LCOWNetworkAdapter | Mapping[str, Any]) -> AdapterLease:
        """Add an adapter to a Linux guest alone, in one of the VM's namespaces. Await it, or enter it.

        Its device is there already, such as an assigned PCI device: the id of the adapter is then the GUID of
        that on the VMBus, and ``vpci_assigned`` is set. Source: hcsshim ``AddNICInGuest``.

        :param adapter: its configuration, or the JSON of that.
        :raises OptionsError: its id is no GUID, or that of another adapter.
        :raises NotAttachedError: the VM is not in its namespace.
        :raises NotSupportedError: the guest is a Windows one, or supports no network namespaces.
        """
        self._context.need_guest("an adapter in the guest alone", "linux")
        self._context.link.check_running()
        checked(adapter, instance(Mapping, LCOWNetworkAdapter), "adapter")
        model = from_json(LCOWNetworkAdapter, adapter if isinstance(adapter, Mapping) else to_json(adapter))
        nic_id = guid_of(model.id, "the id of an adapter")
        if not self._in_guest:
            raise NotSupportedError(f"{self._context.vm_id}: the guest supports no network namespaces")
        key = AdapterKey(guid_key(model.namespace_id), "", guid_key(nic_id))
        await self._adapters.clear(key)
        if self._adapters.in_use(key):
            raise OptionsError(f"no adapter was added to the guest: it has one of the id {nic_id}")

        def joining(namespace_id: str) -> GuestAdapter:
            return GuestAdapter(model.replaced(id=guid_text(nic_id), namespace_id=namespace_id))

        return await self._join(key, model.namespace_id, joining)

    async def _join(
        self, key: AdapterKey, namespace_id: str, joining: Callable[[str], AnyAdapter]
    ) -> AdapterLease:
        """Add an adapter to a namespace that the VM is in.

        :param joining: returns the adapter, by the id of the namespace as the guest knows it.
        """
        entry = self._namespaces.ledger.get(key.namespace_id)
        if entry is None or not entry.holders:
            raise self._missing(f"{self._context.vm_id} is not in the network namespace {namespace_id}")
        namespace = await self._namespaces.acquire(entry.key, next(entry.members()))
        wanted = joining(namespace.slot)
        try:
            adapter = self._adapters.acquire(key, wanted, parent=namespace, names=(entry.key,))
        except BaseException:
            namespace.abandon()
            raise
        await adapter
        endpoint_id = wanted.endpoint.id if isinstance(wanted, Adapter) else ""
        return AdapterLease(adapter, adapter.slot, endpoint_id, namespace.slot)

    async def update_adapter(
        self,
        nic_id: str,
        *,
        offload_weight: int | None = None,
        queue_pairs: int | None = None,
        interrupt_moderation: int | str | None = None,
    ) -> None:
        """Change the SR-IOV settings of an adapter on the host, which leaves what is None as it is.

        :param nic_id: the id of the adapter.
        :param offload_weight: its weight among the adapters that want SR-IOV; 0 for none.
        :param queue_pairs: how many pairs of queues it asks for.
        :param interrupt_moderation: one of ``Default``, ``Adaptive``, ``Off``, ``Low``, ``Medium``, ``High``,
            or its number in HCN's policies: 0, 1, 2, 100, 200, 300.
        :raises OptionsError: a setting is out of its range; nothing was sent.
        :raises NotAttachedError: the VM has no such adapter on the host.
        """
        link, key = self._context.link, guid_key(nic_id)
        settings = _iov_settings(offload_weight, queue_pairs, interrupt_moderation)
        link.check_running()
        for entry, adapter in self._adapters.attached():
            if isinstance(adapter, Adapter) and guid_key(entry.slot) == key:
                changed = adapter.on_host(settings)
                path = VirtualAdapter(entry.slot).path
                request = ModifySettingRequest(resource_path=path, request_type=UPDATE, settings=changed)
                await link.carry_out("update adapter", partial(link.modify, to_json(request)))
                return
        raise self._missing(f"{self._context.vm_id} has no adapter {nic_id} on the host")

    @opens
    async def setup(self, namespace_id: str) -> NamespaceLease:
        """Put the VM into a namespace with all its endpoints. Await it, or enter it.

        The one of the name ``...eth0`` comes first, to be the guest's eth0.

        If an endpoint fails, the namespace is removed again.

        :raises NotAttachedError: the namespace was removed meanwhile; its adapters are removed as well.
        """
        guid_key(namespace_id)
        self._context.link.check_running()
        endpoints = await self._context.backend.network.namespace_endpoints(namespace_id)
        endpoints.sort(key=_not_eth0)
        namespace = await self.add_namespace(namespace_id)
        adapters: list[AdapterLease] = []
        try:
            for endpoint in endpoints:
                # One by one: if the next one fails, the adapters so far are removed.
                adapters.append(await namespace.add_endpoint(endpoint))  # noqa: PERF401
            self._context.link.check_running()
            if namespace.released:
                raise NotAttachedError(f"{namespace_id} was removed from {self._context.vm_id} meanwhile")
        except BaseException as failure:
            # Some adapters may have come too late to go with their namespace.
            holds = [lease._hold for lease in (*adapters, namespace)]
            for hold in holds:
                hold.abandon()
            # A caller who is cancelled does not wait for it.
            if isinstance(failure, Exception):
                for error in await errors_of([hold.report for hold in holds]):
                    failure.add_note(f"and removing the namespace again failed: {error}")
            raise
        return namespace

    async def remove_endpoint(self, namespace_id: str, endpoint_id: str) -> None:
        """Release the oldest lease of an adapter, by its endpoint.

        :param endpoint_id: its id, or its name.
        :raises NotAttachedError: the endpoint has no adapter.
        """
        key = adapter_key(self._key(namespace_id), endpoint_id)
        if self._adapters.ledger.get(key) is None:
            among = self._adapters.ledger.named(key.namespace_id)
            key = next((each.key for each, _ in among if _is_named(each.applied, endpoint_id)), key)
        await self._release_oldest(
            self._adapters.oldest_on(key),
            f"{self._context.vm_id} has no adapter for the endpoint {endpoint_id} in {namespace_id}",
        )

    async def remove_guest_adapter(self, nic_id: str) -> None:
        """Release an adapter that is in the guest alone, by its id.

        :raises NotAttachedError: there is none.
        """
        key = guid_key(nic_id)
        keys = [entry.key for entry in self._adapters.ledger if entry.key.nic_id == key]
        await self._release_oldest(
            [hold for each in keys for hold in self._adapters.holds_on(each)],
            f"{self._context.vm_id} has no adapter {nic_id} in the guest alone",
        )

    async def remove_all_adapters(self) -> None:
        """Release all adapters, one after another; the namespaces stay. The first error ends it.

        That is what comes before a VM is saved as a template. A caller who is cancelled leaves at once, and
        it goes on. Source: hcsshim ``RemoveAllNICs``.
        """
        if self.adapters:
            await self._context.link.carry_out("remove adapters", self._remove_all)

    async def _remove_all(self) -> None:
        for namespace_id in self.namespaces:
            for hold in self._adapter_holds(namespace_id):
                await hold.release()

    async def remove_namespace(self, namespace_id: str) -> None:
        """Take the VM out of a namespace, with its adapters; do nothing if the VM is not in it."""
        holds = self._namespaces.holds_on(self._key(namespace_id))
        namespace = [hold for hold in holds if hold is not self._inherited][:1]
        going = [*self._adapter_holds(namespace_id), *namespace]
        for hold in going:
            hold.drop(abandoned=hold.abandoned)
        if errors := await errors_of([hold.report for hold in going if not hold.reported]):
            raise together(f"removing namespace {namespace_id}", errors)

    def _adapter_holds(self, namespace_id: str) -> list[Hold[object]]:
        """Return the holds on the adapters of a namespace, in the order in which the adapters came."""
        namespace = self._key(namespace_id)
        adapters = (entry for entry, _ in self._adapters.ledger.named(namespace))
        keys = [entry.key for entry in sorted(adapters, key=lambda entry: entry.number)]
        return [hold for key in keys for hold in self._adapters.holds_on(key)]


def _is_named(adapter: AnyAdapter | None, name: str) -> bool:
    return isinstance(adapter, Adapter) and adapter.endpoint.name == name


def _said(adapter: AnyAdapter) -> tuple[str, str, str, str, tuple[str, ...]]:
    """Return what an adapter says of itself: the fields of :class:`AttachedAdapter`."""
    if isinstance(adapter, GuestAdapter):
        it = adapter.settings
        return "", "", it.namespace_id, it.mac_address, _addresses(it.ip_configs)
    of = adapter.endpoint
    return of.id, of.name, of.host_compute_namespace, of.mac_address, _addresses(of.ip_configurations)


def _addresses(configured: Iterable[IpConfig | LCOWIPConfig]) -> tuple[str, ...]:
    return tuple(f"{each.ip_address}/{each.prefix_length}" for each in configured)


def _iov_settings(weight: int | None, queue_pairs: int | None, moderation: int | str | None) -> IovSettings:
    """Check settings of SR-IOV, and return them.

    :raises OptionsError: one is out of its range, or there is none.
    """
    for name, value in (("offload_weight", weight), ("queue_pairs", queue_pairs)):
        if value is not None:
            checked(value, whole(U32), name)
    named = INTERRUPT_MODERATION.get(moderation) if isinstance(moderation, int) else moderation
    wrong = isinstance(moderation, bool) or named not in INTERRUPT_MODERATION.values()
    if moderation is not None and wrong:
        known = ", ".join(f"{name} ({number})" for number, name in INTERRUPT_MODERATION.items())
        raise OptionsError(f"interrupt_moderation must be one of {known}, not {moderation!r}")
    settings = IovSettings(
        offload_weight=weight, queue_pairs_requested=queue_pairs, interrupt_moderation=named
    )
    if settings == IovSettings():
        raise OptionsError("update_adapter needs a setting; nothing was sent")
    return settings


def _not_eth0(endpoint: JSON) -> bool:
    return not str(endpoint.get("Name", "")).endswith("eth0")
