"""What is done very often can be done, and what it would leave is found; `--leaks` does it 100,000 times."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.soak.leaks import OPERATIONS, Do, Growth, growth_over

pytestmark = pytest.mark.anyio

FEW = 3
MANY = 1000


@asynccontextmanager
async def keeping() -> AsyncIterator[Do]:
    kept = []

    async def keep(number: int) -> None:
        kept.append([number])

    yield keep


@pytest.mark.parametrize("name", OPERATIONS)
async def test_each_operation_can_be_done_again(name: str, anyio_backend_name: str) -> None:
    growth = Growth(name, anyio_backend_name, FEW, *await growth_over(OPERATIONS[name], FEW, warm_up=FEW))

    assert "objects" in str(growth)


async def test_an_object_that_each_operation_leaves_is_a_leak(anyio_backend_name: str) -> None:
    growth = Growth("kept", anyio_backend_name, MANY, *await growth_over(keeping, MANY))

    assert growth.leaks
    assert "LEAKS" in str(growth)
