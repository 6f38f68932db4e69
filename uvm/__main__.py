"""``python -m uvm``: the command ``uvm``."""

from __future__ import annotations

import sys

from uvm.cli import main

if __name__ == "__main__":
    sys.exit(main())
