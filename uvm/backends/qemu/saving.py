"""Saving the state of a VM: to a file, or as a template, from which clones start.

How it works
------------

The memory of every VM is an anonymous file (memfd) that this process has too, and QEMU maps it shared. What
QEMU saves is then the state of its devices alone, with ``x-ignore-shared``, some hundred KiB::

    template   paused --> device state to a second memfd --> QEMU ends --> the memory is sealed
    clone      QEMU maps the sealed memory copy-on-write, attaches its disks, loads the device state;
               those that it writes to are overlays (:mod:`uvm.backends.qemu.images.overlay`)
    file       paused --> a header, the device state, and the memory

A sealed memory cannot be written by any process, through any mapping: neither a clone nor a guest that
escapes from one changes what the others start from. It needs no room in ``/dev/shm``, leaves no file, and is
there as long as the saved VM is open, or one of its clones runs.

What QEMU loads decides what it does, so that a file is loaded only if it is this user's own and no other may
write or read it; and it fits one build of QEMU, its options and the kernel. Its header, of one page, says
which: what does not fit is refused before QEMU reads anything.

Shares and adapters are connections to this host, which no state has: what has some is not saved.

A save that fails or is cancelled ends in QEMU too, before its caller goes on. A QEMU that does not end it in
time is killed, as nothing is known of it any more.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import anyio
import anyio.to_thread
from attrs import asdict, define, field, frozen

from uvm._log import Log
from uvm._repr import Value, showing
from uvm.backend import JSON
from uvm.backends.qemu import lifetime
from uvm.backends.qemu.commandline import PROCESSORS, Acceleration
from uvm.backends.qemu.devices.tree import DeviceTree
from uvm.backends.qemu.frozen import FrozenDisks
from uvm.backends.qemu.guestimage.sources import sha256_of
from uvm.backends.qemu.monitor import Monitor
from uvm.backends.requests.vpmem import PMemKey
from uvm.backends.winerrors import hresult_of
from uvm.backends.workers import finish
from uvm.errors import HostError, NoSpaceError
from uvm.hresult import HResult
from uvm.schema.common import MIB

_log = Log("uvm")

#: The type of the machine as the command line has it, which each version of QEMU understands as its own.
_ALIAS: Final = "q35"
#: The name of a descriptor in QEMU, while it saves or loads.
_FD: Final = "state"
#: How often QEMU is asked whether it has ended.
_LOOK_SECONDS: Final = 0.002
_MAGIC: Final = b"uvm-qemu-state-1\n"
_HEADER_BYTES: Final = 4096
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_UNLIMITED: Final = 1 << 40
#: What QEMU says as long as it saves.
_SAVES: Final = ("setup", "active", "device")


@showing("fd")
@define(eq=False, repr=False)
class Memory:
    """The memory of a VM, as a file without a name.

    :ivar fd: its descriptor; -1 once it is closed.
    """

    fd: int

    @classmethod
    def of_mb(cls, size: int) -> Memory:
        """Make a memory of so many MB, of which nothing takes room until it is used.

        :raises NoSpaceError: this process may make no such file.
        """
        try:
            fd = os.memfd_create("uvm-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise _no_file(size, error) from error
        try:
            os.ftruncate(fd, size * MIB)
        except OSError as error:
            os.close(fd)
            raise _no_file(size, error) from error
        return cls(fd)

    def opened(self) -> Memory:
        """Return another descriptor of it, which is closed on its own."""
        return Memory(os.dup(self.fd))

    def seal(self) -> None:
        """Have no process write it any more; OSError if one has it mapped to be written."""
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)

    def close(self) -> None:
        """Close it; it stays as long as a process has it mapped."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _no_file(size: int, error: OSError) -> NoSpaceError:
    return NoSpaceError(
        f"a memory of {size} MB cannot be made: {error.strerror}; see `ulimit -f` and `ulimit -n` of this "
        "process; nothing was started"
    )


