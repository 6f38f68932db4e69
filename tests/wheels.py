"""Build the sdist and the wheel, and try the wheel in empty environments: ``python -m tests.wheels``.

It is tried on each supported version of Python that this machine has, outside of the checkout: with ``doctor
--backend fake``, the samples that it carries, and the program of the README.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

from tests.least import least

CHECKOUT = Path(__file__).resolve().parents[1]
#: The minor versions of Python 3 that are supported.
OLDEST, NEWEST = 11, 14
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")


def first_minute() -> str:
    """Return the program of the README."""
    readme = (CHECKOUT / "README.md").read_text("utf-8")
    found = re.search(r"^```python\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    assert found is not None, "the README has no program"
    return found[1]


def run(directory: Path, *command: str | Path) -> None:
    """Run a command in a directory, which is made; its failure ends this program, with what it printed."""
    directory.mkdir(exist_ok=True)
    done = subprocess.run(command, cwd=directory, check=False, capture_output=True, text=True)
    said = " ".join(Path(str(each)).name for each in command)
    print(f"  {'FAILED' if done.returncode else 'ok'}: {said}", flush=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}")


def interpreters() -> list[str]:
    """Return this interpreter, and one of each other version that is supported and on the path."""
    found = {}
    for minor in range(OLDEST, NEWEST + 1):
        program = shutil.which(f"python3.{minor}")
        # What a version manager puts there need not run.
        if program and subprocess.run([program, "-c", ""], check=False, capture_output=True).returncode == 0:
            found[minor] = program
    return [sys.executable, *(program for minor, program in found.items() if minor != sys.version_info.minor)]


def build(directory: Path) -> Path:
    """Build the sdist and the wheel, with the least version of the build back end too; return the wheel."""
    run(CHECKOUT, sys.executable, "-m", "build", "--outdir", directory, CHECKOUT)
    (sdist,), (wheel,) = directory.glob("*.tar.gz"), directory.glob("*.whl")
    assert sdist.name.startswith("utilityvm-"), sdist.name
    system = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["build-system"]
    venv.create(directory / "least", with_pip=True)
    python = directory / "least" / "bin" / "python"
    run(directory, python, *PIP, "install", *map(least, system["requires"]))
    again = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", directory / "again", sdist)
    run(directory, python, *PIP, *again)
    assert [each.name for each in (directory / "again").iterdir()] == [wheel.name]
    return wheel


def try_out(directory: Path, interpreter: str, wheel: Path) -> None:
    """Install the wheel alone in an empty environment, and use it."""
    run(directory, interpreter, "-m", "venv", directory)
    python = directory / "bin" / "python"
    run(directory, python, *PIP, "install", wheel)
    run(directory, python, "-m", "uvm", "doctor", "--backend", "fake")
    run(directory, python, "-m", "uvm", "init")
    run(directory, python, "-m", "uvm", "pod", "lcow-pod.toml")
    (directory / "first_minute.py").write_text(first_minute(), "utf-8")
    run(directory, python, "first_minute.py")


def main() -> None:
    """Build and try."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        wheel = build(directory)
        for number, interpreter in enumerate(interpreters()):
            try_out(directory / f"venv{number}", interpreter, wheel)


if __name__ == "__main__":
    main()
