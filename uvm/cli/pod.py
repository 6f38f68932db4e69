"""The run of a pod: everything that a pod file describes is attached, shown, and released again."""

from __future__ import annotations

import io
import json
import time
from argparse import Namespace
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, nullcontext

import anyio
from attrs import asdict, define, evolve, field

from uvm._drawing.blocks import Rule, Span, line
from uvm._guest.exchange import CompletedProcess
from uvm._repr import format_size
from uvm._vm.pods.container import PodContainer
from uvm._vm.pods.pod import Pod
from uvm._vm.requestsummary import summarize
from uvm.backend import JSON, Backend
from uvm.backends.fake import Entry, FakeBackend
from uvm.cli.draw import draw_request, draw_statistics
from uvm.cli.errors import UsageError, in_one_line, printable
from uvm.cli.podfile import Container, PodFile, read_pod_file
from uvm.cli.podhost import open_host
from uvm.cli.podjoin import join
from uvm.cli.progress import Progress
from uvm.cli.terminal import Terminal
from uvm.errors import UVMError
from uvm.schema.secrets import scrub

_SHUTDOWN_SECONDS = 30.0


def run(terminal: Terminal, given: Namespace) -> int:
    """Run a pod file; return 0 if nothing is left on the host afterwards, else 1.

    :raises UsageError: the file is wrong, or has no such container.
    """
    joined = given.interactive or given.terminal or given.container is not None
    if joined and given.json:
        raise UsageError("pod: --json is not for a container at this terminal (-i, -t, --container)")
    pod = read_pod_file(given.file)
    backend = open_host(pod, given.backend)
    if joined:
        return join(pod, backend, given.container, terminal=given.terminal)
    if not given.json:
        return anyio.run(run_pod, terminal, pod, backend)
    record: JSON = {}
    try:
        return anyio.run(run_pod, Terminal(io.StringIO()), pod, backend, record)
    except UVMError as error:
        record["error"] = in_one_line(error)
        raise
    finally:
        terminal.write_text(json.dumps(record, indent=2))


async def run_pod(terminal: Terminal, pod: PodFile, backend: Backend, record: JSON | None = None) -> int:
    """Run a pod on a backend.

    :param record: gets what is shown, as values of JSON, and nothing is drawn.
    """
    async with backend:
        fake = backend if isinstance(backend, FakeBackend) else None
        silent = fake is None or record is not None
        run = _PodRun(terminal, pod, backend, fake, {} if record is None else record, silent)
        await run.introduce()
        if fake is not None:
            fake.request_log.listen(run.show)
        try:
            await run.run()
        except BaseException:
            run.report_clean_up()
            raise
        return run.last_check()


