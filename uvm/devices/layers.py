"""Container root file systems: read-only layers and a scratch space, combined by the guest.

The key is the folded path of the root in the guest, the slot the path; a member is what is combined there
(:class:`Combination`). ADD: guest ``CombinedLayers`` Add. REMOVE: guest Remove. Confidential Windows guests
take ``CWCOWCombinedLayers`` instead. hcsshim sends every request that it is asked for; here a root that is
there has one more reference, and other layers at the same root are refused.

Source: hcsshim ``internal/uvm/combine_layers.go``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias, get_args

from attrs import evolve, field, frozen

from uvm._names import GuestOS, guest_path, guest_path_key, guid_key, guid_text
from uvm._repr import Value, counted
from uvm.devices.base import REMOVE, Operation, Step, in_guest
from uvm.devices.kinds import FirstComeDevice, NamedByKey
from uvm.errors import OptionsError
from uvm.schema import guest
from uvm.schema.common import Layer

FilterType: TypeAlias = Literal["", "WCIFS", "UnionFS"]


@frozen(repr=False)
class Combination(Value):
    """What makes a container's root file system. Two are equal whatever the spelling of their paths.

    :ivar root: the path of the root.
    :ivar layers: (id, guest path) of the read-only layers, top-most first; Linux layers have no id.
    :ivar scratch_path: the directory that a Linux guest writes to; a Windows guest writes to the root itself.
    :ivar filter_type: ``UnionFS``, or empty for ``WCIFS``, the default, which is never sent: older Windows
        guests refuse the field (microsoft/hcsshim#2714).
    :ivar places: the folded layers and scratch path.
    """

    root: str = field(eq=False)
    layers: tuple[tuple[str, str], ...] = field(eq=False)
    scratch_path: str = field(eq=False)
    container_id: str
    filter_type: str
    places: tuple[str, ...]

    @classmethod
    def of(
        cls,
        os: GuestOS,
        root: str,
        layers: Iterable[str | tuple[str, str]],
        scratch_path: str = "",
        container_id: str = "",
        filter_type: FilterType = "",
    ) -> Combination:
        """Return the combination of layers, each a path or (id, path), at a root.

        :raises OptionsError: a path is relative, the root is empty, or the guest does not read an argument.
        """
        pairs = [_layer(layer) for layer in layers]
        _check_effects(os, root, scratch_path, filter_type, any(layer_id for layer_id, _ in pairs))
        paths = [*(path for _, path in pairs), *([scratch_path] if scratch_path else [])]
        cleaned = [guest_path(path, os) for path in paths]
        folded = [guest_path_key(path, os) for path in cleaned]
        return cls(
            root=guest_path(root, os, "root of combined layers"),
            layers=tuple((guid_text(each[0]), path) for each, path in zip(pairs, cleaned, strict=False)),
            scratch_path=cleaned[-1] if scratch_path else "",
            container_id=container_id,
            filter_type="" if filter_type == "WCIFS" else filter_type,
            places=(*folded, *(guid_key(layer_id) for layer_id, _ in pairs)),
        )


def _layer(layer: object) -> tuple[str, str]:
    """Return the id and the path of a layer, which may be a path alone."""
    pair = layer if isinstance(layer, tuple) else ("", layer)
    if len(pair) != 2 or not isinstance(pair[0], str):
        raise OptionsError(f"a layer is a path, or an id and a path, not {layer!r}; nothing was combined")
    return pair


def _check_effects(os: GuestOS, root: str, scratch_path: str, filter_type: str, ids: bool) -> None:
    """Refuse what no guest of that kind reads."""
    if os == "windows":
        wrong = {"scratch_path": scratch_path, "filter_type": filter_type not in get_args(FilterType)}
    else:
        wrong = {"filter_type": filter_type, "ids of layers": ids}
    if names := [name for name, given in wrong.items() if given]:
        raise OptionsError(f"{root} was not combined: {', '.join(names)}: no effect on a {os} guest")


class CombinedLayers(NamedByKey[Combination, Combination], FirstComeDevice[str, Combination, str]):
    """The combined root file systems in a guest.

    :param confidential: the guest is a Windows one with a security policy.
    """

    withheld = "{} was not combined: whether layers are still combined there is unknown"

    def __init__(self, os: GuestOS, confidential: bool = False) -> None:
        super().__init__()
        self._linux = os == "linux"
        self._confidential = confidential and not self._linux

    def spelling(self, key: str, member: Combination) -> str:
        """Return the path of the root."""
        return member.root

    def describe(self, key: str, slot: str, value: Combination) -> tuple[str, str]:
        """Return what it is, and where."""
        return f"root file system of {counted(len(value.layers), 'layers')}", slot

    def steps(self, operation: Operation[str, Combination, str, Combination]) -> tuple[Step, ...]:
        """Combine, or take apart, in the guest; a removal says the root alone."""
        kind, root, combined = operation.kind.value, operation.slot, operation.value
        if operation.kind is REMOVE:
            combined = evolve(combined, layers=(), scratch_path="", container_id="", filter_type="")
        layers = [Layer(id=layer_id, path=path) for layer_id, path in combined.layers]
        if self._linux:
            in_linux = guest.LCOWCombinedLayers(
                container_id=combined.container_id,
                container_root_path=root,
                layers=layers,
                scratch_path=combined.scratch_path,
            )
            return (in_guest(kind, guest.RESOURCE_COMBINED_LAYERS, in_linux),)
        in_windows = guest.WCOWCombinedLayers(
            container_root_path=root, layers=layers, filter_type=combined.filter_type
        )
        if not self._confidential:
            return (in_guest(kind, guest.RESOURCE_COMBINED_LAYERS, in_windows),)
        confidential = guest.CWCOWCombinedLayers(
            container_id=combined.container_id, combined_layers=in_windows
        )
        return (in_guest(kind, guest.RESOURCE_CWCOW_COMBINED_LAYERS, confidential),)
