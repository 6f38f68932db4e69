"""``python -m tests.fuzz``: look for bytes that break a promise, guided by coverage.

    python -m tests.fuzz --seconds 60                one minute, shared between all targets
    python -m tests.fuzz --target host --seconds 60  of one target
    python -m tests.fuzz --target host FILE...       run inputs again, without the fuzzer

Needs atheris (``pip install 'utilityvm[fuzz]'``), save for the last. What breaks a promise is kept in the
directory that is printed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "corpus"
DICTIONARY = Path(__file__).parent / "json.dict"
INSTRUMENTED = ["uvm._wire", "uvm._gcs", "uvm._guest", "uvm._ttrpc", "uvm._ncproxy", "uvm.schema"]
NAMES = ("host", "guest", "log", "ttrpc-client", "ttrpc-server", "mux-host", "mux-guest")


def main(arguments: Sequence[str]) -> int:
    """Run, and give the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz what reads a peer.")
    parser.add_argument("--seconds", type=int, default=60, help="how long, all in all (default: 60)")
    parser.add_argument("--target", choices=NAMES, help="only this one (default: all)")
    parser.add_argument("--corpus", type=Path, help="keep interesting inputs here, and start from them")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="inputs to run again")
    options = parser.parse_args(arguments)
    if options.files:
        if options.target is None:
            parser.error("an input belongs to one target: name it with --target")
        return _run_again(options.target, options.files)
    if importlib.util.find_spec("atheris") is None:
        print("skipped: atheris is not installed. It has wheels for Linux on x86-64, Python 3.11 to 3.13.")
        return 0
    if options.target is None:
        return _each_in_its_process(options.seconds, options.corpus)
    _fuzz(options.target, options.seconds, options.corpus)
    return 0


def _run_again(target: str, files: Sequence[Path]) -> int:
    from tests.fuzz.targets import TARGETS

    for file in files:
        TARGETS[target](file.read_bytes())
        print(f"{file}: holds")
    return 0


def _each_in_its_process(seconds: int, corpus: Path | None) -> int:
    """Fuzz all targets, one after the other: the fuzzer ends its process."""
    status = 0
    for target in NAMES:
        command = [sys.executable, "-m", "tests.fuzz", "--target", target]
        command += ["--seconds", str(max(1, seconds // len(NAMES)))]
        command += ["--corpus", str(corpus)] if corpus is not None else []
        status |= subprocess.run(command, check=False).returncode
    return 1 if status else 0


def _fuzz(target: str, seconds: int, corpus: Path | None) -> None:
    """Fuzz one target; never returns where atheris keeps its word."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=INSTRUMENTED):
        targets = importlib.import_module("tests.fuzz.targets")
    run: Callable[[bytes], None] = targets.TARGETS[target]
    findings = tempfile.mkdtemp(prefix=f"uvm-fuzz-{target}-")
    # New inputs go into the first directory; the corpus of the project is only read.
    grown = corpus / target if corpus is not None else Path(findings) / "corpus"
    grown.mkdir(parents=True, exist_ok=True)
    print(f"fuzzing {target} for {seconds} s; findings go to {findings}", flush=True)
    flags = [
        f"-max_total_time={seconds}",
        f"-artifact_prefix={findings}/",
        f"-dict={DICTIONARY}",
        "-max_len=4096",
        "-timeout=10",
        "-print_final_stats=0",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *flags, str(grown), str(CORPUS / target)], run)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