@define(eq=False)
class _PodRun:
    """One run of a pod: its steps, in order, and what is printed of them.

    :ivar fake: the backend, if it is the in-memory one.
    :ivar record: what is printed, as values of JSON.
    :ivar silent: nothing is drawn in the course of a step.
    """

    terminal: Terminal
    pod: PodFile
    backend: Backend
    fake: FakeBackend | None
    record: JSON
    silent: bool
    _requests: int = field(default=0, init=False)
    _left_mounted: list[str] = field(factory=list, init=False)
    #: Those that run a command.
    _created: list[tuple[Container, PodContainer]] = field(factory=list, init=False)
    #: What is attached, the last at the end: the title of its release, its container, and what releases it.
    _attached: list[tuple[str, Container | None, Callable[[], Awaitable[None]]]] = field(
        factory=list, init=False
    )

    async def introduce(self) -> None:
        """Print what will run, and on which host."""
        pod, host = self.pod, await self.backend.host()
        self.record |= {"pod": pod.file, "guest": pod.os, "backend": self.backend.name}
        self.record |= {"requests": [], "commands": []}
        facts = f"build {host.build}, {host.processors} processors, {format_size(host.memory_mb << 20)}"
        where = f"an in-memory host ({facts})" if self.fake else f"the backend {self.backend.name} ({facts})"
        containers = _number(len(pod.containers), "container")
        self.terminal.write(
            Span(f"pod {pod.file}", "bold"),
            f"A {pod.os.capitalize()} VM on {where},",
            f"for {containers} over {_number(len(pod.layers), 'read-only layer')}.",
        )

    async def run(self) -> None:
        """Attach everything, show it, and detach it again."""
        namespace = self.pod.namespace
        joining = ", and join the network namespace, with an adapter for each endpoint" if namespace else ""
        created = Pod.create(self.pod.options, backend=self.backend, network=namespace)
        async with AsyncExitStack() as stack:
            with self._phase(f"Create the VM, start it{joining}"):
                pod = await stack.enter_async_context(created)
            await self._attach(pod)
            await self._run_commands()
            self._show_devices(pod, "What is attached")
            self.record["devices"] = pod.vm.devices().as_json()
            statistics = await pod.vm.stats()
            self.record["statistics"] = asdict(statistics)
            self.terminal.write("", _rule("Statistics"), draw_statistics(statistics))
            await self._release()
            if namespace:
                with self._phase("Leave the network namespace"):
                    await pod.end()
            self._show_devices(pod, "What is attached now")
            self.record["devices_released"] = pod.vm.devices().as_json()
            if self.fake is not None:
                mounts = self.fake.vms[pod.id].guest.mounts.values()
                self._left_mounted = [f"mount in the guest: {mount}" for mount in mounts]
            with self._phase("Shut the VM down and close it"):
                with anyio.move_on_after(_SHUTDOWN_SECONDS):
                    await pod.vm.shutdown()
                await pod.close()
            self.record["exit"] = str(pod.vm.exit_status)
            self._write_dim(f"  exit: {pod.vm.exit_status}")

    async def _attach(self, pod: Pod) -> None:
        for mapped in self.pod.mapped_directories:
            how = "read-only" if mapped.read_only else "writable"
            with self._phase(f"Map {mapped.host} to {mapped.guest}, {how}"):
                share = await pod.vm.share(mapped.host, mapped.guest, read_only=mapped.read_only)
            self._attached.append((f"Release {share.host_path}", None, share.release))
        for container in self.pod.containers:
            names = ", ".join(container.layers)
            with self._phase(f"Mount container {container.id}: {names}, scratch"):
                self._name_shared(container, "attached already: one more reference each, no request")
                release = await self._make(pod, container)
            self._attached.append((f"Release container {container.id}", container, release))

    async def _make(self, pod: Pod, container: Container) -> Callable[[], Awaitable[None]]:
        """Create a container that runs a command, or mount its root file system; return what releases it."""
        layers = [self.pod.layers[name] for name in container.layers]
        spec: JSON = {"process": {"args": [*container.command], "cwd": "/"}, "linux": {}}
        if not container.command:
            resources = await pod.attach_resources(spec, layers, container.scratch, id=container.id)
            return resources.release
        made = await pod.create_container(spec, layers, container.scratch, id=container.id)
        self._created.append((container, made))
        return made.aclose

    async def _release(self) -> None:
        while self._attached:
            title, container, release = self._attached.pop()
            with self._phase(title):
                if container is not None:
                    self._name_shared(
                        container, "in use by another container: one reference less, no request"
                    )
                await release()

    def _name_shared(self, container: Container, what: str) -> None:
        """Name the layers that containers attached before have too."""
        used = {name for _, other, _ in self._attached if other is not None for name in other.layers}
        if shared := [name for name in container.layers if name in used]:
            self._write_dim(f"  {', '.join(shared)}: {what}")

    async def _run_commands(self) -> None:
        for container, made in self._created:
            with self._phase(f"Run {' '.join(container.command)} in container {container.id}") as progress:
                done = await _run_in(made, container)
                progress.end()
                self.record["commands"].append(
                    {"container": container.id, **asdict(done), "args": container.command}
                )
                for line in (done.stdout + done.stderr).splitlines():
                    self.terminal.write(f"  {printable(line)}")
                self._write_dim(f"  exit code: {done.exit_code}")

    def last_check(self) -> int:
        """Report whether anything is left; return 1 if so."""
        terminal, left = self.terminal, []
        if self.fake is not None:
            left = [*self._left_mounted, *self.fake.leftovers()]
            self.record["left"] = left
        if self.fake is None:
            terminal.write("", "✓ The VM is closed.")
        elif left:
            terminal.write("", Span("✗ Left behind:", "red"), *(f"  {each}" for each in left))
            return 1
        else:
            nothing = "Nothing is left: no VM, no access to a file, no attached endpoint, no mount."
            terminal.write("", line(Span("✓", "green"), f" {nothing}"), "")
        return 0

    def report_clean_up(self) -> None:
        """Report what is left of the VM after a failure."""
        if self.fake is not None:
            left = self.fake.leftovers()
            what = f"left behind: {'; '.join(left)}" if left else "the VM is gone, and nothing is left of it"
            self._write_dim(f"  cleaned up: {what}")

    # Printing.

    def show(self, entry: Entry) -> None:
        """Draw a request of the in-memory backend whose outcome is known."""
        if entry.to in ("query", "network"):
            return  # these only ask
        self._requests += 1
        summary = summarize(entry.to, entry.document, entry.call.operation)
        self.record["requests"].append(
            {
                "to": entry.to,
                "operation": entry.call.operation,
                "outcome": entry.outcome,
                "error": entry.error,
                "document": scrub(entry.document),
            }
        )
        self.terminal.write(draw_request(summary, _failure(entry)))

    @contextmanager
    def _phase(self, title: str) -> Iterator[Progress]:
        self.terminal.write("", _rule(title))
        self._requests, began = 0, time.perf_counter()
        with Progress(title) if self.silent else nullcontext(Progress(title)) as progress:
            yield progress
        took = f"{(time.perf_counter() - began) * 1000:.1f} ms"
        if self.fake is not None:
            number = _number(self._requests, "request")
            latency_ms = self.pod.host.latency_ms
            took = f"{number} of {latency_ms} ms in {took}" if latency_ms else f"{number} in {took}"
        self._write_dim(f"  {took}")

    def _show_devices(self, pod: Pod, title: str) -> None:
        # The requests of the in-memory backend are drawn as they come.
        self.terminal.write("", _rule(title), evolve(pod.vm.devices(), requests=()).__rich__())

    def _write_dim(self, text: str) -> None:
        self.terminal.write(Span(text, "dim"))


async def _run_in(made: PodContainer, container: Container) -> CompletedProcess[str]:
    """Start a container, and run its command to the end."""
    init = await made.start()
    if init is not None:
        return await init.communicate(text=True)
    return await made.run(container.command, text=True)


def _rule(title: str) -> Rule:
    return Rule(Span(title, "bold"))


def _number(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _failure(entry: Entry) -> str:
    """Return why a request did not succeed, without the request itself; empty if it did."""
    if entry.outcome == "ok":
        return ""
    _, named, why = entry.error.partition(f"{entry.call.resource}: ")
    return printable(f"{entry.outcome}: {why if named else entry.error}".removesuffix(": "))
