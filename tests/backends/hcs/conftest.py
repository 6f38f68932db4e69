"""Fixtures of the double's tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.backends.hcs.harness import require_double
from tests.backends.hcs.raw import Raw


@pytest.fixture
def raw() -> Iterator[Raw]:
    double = require_double()
    double.reset()
    raw = Raw(double)
    double.plug(raw.ask)
    yield raw
    double.reset()


@pytest.fixture
def system(raw: Raw) -> Any:
    return raw.system()