@showing("memory")
@define(eq=False, repr=False)
class SavedVM:
    """A VM that was saved as a template.

    :ivar memory: its memory, sealed.
    :ivar disks: the disks that its guest could write to.
    :ivar files: the paths of the files of all of its disks, which those of its clones may be over.
    :ivar luns: where files are mapped on its VPMEM devices.
    :ivar build: what its clones have to fit.
    :ivar state: a descriptor of the state of its devices.
    """

    memory: Memory
    disks: FrozenDisks
    files: Collection[str]
    luns: Mapping[PMemKey, int]
    build: Build
    state: int = field(factory=lambda: os.memfd_create("uvm-state", os.MFD_CLOEXEC))

    def open_memory(self, operation: str) -> Memory:
        """Return the memory for one clone; HCS_E_SYSTEM_NOT_FOUND once it is released."""
        self._check_there(operation)
        return self.memory.opened()

    def open_state(self, operation: str) -> int:
        """Return a descriptor of the state, at its beginning, for one clone; likewise."""
        self._check_there(operation)
        return os.open(f"/proc/self/fd/{self.state}", os.O_RDONLY | os.O_CLOEXEC)

    def _check_there(self, operation: str) -> None:
        if self.state < 0:
            text = "its template was deleted meanwhile"
            raise HostError(operation, HResult.HCS_E_SYSTEM_NOT_FOUND, text)

    def close(self) -> None:
        """Release it: no more clones are made; those that run have what they need."""
        self.memory.close()
        self.disks.close()
        if self.state >= 0:
            os.close(self.state)
            self.state = -1


@frozen(repr=False)
class Build(Value):
    """What a saved state fits: it is loaded by the same, or not at all.

    :ivar qemu: QEMU's version, and its package.
    :ivar machine: the versioned type of the machine, not its alias.
    :ivar acceleration: ``"kvm"`` or ``"tcg"``.
    :ivar cpu: the model of the processors; with KVM that of the host, with what it can do.
    :ivar kernel: the kernel and the initramfs that the guest booted, by their digests.
    :ivar memory_mb: the size of the memory.
    :ivar processors: how many there are.
    """

    qemu: str
    machine: str
    acceleration: str
    cpu: str
    kernel: str
    memory_mb: int
    processors: int

    def as_json(self) -> JSON:
        """Return it as a JSON object."""
        return asdict(self)


def check_saveable(vm: Monitor, devices: DeviceTree) -> None:
    """Refuse what cannot be saved: HCS_E_INVALID_STATE; nothing was changed."""
    for kind, what in ((devices.plan9, "shares"), (devices.adapters, "network adapters")):
        if kind.count:
            names = ", ".join(map(str, kind.devices.values()))
            text = f"it has {what}, which no saved state has: {names}; release them first"
            raise HostError(f"save {vm.id}", HResult.HCS_E_INVALID_STATE, text)


@frozen(repr=False)
class Boot(Value):
    """What a VM was started with.

    :ivar kernel: the path of the kernel, and of the initramfs; empty for none.
    """

    acceleration: Acceleration
    kernel: str
    initrd: str


async def build_of(vm: Monitor, boot: Boot, qemu: JSON, devices: DeviceTree) -> Build:
    """Return what a saved state of a VM fits.

    :param qemu: QEMU's version, as it says it when it greets.
    """
    types = await vm.ask(f"query {vm.id}", "query-machines")
    named = next((each["name"] for each in types if each.get("alias") == _ALIAS), "")
    paths = (boot.kernel, boot.initrd)
    try:
        digest = await anyio.to_thread.run_sync(_digest_of, paths, abandon_on_cancel=True)
    except OSError as error:
        raise HostError(f"query {vm.id}", hresult_of(error), f"{error.filename}: {error.strerror}") from error
    return Build(
        qemu=json.dumps(qemu, sort_keys=True),
        machine=named,
        acceleration=boot.acceleration,
        cpu=host_processor() if boot.acceleration == "kvm" else PROCESSORS[boot.acceleration],
        kernel=digest,
        memory_mb=devices.topology.memory.size_in_mb,
        processors=devices.topology.processor.count,
    )


