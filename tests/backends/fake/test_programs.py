"""Programs of the fake guest: the built-in ones, those of users, and how they end."""

from __future__ import annotations

import subprocess
from contextlib import suppress

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backends.fake.guesthost import STREAMS, Host, booted
from tests.backends.fake.support import backend_of, wcow
from uvm.backends.fake import FakeProcess, Programs
from uvm.backends.fake.guest.programs import Program
from uvm.backends.fake.guest.windows.commandline import split_command_line

pytestmark = pytest.mark.anyio


def install(host: Host, program: Program, name: str = "program") -> None:
    backend_of(host.system).programs[name] = program


async def outcome(host: Host, *args: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    """Run a program in the guest: its exit code and what it wrote."""
    process = await host.run(*args)
    # It may have ended without reading it.
    with suppress(anyio.BrokenResourceError):
        await process.write(stdin)
    await process.end_input()
    stdout, stderr = await process.read("StdOut"), await process.read("StdErr")
    return await process.wait(), stdout, stderr


@pytest.mark.parametrize(
    ("args", "stdin", "expected"),
    [
        (["true"], b"", (0, b"", b"")),
        (["false"], b"", (1, b"", b"")),
        (["uname"], b"", (0, b"Linux\n", b"")),
        (["uname", "-sm"], b"", (0, b"Linux x86_64\n", b"")),
        (["uname", "-a"], b"", (0, b"Linux uvm 6.1.0 #1 SMP x86_64 GNU/Linux\n", b"")),
        (["uname", "-z"], b"", (1, b"", b"uname: invalid option -- 'z'\n")),
        (["/bin/echo", "a", "b"], b"", (0, b"a b\n", b"")),
        (["echo", "-n", "a"], b"", (0, b"a", b"")),
        (["cat"], b"some\nlines", (0, b"some\nlines", b"")),
        (["cat", "/etc/passwd"], b"", (1, b"", b"cat: /etc/passwd: No such file or directory\n")),
        (["head", "-n", "2"], b"1\n2\n3\n", (0, b"1\n2\n", b"")),
        (["head", "-c", "3"], b"12345", (0, b"123", b"")),
        (["head"], b"x\n" * 20, (0, b"x\n" * 10, b"")),
        (["head", "-n", "0"], b"x\n", (0, b"", b"")),
        (["head", "file"], b"", (1, b"", b"head: use head [-n lines | -c bytes]\n")),
        (["sleep", "0"], b"", (0, b"", b"")),
        (["sleep", "soon"], b"", (1, b"", b"sleep: invalid number 'soon'\n")),
        (["sleep", "nan"], b"", (1, b"", b"sleep: how long?\n")),
        (["kill"], b"", (1, b"", b"kill: use kill [-number] pid...\n")),
        (["kill", "1"], b"", (1, b"", b"kill: can't kill pid 1: No such process\n")),
        (["stty", "size"], b"", (1, b"", b"stty: standard input: Inappropriate ioctl for device\n")),
        (["stty", "-F", "/dev/x", "size"], b"", (1, b"", b"stty: /dev/x: No such file or directory\n")),
    ],
)
async def test_what_the_built_in_programs_do(
    args: list[str], stdin: bytes, expected: tuple[int, bytes, bytes]
) -> None:
    async with booted() as host:
        assert await outcome(host, *args, stdin=stdin) == expected


async def test_env_writes_the_environment_that_was_given() -> None:
    async with booted() as host:
        process = await host.run("env", Environment={"A": "1", "B": "x=y"})
        assert await process.read() == b"A=1\nB=x=y\n"


async def test_yes_goes_on_until_nobody_reads_and_dies_of_it() -> None:
    async with booted() as host:
        process = await host.run("yes", "on")
        assert await process.read(size=300_000) == b"on\n" * (-(-300_000 // 65535) * 65535 // 3)
        await process.streams["StdOut"].aclose()
        assert await process.wait() == 0xFFFFFFFF


async def test_a_broken_pipe_that_comes_out_of_a_task_group_is_one_too() -> None:
    async with booted() as host:

        async def program(process: FakeProcess) -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(process.stdout.send, bytes(1 << 20))

        install(host, program)
        process = await host.run("program")
        await process.streams["StdOut"].aclose()
        assert await process.wait() == 0xFFFFFFFF
        assert await process.read("StdErr") == b""


async def test_kill_signals_a_process_of_the_guest() -> None:
    async with booted() as host:
        process = await host.run("sleep", "1000")
        assert (await outcome(host, "kill", "-9", str(process.pid)))[0] == 0
        assert await process.wait() == 0xFFFFFFFF
        assert (await outcome(host, "kill", "-9", str(process.pid)))[0] == 1


async def test_stty_changes_the_size_of_the_terminal_of_another_process() -> None:
    async with booted() as host:
        sizes: list[str] = []

        async def program(process: FakeProcess) -> None:
            resized = anyio.Event()
            process.on_signal(28, lambda signal: resized.set())
            sizes.append(str(process.terminal))
            await resized.wait()
            sizes.append(str(process.terminal))

        install(host, program)
        process = await host.run("program", EmulateConsole=True)
        words = ("stty", "-F", f"/proc/{process.pid}/fd/0", "rows", "33", "cols", "77")
        assert (await outcome(host, *words))[0] == 0
        assert await process.wait() == 0
        assert sizes == ["Terminal(height=0, width=0)", "Terminal(height=33, width=77)"]


async def test_a_program_on_a_terminal_writes_both_outputs_to_one_stream_and_ends_lines_with_cr() -> None:
    async with booted() as host:

        async def program(process: FakeProcess) -> None:
            await process.stdout.send(b"out\n")
            await process.stderr.send(b"err\n")

        install(host, program)
        process = await host.start_process(
            {"CommandArgs": ["program"], "EmulateConsole": True}, "StdIn", "StdOut"
        )
        assert await process.read() == b"out\r\nerr\r\n"


async def test_a_program_sees_what_it_was_started_with() -> None:
    async with booted() as host:
        seen: list[FakeProcess] = []

        async def program(process: FakeProcess) -> int:
            seen.append(process)
            return 300

        install(host, program)
        process = await host.run("/usr/bin/program", "-x", WorkingDirectory="/tmp", Environment={"K": "v"})
        assert await process.wait() == 300
        (view,) = seen
        assert view.args == ("/usr/bin/program", "-x")
        assert (view.cwd, view.env, view.terminal, view.pid) == ("/tmp", {"K": "v"}, None, process.pid)
        assert view.vm is host.vm


@pytest.mark.parametrize(
    ("result", "code", "message"),
    [(None, 0, b""), (True, 1, b""), (-1, 0xFFFFFFFF, b""), ("odd", 1, b"program: odd\n")],
)
async def test_what_a_program_gives_is_its_exit_code(result: int | None, code: int, message: bytes) -> None:
    async with booted() as host:

        async def program(process: FakeProcess) -> int | None:
            return result

        install(host, program)
        assert await outcome(host, "program") == (code, b"", message)


@pytest.mark.parametrize(("status", "code"), [(3, 3), (None, 0), ("gone", 1)])
async def test_sys_exit_ends_the_program_and_nothing_else(status: int | str | None, code: int) -> None:
    async with booted() as host:

        async def program(process: FakeProcess) -> int:
            raise SystemExit(status)

        install(host, program)
        assert (await outcome(host, "program"))[0] == code
        assert (await outcome(host, "true"))[0] == 0


async def test_a_program_that_raises_ends_with_the_traceback_on_stderr() -> None:
    async with booted() as host:

        async def program(process: FakeProcess) -> int:
            raise LookupError("what was I doing")

        install(host, program)
        code, _, stderr = await outcome(host, "program")
        assert code == 1
        assert stderr.endswith(b"LookupError: what was I doing\n")


async def test_a_signal_handler_that_raises_ends_the_program_alone() -> None:
    async with booted() as host:

        async def program(process: FakeProcess) -> None:
            def handle(signal: int | str) -> None:
                raise LookupError("no such plan")

            process.on_signal(1, handle)
            await anyio.sleep_forever()

        install(host, program)
        process = await host.run("program")
        assert (await outcome(host, "kill", "-1", str(process.pid)))[0] == 0
        assert await process.wait() == 1
        assert b"no such plan" in await process.read("StdErr")


async def test_a_handled_signal_does_not_kill_until_the_handler_is_taken_away() -> None:
    async with booted() as host:
        signals: list[int | str] = []

        async def program(process: FakeProcess) -> None:
            process.on_signal(15, signals.append)
            await process.stdin.receive()
            process.on_signal(15, None)
            await anyio.sleep_forever()

        install(host, program)
        process = await host.run("program")
        await anyio.wait_all_tasks_blocked()
        assert (await outcome(host, "kill", str(process.pid)))[0] == 0
        assert signals == [15]
        await process.write(b"x")
        await anyio.wait_all_tasks_blocked()
        assert (await outcome(host, "kill", str(process.pid)))[0] == 0
        assert await process.wait() == 0xFFFFFFFF


async def test_sigkill_cannot_be_handled() -> None:
    async with booted() as host:

        async def program(process: FakeProcess) -> None:
            process.on_signal(9, lambda signal: None)

        install(host, program)
        code, _, stderr = await outcome(host, "program")
        assert (code, b"SIGKILL cannot be handled" in stderr) == (1, True)


@pytest.mark.parametrize("signal", [17, 18, 23, 28])
async def test_a_harmless_signal_does_nothing(signal: int) -> None:
    async with booted() as host:
        process = await host.run("cat")
        assert (await outcome(host, "kill", f"-{signal}", str(process.pid)))[0] == 0
        await process.end_input()
        assert await process.wait() == 0


async def test_a_program_waits_for_a_slow_reader() -> None:
    async with booted() as host:
        sent = 0

        async def program(process: FakeProcess) -> None:
            nonlocal sent
            for _ in range(64):
                await process.stdout.send(bytes(65536))
                sent += 65536

        install(host, program)
        process = await host.run("program")
        await anyio.wait_all_tasks_blocked()
        assert 0 < sent <= 262144
        assert len(await process.read()) == 64 * 65536
        assert sent == 64 * 65536


async def test_a_program_stands_still_while_the_vm_is_paused() -> None:
    async with booted() as host:
        process = await host.run("cat")
        await host.system.pause()
        await process.write(b"x")
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(0.01) as scope:
            await process.streams["StdOut"].receive()
        assert scope.cancelled_caught
        await host.system.resume()
        assert await process.read(size=1) == b"x"


async def test_the_exit_of_the_vm_ends_its_programs() -> None:
    async with booted() as host:
        ended = anyio.Event()

        async def program(process: FakeProcess) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                ended.set()

        install(host, program)
        await host.run("program")
        await anyio.wait_all_tasks_blocked()
        await host.system.terminate()
        with anyio.fail_after(5):
            await ended.wait()


async def test_without_pipes_a_program_reads_nothing_and_writes_into_the_void() -> None:
    async with booted() as host:
        process = await host.start_process({"CommandLine": "cat"})
        assert await process.wait() == 0
        process = await host.start_process({"CommandLine": "echo 'some words'"})
        assert await process.wait() == 0


def test_a_program_needs_a_name_without_a_path() -> None:
    programs = Programs({})

    async def program(process: FakeProcess) -> None:
        return None

    for name in ("", "/bin/x", r"C:\x", "a/b"):
        with pytest.raises(ValueError, match="not the name"):
            programs[name] = program
    assert programs.register("x")(program) is program
    assert dict(programs) == {"x": program}
    del programs["x"]
    assert len(programs) == 0


async def test_a_windows_guest_finds_programs_in_its_own_way_and_has_no_signals_by_number() -> None:
    async with booted(wcow()) as host:
        process = await host.run(r"C:\Windows\System32\ECHO.EXE", "hi")
        assert await process.read() == b"hi\n"
        assert await process.wait() == 0
        sleeping = await host.run("sleep", "1000")
        await sleeping.signal("CtrlC")
        assert await sleeping.wait() == 0xC000013A
        sleeping = await host.run("sleep", "1000")
        await sleeping.signal(None)
        assert await sleeping.wait() == 1
        assert set(sleeping.streams) == set(STREAMS)


@given(st.lists(st.text(alphabet='ab \t"\\', max_size=8).filter(lambda word: "\n" not in word), max_size=5))
def test_a_windows_command_line_is_split_into_the_words_it_was_made_of(words: list[str]) -> None:
    assert split_command_line(subprocess.list2cmdline(words)) == words
