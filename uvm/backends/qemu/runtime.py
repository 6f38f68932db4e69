"""Where VMs are found: one directory each, of this user alone, in the runtime directory of the backend.

How it works
------------

::

    $XDG_STATE_HOME/uvm/vms/     0700; no logout deletes it
      lock                       held for a moment by a process that claims or sweeps
      <hash of the VM's id>/     0700
        owner                    held by the process that has the VM, alone
        lock                     held by QEMU, which inherits the descriptor
        vm.json                  what other processes know of the VM: ids, owner, state, the process of QEMU
        kept.json                of a VM that survives its process: what it was created with
        devices/                 of such a VM: what is attached (:mod:`.devices.journal`)
        qmp.sock, mux.sock       of such a VM: where the next process that has it connects
        shares/share0 ...        links to the directories that are shared, for a moment each
      <hash>.gone-<random>/      what is being removed, or was by a process that was killed

A lock ends with the last process that has it open. So a directory whose locks can be taken belongs to nothing
that runs, and is removed: sweeping needs no guess about process ids, which are used again. QEMU could release
the lock that it has, so that the host's process has one of its own, and a QEMU that is seen to run is left.
QEMU's says that it runs while its record cannot be read. No process waits for it: a guest that has escaped
keeps its own directory with it, and nothing else.

Directories are made and had by processes that hold the lock of all. They are removed by others too, at once,
by a name under which they are no VM's.

The record names QEMU's process before its program runs, and says that it survives once the VM is created: a
QEMU whose host process died in between is found, and killed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import select
import shutil
import signal
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from attrs import asdict, define, evolve, field, fields, frozen
from attrs.validators import ge, instance_of, lt

from uvm.backend import JSON
from uvm.backends.qemu.cgroups import Cgroup
from uvm.backends.qemu.homes import user_directory
from uvm.backends.qemu.locks import keep, locked, open_lock, release, try_lock
from uvm.backends.qemu.users import Choose, Chosen, Identity
from uvm.errors import HostError, HostPathError
from uvm.hresult import HResult
from uvm.schema.json import SchemaError, to_json
from uvm.schema.properties import Properties

_RECORD: Final = "vm.json"
#: The name of a VM's directory: see :meth:`RuntimeDirectory._of`.
_NAME: Final = re.compile("[0-9a-f]{32}")
#: The name of one that is being removed: see :func:`_remove`.
_GONE: Final = re.compile(f"{_NAME.pattern}[.]gone-{_NAME.pattern}")
_LOCK: Final = "lock"
_OWNER: Final = "owner"
_KEPT: Final = "kept.json"
#: In the directory of a VM, the links to what is shared.
SHARES: Final = "shares"
#: A record is a few hundred bytes.
_MAX_RECORD_BYTES: Final = 1 << 16
_ANOTHER: Final = "name another one: XDG_STATE_HOME, or QEMUBackend(runtime_directory=...)"
#: How long the end of a process that was killed is waited for.
_KILL_SECONDS: Final = 5.0


def default_runtime_directory() -> str:
    """Return the runtime directory of this user.

    :raises NotSupportedError: the user has no home directory.
    """
    # That of a user namespace may not write there.
    if os.getuid() == 0 and os.access("/run", os.W_OK):
        return "/run/uvm"
    return str(user_directory("XDG_STATE_HOME", ".local/state") / "uvm/vms")


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip().replace("-", "")


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


@frozen
class ProcessName:
    """A process, by what no other has.

    :ivar started: when it started, in ticks since the boot.
    :ivar boot: the boot of the machine, by its id.
    :ivar namespace: the namespace of process ids in which it has its own: those of containers differ.
    """

    pid: int = field(validator=(instance_of(int), ge(1), lt(1 << 31)))
    started: int = field(validator=instance_of(int))
    boot: str = field(factory=_boot, validator=instance_of(str))
    namespace: int = field(factory=_namespace, validator=instance_of(int))

    def written(self) -> str:
        """Return it as text, which a name of a file may have."""
        return f"{self.pid}-{self.started}-{self.boot}-{self.namespace}"

    @classmethod
    def read(cls, text: str) -> ProcessName:
        """Return a name from its text; ValueError if it is none."""
        pid, started, boot, namespace = text.split("-")
        return cls(int(pid), int(started), boot, int(namespace))

    @classmethod
    def of(cls, pid: int) -> ProcessName | None:
        """Return the name of the process that has an id; None if there is none."""
        try:
            text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        except OSError:
            return None
        # The second field is in parentheses, and may hold any.
        fields = text.rpartition(")")[2].split()
        # Its first thread may have ended before the others.
        ended = fields[0] in "ZX" and int(fields[17]) <= 1
        return None if ended else cls(pid, int(fields[19]))

    @property
    def runs(self) -> bool:
        """Whether the process is seen to run."""
        return ProcessName.of(self.pid) == self

    @property
    def is_hidden(self) -> bool:
        """Whether it has its id in another namespace, so that it cannot be seen whether it runs."""
        return self.boot == _boot() and self.namespace != _namespace()

    def open(self) -> int | None:
        """Return a pidfd of the process; None if it has ended."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except OSError as error:
            # The others: its id is a thread's by now.
            if error.errno not in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
                raise
            return None
        if self.runs:
            return pidfd
        os.close(pidfd)
        return None


