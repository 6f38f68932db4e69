"""Check the types of all examples of the README and the documentation: ``python -m tests.examples``.

Each is a module of its own, with the lines of its page.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mypy import api

CHECKOUT = Path(__file__).resolve().parents[1]
PAGES = (CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md")))


def examples() -> Iterator[tuple[str, str]]:
    """Yield the name of a module, and its text, for each block of Python."""
    for page in PAGES:
        text = page.read_text("utf-8")
        for found in re.finditer(r"^```py(?:thon)?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            before = text.count("\n", 0, found.start(1))
            # What imports nothing stands in the place of a part of the example before.
            first = "" if "import" in found[1] else "import uvm"
            yield f"{page.stem.replace('-', '_')}_{before + 1}", first + "\n" * before + found[1]


def main() -> int:
    """Write the modules, and run mypy on them; return its exit code."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for module, text in examples():
            (directory / f"{module}.py").write_text(text, "utf-8")
        report, errors, code = api.run(["--strict", "--explicit-package-bases", name])
    print(f"{report.replace(f'{name}/', '')}{errors}", end="")
    return code


if __name__ == "__main__":
    sys.exit(main())