def _digest_of(paths: Sequence[str]) -> str:
    found = hashlib.sha256()
    for path in filter(None, paths):
        found.update(bytes.fromhex(sha256_of(path)))
    return found.hexdigest()


def host_processor(path: str = "/proc/cpuinfo") -> str:
    """Return the model of the machine's processors, and a digest of what they can do."""
    with open(path, encoding="utf-8", errors="replace") as file:
        first = file.read().partition("\n\n")[0]
    fields = dict(line.split(":", 1) for line in first.splitlines() if ":" in line)
    said = {name.strip(): value.split() for name, value in fields.items()}
    flags = hashlib.sha256(" ".join(sorted(said.get("flags", []))).encode()).hexdigest()[:16]
    return f"{' '.join(said.get('model name', ['unknown']))}, flags {flags}"


async def save_template(vm: Monitor, memory: Memory, devices: DeviceTree, build: Build) -> SavedVM:
    """Save the devices of a paused VM. Its QEMU has to end before the memory is sealed.

    :param build: what the VM runs on.
    :raises HostError: QEMU refused; the VM is as it was.
    """
    freezing = partial(FrozenDisks.freeze, devices.scsi.writable(), f"save {vm.id}")
    disks = await finish(freezing, undo=FrozenDisks.close)
    files = devices.scsi.opened() | devices.vpmem.opened()
    saved = SavedVM(memory, disks, files, devices.vpmem.luns(), build)
    try:
        await _save(vm, saved.state, without_memory=True)
    except BaseException:
        saved.disks.close()
        os.close(saved.state)
        raise
    return saved


async def save_to_file(vm: Monitor, path: str, build: Build) -> None:
    """Save a paused VM with its memory to a file, in place of one that is there, once it is whole.

    :raises HostError: the file cannot be written, or QEMU refused; the VM is as it was, and so is the file.
    """
    operation, partial = f"save {vm.id} to {path}", f"{path}.partial"

    def discard(fd: int) -> None:
        os.close(fd)
        # Who is cancelled as it is finished leaves it whole.
        with suppress(FileNotFoundError):
            os.unlink(partial)

    fd = await finish(_begin_file, operation, partial, build, undo=discard)
    try:
        await _save(vm, fd, without_memory=False)
        await finish(_finish_file, operation, fd, partial, path)
    except BaseException:
        discard(fd)
        raise
    os.close(fd)


async def restore(vm: Monitor, fd: int, *, without_memory: bool) -> None:
    """Have a QEMU that has just started, for an incoming state, load one from the position of a descriptor.

    :raises HostError: QEMU refuses it, or does not know what to do with it.
    """
    await _prepare(vm, "restore", fd, without_memory=without_memory)
    await vm.ask("restore", "migrate-incoming", {"uri": f"fd:{_FD}"})
    await _until_not(vm, "restore", "query-status", "inmigrate")


async def _save(vm: Monitor, fd: int, *, without_memory: bool) -> None:
    try:
        await _prepare(vm, "save", fd, without_memory=without_memory)
        # It would save slowly, for a network's sake.
        await vm.ask("save", "migrate-set-parameters", {"max-bandwidth": _UNLIMITED})
        await vm.ask("save", "migrate", {"uri": f"fd:{_FD}"})
        found = await _until_not(vm, "save", "query-migrate", *_SAVES)
    except BaseException:
        await _stop_saving(vm)
        raise
    if found.get("status") != "completed":
        text = str(found.get("error-desc", "QEMU does not say why"))
        raise HostError(f"save {vm.id}", HResult.E_FAIL, text)


