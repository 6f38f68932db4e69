"""The agent runs on Linux only, and so do its tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]

if sys.platform == "linux":
    from tests.agent.rawhost import RawHost

    @pytest.fixture
    def host() -> Iterator[RawHost]:
        """Return a host that is connected to an agent."""
        with RawHost() as host:
            host.connect()
            yield host
