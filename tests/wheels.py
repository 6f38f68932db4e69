"""Build the sdist, the wheel from it, and try the wheel in an empty environment: ``python -m tests.wheels``.

What is tried runs outside of the checkout: ``doctor --backend fake``, and the program of the README.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")


def first_minute() -> str:
    """Return the program of the README."""
    readme = (CHECKOUT / "README.md").read_text("utf-8")
    found = re.search(r"^```python\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    assert found is not None, "the README has no program"
    return found[1]


def run(directory: Path, *command: str | Path) -> None:
    """Run a command in a directory; its failure ends this program, with what it printed."""
    done = subprocess.run(command, cwd=directory, check=False, capture_output=True, text=True)
    said = " ".join(Path(str(each)).name for each in command)
    print(f"  {'FAILED' if done.returncode else 'ok'}: {said}", flush=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}")


def main() -> None:
    """Build and try."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        run(CHECKOUT, sys.executable, "-m", "build", "--outdir", directory, CHECKOUT)
        (sdist,), (wheel,) = directory.glob("*.tar.gz"), directory.glob("*.whl")
        assert sdist.name.startswith("utilityvm-"), sdist.name
        venv.create(directory / "venv", with_pip=True)
        python = directory / "venv" / "bin" / "python"
        run(directory, python, *PIP, "install", wheel)
        run(directory, python, "-m", "uvm", "doctor", "--backend", "fake")
        (directory / "first_minute.py").write_text(first_minute(), "utf-8")
        run(directory, python, "first_minute.py")


if __name__ == "__main__":
    main()
