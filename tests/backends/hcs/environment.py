"""Machines for the checks to look at."""

from __future__ import annotations

from attrs import define, field

from uvm.backends.hcs.windows.environment import Environment, ServiceState
from uvm.errors import HostError
from uvm.hresult import HResult

ADMINISTRATORS, HYPERV_ADMINISTRATORS = "S-1-5-32-544", "S-1-5-32-578"
BOOT_FILES = "C:\\Program Files\\Linux Containers"


@define
class Imagined(Environment):
    """A machine on which VMs run, unless something is removed from it.

    :ivar libraries: for each DLL, the functions that it lacks.
    :ivar silent: the question that fails.
    """

    system: str = "win32"
    bits: int = 64
    windows_build: int = 26100
    architecture: str = "amd64"
    libraries: dict[str, list[str]] = field(factory=lambda: {"computecore": [], "computenetwork": []})
    services: dict[str, ServiceState] = field(
        factory=lambda: {"vmcompute": "running", "hns": "running", "vid": "running"}
    )
    groups: set[str] = field(factory=lambda: {ADMINISTRATORS})
    firmware: bool = False
    python_sockets: bool = True
    files: set[str] = field(factory=lambda: {f"{BOOT_FILES}\\vmlinux", f"{BOOT_FILES}\\rootfs.vhd"})
    silent: str = ""
    asked: list[str] = field(factory=list)

    def build(self) -> int:
        self.ask("build")
        return self.windows_build

    def machine(self) -> str:
        return self.architecture

    def has_library(self, name: str) -> bool:
        return name in self.libraries

    def missing_functions(self, library: str) -> list[str] | None:
        self.ask("missing_functions")
        # A 32-bit Python finds 32-bit DLLs.
        return self.libraries.get(library) if self.bits == 64 else None

    def service(self, name: str) -> ServiceState | None:
        self.ask("service")
        return self.services.get(name)

    def is_member(self, sid: str) -> bool:
        self.ask("is_member")
        return sid in self.groups

    def virtualization_in_firmware(self) -> bool:
        return self.firmware

    def has_hyperv_sockets(self) -> bool:
        return self.python_sockets

    def has_file(self, path: str) -> bool:
        return path in self.files

    def ask(self, question: str) -> None:
        self.asked.append(question)
        if question == self.silent:
            raise HostError(question, HResult.E_ACCESSDENIED)
