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

from uvm.devices.base import REMOVE, Operation, Step
from uvm.devices.kinds import FirstComeDevice, NamedByKey
from uvm.schema import guest, requests
from uvm.schema.common import Layer
from uvm.schema.requests import ModificationRequest

__all__ = ["Combination", "CombinedLayers"]


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


class CombinedLayers(NamedByKey[Combination, Combination], FirstComeDevice[str, Combination, str]):
    """The combined root file systems in a guest.

    :param confidential: the guest is a Windows one with a security policy.
    """

    withheld = "{} was not combined: whether layers are still combined there is unknown"

    def __init__(self, os: Literal["linux", "windows"], confidential: bool = False) -> None:
        super().__init__()
        self._linux = os == "linux"
        self._confidential = confidential and not self._linux

    def steps(self, operation: Operation[str, Combination, str, Combination]) -> tuple[Step, ...]:
        """Combine, or take apart, in the guest."""
        removing = operation.kind is REMOVE
        combination = Combination(()) if removing else operation.target
        assert combination is not None
        request = ModificationRequest(
            request_type=requests.REMOVE if removing else requests.ADD,
            resource_type=guest.RESOURCE_CWCOW_COMBINED_LAYERS
            if self._confidential
            else guest.RESOURCE_COMBINED_LAYERS,
            settings=self._settings(operation.slot, combination),
        )
        return (Step(request),)

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
