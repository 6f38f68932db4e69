"""Print what the suite needs, at the least versions that pyproject.toml allows: ``python -m tests.least``.

``make test-least`` installs that, and runs the suite with it.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

#: What the suite needs of the development tools.
TOOLS = {"cffi", "opentelemetry-sdk", "pytest-xdist", "sniffio", "starlette", "sybil"}


def least(requirement: str) -> str:
    """Return a requirement that only its least version satisfies."""
    assert re.match(r"[\w-]+>=[\d.]+(;|$)", requirement), f"{requirement}: no least version"
    return requirement.replace(">=", "==", 1)


def main() -> None:
    """Print them, one a line, as pip reads them."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    tools = [each for each in extras["dev"] if each.partition(">=")[0] in TOOLS]
    assert len(tools) == len(TOOLS), f"pyproject.toml has only {tools}"
    for requirement in (
        *project["dependencies"],
        *extras["cli"],
        *extras["trio"],
        *extras["ncproxy"],
        *extras["otel"],
        *extras["cli"],
        *extras["testing"],
        *tools,
    ):
        print(least(requirement))


if __name__ == "__main__":
    main()
