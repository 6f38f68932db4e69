"""The stacks of the agent's threads, as text."""

from __future__ import annotations

import sys
import threading
import traceback
from typing import Final

#: An answer has to fit into 64 KiB, escaped.
_MOST: Final = 48_000


def stacks() -> str:
    """Return the stack of each thread, that of the loop first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    frames = sorted(sys._current_frames().items(), key=lambda item: item[0] != main)
    texts = (
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in frames
    )
    return "\n".join(texts)[:_MOST]