async def _stop_saving(vm: Monitor) -> None:
    """Have QEMU save no more; one that does not end that in time is killed.

    Also if asyncio cancels its caller again meanwhile, which no shield prevents, and which is raised then.
    """
    stopped, again = False, None
    with anyio.move_on_after(lifetime.QUIT_SECONDS, shield=True) as limit:
        while not stopped:
            try:
                await _cancel_save(vm)
                stopped = True
            except anyio.get_cancelled_exc_class() as error:
                if limit.cancel_called:
                    break
                again = error
    if not stopped:
        _log.error(vm.id, "QEMU does not end a save; it is killed")
        # It is killed as it has no monitor any more.
        vm.close()
    if again is not None:
        raise again


async def _cancel_save(vm: Monitor) -> None:
    """Cancel a save, as QEMU would stop the VM at the end of it, and close the file; twice does no harm."""
    with suppress(HostError):
        await vm.ask("save", "migrate_cancel")
        await _until_not(vm, "save", "query-migrate", *_SAVES, "cancelling")
    with suppress(HostError):
        await vm.ask("save", "closefd", {"fdname": _FD})


async def _until_not(vm: Monitor, operation: str, command: str, *statuses: str) -> JSON:
    """Ask QEMU until its answer has none of the statuses; return the answer."""
    while True:
        found: JSON = await vm.ask(operation, command)
        if found.get("status") not in statuses:
            return found
        await anyio.sleep(_LOOK_SECONDS)


async def _prepare(vm: Monitor, operation: str, fd: int, *, without_memory: bool) -> None:
    await vm.ask(operation, "getfd", {"fdname": _FD}, fds=(fd,))
    capability = {"capability": "x-ignore-shared", "state": without_memory}
    await vm.ask(operation, "migrate-set-capabilities", {"capabilities": [capability]})


# Files.


def _begin_file(operation: str, path: str, build: Build) -> int:
    header = _MAGIC + json.dumps(build.as_json()).encode() + b"\n"
    if len(header) > _HEADER_BYTES:
        raise HostError(operation, HResult.E_FAIL, "its description is too long")
    try:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(header.ljust(_HEADER_BYTES, b"\0"))
        except BaseException:
            os.close(fd)
            os.unlink(path)
            raise
    except OSError as error:
        raise HostError(operation, hresult_of(error), f"{path}: {error.strerror}") from error
    return fd


def _finish_file(operation: str, fd: int, partial: str, path: str) -> None:
    try:
        os.fsync(fd)
        os.replace(partial, path)
    except OSError as error:
        raise HostError(operation, hresult_of(error), f"{path}: {error.strerror}") from error


def open_saved(path: str, build: Build) -> int:
    """Open a saved state, behind its header; blocking.

    :raises HostError: it is not there, is none, is not this user's alone (E_ACCESSDENIED), or fits another
        QEMU, machine, kernel or memory (HCS_E_IMAGE_MISMATCH).
    """
    operation = f"restore {path}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise HostError(operation, hresult_of(error), str(error)) from error
    try:
        _check_own(operation, os.fstat(fd))
        _check_header(operation, os.read(fd, _HEADER_BYTES), build)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_own(operation: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise HostError(operation, HResult.ERROR_INVALID_DATA, "it is no file")
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        text = "only a file of this user is loaded, which no other may read or write (mode 0600)"
        raise HostError(operation, HResult.E_ACCESSDENIED, text)


def _check_header(operation: str, header: bytes, build: Build) -> None:
    written = header.removeprefix(_MAGIC).partition(b"\n")[0]
    try:
        found = json.loads(written) if header.startswith(_MAGIC) else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or len(header) < _HEADER_BYTES:
        raise HostError(operation, HResult.ERROR_INVALID_DATA, "it is no saved state, or is cut short")
    check_fits(operation, found, build)


def check_fits(operation: str, saved: JSON, build: Build) -> None:
    """Refuse a state that was saved on another build: HCS_E_IMAGE_MISMATCH.

    :param saved: that build, as a JSON object.
    """
    for name, here in build.as_json().items():
        if saved.get(name) != here:
            text = f"it was saved with {name} {saved.get(name)!r}, and here that is {here!r}"
            raise HostError(operation, HResult.HCS_E_IMAGE_MISMATCH, text)
