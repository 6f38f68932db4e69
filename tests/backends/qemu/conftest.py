"""The backend's modules are Linux's: elsewhere nothing here can be imported."""

from __future__ import annotations

import sys

collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]
