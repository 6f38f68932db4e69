"""What the agent writes to its port, as the kernel's driver takes it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from uvm.agent.port import _SMALL_BYTES, _WRITE_BYTES, _writes

buffers = st.lists(st.integers(1, 70_000).map(bytes) | st.binary(min_size=1, max_size=30), max_size=12)


@given(buffers)
def test_writes_are_whole_in_order_and_none_is_larger_than_the_driver_takes(given_: list[bytes]) -> None:
    writes = _writes(given_)
    assert b"".join(writes) == b"".join(given_)
    assert all(0 < len(each) <= _WRITE_BYTES for each in writes)


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=100))
def test_small_buffers_are_one_write(small: list[bytes]) -> None:
    assert len(_writes(small)) == 1
    assert len(_writes([*small, bytes(_SMALL_BYTES + 1), *small])) == 3
