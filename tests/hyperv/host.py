"""A real Windows host for the conformance suite: its files, links, pipes and networks, and what boots there.

Theory of operation
-------------------

::

    means_of(factory, wanted)          what of the command line this host has; what not, with the reason
        `-> Means.rig(scenario)        for each scenario: a backend, a directory, networks if it needs them
               `-> at the end          VMs that are left are terminated, then its networks are deleted; what
                                       was left, or still is, fails the scenario

All of it has the owner of the run in its name or id, so that runs at once have nothing to do with each other.

What takes control of HCS itself (calls that fail, hang, are lost) is played over a stand-in for it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import anyio
from attrs import evolve, field, frozen

from tests.backends.directory import DirectoryHost
from tests.hyperv.disks import FORMATS, image
from uvm._repr import described
from uvm._vm.creation import build_plan
from uvm.backend import JSON, Backend
from uvm.backends.winerrors import tolerating
from uvm.errors import NotSupportedError, UVMError
from uvm.hresult import SYSTEM_ENDED
from uvm.options import LayerBootFiles, LCOWOptions, WCOWOptions
from uvm.testing.backends import Control, Network, Rig, Scenario
from uvm.testing.backends.rig import RUNS

#: What the owners of all runs begin with.
OWNERS: Final = "uvm-test-hyperv-"
#: The network that Windows 10 and 11 have with Hyper-V, of one id everywhere.
DEFAULT_SWITCH: Final = "c08cb7b8-9b3c-408e-8e30-5e16a3aeb444"
TIMEOUT_SECONDS: Final = 120.0
_TERMINATED: Final = "VMs were left on the host, and are terminated"
#: Of endpoints: no scenario puts two networks of one size.
COUNTS: Final = (0, 1, 2)

Opened = AbstractAsyncContextManager[Backend]
#: What is called, by what it is about.
Undo = list[tuple[str, Callable[[], Awaitable[None]]]]


def new_owner() -> str:
    """Return the owner of a run's VMs, by which those that are left are found; no other run has it."""
    return f"{OWNERS}{os.getpid()}-{secrets.token_hex(4)}"


@frozen
class Wanted:
    """What the command line names for the run.

    :ivar linux_boot_files: a directory; empty for the default one.
    :ivar windows_layers: the directories of an image's layers, the top-most first; empty for no Windows VMs.
    :ivar network: the id of a network for endpoints.
    :ivar guest_programs: the guests have the programs of :attr:`~uvm.testing.backends.Control.PROGRAMS`.
    :ivar owner: whose VMs, networks and directories they are.
    """

    linux_boot_files: str = ""
    windows_layers: tuple[str, ...] = ()
    network: str = DEFAULT_SWITCH
    guest_programs: bool = False
    owner: str = field(factory=new_owner)

    def linux(self) -> LCOWOptions:
        """Return the options of Linux VMs."""
        return LCOWOptions(boot_files_path=self.linux_boot_files, owner=self.owner)

    def windows(self, scratch_directory: str) -> WCOWOptions:
        """Return the options of Windows VMs, whose scratch disk is made in a directory."""
        boot_files = LayerBootFiles(layers=self.windows_layers, scratch_directory=scratch_directory)
        return WCOWOptions(boot_files=boot_files, memory_mb=2048, owner=self.owner)


class HyperVHost(DirectoryHost):
    """Control of the host.

    :param networks: those that can be put, by the number of their endpoints.
    """

    def __init__(
        self,
        backend: Backend,
        directory: Path,
        controls: frozenset[Control],
        networks: dict[int, Network],
    ) -> None:
        super().__init__(directory)
        self.backend = backend
        self.controls = controls
        self._networks = networks

    def image(self, suffix: str, size_bytes: int) -> bytes | None:
        """Return a disk with a file system, in a format that HCS takes."""
        return image(suffix, size_bytes) if suffix in FORMATS else None

    def pipe_path(self, name: str) -> str:
        """Return the path of a pipe."""
        return rf"\\.\pipe\uvm-test-hyperv-{os.getpid()}-{name}"

    def put_network(self, endpoints: int) -> Network:
        """Return a namespace with so many endpoints, once."""
        if endpoints not in self._networks:
            raise NotSupportedError(f"no network with {endpoints} endpoints was made for this scenario")
        return self._networks.pop(endpoints)


