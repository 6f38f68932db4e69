r"""A web service that runs untrusted commands, each in a container of its own, in a VM of a pool.

``POST /run`` takes ``{"args": ["python", "-c", "print(6 * 7)"], "input": "", "seconds": 5}`` and answers with
lines of JSON, as they come::

    {"stdout": "42\n"}
    {"exit_code": 0}

A job ends with its time, its limit of output, or its client's connection, whatever its guest does. The last
line says why if it is not an exit code: ``{"error": "..."}``. A VM whose job did not end well is not used
again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any

import anyio
from attrs import Factory, define, field, frozen, validators
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

import uvm

log = logging.getLogger("sandboxd")

#: Takes one line of the answer.
Tell = Callable[[Mapping[str, Any]], Awaitable[None]]


@frozen(kw_only=True)
class Settings:
    """How jobs are run.

    :ivar vm: the options of each VM.
    :ivar layers: the read-only layers of each container, top-most first: disks of the host.
    :ivar scratch: the disk that each job gets a copy of, for what it writes.
    :ivar directory: where the copies are made.
    :ivar overhead_seconds: how long a job may wait for a VM and its container, before its own time.
    """

    vm: uvm.LCOWOptions
    layers: Sequence[str]
    scratch: str
    directory: str
    ready: int = 4
    jobs_per_vm: int = 5
    most_seconds: float = 60.0
    most_output_bytes: int = 1 << 20
    overhead_seconds: float = 10.0


@frozen(kw_only=True)
class Job:
    """What a client asks for."""

    args: list[str] = field(
        validator=validators.and_(
            validators.min_len(1),
            validators.deep_iterable(validators.instance_of(str), validators.instance_of(list)),
        )
    )
    input: str = field(default="", validator=validators.instance_of(str))
    env: dict[str, str] = field(
        default=Factory(dict),
        validator=validators.deep_mapping(validators.instance_of(str), validators.instance_of(str)),
    )
    seconds: float = field(
        default=5.0, validator=validators.and_(validators.instance_of(int | float), validators.gt(0))
    )

    @property
    def spec(self) -> dict[str, Any]:
        """The OCI specification of its container."""
        env = [f"{name}={value}" for name, value in self.env.items()]
        process = {"args": self.args, "env": ["PATH=/usr/local/bin:/usr/bin:/bin", *env], "cwd": "/"}
        return {
            "process": {**process, "user": {"uid": 65534, "gid": 65534}, "noNewPrivileges": True},
            "linux": {"resources": {"memory": {"limit": 256 << 20}, "pids": {"limit": 128}}},
        }


@define(eq=False)
class Sandbox:
    """Runs jobs. Enter it to have its VMs started."""

    settings: Settings
    backend: uvm.Backend
    pool: uvm.Pool = field(init=False)
    _names: count[int] = field(factory=lambda: count(1), init=False)
    _cleaners: anyio.abc.TaskGroup = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.pool = uvm.Pool(
            self.settings.vm,
            backend=self.backend,
            ready=self.settings.ready,
            max_uses=self.settings.jobs_per_vm,
            check=lambda vm: vm.run(["true"], timeout=1, check=True),
        )

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Sandbox]:
        """Start the VMs, and terminate them at the end, when the scratch disks are deleted."""
        async with anyio.create_task_group() as self._cleaners, self.pool:
            yield self

    async def run(self, job: Job, tell: Tell) -> None:
        """Run a job; `tell` gets its output as it comes, and last its exit code, or why there is none."""
        ended = False
        try:
            with anyio.fail_after(self.settings.overhead_seconds + self._seconds(job)):
                async with self.pool.vm() as vm, self._container(vm, job) as container:
                    exit_code = await self._run_in(container, job, tell)
                    ended = True
                    await tell({"exit_code": exit_code})
        except (uvm.UVMError, TimeoutError) as error:
            log.warning("%s: %r", job.args, error)
            if not ended:
                await tell({"error": f"{type(error).__name__}: {error}"})

    async def _run_in(self, container: uvm.Container, job: Job, tell: Tell) -> int:
        async with container.open_init(stdin=True) as process:
            done = await process.communicate(
                job.input,
                timeout=self._seconds(job),
                max_output_bytes=self.settings.most_output_bytes,
                on_stdout=lambda text: tell({"stdout": text}),
                on_stderr=lambda text: tell({"stderr": text}),
                text=True,
            )
        return done.exit_code

    def _seconds(self, job: Job) -> float:
        return min(job.seconds, self.settings.most_seconds)

    @asynccontextmanager
    async def _container(self, vm: uvm.UtilityVM, job: Job) -> AsyncIterator[uvm.Container]:
        name, settings = f"job{next(self._names)}", self.settings
        async with (
            self._scratch(vm, name) as scratch,
            vm.mount_layers(name, settings.layers, scratch) as root,
            vm.create_container(name, job.spec, root=root) as container,
        ):
            await container.start()
            yield container

    @asynccontextmanager
    async def _scratch(self, vm: uvm.UtilityVM, name: str) -> AsyncIterator[str]:
        """Make the scratch disk of a job; it is deleted behind the job."""
        path = vm.host.path.join(self.settings.directory, f"{name}.vhdx")
        try:
            await self.backend.files.copy(self.settings.scratch, path)
            yield path
        finally:
            self._cleaners.start_soon(self._delete, vm, path)

    async def _delete(self, vm: uvm.UtilityVM, path: str) -> None:
        # What a job that was cancelled has begun is still being undone.
        await vm.settled()
        try:
            await self.backend.files.remove(path)
        except uvm.UVMError as error:
            log.warning("%s stays until %s has closed: %s", path, vm.id, error)
            with suppress(uvm.UVMError):
                await vm.close()
            await self.backend.files.remove(path)


class Lines(Response):
    """A response of lines of JSON, written by a job, which is cancelled if its client hangs up."""

    media_type = "application/x-ndjson"

    def __init__(self, run: Callable[[Tell], Awaitable[None]]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the job."""

        async def tell(line: Mapping[str, Any]) -> None:
            body = json.dumps(line).encode() + b"\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})

        async def hang_up() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hang_up)
            await self._run(tell)
            await send({"type": "http.response.body", "body": b""})
            tasks.cancel_scope.cancel()


def application(settings: Settings, backend: uvm.Backend) -> Starlette:
    """Return the service, an ASGI application."""
    sandbox = Sandbox(settings, backend)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with backend, sandbox.opened():
            yield

    async def run(request: Request) -> Response:
        try:
            job = Job(**await request.json())
        except (TypeError, ValueError) as error:
            return JSONResponse({"error": f"this is no job: {error.args[0]}"}, status_code=400)
        return Lines(lambda tell: sandbox.run(job, tell))

    async def health(_: Request) -> Response:
        pool = sandbox.pool
        return JSONResponse({"ready": pool.ready, "in_use": pool.in_use, "starting": pool.starting})

    routes = [Route("/run", run, methods=["POST"]), Route("/health", health)]
    return Starlette(routes=routes, lifespan=lifespan)
