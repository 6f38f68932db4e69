"""The built-in programs of the fake guest: small versions of common Linux programs."""

from __future__ import annotations

import re
from typing import Final

import anyio

from uvm.backends.fake.guest.fileprograms import FILE_PROGRAMS, fail
from uvm.backends.fake.guest.programs import FakeProcess, Program

#: What ``yes`` writes at once.
_YES_BYTES: Final = 65536


async def _true(process: FakeProcess) -> int:
    return 0


async def _false(process: FakeProcess) -> int:
    return 1


async def _echo(process: FakeProcess) -> int:
    words = process.args[1:]
    newline = words[:1] != ("-n",)
    text = " ".join(words if newline else words[1:])
    await process.stdout.send((text + "\n" * newline).encode())
    return 0


async def _sleep(process: FakeProcess) -> int:
    try:
        seconds = sum(float(word) for word in process.args[1:])
    except ValueError:
        return await fail(process, f"invalid number {' '.join(process.args[1:])!r}")
    if len(process.args) < 2 or not 0 <= seconds < float("inf"):
        return await fail(process, "how long?")
    await anyio.sleep(seconds)
    return 0


async def _uname(process: FakeProcess) -> int:
    machine = {"amd64": "x86_64", "arm64": "aarch64"}[process.vm.architecture]
    facts = {"s": "Linux", "n": "uvm", "r": "6.1.0", "v": "#1 SMP", "m": machine, "o": "GNU/Linux"}
    wanted = "".join(word.removeprefix("-") for word in process.args[1:]) or "s"
    if unknown := set(wanted) - {*facts, "a"}:
        return await fail(process, f"invalid option -- {min(unknown)!r}")
    printed = [fact for letter, fact in facts.items() if letter in wanted or "a" in wanted]
    await process.stdout.send(f"{' '.join(printed)}\n".encode())
    return 0


async def _env(process: FakeProcess) -> int:
    await process.stdout.send("".join(f"{k}={v}\n" for k, v in process.env.items()).encode())
    return 0


async def _yes(process: FakeProcess) -> int:
    line = (" ".join(process.args[1:]) or "y").encode() + b"\n"
    lines = line * max(1, _YES_BYTES // len(line))
    while True:
        await process.stdout.send(lines)


async def _head(process: FakeProcess) -> int:
    """Copy the first 10 lines of stdin, or ``-n`` lines, or ``-c`` bytes."""
    found = re.fullmatch(r"(?:-([nc]) ?(\d+))?", " ".join(process.args[1:]))
    if found is None:
        return await fail(process, "use head [-n lines | -c bytes]")
    left = 10 if found[2] is None else int(found[2])
    if not left:
        return 0
    async for data in process.stdin:
        part = data[:left] if found[1] == "c" else b"".join(data.splitlines(keepends=True)[:left])
        left -= len(part) if found[1] == "c" else part.count(b"\n")
        await process.stdout.send(part)
        if left <= 0:
            break
    return 0


async def _kill(process: FakeProcess) -> int:
    """Signal processes of the guest: ``kill [-9] pid...``."""
    words = list(process.args[1:])
    number = words.pop(0)[1:] if words[:1] and words[0].startswith("-") else "15"
    if not words or not all(word.isdecimal() for word in (number, *words)):
        return await fail(process, "use kill [-number] pid...")
    code = 0
    for word in words:
        target = process.peers.get(int(word))
        if target is None or not target.signal(int(number)):
            code = await fail(process, f"can't kill pid {word}: No such process")
    return code


_STDIN_OF: Final = re.compile(r"/proc/(\d+)/fd/0")


async def _stty(process: FakeProcess) -> int:
    """Print or change the size of a terminal: ``stty [-F /proc/<pid>/fd/0] size | rows <n> cols <n>``."""
    words = list(process.args[1:])
    processes = process.peers
    target = processes[process.pid]
    if words[:1] == ["-F"] and len(words) > 1:
        device = _STDIN_OF.fullmatch(words[1])
        if device is None or int(device[1]) not in processes:
            return await fail(process, f"{words[1]}: No such file or directory")
        target, words = processes[int(device[1])], words[2:]
    if target.view.terminal is None:
        return await fail(process, "standard input: Inappropriate ioctl for device")
    if words == ["size"]:
        size = target.view.terminal
        await process.stdout.send(f"{size.height} {size.width}\n".encode())
        return 0
    match words:
        case ["rows", rows, "cols", columns] if rows.isdecimal() and columns.isdecimal():
            target.resize(int(rows), int(columns))
            return 0
    return await fail(process, "use stty [-F /proc/<pid>/fd/0] size | rows <n> cols <n>")


#: Added to the programs of every backend.
BUILT_IN: Final[dict[str, Program]] = {
    **FILE_PROGRAMS,
    "echo": _echo,
    "env": _env,
    "false": _false,
    "head": _head,
    "kill": _kill,
    "sleep": _sleep,
    "stty": _stty,
    "true": _true,
    "uname": _uname,
    "yes": _yes,
}