@frozen
class Means:
    """What this host has for the run.

    :ivar factory: makes a backend, to be entered.
    :ivar lacks: what is not played, with the reason.
    :ivar others: what the host has of other runs, which were killed or are not done.
    """

    factory: Callable[[], Opened]
    wanted: Wanted
    controls: frozenset[Control]
    lacks: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def having(self, control: Control) -> Means:
        """Return the means with a control more."""
        return evolve(self, controls=self.controls | {control})

    def without(self, control: Control, why: str) -> Means:
        """Return the means without a control, which are these, and the reason."""
        return evolve(self, lacks=(*self.lacks, f"{control.value}: {why}"))

    async def tried(self, control: Control, attempt: Awaitable[None]) -> Means:
        """Return the means with a control if an attempt succeeds; otherwise with the reason."""
        try:
            await attempt
        except UVMError as error:
            return self.without(control, str(error))
        return self.having(control)

    @asynccontextmanager
    async def rig(self, scenario: Scenario) -> AsyncIterator[Rig]:
        """Make a rig for a scenario, and remove what is left at its end.

        :raises AssertionError: VMs are left, which are terminated; or networks cannot be deleted.
        """
        owner = self.wanted.owner
        counts = COUNTS if Control.NETWORKS in scenario.needs & self.controls else ()
        with _directory(owner) as directory:
            async with (
                self.factory() as backend,
                networks_in(backend, self.wanted.network, counts, owner) as networks,
                _nothing_left(_TERMINATED, partial(terminate_all, backend, owner)),
            ):
                yield self._rig(backend, directory, networks)

    def _rig(self, backend: Backend, directory: Path, networks: dict[int, Network]) -> Rig:
        host = HyperVHost(backend, directory, self.controls - {Control.LINUX, Control.WINDOWS}, networks)
        linux = self.wanted.linux() if Control.LINUX in self.controls else None
        windows = self.wanted.windows(host.path_of("uvm")) if Control.WINDOWS in self.controls else None
        return Rig(backend, host, linux, windows, TIMEOUT_SECONDS, run=self.wanted.owner)


async def means_of(factory: Callable[[], Opened], wanted: Wanted) -> Means:
    """Find what of the command line this host has.

    :raises UVMError: it cannot be used at all.
    """
    means = Means(factory, wanted, frozenset({Control.FILES, Control.PIPES}), others=_other_directories())
    with _directory(wanted.owner) as directory:
        async with factory() as backend:
            means = evolve(means, others=(*await _other_vms(backend, wanted.owner), *means.others))
            means = await means.tried(Control.LINUX, _plan(backend, wanted.linux()))
            if wanted.windows_layers:
                scratch = HyperVHost(backend, directory, means.controls, {}).path_of("uvm")
                means = await means.tried(Control.WINDOWS, _plan(backend, wanted.windows(scratch)))
            else:
                means = means.without(Control.WINDOWS, "--windows-layer names no layer of an image")
            means = await means.tried(Control.NETWORKS, _use(backend, wanted))
        if _can_link(directory):
            means = means.having(Control.LINKS)
        else:
            means = means.without(Control.LINKS, "this user may make none; run it as an administrator")
    if wanted.guest_programs:
        return means.having(Control.PROGRAMS)
    return means.without(Control.PROGRAMS, "--guest-programs says that the guests have them")


async def _plan(backend: Backend, options: LCOWOptions | WCOWOptions) -> None:
    """Plan a VM, whose boot files have to be there for that."""
    await build_plan(options, backend, await backend.host())


async def _use(backend: Backend, wanted: Wanted) -> None:
    """Make an endpoint in the network, and delete it."""
    made = await backend.network.create_endpoint(wanted.network, {"Name": f"{wanted.owner}-probe"})
    await backend.network.delete_endpoint(made["ID"])


