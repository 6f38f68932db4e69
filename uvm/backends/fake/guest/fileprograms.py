"""Built-in programs of the fake guest for files: small versions of common ones, of Linux and of Windows."""

from __future__ import annotations

from typing import Final

from uvm.backends.fake.guest.programs import FakeProcess, Program

_MISSING: Final = "No such file or directory"


async def fail(process: FakeProcess, problem: str, code: int = 1) -> int:
    """Report what is wrong; return the exit code."""
    await process.stderr.send(f"{process.args[0]}: {problem}\n".encode())
    return code


def _parse(args: tuple[str, ...], flags: str) -> tuple[set[str], list[str]]:
    given = [word for word in args[1:] if word.startswith("-") and len(word) == 2 and word[1] in flags]
    return {word[1] for word in given}, [word for word in args[1:] if word not in given]


async def _cat(process: FakeProcess) -> int:
    """Copy files, or stdin, to stdout."""
    files = process.files
    for path in process.args[1:] or ("-",):
        if path == "-":
            async for data in process.stdin:
                await process.stdout.send(data)
            continue
        found = files.find(path, follow=True)
        if found is None or files.nodes[found].kind != "file":
            return await fail(process, f"{path}: {_MISSING if found is None else 'Is a directory'}")
        await process.stdout.send(files.nodes[found].content)
    return 0


async def _stat(process: FakeProcess) -> int:
    """Describe files: ``stat [-L] -c FORMAT path...``, of which the format is that of :mod:`uvm` alone."""
    flags, words = _parse(process.args, "Lc")
    for path in words[1:]:
        found = process.files.find(path, follow="L" in flags)
        if found is None:
            return await fail(process, f"cannot stat '{path}': {_MISSING}")
        await process.stdout.send(process.files.stated(found, path).encode("utf-8", "surrogateescape"))
    return 0


async def _find(process: FakeProcess) -> int:
    """Describe what is in a directory: ``find path -mindepth 1 -maxdepth 1 -exec stat -c FORMAT {} +``."""
    path = process.args[1]
    found = process.files.find(path, follow=True)
    if found is None or process.files.nodes[found].kind != "directory":
        return await fail(process, f"'{path}': {_MISSING if found is None else 'Not a directory'}")
    for name, each, _ in process.files.children(found):
        said = process.files.stated(each, f"{path}/{name}")
        await process.stdout.send(said.encode("utf-8", "surrogateescape"))
    return 0


async def _rm(process: FakeProcess) -> int:
    """Remove files: ``rm [-r] path...``."""
    flags, paths = _parse(process.args, "rf")
    for path in paths:
        found = process.files.find(path)
        if found is None:
            return await fail(process, f"cannot remove '{path}': {_MISSING}")
        if process.files.nodes[found].kind == "directory" and "r" not in flags:
            return await fail(process, f"cannot remove '{path}': Is a directory")
        process.files.remove(found)
    return 0


async def _mkdir(process: FakeProcess) -> int:
    """Make directories: ``mkdir [-p] path...``."""
    flags, paths = _parse(process.args, "p")
    for path in paths:
        if problem := _make_directory(process, path, parents="p" in flags):
            return await fail(process, f"cannot create directory '{path}': {problem}")
    return 0


def _make_directory(process: FakeProcess, path: str, *, parents: bool) -> str:
    from uvm.backends.fake.guest.filesystem import Node

    files = process.files
    if (found := files.find(path)) is not None:
        there = files.nodes[found].kind == "directory"
        return "" if parents and there else "File exists"
    above = files.split(files.join(path, ""))[0]
    if parents and above != path and (problem := _make_directory(process, above, parents=True)):
        return problem
    return files.write(path, Node("directory"))


async def _tar(process: FakeProcess) -> int:
    """Pack and unpack: ``tar [-h] -cf - -C directory name`` and ``tar -xf - -C directory``."""
    flags, words = _parse(process.args, "hC")
    if words[:2] == ["-cf", "-"] and len(words) == 4:
        try:
            await process.stdout.send(process.files.archive(words[2], words[3], follow="h" in flags))
        except FileNotFoundError:
            return await fail(process, f"{words[3]}: Cannot stat: {_MISSING}", 2)
        return 0
    if words[:2] != ["-xf", "-"] or len(words) != 3:
        return await fail(process, "use tar [-h] -cf - -C directory name, or -xf - -C directory", 2)
    if process.files.find(words[2], follow=True) is None:
        return await fail(process, f"{words[2]}: Cannot open: {_MISSING}", 2)
    data = b"".join([chunk async for chunk in process.stdin])
    problem = process.files.unpack(words[2], data)
    return await fail(process, problem, 2) if problem else 0


async def _cmd(process: FakeProcess) -> int:
    """Run a command of Windows on files of the working directory: ``dir``, ``del``, ``rmdir``, ``mkdir``."""
    files, words = process.files, [word for word in process.args[1:] if not word.startswith("/")]
    here = files.find(process.cwd)
    match words:
        case ["dir"] if here is not None:
            lines = [" Volume in drive C has no label.", "", f" Directory of {here}", ""]
            lines += [f"01/01/2024  12:00 AM    <DIR>          {name}" for name in (".", "..")]
            for name, _, node in files.children(here):
                what = "   <DIR>         " if node.kind == "directory" else f"{len(node.content):17}"
                lines.append(f"01/01/2024  12:00 AM {what} {name}")
            lines += [f"{len(lines):8} File(s)  1 bytes", ""]
            await process.stdout.send("\r\n".join(lines).encode("utf-16-le"))
            return 0
        case ["del" | "rmdir", name] if (found := files.find(files.join(process.cwd, name))) is not None:
            files.remove(found)
            return 0
        case ["mkdir", made, "&", "dir", listed] if made == listed:
            _make_directory(process, files.join(process.cwd, made), parents=True)
            return 0
        case ["mkdir", name] if files.find(files.join(process.cwd, name)) is None:
            problem = _make_directory(process, files.join(process.cwd, name), parents=True)
            if not problem:
                return 0
            return await fail(process, problem)
    return await fail(process, "The system cannot find the file specified.")


#: Those of guests of both systems, and those of one.
FILE_PROGRAMS: Final[dict[str, Program]] = {
    "cat": _cat,
    "cmd": _cmd,
    "find": _find,
    "mkdir": _mkdir,
    "rm": _rm,
    "stat": _stat,
    "tar": _tar,
}
