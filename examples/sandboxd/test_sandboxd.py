"""The service, spoken to as a web server would, on hosts in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from attrs import define, field
from sandboxd import Settings, application
from starlette.applications import Starlette

import uvm
from uvm.backends.fake import FakeBackend, FakeProcess

pytestmark = pytest.mark.anyio

LAYER, TEMPLATE, DISKS = r"C:\layers\python.vhd", r"C:\layers\scratch.vhdx", r"C:\sandboxd"
LIMIT = 1 << 20


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Both event loops."""
    return str(request.param)


@define
class Answer:
    """What a client receives; it hangs up after so many lines."""

    hang_up_after: int | None = None
    status: int = 0
    body: bytes = b""
    _hung_up: anyio.Event = field(factory=anyio.Event)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.body.splitlines()]

    @property
    def last(self) -> dict[str, Any]:
        return self.lines[-1]

    def text(self, name: str) -> str:
        return "".join(line.get(name, "") for line in self.lines)

    async def send(self, message: Any) -> None:
        self.status = message.get("status", self.status)
        self.body += message.get("body", b"")
        if self.hang_up_after is not None and self.body.count(b"\n") >= self.hang_up_after:
            self._hung_up.set()

    async def disconnect(self) -> Any:
        await self._hung_up.wait()
        return {"type": "http.disconnect"}


@define
class Service:
    """The service, and the host that it runs on."""

    app: Starlette
    backend: FakeBackend

    async def request(self, method: str, path: str, body: bytes, answer: Answer) -> Answer:
        scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}
        messages = [{"type": "http.request", "body": body}]

        async def receive() -> Any:
            return messages.pop() if messages else await answer.disconnect()

        await self.app(scope, receive, answer.send)
        return answer

    async def run(self, *args: str, hang_up_after: int | None = None, **job: Any) -> Answer:
        body = json.dumps({"args": args, **job}).encode()
        return await self.request("POST", "/run", body, Answer(hang_up_after))

    async def health(self) -> dict[str, int]:
        return (await self.request("GET", "/health", b"", Answer())).last


async def _crash(process: FakeProcess) -> int:
    process.vm.crash()
    await anyio.sleep_forever()
    return 0


async def _unlucky(process: FakeProcess) -> int:
    await process.stderr.send("no such luck: é\n".encode())
    return 3


@asynccontextmanager
async def service(**settings: Any) -> AsyncIterator[Service]:
    """Run the service, on a host that has to be as it was in the end."""
    backend = FakeBackend()
    backend.files.add(LAYER, size=64 << 20)
    backend.files.add(TEMPLATE, size=1 << 30)
    backend.files.add_directory(DISKS)
    backend.programs |= {"crash": _crash, "unlucky": _unlucky}
    files = backend.files.listing("C:\\")
    every = {"vm": uvm.LCOWOptions(), "layers": [LAYER], "scratch": TEMPLATE, "directory": DISKS}
    app = application(Settings(**{**every, "most_output_bytes": LIMIT, **settings}), backend)
    async with app.router.lifespan_context(app):
        yield Service(app, backend)
    assert backend.leftovers() == []
    assert backend.files.listing("C:\\") == files


async def test_output_comes_in_lines_and_the_exit_code_last() -> None:
    async with service() as sandbox:
        answer = await sandbox.run("cat", input="6 * 7 = 42\n")
        assert (answer.text("stdout"), answer.last) == ("6 * 7 = 42\n", {"exit_code": 0})
        answer = await sandbox.run("unlucky")
        assert (answer.text("stderr"), answer.last) == ("no such luck: é\n", {"exit_code": 3})


async def test_a_job_has_its_own_environment_and_nothing_of_ours() -> None:
    async with service() as sandbox:
        answer = await sandbox.run("env", env={"WHO": "client"})
        assert "WHO=client\n" in answer.text("stdout")


async def test_jobs_run_at_once() -> None:
    async with service() as sandbox, anyio.create_task_group() as tasks:
        answers: list[Answer] = []

        async def one(number: int) -> None:
            answers.append(await sandbox.run("echo", str(number)))

        for number in range(12):
            tasks.start_soon(one, number)
    assert sorted(int(answer.text("stdout")) for answer in answers) == list(range(12))
    assert all(answer.last == {"exit_code": 0} for answer in answers)


async def test_a_vm_runs_no_more_jobs_than_is_allowed() -> None:
    async with service(ready=1, jobs_per_vm=2) as sandbox:
        for _ in range(5):
            await sandbox.run("true")
        created = sandbox.backend.request_log.entries(to="guest", operation="create")
    used = [entry.vm for entry in created if entry.document["ContainerId"].startswith("job")]
    assert [used.count(vm) for vm in used] == [2, 2, 2, 2, 1]


async def test_a_job_ends_with_its_time() -> None:
    async with service() as sandbox:
        answer = await sandbox.run("sleep", "1000", seconds=0.05)
        assert answer.last["error"].startswith("ProcessTimeoutError")
        assert (await sandbox.run("true")).last == {"exit_code": 0}


async def test_a_job_ends_with_its_limit_of_output() -> None:
    async with service() as sandbox:
        answer = await sandbox.run("yes")
        assert answer.last["error"].startswith("OutputLimitError")
        assert len(answer.body) < 3 * LIMIT


async def test_a_job_whose_vm_crashes_says_so_and_others_go_on() -> None:
    async with service(ready=1) as sandbox:
        answer = await sandbox.run("crash")
        assert "VMExitedError" in answer.last["error"]
        assert (await sandbox.run("true")).last == {"exit_code": 0}


@pytest.mark.parametrize("operation", ["execute process", "create", "notification", "signal process"])
async def test_a_guest_that_falls_silent_holds_no_client(operation: str) -> None:
    async with service(ready=1, overhead_seconds=0.2) as sandbox:
        sandbox.backend.misbehaviour.silent(operation=operation)
        answer = await sandbox.run("sleep", "1000", seconds=0.05)
        assert "Timeout" in answer.last["error"]
        sandbox.backend.misbehaviour.clear()
        assert (await sandbox.run("true")).last == {"exit_code": 0}


async def test_a_client_that_hangs_up_ends_its_job_and_leaves_no_disk() -> None:
    async with service(ready=1) as sandbox:
        answer = await sandbox.run("yes", hang_up_after=1)
        assert "error" not in answer.last
        assert "exit_code" not in answer.last
        assert (await sandbox.run("true")).last == {"exit_code": 0}


async def test_a_disk_that_the_host_does_not_detach_is_deleted_when_its_vm_is_closed() -> None:
    async with service(ready=1) as sandbox:
        sandbox.backend.faults.refuse(to="host", request_type="Remove")
        assert (await sandbox.run("true")).last == {"exit_code": 0}


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"args": []}', b'{"args": "ls"}', b'{"arg": ["ls"]}', b"\xff"]
)
async def test_what_is_no_job_is_refused(body: bytes) -> None:
    async with service(ready=1) as sandbox:
        answer = await sandbox.request("POST", "/run", body, Answer())
        assert answer.status == 400
        assert "no job" in answer.last["error"]


async def test_health_says_how_many_vms_are_ready() -> None:
    async with service(ready=3) as sandbox:
        assert await sandbox.health() == {"ready": 3, "in_use": 0, "starting": 0}