def _other_directories() -> tuple[str, ...]:
    """Return the directories of other runs, before this one has any."""
    return tuple(f"directory {each}" for each in sorted(Path(tempfile.gettempdir()).glob(f"{OWNERS}*")))


async def _other_vms(backend: Backend, owner: str) -> list[str]:
    """Return the VMs of other runs."""
    there = [each for each in await backend.enumerate() if not _is_of(each, owner)]
    return [f"VM {each['Id']} of {each.get('Owner')}" for each in there if _is_of(each, OWNERS, RUNS)]


def _is_of(system: JSON, *runs: str) -> bool:
    """Return whether the id or the owner of a system begins with one of these."""
    return any(str(system.get(name)).startswith(runs) for name in ("Id", "Owner"))


def _can_link(directory: Path) -> bool:
    try:
        (directory / "link").symlink_to(directory)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _directory(owner: str) -> Iterator[Path]:
    """Make a directory, resolved, since a backend resolves paths too; remove it at the end."""
    path = Path(tempfile.mkdtemp(prefix=f"{owner}-")).resolve()
    try:
        yield path
    finally:
        # What a hypervisor still has open cannot be removed; that a VM is left is said elsewhere.
        shutil.rmtree(path, ignore_errors=True)


@asynccontextmanager
async def networks_in(
    backend: Backend, network: str, counts: Sequence[int], owner: str
) -> AsyncIterator[dict[int, Network]]:
    """Make a namespace for each number of endpoints in a network, and delete all of it at the end.

    :raises AssertionError: the host deletes some of it not.
    """
    # A namespace cannot be deleted before its endpoints: the last that was made is the first.
    undo: Undo = []
    async with _nothing_left("networks were left on the host", partial(_undone, undo)):
        made = {}
        for count in counts:
            namespace, documents = backend.new_id(), []
            undo.append((f"namespace {namespace}", partial(backend.network.delete_namespace, namespace)))
            await backend.network.create_namespace({"ID": namespace})
            for index in range(count):
                endpoint, name = backend.new_id(), f"{owner}-{count}-{index}"
                undo.append((f"endpoint {name}", partial(backend.network.delete_endpoint, endpoint)))
                await backend.network.create_endpoint(network, {"ID": endpoint, "Name": name})
                await backend.network.add_namespace_endpoint(namespace, endpoint)
                documents.append(await backend.network.endpoint(endpoint))
            made[count] = Network(namespace, tuple(documents), network)
        yield made


async def terminate_all(backend: Backend, owner: str) -> list[str]:
    """Terminate the VMs of a run that are left, and return them."""
    there = [str(each["Id"]) for each in await backend.enumerate() if _is_of(each, owner)]
    refused = dict(await _tried([(each, partial(_terminate, backend, each)) for each in there]))
    return [f"{each} (no: {refused[each]})" if each in refused else each for each in there]


async def _terminate(backend: Backend, system_id: str) -> None:
    # It may end by itself meanwhile.
    with tolerating(*SYSTEM_ENDED):
        system = await backend.open(system_id)
        try:
            await system.terminate()
        finally:
            await system.close()


async def _undone(undo: Undo) -> list[str]:
    return [f"{what}: {error}" for what, error in await _tried(undo[::-1])]


async def _tried(all: Undo) -> list[tuple[str, Exception]]:
    """Call each, whatever the others come to; return what fails, with its error."""
    failed = []
    for what, call in all:
        try:
            await call()
        except Exception as error:
            failed.append((what, error))
    return failed


@asynccontextmanager
async def _nothing_left(said: str, clean_up: Callable[[], Awaitable[list[str]]]) -> AsyncIterator[None]:
    """Clean up at the end.

    :raises AssertionError: something was left; it says as well what failed before.
    """
    failed: Exception | None = None
    try:
        yield
    except Exception as error:
        failed = error
    finally:
        with anyio.CancelScope(shield=True):
            left = await clean_up()
    if left:
        before = f"{described(failed)}; " if failed else ""
        raise AssertionError(f"{before}{said}: {', '.join(left)}") from failed
    if failed:
        raise failed