def _process(given: Any) -> ProcessName:
    """Return a name from its JSON; KeyError, TypeError or ValueError if it is none."""
    return ProcessName(*(given[each.name] for each in fields(ProcessName)))


@frozen
class Record:
    """What other processes know of a VM.

    :ivar host: the process that has the VM.
    :ivar qemu: the process of QEMU.
    :ivar survives: QEMU outlives the process that has the VM; not before the VM is created.
    :ivar user: the user that QEMU runs as; None for that of the process that has started it.
    :ivar cgroup: the cgroup that QEMU is in alone; empty for none.
    """

    id: str = field(validator=instance_of(str))
    runtime_id: str = field(validator=instance_of(str))
    owner: str = field(validator=instance_of(str))
    state: str = field(validator=instance_of(str))
    host: ProcessName
    qemu: ProcessName | None = None
    survives: bool = field(default=False, validator=instance_of(bool))
    user: Identity | None = None
    cgroup: str = field(default="", validator=instance_of(str))

    def summary(self, *, stopped: bool = False, exit_type: str = "", template_id: str = "") -> JSON:
        """Return the properties that an enumeration, and a query without types, has."""
        found = Properties(
            id=self.id,
            name=self.id,
            owner=self.owner,
            state="Stopped" if stopped else self.state,
            stopped=stopped,
            exit_type=exit_type,
            system_type="VirtualMachine",
            runtime_os_type="Linux",
            runtime_id=self.runtime_id,
            runtime_template_id=template_id,
        )
        return to_json(found)

    def written(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Record:
        """Return a record from its JSON, without what a later version adds; SchemaError if it is none."""
        try:
            given = json.loads(text)
            known = {each.name: given[each.name] for each in fields(cls) if each.name in given}
            known["host"] = _process(given["host"])
            if known.get("qemu") is not None:
                known["qemu"] = _process(known["qemu"])
            if (user := known.get("user")) is not None:
                known["user"] = Identity(user["uid"], user["gid"], tuple(user["groups"]))
            return cls(**known)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SchemaError(f"no record of a VM: {error}") from error


@define(eq=False, repr=False)
class VMDirectory:
    """The runtime directory of one VM that this process has.

    :ivar lock: a descriptor that QEMU is to inherit.
    :ivar owner: the descriptor of this process alone; -1 once it has the VM no more.
    :ivar user: the user that QEMU runs as, with another such descriptor.
    """

    path: Path
    lock: int
    owner: int
    record: Record
    user: Chosen = field(factory=Chosen)

    def __attrs_post_init__(self) -> None:
        for fd in (self.lock, self.owner):
            keep(fd)

    @property
    def locks(self) -> tuple[int, ...]:
        """The descriptors that QEMU is to inherit."""
        return (self.lock, self.user.lock) if self.user.lock >= 0 else (self.lock,)

    @property
    def qmp(self) -> str:
        """The path of QMP's socket, of a VM that survives."""
        return str(self.path / "qmp.sock")

    @property
    def cgroup(self) -> Cgroup | None:
        """The cgroup that QEMU is in alone."""
        return Cgroup(self.record.cgroup) if self.record.cgroup else None

    @property
    def shares(self) -> str:
        """The path of the directory with the links to what is shared."""
        return str(self.path / SHARES)

    @property
    def mux(self) -> str:
        """The path of the mux's socket, of a VM that survives."""
        return str(self.path / "mux.sock")

    def note(self, **changes: Any) -> None:
        """Change what other processes know of the VM; HostPathError if it cannot be written."""
        self.record = evolve(self.record, **changes)
        self._write(_RECORD, self.record.written())

    def keep(self, facts: JSON) -> None:
        """Keep what the VM was created with, for the next process that has it; likewise."""
        self._write(_KEPT, json.dumps(facts))

    def kept(self) -> JSON:
        """Return what was kept; HostPathError if there is nothing."""
        try:
            found: JSON = json.loads((self.path / _KEPT).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise HostPathError(str(self.path / _KEPT), f"nothing of a VM: {error}") from error
        return found

    def _write(self, name: str, text: str) -> None:
        written = self.path / f"{name}.new"
        try:
            written.write_text(text, "utf-8")
            written.replace(self.path / name)
        except OSError as error:
            raise HostPathError(str(self.path / name), f"it cannot be written: {error.strerror}") from error

    def remove(self) -> None:
        """Remove it: the VM has ended."""
        if self.owner >= 0:
            _remove(self.path, self.record)
            self.leave()

    def leave(self) -> None:
        """Leave it to the next process that has the VM, which runs on."""
        if self.owner >= 0:
            release(self.lock, shared=True)
            release(self.owner)
            self.user.close()
            self.owner = -1


@define(repr=False)
class RuntimeDirectory:
    """The runtime directory of a backend.

    :raises HostPathError: it cannot be made, or others may write to it.
    """

    path: Path = field(converter=Path)

    def __attrs_post_init__(self) -> None:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.path.lstat()
        except OSError as error:
            text = f"no runtime directory can be made there: {error.strerror}; {_ANOTHER}"
            raise HostPathError(str(self.path), text) from error
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise HostPathError(
                str(self.path),
                "the runtime directory must be a directory of this user that no other may change; "
                f"{_ANOTHER}",
            )

    def claim(self, record: Record, choose: Choose = Chosen) -> VMDirectory:
        """Make the directory of a VM.

        :param choose: chooses the user that its QEMU runs as.
        :raises HostError: HCS_E_SYSTEM_ALREADY_EXISTS if a VM of this user has the id.
        :raises HostPathError: the directory cannot be made.
        """
        path = self._of(record.id)
        with self._locked():
            try:
                if path.exists() and not _removed_if_dead(path):
                    there = "another process of this user has it"
                    raise HostError(f"create {record.id}", HResult.HCS_E_SYSTEM_ALREADY_EXISTS, there)
                return _made(path, record, choose)
            except OSError as error:
                problem = f"create {record.id}: {error}; nothing of it is left; see that there is room"
                raise HostPathError(str(path), problem) from error

    def adopt(self, system_id: str, host: ProcessName) -> VMDirectory | None:
        """Have a VM that survived the process that had it; None if there is none, or a process has it.

        :param host: the process that has it from now on.
        """
        path = self._of(system_id)
        with self._locked():
            record = self.record(system_id)
            if record is None or not record.survives:
                return None
            with ExitStack() as undo:
                try:
                    owner = _locked(path / _OWNER, undo)
                    # QEMU holds the lock itself.
                    lock = open_lock(path / _LOCK)
                except (BlockingIOError, FileNotFoundError):
                    # A process has it, or has removed it.
                    return None
                undo.pop_all()
            made = VMDirectory(path, lock, owner, record)
            with ExitStack() as undo:
                undo.callback(made.leave)
                made.note(host=host)
                undo.pop_all()
        return made

    def sweep(self) -> None:
        """Remove what VMs have left that have ended, and kill those whose host process died too early.

        :raises HostPathError: the directory is no more, or cannot be written to.
        """
        with self._locked():
            for path in self._directories():
                _removed_if_dead(path)
            for path in self._directories(_GONE):
                shutil.rmtree(path, ignore_errors=True)

    def records(self) -> Iterator[Record]:
        """Yield the records of the VMs of this user that run."""
        for path in self._directories():
            record = _record_in(path)
            if record is not None and record.qemu is not None and record.qemu.runs:
                yield record

    def record(self, system_id: str) -> Record | None:
        """Return the record of a VM that runs; None if there is none."""
        record = _record_in(self._of(system_id))
        return record if record is not None and record.qemu is not None and record.qemu.runs else None

    def _of(self, system_id: str) -> Path:
        # An id may hold anything, and be of any length.
        return self.path / hashlib.sha256(system_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def _directories(self, name: re.Pattern[str] = _NAME) -> list[Path]:
        """Return the directories of VMs, and no other: what is swept may have been put anywhere."""
        named = [each for each in self.path.iterdir() if name.fullmatch(each.name)]
        return [each for each in named if each.is_dir() and not each.is_symlink()]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with locked(self.path / _LOCK):
                yield
        except OSError as error:
            raise HostPathError(str(self.path), f"the directories of VMs cannot be used: {error}") from error


def _record_in(path: Path) -> Record | None:
    try:
        with (path / _RECORD).open("rb") as file:
            return Record.read(file.read(_MAX_RECORD_BYTES).decode("utf-8", "replace"))
    except (OSError, SchemaError):
        return None


def _removed_if_dead(path: Path) -> bool:
    """Remove the directory of a VM that has ended; return whether it had."""
    record = _record_in(path)
    qemu = None if record is None else record.qemu
    if record is not None and qemu is not None and not record.survives and not record.host.runs:
        _kill(qemu)
    if qemu is not None and qemu.runs:
        return False
    with ExitStack() as closing:
        for name in (_OWNER, _LOCK):
            try:
                _locked(path / name, closing)
            except BlockingIOError:
                return False
            except FileNotFoundError:
                # Its process was killed before it made the file, or has removed the directory meanwhile.
                continue
        _remove(path, record)
    return True


def _made(path: Path, record: Record, choose: Choose) -> VMDirectory:
    """Make the directory of a VM; nothing of it is there if that fails."""
    with ExitStack() as undo:
        user = choose()
        undo.callback(user.close)
        path.mkdir(0o700)
        undo.callback(_remove, path, None)
        shares = path / SHARES
        shares.mkdir()
        # QEMU's user finds what is in there, and no other comes here.
        shares.chmod(0o711)
        lock, owner = (_locked(path / name, undo, make=True) for name in (_LOCK, _OWNER))
        made = VMDirectory(path, lock, owner, evolve(record, user=user.identity), user)
        made.note()
        undo.pop_all()
    return made


def _remove(path: Path, record: Record | None) -> None:
    """Remove what a VM that has ended has left; at once, as no lock keeps another process from looking."""
    if record is not None and record.cgroup:
        Cgroup(record.cgroup).remove()
    gone = path.with_name(f"{path.name}.gone-{uuid4().hex}")
    with suppress(OSError):
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _locked(path: Path, undo: ExitStack, *, make: bool = False) -> int:
    """Return the descriptor of a file that is locked now; BlockingIOError if it was locked."""
    lock = try_lock(path, make=make)
    undo.callback(release, lock)
    return lock


def _kill(process: ProcessName) -> None:
    """Kill a process, and wait until it has ended, as its lock does with it."""
    pidfd = process.open()
    if pidfd is not None:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], _KILL_SECONDS)
        os.close(pidfd)
