"""Cgroups of VMs, which bound what their QEMUs use of the host.

How it works
------------

Limits of processors, and a ceiling of memory that holds whatever a guest does, are the kernel's. It takes
them from a process that a part of the cgroups (version 2) is delegated to: below a cgroup of its own each VM
has one, which its QEMU is in before it runs, and which is removed with the VM::

    delegated      the cgroup that the user names, or that of this process if systemd delegates it
      uvm-host     what was in it before: a cgroup with others below it has no processes
      uvm-<GUID>   a VM: cpu.max, cpu.weight, memory.max

Source: Linux Documentation/admin-guide/cgroup-v2.rst; systemd's docs/CGROUP_DELEGATION.md.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from uvm.backends.requests.topology import FULL
from uvm.errors import NotSupportedError
from uvm.schema.common import MIB
from uvm.schema.system import Topology, VirtualMachineMemory, VirtualMachineProcessor

#: The controllers that are used.
_CONTROLLERS: Final = ("cpu", "memory")
_LEAF: Final = "uvm-host"
#: One second in ten, in microseconds: how long a VM may wait until it runs again.
_PERIOD: Final = 100_000
_LEAST_QUOTA: Final = 1000
_DEFAULT_WEIGHT: Final = 100
#: What QEMU may use besides the guest's memory: its own, and that of translated code if it emulates.
_OVERHEAD_MB: Final = 512
_TRANSLATED_MB: Final = 1024
_HOW: Final = (
    "run this process with 'systemd-run --user --scope -p Delegate=yes', or create the backend with a "
    "`cgroup` of version 2 that this user may write to"
)


def delegated(given: str = "", proc: str = "/proc/self") -> Path:
    """Return the cgroup below which VMs have theirs: the one that is named, or this process's own.

    :param proc: what the kernel says of this process.
    :raises NotSupportedError: it is no cgroup, or none is delegated.
    """
    if given:
        if not Path(given, "cgroup.controllers").is_file():
            raise NotSupportedError(f"{given} is no cgroup of version 2; nothing was started; {_HOW}")
        return Path(given)
    own = _own(Path(proc))
    if own is not None and own.name == _LEAF:
        # A VM before has had this process moved there.
        own = own.parent
    if own is None or not _is_delegated(own):
        raise NotSupportedError(
            "limits of processors need a cgroup of version 2, and none is delegated to this process; "
            f"nothing was started; {_HOW}"
        )
    return own


def _own(proc: Path) -> Path | None:
    """Return the cgroup of version 2 that this process is in; None if it sees none."""
    named = [line for line in (proc / "cgroup").read_text().splitlines() if line.startswith("0::/")]
    for line in (proc / "mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if named and after.split()[0] == "cgroup2":
            return Path(before.split()[4] + named[0].removeprefix("0::").rstrip("/"))
    return None


def _is_delegated(path: Path) -> bool:
    """Return whether systemd delegates a cgroup, which it notes there."""
    for name in ("user.delegate", "trusted.delegate"):
        with suppress(OSError):
            if os.getxattr(path, name) == b"1":
                return True
    return False


def has_limits(topology: Topology) -> bool:
    """Return whether a VM's document limits or weighs its processors."""
    processor = _processor(topology)
    return processor.limit not in (0, FULL) or bool(processor.weight)


def _processor(topology: Topology) -> VirtualMachineProcessor:
    return topology.processor or VirtualMachineProcessor()


class Cgroup:
    """The cgroup of one VM.

    :ivar path: where it is.
    """

    def __init__(self, path: str) -> None:
        self.path: Path = Path(path)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}>"

    @classmethod
    def of(cls, parent: Path, runtime_id: str) -> Cgroup:
        """Return the cgroup of a VM, which is yet to be made."""
        return cls(str(parent / f"uvm-{runtime_id}"))

    def make(self, topology: Topology, *, emulated: bool) -> None:
        """Make it, with the limits of its VM and a ceiling of its memory; blocking.

        :raises NotSupportedError: the parent is not delegated, or lacks a controller.
        """
        parent = self.path.parent
        memory, processor = topology.memory or VirtualMachineMemory(), _processor(topology)
        overhead = _OVERHEAD_MB + (_TRANSLATED_MB if emulated else 0)
        try:
            _enable(parent)
            self.path.mkdir()
            self._write("memory.max", str((memory.size_in_mb + overhead) * MIB))
            self.limit(processor.count, processor.limit, processor.weight)
        except OSError as error:
            self.remove()
            text = f"the cgroup {parent} cannot be used: {error}; nothing was started; {_HOW}"
            raise NotSupportedError(text) from error

    @property
    def procs(self) -> str:
        """The file through which a process enters it."""
        return str(self.path / "cgroup.procs")

    def limit(self, processors: int, limit: int, weight: int) -> None:
        """Limit what its processes use of processors; OSError.

        :param processors: how many the VM has.
        :param limit: how much of each, in 1/100,000; 0 for all.
        :param weight: against others, 1 to 10,000; 0 for 100.
        """
        quota = "max" if limit in (0, FULL) else max(_LEAST_QUOTA, processors * limit * _PERIOD // FULL)
        self._write("cpu.max", f"{quota} {_PERIOD}")
        self._write("cpu.weight", str(weight or _DEFAULT_WEIGHT))

    def remove(self) -> None:
        """Remove it, once its processes have ended."""
        with suppress(OSError):
            os.rmdir(self.path)

    def _write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)


def _enable(parent: Path) -> None:
    """Have the cgroups below one limited."""
    there = (parent / "cgroup.controllers").read_text().split()
    lacking = [name for name in _CONTROLLERS if name not in there]
    if lacking:
        raise OSError(errno.ENODEV, f"it lacks the controllers {', '.join(lacking)}")
    enabled = (parent / "cgroup.subtree_control").read_text().split()
    wanted = " ".join(f"+{name}" for name in _CONTROLLERS if name not in enabled)
    if not wanted:
        return
    try:
        (parent / "cgroup.subtree_control").write_text(wanted)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        _move_to_leaf(parent)
        (parent / "cgroup.subtree_control").write_text(wanted)


def _move_to_leaf(parent: Path) -> None:
    leaf = parent / _LEAF
    leaf.mkdir(exist_ok=True)
    for pid in (parent / "cgroup.procs").read_text().split():
        with suppress(ProcessLookupError):
            (leaf / "cgroup.procs").write_text(pid)
