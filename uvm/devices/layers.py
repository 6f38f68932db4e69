"""Container root file systems: read-only layers and a scratch space, combined by the guest.

The key is the path of the root in the guest, a member is what is combined there (:class:`Combination`); the
slot is the path too. ADD: guest ``CombinedLayers`` Add. REMOVE: guest Remove. Confidential Windows guests
take ``CWCOWCombinedLayers`` instead. hcsshim sends every request that it is asked for; here a root that is
there has one more reference, and other layers at the same root are refused.

Source: hcsshim ``internal/uvm/combine_layers.go``.
"""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from uvm.devices.base import GUEST, REMOVE, Device, Entry, Operation, Step
from uvm.devices.slots import Names
from uvm.errors import NoSpaceError, OptionsError
from uvm.schema import guest, requests
from uvm.schema.common import Layer
from uvm.schema.requests import ModificationRequest

__all__ = ["Combination", "CombinedLayers", "check_combination"]


@frozen
class Combination:
    """What makes a container's root file system.

    :ivar layers: (id, guest path) of the read-only layers, top-most first; Linux layers have no id.
    :ivar scratch_path: where writes go, in a Linux guest; a Windows guest writes to the root itself.
    :ivar filter_type: ``UnionFS``, or ``WCIFS``, which is the default and therefore never sent: older
        Windows guests refuse the field (microsoft/hcsshim#2714).
    """

    layers: tuple[tuple[str, str], ...]
    scratch_path: str = ""
    container_id: str = ""
    filter_type: Literal["", "WCIFS", "UnionFS"] = ""


def check_combination(entry: Entry[str, Combination, str, Combination] | None, member: Combination) -> None:
    """Refuse other layers at a root that is there.

    :raises OptionsError: they are other layers.
    """
    if entry is None:
        return
    # What is there and nobody wants may stay, for instance because its removal was refused.
    others = (*entry.members(), entry.applied or member)
    if any(other != member for other in others):
        raise OptionsError(f"{entry.key} was not combined: other layers are combined there")


class CombinedLayers(Device[str, Combination, str, Combination]):
    """The combined root file systems in a guest.

    :param confidential: the guest is a Windows one with a security policy.
    """

    def __init__(self, os: Literal["linux", "windows"], confidential: bool = False) -> None:
        self._linux = os == "linux"
        self._confidential = confidential and not self._linux
        self._names = Names()

    def place(self, key: str, member: Combination) -> str:
        """Take the path.

        :raises NoSpaceError: it is withheld.
        """
        if not self._names.take(key):
            raise NoSpaceError(
                f"{key} was not combined: nobody knows whether layers still are combined there"
            )
        return key

    def vacate(self, key: str, slot: str) -> None:
        """Free a path."""
        self._names.give(slot)

    def wanted(self, entry: Entry[str, Combination, str, Combination]) -> Combination | None:
        """Give the combination, while anybody wants it."""
        if not entry.wanted:
            return None
        return next(entry.members()) if entry.applied is None else entry.applied

    def steps(self, operation: Operation[str, Combination, str, Combination]) -> tuple[Step, ...]:
        """Combine, or take apart, in the guest."""
        removing = operation.kind == REMOVE
        combination = Combination(()) if removing else operation.target
        assert combination is not None
        request = ModificationRequest(
            request_type=requests.REMOVE if removing else requests.ADD,
            resource_type=guest.RESOURCE_CWCOW_COMBINED_LAYERS
            if self._confidential
            else guest.RESOURCE_COMBINED_LAYERS,
            settings=self._settings(operation.slot, combination),
        )
        return (Step(GUEST, request),)

    def _settings(
        self, root: str, combination: Combination
    ) -> guest.LCOWCombinedLayers | guest.WCOWCombinedLayers | guest.CWCOWCombinedLayers:
        layers = [Layer(id=layer_id, path=path) for layer_id, path in combination.layers]
        if self._linux:
            return guest.LCOWCombinedLayers(
                container_id=combination.container_id,
                container_root_path=root,
                layers=layers,
                scratch_path=combination.scratch_path,
            )
        filter_type = "" if combination.filter_type == "WCIFS" else combination.filter_type
        combined = guest.WCOWCombinedLayers(container_root_path=root, layers=layers, filter_type=filter_type)
        if not self._confidential:
            return combined
        return guest.CWCOWCombinedLayers(container_id=combination.container_id, combined_layers=combined)

    def dump(self) -> tuple[str, ...]:
        """Give the paths that are taken."""
        return self._names.dump()

    def load(self, state: tuple[str, ...]) -> None:
        """Take back what :meth:`dump` gave."""
        self._names.load(state)
