"""Runs every Python block of the README and of the documentation as a test.

A block marked ``py`` takes a Windows host; ``tests/backends/hcs/test_docs.py`` runs it on the fake.
"""

from __future__ import annotations

from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

#: For runs of the suite in which the library is not installed.
pytest_plugins = ["uvm.testing.plugin"]

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md"],
).pytest()
