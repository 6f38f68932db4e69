"""The containers of the agent are on Linux only, and so are their tests."""

from __future__ import annotations

import sys

collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]
