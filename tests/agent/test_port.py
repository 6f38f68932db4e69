"""What the agent writes to its port, as the kernel's driver takes it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from uvm.agent.port import _slices


@given(st.binary(max_size=300), st.integers(1, 40))
def test_a_vector_has_all_bytes_in_order_in_buffers_that_are_full_save_one(data: bytes, size: int) -> None:
    slices = _slices(memoryview(data), size)
    assert b"".join(slices) == data
    assert all(len(each) == size for each in slices[:-1])
    assert all(0 < len(each) <= size for each in slices)
