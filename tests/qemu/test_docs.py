"""The examples of the pages about QEMU, and the demo, run with real VMs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.qemu.patient import PATIENT_PYTHON

ROOT = Path(__file__).parents[2]
PAGES = ("first-vm", "qemu", "sandbox")
BLOCK = re.compile(r"^```py\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = [
    pytest.param(block, id=page)
    for page in PAGES
    for block in BLOCK.findall((ROOT / "docs" / f"{page}.md").read_text("utf-8"))
]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PATIENT_PYTHON, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("block", BLOCKS)
def test_an_example_of_the_documentation_runs(block: str) -> None:
    done = run("-c", block)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_demo_runs() -> None:
    done = run("examples/qemu_demo.py")
    assert done.returncode == 0, done.stderr
    assert "from the container" in done.stdout
    assert "and from its standard input" in done.stdout
