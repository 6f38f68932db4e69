"""The subcommand ``doctor``: checks of what this machine can do, and what is missing.

:data:`CHECKS` lists them, by the backend that they are about. :func:`examine` runs those of the backend that
is wanted, else those of the backends for this operating system.
"""

from __future__ import annotations

import json
import platform
from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from attrs import asdict, frozen

from uvm._document.boot import boot_files_to_stat, resolve_boot
from uvm._drawing.blocks import Span, Style, line, table
from uvm.backend import FileInfo, HostInfo
from uvm.backends import choose_backend, open_backend
from uvm.backends.checks import Check, Finding, run_checks
from uvm.backends.hcs import availability as hcs
from uvm.backends.hcs.availability import find_library
from uvm.backends.qemu import availability as qemu
from uvm.cli.terminal import Terminal
from uvm.errors import NotSupportedError
from uvm.options import LCOWOptions

if TYPE_CHECKING:
    from uvm.backends.hcs.windows.environment import Environment

_STYLES: Final[dict[str, Style]] = {"ok": "green", "missing": "red"}


@frozen
class Examination:
    """The results of all checks.

    :ivar backend: the name of the backend that was asked for, or would be chosen; empty if none would be.
    :ivar problem: why VMs cannot be run on it; empty if they can.
    :ivar findings: by the names of the checks.
    """

    backend: str
    problem: str
    findings: dict[str, Finding]

    @property
    def usable(self) -> bool:
        """True if there is a backend that can be used."""
        return not self.problem

    def to_json(self) -> dict[str, Any]:
        """Return the findings as a JSON value."""
        return {
            "backend": self.backend,
            "usable": self.usable,
            "problem": self.problem,
            "checks": [{"name": name, **asdict(finding)} for name, finding in self.findings.items()],
        }


def _python() -> Finding:
    # A Python that is too old does not get here.
    return Finding("ok", f"{platform.python_implementation()} {platform.python_version()}")


def _computenetwork(where: Environment) -> Finding:
    absent = Finding("limited", "computenetwork.dll is not there: no network adapters", "turn on HCS")
    return find_library(where, "computenetwork", absent)


def _network_service(where: Environment) -> Finding:
    if where.service("hns") is not None:
        return Finding("ok", "the Host Network Service (hns) is installed")
    return Finding(
        "limited", "there is no Host Network Service (hns): VMs get no network adapters", "turn on HCS"
    )


def _virtualization(where: Environment) -> Finding:
    # The driver starts only on a running hypervisor; under one, the firmware reports no virtualization.
    if where.service("vid") == "running":
        return Finding("ok", "the hypervisor is running")
    if where.virtualization_in_firmware():
        return Finding(
            "missing",
            "the hypervisor is not running, though the firmware allows it",
            "run 'bcdedit /set hypervisorlaunchtype auto' as an administrator and restart; HCS has to be on",
        )
    return Finding(
        "missing",
        "no hypervisor is running, and the firmware does not offer virtualization",
        "turn on VT-x, AMD-V or SVM in the firmware's settings; in a VM, turn on nested virtualization",
    )


def _sockets(where: Environment) -> Finding:
    if where.has_hyperv_sockets():
        return Finding("ok", "Python's own AF_HYPERV")
    return Finding("ok", "through Winsock: Python has AF_HYPERV from 3.12 on")


def _linux_boot_files(where: Environment) -> Finding:
    options = LCOWOptions()
    host = HostInfo(build=where.build(), machine="arm64" if where.machine() == "arm64" else "amd64")
    looked_at = boot_files_to_stat(options, host)
    files = {path: FileInfo(1) if where.has_file(path) else None for path in looked_at}
    boot = resolve_boot(options, host, files)
    missing = [path for path in (boot.kernel_path, boot.rootfs_path) if files[path] is None]
    if not missing:
        return Finding("ok", f"{boot.kernel_path}, {boot.rootfs_path}")
    return Finding(
        "limited",
        f"no Linux VM boots with the default options: missing: {', '.join(missing)}",
        f"put a kernel and a root file system into {boot.directory}, or name the directory (boot_files_path)",
    )


#: All checks, in the order in which they are printed.
CHECKS: Final[Mapping[str, tuple[Check[Any], ...]]] = {
    "hcs": (
        *hcs.REQUIREMENTS,
        Check("hypervisor", _virtualization),
        Check("network", _computenetwork),
        Check("network service", _network_service),
        Check("guest connection", _sockets),
        Check("Linux boot files", _linux_boot_files),
    ),
    "qemu": (*qemu.REQUIREMENTS, *qemu.OPTIONAL),
}


def examine(backend: str | None = None, where: Mapping[str, Any] | None = None) -> Examination:
    """Run the checks.

    :param backend: the backend that is wanted; by default, the one that :func:`uvm.open_backend` chooses.
    :param where: the machine to look at instead of this one, as each backend's checks see it.
    :raises OptionsError: there is no such backend.
    """
    where = where or {"hcs": hcs.this_machine(), "qemu": qemu.this_machine()}
    about = [name for name in CHECKS if backend in (name, None)]
    results = {name: run_checks(CHECKS[name], where[name]) for name in about}
    findings = {"Python": _python()}
    for found in _of_this_system(results):
        findings |= found
    problem = ""
    try:
        backend = backend or choose_backend(where)
        if backend in results:
            amiss = results[backend].values()
            problem = "; ".join(each.text for each in amiss if each.status == "missing")
        else:
            open_backend(backend)
    except NotSupportedError as error:
        # The line that is printed names the backend.
        problem = str(error.__cause__ or error)
    return Examination(backend or "", problem, findings)


def _of_this_system(results: Mapping[str, dict[str, Finding]]) -> list[dict[str, Finding]]:
    """Return the results of the backends for this operating system; if it has none, those that say so."""
    there = [found for found in results.values() if len(found) > 1]
    return there or [*results.values()]


def run(terminal: Terminal, given: Namespace) -> int:
    """Check this machine and print the findings; return 0 if the backend can be used, else 1.

    :raises OptionsError: no backend has that name.
    """
    found = examine(given.backend)
    if given.json:
        terminal.write_text(json.dumps(found.to_json(), indent=2))
    else:
        _show(terminal, found)
    return 0 if found.usable else 1


def _show(terminal: Terminal, found: Examination) -> None:
    rows = [
        (Span(finding.status, _STYLES.get(finding.status, "yellow")), name, str(finding))
        for name, finding in found.findings.items()
    ]
    name = Span(found.backend, "bold")
    if found.usable:
        verdict = line("The backend ", name, " can be used here.")
    elif found.backend:
        verdict = line("The backend ", name, f" cannot be used here: {found.problem}.")
    else:
        verdict = line(f"No backend is chosen here: {found.problem}.")
    terminal.write(table((), rows, least=(7,)), "", verdict)
