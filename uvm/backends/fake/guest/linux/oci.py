"""The parts of an OCI runtime specification that the fake Linux guest reads."""

from __future__ import annotations

from typing import Any

from uvm.backends.fake.guest.execution import Command
from uvm.backends.fake.guest.statistics import part_of
from uvm.backends.fake.guest.stdio import Terminal
from uvm.schema.json import Model, Secret


class OCIConsoleSize(Model, rename="camel"):
    """The size of a terminal, in characters."""

    height: int = 0
    width: int = 0


class OCIUser(Model, rename="camel"):
    """The user that runs a process."""

    username: str = ""
    uid: int = 0


class OCIProcess(Model, rename="camel"):
    """A process."""

    args: list[str] = []
    env: Secret[list[str]] = []
    cwd: str = ""
    terminal: bool = False
    console_size: OCIConsoleSize | None = None
    user: OCIUser | None = None

    def command(self) -> Command:
        """Return the command to run."""
        size = self.console_size or OCIConsoleSize()
        user = self.user or OCIUser()
        return Command(
            args=tuple(self.args),
            env=dict(line.partition("=")[::2] for line in self.env),
            cwd=self.cwd,
            user=user.username or str(user.uid),
            terminal=Terminal(size.height, size.width) if self.terminal else None,
        )


class OCISpec(Model, rename="camel"):
    """A container. hcsshim's guest crashes on one without these."""

    process: OCIProcess | None = None
    root: Any = None
    linux: Any = None
    windows: Any = None
    annotations: Any = None

    @property
    def namespace(self) -> str:
        """The name of its network namespace."""
        return str(part_of(self.windows, "network", "networkNamespace") or "").lower()

    @property
    def in_pod(self) -> bool:
        """Whether it has the network namespace of its pod's first container."""
        return bool(part_of(self.annotations, "io.kubernetes.cri.container-type") == "container")
