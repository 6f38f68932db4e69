"""The identity of a guest, which no other guest has: its machine id.

Programs distinguish machines by ``/etc/machine-id``. It is written as the guest boots, and again in a
clone, which starts with that of its template.

Source: machine-id(5).
"""

from __future__ import annotations

import os
from typing import Final

_PATH: Final = "/etc/machine-id"
_BYTES: Final = 16


def renew(path: str = _PATH) -> None:
    """Write another machine id, in place: containers may have the file mounted."""
    with open(path, "w", encoding="ascii") as file:
        file.write(os.urandom(_BYTES).hex() + "\n")
