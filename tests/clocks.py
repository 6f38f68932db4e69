"""Both event loops, with time that jumps; a module whose tests do no real I/O says so by name."""

from __future__ import annotations

from uvm.testing.clocks import JumpingLoop, run_without_waiting
from uvm.testing.plugin import jumping_backends

__all__ = ["JumpingLoop", "jumping_backends", "run_without_waiting"]
