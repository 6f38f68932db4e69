"""Sizes as people write them: ``4 MiB``, ``4M``."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Final

_UNITS: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(B|[KMGT](?:iB)?)", re.ASCII | re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the number of bytes of ``512 KiB``, ``1.5 GiB``, ``2G``, ``2g`` or ``100 B``, rounded up.

    :raises ValueError: the text has another form.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size such as '4 MiB' or '4M' (B, KiB, MiB, GiB, TiB)")
    unit = "B" if match[2] in "Bb" else f"{match[2][0].upper()}iB"
    return math.ceil(Decimal(match[1]) * _UNITS[unit])
