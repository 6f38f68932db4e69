"""A host in memory, with this machine's own files, for the tests of what is played on a real one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from attrs import define, field

from tests.hyperv import host
from tests.hyperv.host import DEFAULT_SWITCH, HyperVHost
from uvm.backend import Backend
from uvm.backends.checks import Finding
from uvm.backends.fake import FakeBackend, FakeFiles
from uvm.cli.doctor import Examination

BOOT, LAYER = "C:\\kernel", "C:\\layers\\nanoserver"
#: What Linux VMs and Windows VMs boot from.
FILES = (
    f"{BOOT}\\vmlinux",
    f"{BOOT}\\initrd.img",
    f"{LAYER}\\UtilityVM\\SystemTemplate.vhdx",
    f"{LAYER}\\UtilityVM\\Files\\EFI\\Microsoft\\Boot\\bootmgfw.efi",
)
USABLE = Examination("hcs", "", {"Windows": Finding("ok", "Windows")})


class Mirror(HyperVHost):
    """A host whose files the in-memory one has too, as files of a Windows machine."""

    def path_of(self, name: str) -> str:
        return f"C:\\hyperv\\{name}"

    def put_file(self, name: str, *, size_bytes: int = 1 << 20, content: bytes = b"") -> str:
        real = Path(super().put_file(name, size_bytes=size_bytes, content=content))
        self._files.add(self.path_of(name), size=real.stat().st_size, content=content)
        return self.path_of(name)

    def put_directory(self, name: str) -> str:
        self._files.add_directory(self.path_of(name))
        return super().put_directory(name)

    def put_link(self, name: str, target: str) -> str:
        self._files.add_link(self.path_of(name), target)
        return self.path_of(name)

    @property
    def _files(self) -> FakeFiles:
        # Those of HCS over the double are the same.
        assert isinstance(self.backend.files, FakeFiles)
        return self.backend.files


@define
class Machine:
    """The machine: each backend of it begins anew.

    :ivar made: the hosts behind them.
    """

    boots: bool = True
    network: str = DEFAULT_SWITCH
    made: list[FakeBackend] = field(factory=list)

    def fake(self) -> FakeBackend:
        """Make a host."""
        fake = FakeBackend()
        for path in FILES if self.boots else ():
            fake.files.add(path, size=1 << 20)
        fake.network.add_network({"ID": self.network})
        self.made.append(fake)
        return fake

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Backend]:
        """Open a backend on a host of its own, on which nothing is left."""
        async with self.fake() as backend:
            yield backend


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Have the hosts of scenarios mirror their files, and the user be one who may make links."""
    monkeypatch.setattr(host, "HyperVHost", Mirror)
    monkeypatch.setattr(host, "_can_link", lambda directory: True)
    return Machine()
