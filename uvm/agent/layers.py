"""Combined layers: the union of layers and a scratch directory, as a container's root file system.

The layers are the lower directories of an overlay, the topmost first; ``upper`` and ``work`` of the scratch
directory take what is written. Without a scratch directory the union is read-only.

Source: hcsshim internal/guest/storage/overlay/overlay.go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from uvm.agent.filesystems import Filesystems, make_directory, remove_directory
from uvm.agent.refused import Refused
from uvm.agent.syscalls import MS_RDONLY

_MODE: Final = 0o755
#: What is below a single layer that is read-only: an overlay has two directories at least.
_EMPTY: Final = "/run/uvm/empty"
#: What is escaped in an option, and in a list of directories.
_COMMA: Final = "\\,"
_COLON: Final = "\\,:"


def overlay_options(layers: Sequence[str], scratch: str) -> str:
    """Return the data of an overlay's mount. No name of a directory adds an option, or a layer."""
    options = ["lowerdir=" + ":".join(_escaped(layer, _COLON) for layer in layers)]
    if scratch:
        options += [f"{name}dir={_escaped(f'{scratch}/{name}', _COMMA)}" for name in ("upper", "work")]
    return ",".join(options)


def _escaped(path: str, special: str) -> str:
    return "".join(f"\\{each}" if each in special else each for each in path)


def combine(filesystems: Filesystems, root: str, layers: Sequence[str], scratch: str) -> None:
    """Mount the union of layers at a path.

    :raises Refused: a layer is missing, or the scratch directory not writable; nothing is left of it.
    """
    if not layers:
        raise Refused("an overlay needs a layer")
    made = []
    try:
        if scratch:
            made = [path for name in ("upper", "work") if make_directory(path := f"{scratch}/{name}", _MODE)]
        elif len(layers) == 1:
            make_directory(_EMPTY, _MODE)
            layers = (*layers, _EMPTY)
        flags = 0 if scratch else MS_RDONLY
        filesystems.mount("overlay", root, "overlay", flags, overlay_options(layers, scratch), mode=_MODE)
    except Refused:
        for path in made:
            remove_directory(path)
        raise
