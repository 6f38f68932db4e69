"""Hypothesis strategies for tests of what is built on ``uvm``: options, mounts, faults, device scripts.

All that they make is valid: a VM of any of the options is created and starts on ``FakeBackend()``, and any
script plays there. What is drawn shrinks to the defaults, to no fault and to the empty script. Hypothesis
knows the options by their types too: ``st.from_type(uvm.LCOWOptions)``, wherever ``utilityvm`` is installed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeVar

from attrs import frozen

try:
    from hypothesis import strategies as st
except ImportError as _error:
    raise ImportError(
        "uvm.testing.strategies needs hypothesis, which is not installed; install it with: "
        "pip install 'utilityvm[testing]'"
    ) from _error

from uvm._buses.lease import Releasable
from uvm._names import GuestOS
from uvm._repr import Value, call_of
from uvm._vm.vm import UtilityVM
from uvm.backends.fake import FakeBackend
from uvm.backends.fake.rules import Rule
from uvm.devices.scsi import Mount
from uvm.errors import UVMError
from uvm.options import HvSocketService, LCOWOptions, RegistryValue, WCOWOptions
from uvm.testing.vms import WINDOWS_BOOT_FILES

__all__ = [
    "DeviceScript",
    "DeviceStep",
    "Fault",
    "device_scripts",
    "device_steps",
    "faults",
    "lcow_options",
    "mounts",
    "options",
    "wcow_options",
]

OptionsT = TypeVar("OptionsT", LCOWOptions, WCOWOptions)
Strategies = Mapping[str, st.SearchStrategy[Any]]
StepKind = Literal["disk", "mounted disk", "layer", "directory", "release"]

_MIB: Final = 1 << 20
_WORDS: Final = st.text("abcxyz-", min_size=1, max_size=8)

# Options.

_OF_EVERY_VM: Final[Strategies] = {
    "owner": _WORDS,
    "memory_mb": st.integers(1, 8192),
    "low_mmio_gap_mb": st.integers(0, 1024),
    "high_mmio_base_mb": st.integers(0, 65536),
    "high_mmio_gap_mb": st.integers(0, 65536),
    "processors": st.integers(1, 8),
    "processor_limit": st.integers(0, 100_000),
    "processor_weight": st.integers(0, 10_000),
    "storage_qos_iops_max": st.integers(0, 10_000),
    "storage_qos_bandwidth_max": st.integers(0, 1 << 30),
    "process_dump_location": st.just(r"C:\dumps"),
    "no_writable_file_shares": st.booleans(),
    "hvsocket_services": st.dictionaries(
        st.uuids().map(str), st.builds(HvSocketService, disabled=st.booleans()), max_size=2
    ),
    "additional_json": st.builds(dict, Owner=_WORDS),
    "external_guest_connection": st.booleans(),
}
_OF_LINUX: Final[Strategies] = {
    **_OF_EVERY_VM,
    "scsi_controllers": st.integers(0, 4),
    "kernel_boot_options": st.lists(_WORDS, max_size=3).map(" ".join),
    "guest_log_level": st.sampled_from(["trace", "debug", "info", "warning", "error", "fatal", "panic"]),
    "scrub_guest_logs": st.booleans(),
    "forward_stdout": st.booleans(),
    "forward_stderr": st.booleans(),
    "vpmem_count": st.integers(0, 128),
    "vpmem_multi_mapping": st.booleans(),
    "cold_discard_hint": st.booleans(),
    "vpci_enabled": st.booleans(),
    "scratch_encryption": st.booleans(),
    "disable_time_sync": st.booleans(),
    "policy_based_routing": st.booleans(),
}
_OF_WINDOWS: Final[Strategies] = {
    **_OF_EVERY_VM,
    "no_direct_map": st.booleans(),
    "inherit_time_zone": st.booleans(),
    "log_forwarding": st.booleans(),
    "default_log_sources": st.booleans(),
    "revoke_released_files": st.booleans(),
    "registry_values": st.lists(
        st.builds(
            RegistryValue, hive=st.just("Software"), key=_WORDS, name=_WORDS, dword_value=st.integers(0, 9)
        ),
        max_size=3,
        unique_by=RegistryValue.place,
    ),
}
#: Options that depend on each other: how the memory is backed, and where.
_BACKED: Final = {
    "allow_overcommit",
    "deferred_commit",
    "fully_physically_backed",
    "numa_max_processors_per_node",
    "numa_max_memory_per_node_mb",
}
_BACKING: Final = st.one_of(
    st.just({}),
    st.just({"deferred_commit": True}),
    st.just({"allow_overcommit": False}),
    st.just({"fully_physically_backed": True}),
    st.builds(
        lambda processors, memory_mb: {
            "allow_overcommit": False,
            "numa_max_processors_per_node": processors,
            "numa_max_memory_per_node_mb": memory_mb,
        },
        st.integers(1, 8),
        st.integers(1, 8192),
    ),
)


def lcow_options(**given: st.SearchStrategy[Any]) -> st.SearchStrategy[LCOWOptions]:
    """Return a strategy for the options of VMs with a Linux guest.

    :param given: strategies for fields, which are always drawn then: ``memory_mb=st.just(512)``.
    """
    return _options(LCOWOptions, _OF_LINUX, given)


def wcow_options(**given: st.SearchStrategy[Any]) -> st.SearchStrategy[WCOWOptions]:
    """Return a strategy for the options of VMs with a Windows guest.

    Unless ``boot_files`` is given, they boot from what :func:`uvm.testing.vms.put_boot_files` puts on a host.

    :param given: strategies for fields, which are always drawn then.
    """
    return _options(WCOWOptions, _OF_WINDOWS, {"boot_files": st.just(WINDOWS_BOOT_FILES), **given})


def options() -> st.SearchStrategy[LCOWOptions | WCOWOptions]:
    """Return a strategy for the options of VMs with either guest."""
    return lcow_options() | wcow_options()


def _options(kind: type[OptionsT], fields: Strategies, given: Strategies) -> st.SearchStrategy[OptionsT]:
    drawn = st.fixed_dictionaries(
        dict(given), optional={name: each for name, each in fields.items() if name not in given}
    )
    backing = st.just({}) if given.keys() & _BACKED else _BACKING

    @st.composite
    def made(draw: st.DrawFn) -> OptionsT:
        values = {**draw(drawn), **draw(backing)}
        # Built of what was drawn, it is shown as it is written: hypothesis knows the call.
        return draw(st.builds(kind, **{name: st.just(value) for name, value in values.items()}))

    return made()


def mounts(os: GuestOS = "linux") -> st.SearchStrategy[Mount]:
    """Return a strategy for mounts of disks, each of which the guest can have on any disk."""
    if os == "windows":
        return st.builds(Mount, format_with_refs=st.booleans())
    return st.builds(
        Mount,
        partition=st.integers(0, 4),
        filesystem=st.sampled_from(["", "ext4", "xfs", "erofs"]),
        options=st.lists(st.sampled_from(["ro", "noatime", "data=ordered"]), max_size=2, unique=True),
    )


# Faults.


@frozen
class Fault:
    """Something that goes wrong on the in-memory host: a rule that is yet to be made.

    :ivar name: the method of ``backend.faults``: ``refuse``, ``lose`` or ``crash``.
    :ivar arguments: its arguments, the calls that it is about among them.
    """

    name: str
    arguments: Mapping[str, Any]

    __repr__ = call_of

    def apply(self, backend: FakeBackend) -> Rule[Any]:
        """Have it go wrong from now on, and return the rule."""
        made: Rule[Any] = getattr(backend.faults, self.name)(**self.arguments)
        return made


def faults() -> st.SearchStrategy[Fault]:
    """Return a strategy for faults: a call is refused, its answer is lost, or the VM exits at it."""
    calls: Strategies = {
        "to": st.sampled_from(["grant", "revoke", "host", "guest"]),
        "nth": st.integers(1, 5),
    }
    return st.one_of(
        _fault("refuse", {**calls, "code": st.sampled_from(["E_FAIL", "E_ACCESSDENIED"])}),
        _fault("lose", {**calls, "applied": st.booleans()}),
        _fault("crash", {**calls, "when": st.sampled_from(["before", "after"])}),
    )


def _fault(name: str, arguments: Strategies) -> st.SearchStrategy[Fault]:
    return st.builds(Fault, st.just(name), st.fixed_dictionaries(dict(arguments)))


# Device scripts.

#: The kinds of steps that a guest can have.
_KINDS: Final[Mapping[GuestOS, tuple[StepKind, ...]]] = {
    "linux": ("disk", "mounted disk", "layer", "directory", "release"),
    "windows": ("disk", "mounted disk", "directory", "release"),
}


@frozen(repr=False)
class DeviceStep(Value):
    """A step of a script.

    :ivar kind: what is attached; with ``release`` what was attached before is released.
    :ivar number: which file or directory of a few; of a release, which of the leases that are held, counted
        from the oldest, and around.
    """

    kind: StepKind
    number: int

    @property
    def path(self) -> str:
        """The file or the directory of the host."""
        return rf"C:\uvm-script\{self.kind.rpartition(' ')[-1]}{self.number}"

    async def play(self, vm: UtilityVM, held: list[Releasable]) -> None:
        """Carry it out; `held` are the leases, the oldest first.

        :raises UVMError: as of ``vm.scsi.attach`` and its kind, and of ``lease.release``.
        """
        if self.kind == "release":
            if held:
                await held.pop(self.number % len(held)).release()
        elif self.kind == "directory":
            held.append(await vm.share(self.path, self._place(vm, held)))
        elif self.kind == "layer":
            held.append(await vm.vpmem.add(self.path))
        else:
            mount = Mount() if self.kind == "mounted disk" else None
            held.append(await vm.scsi.attach(self.path, mount=mount))

    def _place(self, vm: UtilityVM, held: list[Releasable]) -> str:
        """Return a path in the guest at which nothing is shared."""
        root = "/run/" if vm.os == "linux" else "C:\\"
        taken = {getattr(lease, "guest_path", "") for lease in held}
        places = (f"{root}directory{self.number}-{count}" for count in itertools.count())
        return next(place for place in places if place not in taken)


@frozen(repr=False)
class DeviceScript(Value):
    """Devices that are attached and released, one after the other."""

    steps: tuple[DeviceStep, ...]

    def prepare(self, backend: FakeBackend) -> None:
        """Put the files and directories on the host."""
        for step in self.steps:
            if step.kind == "directory":
                backend.files.add_directory(step.path)
            elif step.kind != "release":
                backend.files.add(step.path, size=_MIB)

    async def play(self, vm: UtilityVM) -> list[UVMError | None]:
        """Carry out all steps, also after one that fails, and return the error of each, or None."""
        held: list[Releasable] = []
        outcomes: list[UVMError | None] = []
        for step in self.steps:
            try:
                await step.play(vm, held)
            except UVMError as error:
                outcomes.append(error)
            else:
                outcomes.append(None)
        return outcomes


def device_steps(os: GuestOS = "linux") -> st.SearchStrategy[DeviceStep]:
    """Return a strategy for one step."""
    return st.builds(DeviceStep, st.sampled_from(_KINDS[os]), st.integers(0, 3))


def device_scripts(os: GuestOS = "linux", *, max_steps: int = 12) -> st.SearchStrategy[DeviceScript]:
    """Return a strategy for scripts, which play on a VM with plain options and that guest."""
    return st.builds(DeviceScript, st.lists(device_steps(os), max_size=max_steps).map(tuple))
