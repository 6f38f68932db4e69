"""The parts of an OCI runtime specification that the fake Linux guest reads."""

from __future__ import annotations

from typing import Any

from uvm.backends.fake.guest.execution import Command
from uvm.backends.fake.guest.stdio import Terminal
from uvm.schema.field import Model, named


class OCIConsoleSize(Model):
    """The size of a terminal, in characters."""

    height: int = named("height", default=0)
    width: int = named("width", default=0)


class OCIUser(Model):
    """The user that runs a process."""

    username: str = named("username", default="")
    uid: int = named("uid", default=0)


class OCIProcess(Model):
    """A process."""

    args: list[str] = named("args", factory=list)
    env: list[str] = named("env", factory=list, secret=True)
    cwd: str = named("cwd", default="")
    terminal: bool = named("terminal", default=False)
    console_size: OCIConsoleSize | None = named("consoleSize", default=None)
    user: OCIUser | None = named("user", default=None)

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


class OCISpec(Model):
    """A container. hcsshim's guest crashes on one without these."""

    process: OCIProcess | None = named("process", default=None)
    root: Any = named("root", default=None)
    linux: Any = named("linux", default=None)
