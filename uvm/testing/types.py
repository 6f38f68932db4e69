"""What ``st.from_type`` is to know, registered when hypothesis is imported: so it loads little itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from uvm.devices.scsi import Mount
from uvm.options import LCOWOptions, WCOWOptions

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["register"]


def register() -> None:
    """Have ``st.from_type`` know the options and mounts."""
    for kind, name in ((LCOWOptions, "lcow_options"), (WCOWOptions, "wcow_options"), (Mount, "mounts")):
        st.register_type_strategy(kind, _strategy(name))


def _strategy(name: str) -> Callable[[type], st.SearchStrategy[Any]]:
    def resolve(_kind: type) -> st.SearchStrategy[Any]:
        from uvm.testing import strategies

        made: st.SearchStrategy[Any] = getattr(strategies, name)()
        return made

    return resolve
