"""The recorded scripts (``tests/data/traces.json``), for tests of one device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "data" / "traces.json"


def steps_of_script(name: str) -> list[tuple[dict[str, Any], list[Any], dict[str, Any]]]:
    """The operations of a script, each with the requests of hcsshim and with what else it gave."""
    (script,) = [s for s in json.loads(DATA.read_text(encoding="utf-8")) if s["name"] == name]
    return [
        (op, [r for r in step["requests"] if r["to"] != "grant"], step)
        for op, step in zip(script["ops"], script["steps"], strict=True)
    ]
