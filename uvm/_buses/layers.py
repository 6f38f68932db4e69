"""Layers: read-only parts of container root file systems, and the roots that the guest combines of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from attrs import define, frozen

from uvm._arguments import items_of
from uvm._async import opens
from uvm._buses.context import Bus, Context
from uvm._buses.lease import Lease
from uvm._checks import checked, text
from uvm._names import guest_path_key
from uvm._repr import Value
from uvm.devices.layers import Combination, CombinedLayers, FilterType
from uvm.schema.common import Layer
from uvm.schema.template import TemplateRoot


@define(eq=False, repr=False)
class CombinedLease(Lease):
    """A combined root file system.

    :ivar root: its path in the guest.
    """

    root: str


@frozen(repr=False)
class CombinedRoot(Value):
    """A root file system that the guest has combined.

    :ivar root: its path in the guest.
    :ivar layers: the guest paths of its layers, top-most first.
    :ivar references: how many leases it has.
    :ivar orphaned: it is an orphan.
    """

    root: str
    layers: tuple[str, ...]
    scratch_path: str
    container_id: str
    references: int
    orphaned: bool = False


class LayersBus(Bus):
    """The root file systems that the guest has combined."""

    _ledgers = ("roots",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._roots = self._drive(
            CombinedLayers(context.plan.os, context.options.security_policy_enabled),
            claims=lambda t: [context.in_guest(t.entry.slot)],
            uses=lambda t: t.member.places,
        )

    @property
    def roots(self) -> tuple[CombinedRoot, ...]:
        """The root file systems that are combined."""
        return tuple(
            CombinedRoot(
                entry.slot,
                tuple(path for _, path in combined.layers),
                combined.scratch_path,
                combined.container_id,
                *self._roots.standing(entry),
            )
            for entry, combined in self._roots.attached()
        )

    @opens
    async def combine(
        self,
        root: str,
        layers: Sequence[str | tuple[str, str]],
        *,
        scratch_path: str = "",
        container_id: str = "",
        filter_type: FilterType = "",
    ) -> CombinedLease:
        """Combine layers that the guest has to a root file system. Await it, or enter it.

        :param root: the path of the root, in the guest.
        :param layers: their paths in the guest, top-most first; for Windows each as (id, path).
        :param scratch_path: the directory that a Linux guest writes to; a Windows guest writes to
            ``root``, which is the scratch.
        :param filter_type: the filter of a Windows guest, ``WCIFS`` by default.
        :raises OptionsError: other layers are combined at that root, or the guest does not read an argument.
        :raises OrphanError: an orphan occupies that root, and cannot be removed.
        """
        os = self._context.plan.os
        checked(container_id, text, "container_id")
        combination = Combination.of(
            os, root, items_of(layers, "layers"), scratch_path, container_id, filter_type
        )
        key = guest_path_key(root, os)
        await self._roots.clear(key, self._context.in_guest(root))
        taken = f"{root} was not combined: other layers are combined there"
        CombinedLayers.check_same(self._roots.ledger.get(key), combination, taken)
        hold = await self._roots.acquire(key, combination)
        return CombinedLease(hold, hold.slot)

    def _adopt(self, roots: Iterable[TemplateRoot]) -> None:
        """Enter the root file systems of a clone, as its template had them, with one reference each."""
        os = self._context.plan.os
        for saved in roots:
            root, layers = saved.container_root_path, [(layer.id, layer.path) for layer in saved.layers]
            filter_type: Any = saved.filter_type
            combined = Combination.of(
                os, root, layers, saved.scratch_path, saved.container_id, filter_type=filter_type
            )
            self._roots.adopt(guest_path_key(root, os), combined, combined)

    def _saved(self) -> list[TemplateRoot]:
        """Return the root file systems, for clones."""
        return [
            TemplateRoot(
                container_root_path=entry.slot,
                layers=[Layer(id=layer_id, path=path) for layer_id, path in combined.layers],
                scratch_path=combined.scratch_path,
                container_id=combined.container_id,
                filter_type=combined.filter_type,
            )
            for entry, combined in self._roots.attached()
        ]

    async def remove(self, root: str) -> None:
        """Release the oldest lease of a root file system, by its path in the guest.

        :raises NotAttachedError: nothing is combined there.
        """
        holds = self._roots.oldest_on(guest_path_key(root, self._context.plan.os))
        await self._release_oldest(holds, f"no layers are combined at {root} in {self._context.vm_id}")
