"""The descriptors that this process has open, on Linux."""

from __future__ import annotations

import gc
import os

__all__ = ["descriptors"]


def descriptors() -> set[str]:
    """Return those that are open; those of garbage, which may be closed at any time, are closed first."""
    gc.collect()
    return set(os.listdir("/proc/self/fd"))
