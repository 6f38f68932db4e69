"""Running a pod: everything that a pod file describes, attached, shown, and taken down again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import anyio
from attrs import define, field

from uvm._buses.directories import SharedLease
from uvm._buses.network import NamespaceLease
from uvm._guest.run import CompletedProcess
from uvm._guest.stdio import ProcessOutput
from uvm._vm.layers import RootFileSystem
from uvm._vm.vm import UtilityVM
from uvm.backend import Backend
from uvm.backends import open_backend
from uvm.backends.fake import Entry, FakeBackend, FakeFiles, Latency
from uvm.cli.draw import draw_devices, draw_statistics
from uvm.cli.errors import printable
from uvm.cli.inventory import devices_of
from uvm.cli.podfile import Container, HostSetup, PodFile, read_pod_file
from uvm.cli.requests import draw_request, summarize
from uvm.cli.sizes import format_size
from uvm.cli.tables import PodFileError
from uvm.cli.terminal import Terminal
from uvm.errors import HostError

_SHUTDOWN_SECONDS = 30.0
_SYSTEMS = {"linux": "Linux", "windows": "Windows"}


def run_pod_file(terminal: Terminal, path: Path, backend: str | None = None) -> int:
    """Run a pod file; return 0 if nothing is left on the host afterwards, else 1.

    :param backend: insist on one; the in-memory backend by default.
    """
    pod = read_pod_file(path)
    chosen = make_host(pod) if backend in (None, "fake") else open_backend(backend)
    return anyio.run(run_pod, terminal, pod, chosen)


def make_host(pod: PodFile) -> FakeBackend:
    """Make the in-memory host that the pod file describes.

    :raises PodFileError: a path is a file and a directory, or one GUID is used twice.
    """
    setup = pod.host
    each_ms = setup.latency_ms
    latency = Latency(host_ms=each_ms, guest_ms=each_ms, grant_ms=each_ms, lifecycle_ms=each_ms)
    backend = FakeBackend(host=setup.info, files=FakeFiles(setup.info.paths), latency=latency)
    try:
        _fill(backend, setup)
    except (ValueError, HostError) as error:
        raise PodFileError(f"{pod.file}: [host]: {error}") from None
    return backend


def _fill(backend: FakeBackend, setup: HostSetup) -> None:
    for path in setup.directories:
        backend.files.add_directory(path)
    for path, size_bytes in setup.files.items():
        backend.files.add(path, size=size_bytes)
    for namespace in setup.namespaces:
        backend.network.add_namespace(namespace.document())
    for endpoint in setup.endpoints:
        backend.network.add_endpoint(endpoint.document())


async def run_pod(terminal: Terminal, pod: PodFile, backend: Backend) -> int:
    """Run a pod on a backend."""
    async with backend:
        run = _PodRun(terminal, pod, backend)
        await run.introduce()
        with run.listening():
            try:
                await run.run()
            except BaseException:
                run.tell_cleaned_up()
                raise
            return run.last_check()


@define(eq=False)
class _PodRun:
    """One run of a pod: its steps, in order, and what is printed of them."""

    terminal: Terminal
    pod: PodFile
    backend: Backend
    _requests: int = field(default=0, init=False)
    _left_mounted: Sequence[str] = field(default=(), init=False)
    _roots: list[tuple[Container, RootFileSystem]] = field(factory=list, init=False)
    _shares: list[SharedLease] = field(factory=list, init=False)
    _namespace: NamespaceLease | None = field(default=None, init=False)

    async def introduce(self) -> None:
        """Print what will run, and on which host."""
        pod, host = self.pod, await self.backend.host()
        facts = f"build {host.build}, {host.processors} processors, {format_size(host.memory_mb << 20)}"
        where = f"an in-memory host ({facts})" if self._fake else f"the backend {self.backend.name} ({facts})"
        containers = _number(len(pod.containers), "container")
        self.terminal.write(
            self.terminal.paint(f"pod {pod.file}", "bold"),
            f"A {_SYSTEMS[pod.os]} VM on {where},",
            f"for {containers} over {_number(len(pod.layers), 'read-only layer')}.",
        )

    async def run(self) -> None:
        """Attach everything, show it, and detach it again."""
        created = UtilityVM.create(self.pod.options, backend=self.backend)
        async with AsyncExitStack() as stack:
            with self._phase("Create the VM and start it"):
                vm = await stack.enter_async_context(created)
                await vm.start()
            await self._set_up(vm)
            await self._run_commands(vm)
            self._show_devices(vm, "What is attached")
            self.terminal.write("", self.terminal.rule("Statistics"))
            self.terminal.write(*draw_statistics(self.terminal, await vm.stats()))
            await self._take_down(vm)
            self._show_devices(vm, "What is attached now")
            self._left_mounted = self._guest_mounts(vm)
            with self._phase("Shut the VM down and close it"):
                with anyio.move_on_after(_SHUTDOWN_SECONDS):
                    await vm.shutdown()
                await vm.close()
            self.terminal.write(self.terminal.paint(f"  exit: {vm.exit_status}", "dim"))

    # Up.

    async def _set_up(self, vm: UtilityVM) -> None:
        if self.pod.namespace:
            with self._phase("Join the network namespace, with an adapter for each endpoint"):
                self._namespace = await vm.network.setup(self.pod.namespace)
        for mapped in self.pod.mapped_directories:
            how = "read-only" if mapped.read_only else "writable"
            with self._phase(f"Map {mapped.host} to {mapped.guest}, {how}"):
                self._shares.append(await vm.share(mapped.host, mapped.guest, read_only=mapped.read_only))
        for container in self.pod.containers:
            names = ", ".join(container.layers)
            with self._phase(f"Mount container {container.id}: {names}, scratch"):
                self._tell_shared(container, "attached already: one more reference each, no request")
                layers = [self.pod.layers[name] for name in container.layers]
                root = await vm.mount_layers(container.id, layers, container.scratch)
                self._roots.append((container, root))

    def _tell_shared(self, container: Container, what: str) -> None:
        """Name the layers that other containers have too."""
        used = {name for other, _ in self._roots for name in other.layers}
        if shared := [name for name in container.layers if name in used]:
            self.terminal.write(self.terminal.paint(f"  {', '.join(shared)}: {what}", "dim"))

    async def _run_commands(self, vm: UtilityVM) -> None:
        for container, root in self._roots:
            if container.command:
                with self._phase(f"Run {' '.join(container.command)} in container {container.id}"):
                    done = await run_in_container(vm, container.id, container.command, root)
                    for line in (done.stdout + done.stderr).decode(errors="replace").splitlines():
                        self.terminal.write(f"  {printable(line)}")
                    self.terminal.write(self.terminal.paint(f"  exit code: {done.exit_code}", "dim"))

    # Down.

    async def _take_down(self, vm: UtilityVM) -> None:
        while self._roots:
            container, root = self._roots.pop()
            with self._phase(f"Release container {container.id}"):
                self._tell_shared(container, "in use by another container: one reference less, no request")
                await root.release()
        while self._shares:
            share = self._shares.pop()
            with self._phase(f"Release {share.host_path}"):
                await share.release()
        if self._namespace is not None:
            with self._phase("Leave the network namespace"):
                await self._namespace.release()

    def last_check(self) -> int:
        """Look whether anything was left behind; 1 if so."""
        terminal = self.terminal
        if not isinstance(self.backend, FakeBackend):
            terminal.write("", f"{terminal.glyphs.yes} The VM is closed.")
            return 0
        left = [*self._left_mounted, *self.backend.leftovers()]
        if left:
            mark = terminal.paint(f"{terminal.glyphs.no} Left behind:", "red")
            terminal.write("", mark, *(f"  {each}" for each in left))
            return 1
        mark = terminal.paint(terminal.glyphs.yes, "green")
        terminal.write(
            "", f"{mark} Nothing is left: no VM, no access to a file, no attached endpoint, no mount.", ""
        )
        return 0

    def tell_cleaned_up(self) -> None:
        """After a failure: say what has become of the VM."""
        if isinstance(self.backend, FakeBackend):
            left = self.backend.leftovers()
            what = f"left behind: {'; '.join(left)}" if left else "the VM is gone, and nothing is left of it"
            self.terminal.write(self.terminal.paint(f"  cleaned up: {what}", "dim"))

    # Printing.

    @property
    def _fake(self) -> bool:
        return isinstance(self.backend, FakeBackend)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Draw each request of the in-memory backend once its outcome is known."""
        stop: Callable[[], None] | None = None
        if isinstance(self.backend, FakeBackend):
            stop = self.backend.request_log.listen(self._show)
        try:
            yield
        finally:
            if stop is not None:
                stop()

    def _show(self, entry: Entry) -> None:
        if entry.to in ("query", "network"):
            return  # these only ask
        self._requests += 1
        summary = summarize(entry.to, entry.document, entry.call.operation)
        self.terminal.write(*draw_request(self.terminal, summary, _failure(entry)))

    @contextmanager
    def _phase(self, title: str) -> Iterator[None]:
        self.terminal.write("", self.terminal.rule(title))
        self._requests, began = 0, time.perf_counter()
        yield
        took = f"{(time.perf_counter() - began) * 1000:.1f} ms"
        if self._fake:
            number = _number(self._requests, "request")
            latency_ms = self.pod.host.latency_ms
            took = f"{number} of {latency_ms} ms in {took}" if latency_ms else f"{number} in {took}"
        self.terminal.write(self.terminal.paint(took.rjust(self.terminal.width), "dim"))

    def _show_devices(self, vm: UtilityVM, title: str) -> None:
        self.terminal.write("", self.terminal.rule(title))
        self.terminal.write(*draw_devices(self.terminal, devices_of(vm)))

    def _guest_mounts(self, vm: UtilityVM) -> Sequence[str]:
        """Name what the in-memory guest still has mounted, when all was released."""
        if not isinstance(self.backend, FakeBackend):
            return []
        return [f"mount in the guest: {mount}" for mount in self.backend.vms[vm.id].guest.mounts.values()]


