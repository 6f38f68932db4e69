"""Running a process to its end: its input and output, its limits, and what an error keeps of them."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

import uvm
from tests.clocks import jumping_backends, run_without_waiting
from tests.vm.support import host_backend, lcow, quiet, running
from uvm.backends.fake import FakeProcess
from uvm.errors import OptionsError

anyio_backend = jumping_backends

EITHER_WAY = pytest.mark.parametrize("external", [True, False], ids=["our own", "through HCS"])
#: What a process writes: to which of its outputs, and what.
Script = list[tuple[Any, bytes]]

SCRIPTS = st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(min_size=1, max_size=12)))


class World:
    """A VM with programs: one follows a script, one never ends, one never stops writing."""

    def __init__(self) -> None:
        self.backend = host_backend()
        self.script: Script = []
        self.killed: list[str] = []
        self.backend.programs["script"] = self._follow
        self.backend.programs["stuck"] = self._hang
        self.backend.programs["flood"] = self._flood

    async def _follow(self, process: FakeProcess) -> int:
        for name, data in self.script:
            await getattr(process, name).send(data)
        return len(process.args) - 1

    async def _hang(self, process: FakeProcess) -> int:
        await self._follow(process)
        try:
            await anyio.sleep_forever()
        finally:
            self.killed.append("stuck")
        return 0

    async def _flood(self, process: FakeProcess) -> int:
        try:
            while True:
                await process.stdout.send(b"x" * 1000)
        finally:
            self.killed.append("flood")

    @asynccontextmanager
    async def vm(self, external: bool = True) -> AsyncIterator[uvm.UtilityVM]:
        async with running(lcow(external_guest_connection=external), backend=self.backend) as run:
            yield run.vm


@pytest.fixture
def world() -> World:
    return World()


def written(script: Script, name: str) -> bytes:
    return b"".join(data for each, data in script if each == name)


# Limits.


@pytest.mark.anyio
@EITHER_WAY
async def test_a_process_that_runs_too_long_is_killed_and_what_it_wrote_is_kept(
    world: World, external: bool
) -> None:
    world.script = [("stdout", b"out"), ("stderr", b"err")]
    async with world.vm(external) as vm:
        with pytest.raises(uvm.ProcessTimeoutError, match=r"'stuck' has not ended within 2\.5 s") as raised:
            await vm.run(["stuck", "secret"], timeout=2.5)
        error = raised.value
        assert (error.cmd, error.stdout, error.stderr) == (("stuck", "secret"), b"out", b"err")
        assert isinstance(error, TimeoutError)
        assert isinstance(error, uvm.UVMError)
        assert "secret" not in str(error)
        await quiet()
        assert world.killed == ["stuck"]
        assert (await vm.run(["true"], timeout=1)).exit_code == 0


@pytest.mark.anyio
async def test_the_time_of_a_process_includes_its_start(world: World) -> None:
    world.backend.faults.hang(operation="create process", first=1)
    async with world.vm(external=False) as vm:
        with pytest.raises(uvm.ProcessTimeoutError) as raised:
            await vm.run(["true"], timeout=1)
        assert raised.value.stdout == b""


@pytest.mark.anyio
async def test_the_time_of_a_process_stands_still_while_the_vm_is_paused(world: World) -> None:
    async with world.vm() as vm, anyio.create_task_group() as tasks:

        async def run() -> None:
            with pytest.raises(uvm.ProcessTimeoutError):
                await vm.run(["stuck"], timeout=10)
            ended.set()

        ended = anyio.Event()
        tasks.start_soon(run)
        await quiet()
        await vm.pause()
        await anyio.sleep(100)
        assert not ended.is_set()
        await vm.resume()
        await ended.wait()


@pytest.mark.anyio
@EITHER_WAY
async def test_a_process_that_writes_too_much_is_killed_and_what_it_wrote_is_kept(
    world: World, external: bool
) -> None:
    async with world.vm(external) as vm:
        with pytest.raises(uvm.OutputLimitError, match="'flood' wrote more than 5000 bytes") as raised:
            await vm.run(["flood"], max_output_bytes=5000, text=True)
        assert raised.value.cmd == ("flood",)
        assert isinstance(raised.value.stdout, str)
        assert 5000 < len(raised.value.stdout) <= 5000 + 65536
        await quiet()
        assert world.killed == ["flood"]


@pytest.mark.anyio
@EITHER_WAY
async def test_a_process_that_is_to_succeed_and_fails_is_an_error_with_all_of_it(
    world: World, external: bool
) -> None:
    world.script = [("stderr", b"no such file")]
    async with world.vm(external) as vm:
        assert (await vm.run(["script", "x"])).exit_code == 1
        with pytest.raises(uvm.ProcessFailedError, match="'script' exited with 1") as raised:
            await vm.run(["script", "x"], check=True)
        completed = uvm.CompletedProcess(("script", "x"), 1, b"", b"no such file")
        assert raised.value.completed == completed
        assert raised.value.stderr == b"no such file"
        assert pickle.loads(pickle.dumps(raised.value)).completed == completed
        assert (await vm.run(["script"], check=True)).exit_code == 0


BAD: list[dict[str, Any]] = [
    {"max_output_bytes": "1"},
    {"max_output_bytes": 1.5},
    {"max_output_bytes": True},
    {"max_output_bytes": -1},
    {"timeout": "1"},
    {"timeout": -1},
    {"timeout": float("nan")},
    {"check": 1},
    {"text": "utf-8"},
    {"on_stdout": "print"},
    {"on_stderr": 1},
    {"input": "text"},
    {"input": b"bytes", "text": True},
    {"input": "\ud800", "text": True},
    {"input": 1},
]


@pytest.mark.anyio
@pytest.mark.parametrize("settings", BAD, ids=repr)
async def test_what_cannot_be_asked_for_is_refused_before_anything_runs(
    world: World, settings: dict[str, Any]
) -> None:
    async with world.vm() as vm, vm.open_process(["cat"]) as process:
        ran = len(world.backend.vms[vm.id].service.processes)
        with pytest.raises(uvm.OptionsError):
            await vm.run(["cat"], **settings)
        with pytest.raises(uvm.OptionsError):
            await process.communicate(**settings)
        assert len(world.backend.vms[vm.id].service.processes) == ran
        assert (await process.communicate(b"still there")).stdout == b"still there"


# Output as it comes.


@pytest.mark.anyio
@EITHER_WAY
async def test_chunks_are_passed_to_functions_and_awaited_and_returned_all_the_same(
    world: World, external: bool
) -> None:
    out, err = bytearray(), bytearray()

    async def keep(chunk: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        err.extend(chunk)

    world.script = [("stdout", b"one"), ("stderr", b"two"), ("stdout", b"three")]
    async with world.vm(external) as vm:
        done = await vm.run(["script"], on_stdout=out.extend, on_stderr=keep)
        assert (bytes(out), bytes(err)) == (done.stdout, done.stderr) == (b"onethree", b"two")


@pytest.mark.anyio
@pytest.mark.parametrize("callback", [list, "print"])
async def test_what_cannot_be_called_with_output_is_refused(world: World, callback: Any) -> None:
    async with world.vm() as vm:
        with pytest.raises(OptionsError, match="on_stderr must be called with each chunk of output, but is"):
            await vm.run(["script"], on_stderr=callback)


@pytest.mark.anyio
@EITHER_WAY
@pytest.mark.parametrize("wait", [True, False])
async def test_what_a_callback_raises_is_raised_and_the_process_is_killed(
    world: World, external: bool, wait: bool
) -> None:
    def refuse(chunk: bytes) -> None:
        raise LookupError(chunk)

    async def refuse_later(chunk: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        refuse(chunk)

    world.script = [("stdout", b"odd")]
    async with world.vm(external) as vm:
        with pytest.raises(LookupError, match="odd"):
            await vm.run(["stuck"], on_stdout=refuse_later if wait else refuse)
        await quiet()
        assert world.killed == ["stuck"]


@pytest.mark.anyio
@EITHER_WAY
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, BaseException])
async def test_what_a_callback_raises_comes_out_bare_and_ends_no_loop(
    world: World, external: bool, kind: type[BaseException]
) -> None:
    raised = kind()

    def leave(chunk: bytes) -> None:
        raise raised

    world.script = [("stdout", b"odd")]
    async with world.vm(external) as vm:
        with pytest.raises(kind) as caught:
            await vm.run(["stuck"], on_stdout=leave)
        assert caught.value is raised
        await quiet()
        assert world.killed == ["stuck"]


@pytest.mark.anyio
async def test_a_character_is_passed_on_when_all_of_it_has_come(world: World) -> None:
    chunks: list[str] = []
    world.script = [("stdout", each.to_bytes()) for each in "aß€😀\r\n".encode()] + [("stdout", b"\xe2\x82")]
    async with world.vm() as vm:
        done = await vm.run(["script"], text=True, on_stdout=chunks.append)
        assert "".join(chunks) == done.stdout == "aß€😀\r\n�"


@pytest.mark.anyio
async def test_text_goes_in_and_comes_back(world: World) -> None:
    async with world.vm() as vm:
        assert (await vm.run(["cat"], input="grüß\n", text=True)).stdout == "grüß\n"


@pytest.mark.anyio
@EITHER_WAY
async def test_a_run_that_is_cancelled_leaves_at_once_and_its_process_is_killed(
    world: World, external: bool
) -> None:
    async with world.vm(external) as vm:
        with anyio.move_on_after(1):
            await vm.run(["stuck"])
        await quiet()
        assert world.killed == ["stuck"]


# An open process.


@pytest.mark.anyio
@EITHER_WAY
async def test_an_open_process_is_communicated_with_to_its_end(world: World, external: bool) -> None:
    async with world.vm(external) as vm:
        process = await vm.open_process(["cat"])
        await process.stdin.send(b"one, ")
        assert await process.stdout.receive() == b"one, "
        done = await process.communicate("two", text=True)
        assert done == uvm.CompletedProcess(("cat",), 0, "two", "")
        with pytest.raises(uvm.StreamClosedError):
            await process.stdin.send(b"three")


@pytest.mark.anyio
@EITHER_WAY
async def test_input_for_a_process_that_takes_none_is_refused_and_it_runs_on(
    world: World, external: bool
) -> None:
    world.script = [("stdout", b"out")]
    async with world.vm(external) as vm, vm.open_process(["script"], stdin=False) as process:
        with pytest.raises(uvm.OptionsError, match="start it with stdin=True"):
            await process.communicate(b"in")
        assert (await process.communicate()).stdout == b"out"


@pytest.mark.anyio
async def test_a_containers_own_process_is_communicated_with(world: World) -> None:
    world.script = [("stdout", b"out")]
    spec = {"process": {"args": ["stuck"], "cwd": "/"}, "linux": {}}
    async with world.vm() as vm, vm.create_container("c", spec) as container:
        await container.start()
        init = await container.open_init()
        with pytest.raises(uvm.ProcessTimeoutError, match="the container's own process") as raised:
            await init.communicate(timeout=1)
        assert (raised.value.cmd, raised.value.stdout) == ((), b"out")


@pytest.mark.anyio
async def test_the_streams_of_a_process_are_those_it_was_started_with(world: World) -> None:
    async with (
        world.vm() as vm,
        vm.open_process(["stuck"], stdin=False, stdout=False, stderr=False) as process,
    ):
        for name in ("stdin", "stdout", "stderr"):
            with pytest.raises(uvm.OptionsError, match=f"has no {name}: start it with {name}=True"):
                getattr(process, name)
        with pytest.raises(uvm.OptionsError, match="start it with stdout=True"):
            process.stream()
        await process.kill()


# Both outputs as one.


@pytest.mark.anyio
@EITHER_WAY
async def test_a_stream_yields_what_comes_when_it_comes(world: World, external: bool) -> None:
    async with world.vm(external) as vm:
        process = await vm.open_process(["cat"], stderr=False)
        stream = process.stream()
        await process.stdin.send(b"one")
        assert await anext(stream) == ("stdout", b"one")
        await process.stdin.send_eof()
        assert [each async for each in stream] == []
        assert await process.wait() == 0


@pytest.mark.anyio
async def test_an_output_that_never_stops_does_not_hide_the_other(world: World) -> None:
    @world.backend.programs.register("noisy")
    async def noisy(process: FakeProcess) -> int:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write, process.stdout)
            tasks.start_soon(write, process.stderr)
        return 0

    async def write(output: Any) -> None:
        while True:
            await output.send(b"x" * 1000)

    async with world.vm() as vm, vm.open_process(["noisy"], stdin=False) as process:
        stream = process.stream()
        names = [(await anext(stream))[0] for _ in range(40)]
        assert min(names.count("stdout"), names.count("stderr")) > 10
        await process.kill()


@pytest.mark.anyio
@EITHER_WAY
async def test_a_stream_ends_with_the_error_of_a_vm_that_has_gone(world: World, external: bool) -> None:
    async with world.vm(external) as vm:
        process = await vm.open_process(["stuck"])
        stream = process.stream()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(vm.terminate)
            with pytest.raises((uvm.VMExitedError, uvm.StreamBrokenError)):
                await anext(stream)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("external", [True, False], ids=["our own", "through HCS"])
@given(script=SCRIPTS, stops=st.lists(st.integers(0, 3)), waits=st.booleans())
def test_however_often_the_loop_is_left_a_stream_yields_all_in_order(
    backend: str, external: bool, script: Script, stops: list[int], waits: bool
) -> None:
    async def play() -> None:
        world = World()
        world.script = script
        came: Script = []
        async with world.vm(external) as vm, vm.open_process(["script"], stdin=False) as process:
            async with anyio.create_task_group() as tasks:
                if waits:
                    tasks.start_soon(process.wait)
                for stop in stops:
                    await _take(process.stream(), came, stop)
                async for each in process.stream():
                    came.append(each)
            assert await process.wait() == 0
        for name in ("stdout", "stderr"):
            assert written(came, name) == written(script, name)

    run_without_waiting(play, backend=backend)


async def _take(stream: AsyncIterator[tuple[Any, bytes]], came: Script, count: int) -> None:
    """Take some chunks, then wait for one more and be cancelled."""
    for _ in range(count):
        if (each := await anext(stream, None)) is None:
            return
        came.append(each)
    with anyio.CancelScope() as scope:
        scope.cancel()
        came.append(await anext(stream))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("external", [True, False], ids=["our own", "through HCS"])
@given(script=SCRIPTS, limit=st.integers(0, 60), text=st.booleans())
def test_whatever_is_written_the_result_the_callbacks_and_the_limit_agree(
    backend: str, external: bool, script: Script, limit: int, text: bool
) -> None:
    async def play() -> None:
        world = World()
        world.script = script
        came: dict[str, list[Any]] = {"stdout": [], "stderr": []}
        keep: dict[str, Callable[[Any], object]] = {f"on_{name}": each.append for name, each in came.items()}
        done: Any
        async with world.vm(external) as vm, vm.open_process(["script"]) as process:
            try:
                done = await process.communicate(max_output_bytes=limit, text=text, **keep)  # type: ignore[call-overload]
            except uvm.OutputLimitError as error:
                done = error
        total = {name: written(script, name) for name in came}
        assert isinstance(done, uvm.OutputLimitError) == (sum(map(len, total.values())) > limit)
        if isinstance(done, uvm.OutputLimitError):
            return
        for name, chunks in came.items():
            whole = total[name].decode(errors="replace") if text else total[name]
            assert getattr(done, name) == whole == type(whole)().join(chunks)

    run_without_waiting(play, backend=backend)