async def run_in_container(
    vm: UtilityVM, container_id: str, command: Sequence[str], root: RootFileSystem
) -> CompletedProcess:
    """Run a command in a container of its own, to its end."""
    if vm.os == "windows":
        document = {"Container": {"Storage": {"Path": root.root}}}
        async with vm.create_container(container_id, document) as container:
            await container.start()
            return await container.run(command)
    spec = {"process": {"args": list(command), "cwd": "/"}, "linux": {}}
    async with vm.create_container(container_id, spec, root=root) as container:
        await container.start()
        async with container.open_init() as init, anyio.create_task_group() as tasks:
            outputs = (bytearray(), bytearray())
            for stream, into in zip((init.stdout, init.stderr), outputs, strict=True):
                tasks.start_soon(_collect, stream, into)
            exit_code = await init.wait()
    return CompletedProcess(tuple(command), exit_code, *map(bytes, outputs))


async def _collect(stream: ProcessOutput | None, into: bytearray) -> None:
    assert stream is not None
    async for data in stream:
        into += data


def _number(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _failure(entry: Entry) -> str:
    """Return why a request did not succeed, without the request itself; empty if it did."""
    if entry.outcome == "ok":
        return ""
    _, named, why = entry.error.partition(f"{entry.call.resource}: ")
    return printable(f"{entry.outcome}: {why if named else entry.error}".removesuffix(": "))
