"""The documentation of Windows agrees with the code: functions, builds, codes, addresses, examples."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import uvm
from uvm._document import boot, lcow
from uvm._wire import ports
from uvm.backend import FileInfo
from uvm.backends.hcs.declarations.__main__ import HERE, names
from uvm.devices import vsmb
from uvm.hresult import hresult_name
from uvm.schema.common import RS5, V19H1, V20H2, V21H1, V25H1_SERVER

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
HOST = (DOCS / "windows-host.md").read_text("utf-8")
API = (DOCS / "windows-api.md").read_text("utf-8")

#: Groups of declarations that are not named after their DLL.
DLLS_OF = {"iocp": {"kernel32.dll"}, "memory": {"kernel32.dll", "ole32.dll"}}


def rows(page: str) -> Iterator[list[str]]:
    """Return the cells of each row of each table, without code marks."""
    for line in page.splitlines():
        if line.startswith("|") and not line.startswith("|---"):
            yield [cell.strip().strip("`") for cell in line.strip("|").split("|")]


def listed() -> list[tuple[str, str]]:
    """Return what the page lists: DLL and function."""
    found = []
    for section in re.split(r"^## ", API, flags=re.MULTILINE)[1:]:
        dll = section.splitlines()[0]
        found += [(dll, row[0]) for row in rows(section) if row[0] != "function"]
    return found


def declared(name: str) -> set[str]:
    """Return the functions that a header declares."""
    return set(re.findall(r"\bWINAPI (\w+)\(", (HERE / f"{name}.h").read_text("utf-8")))


def test_every_declaration_is_one_of_a_function_that_is_found_here() -> None:
    for name in names():
        text = re.sub(r"/\*.*?\*/", "", (HERE / f"{name}.h").read_text("utf-8"), flags=re.DOTALL)
        assert len(declared(name)) == text.count(";")


def test_the_page_lists_every_function_that_is_declared_and_no_other() -> None:
    assert {function for _, function in listed()} == {each for name in names() for each in declared(name)}


def test_the_page_lists_each_function_once() -> None:
    assert len(listed()) == len(set(listed())) == len({function for _, function in listed()})


def test_the_page_lists_functions_under_the_dll_that_has_them() -> None:
    dll_of = {function: dll for dll, function in listed()}
    for name in names():
        assert {dll_of[each] for each in declared(name)} == DLLS_OF.get(name, {f"{name}.dll"})


def test_the_page_says_of_each_function_since_when_it_is_and_what_for() -> None:
    for section in re.split(r"^## ", API, flags=re.MULTILINE)[1:]:
        for row in rows(section):
            assert len(row) == 4
            assert all(row)


def test_the_builds_are_those_that_the_code_compares_with() -> None:
    in_code = {RS5, boot.KERNEL_DIRECT_BUILD, V19H1, lcow._COLD_DISCARD_BUILD, V20H2, V21H1, V25H1_SERVER}
    assert [int(row[0]) for row in rows(HOST) if row[0].isdecimal()] == sorted(in_code)


def test_the_builds_between_which_file_ids_are_needed_are_those_of_the_code() -> None:
    match = re.search(r"From (\d+) to (\d+), files on file systems without file ids", HOST)
    assert match is not None
    first, last = map(int, match.groups())
    needed = [vsmb.direct_map_needs_file_ids(build) for build in (first - 1, first, last, last + 1)]
    assert needed == [False, True, True, False]


def codes() -> list[tuple[str, str]]:
    return [(row[0], row[1]) for row in rows(HOST) if len(row) == 4 and re.fullmatch("0x[0-9A-F]{8}", row[1])]


def test_there_are_codes() -> None:
    assert ("HCS_E_HYPERV_NOT_INSTALLED", "0x80370102") in codes()


@pytest.mark.parametrize(("name", "code"), codes())
def test_a_code_has_the_name_in_its_exception(name: str, code: str) -> None:
    assert hresult_name(int(code, 16)) == name


def test_the_services_that_guests_dial_are_those_that_are_listened_to() -> None:
    by_port = {row[2]: row[3] for row in rows(HOST) if row[0] == "Linux"}
    stdio = ports.vsock_service_id(ports.FIRST_STDIO_PORT)
    assert by_port == {
        **{
            str(port): ports.vsock_service_id(port)
            for port in (ports.LINUX_ENTROPY_PORT, ports.LINUX_LOG_PORT, ports.LINUX_GCS_PORT)
        },
        f"{ports.FIRST_STDIO_PORT} and on": f"{stdio}` and on",
    }
    assert [row[3] for row in rows(HOST) if row[0] == "Windows"] == [
        ports.WINDOWS_GCS_SERVICE,
        ports.WINDOWS_SIDECAR_SERVICE,
        ports.WINDOWS_LOG_SERVICE,
    ]


@pytest.mark.parametrize("present", [{"vmlinux", "rootfs.vhd"}, set()])
def test_the_boot_files_are_those_that_are_looked_for(present: set[str]) -> None:
    options, host = uvm.LCOWOptions(), uvm.HostInfo()
    paths = boot.boot_files_to_stat(options, host)
    files = {path: FileInfo(1) if path.rpartition("\\")[2] in present else None for path in paths}
    found = boot.resolve_boot(options, host, files)
    assert f"`{found.directory}`" in HOST
    choices = [row[1:] for row in rows(HOST) if row[1:2] and row[1] in {p.rpartition("\\")[2] for p in paths}]
    when = "taken if it is there" if present else "else"
    taken = [name for name, which in choices if which.startswith(when)]
    assert taken == [found.kernel_file, found.rootfs_file]


def examples() -> list[str]:
    return re.findall(r"^```py\n(.*?)^```$", HOST, flags=re.DOTALL | re.MULTILINE)


def in_place_of_options(program: str, other: str) -> str:
    """Replace the first example's options by the second example, as the page says."""
    before, options, after = re.split(r"^( +options = .*\n)", program, flags=re.MULTILINE)
    indent = " " * (len(options) - len(options.lstrip()))
    return before + "".join(indent + line for line in other.splitlines(keepends=True)) + after


@pytest.mark.parametrize("guest", ["linux", "windows"])
def test_the_examples_run(
    guest: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, windows_options = examples()
    if guest == "windows":
        program = in_place_of_options(program, windows_options).replace('"uname", "-a"', '"echo", "hello"')
    backend = uvm.FakeBackend()
    backend.files.add_directory(r"C:\layers\nanoserver\UtilityVM\Files")
    backend.files.add(r"C:\layers\nanoserver\UtilityVM\SystemTemplate.vhdx", size=1 << 30)
    backend.files.add(r"C:\vm\scratch.vhdx", size=1 << 30)
    asked: list[str | None] = []

    def open_backend(name: str | None = None) -> uvm.FakeBackend:
        asked.append(name)
        return backend

    monkeypatch.setattr(uvm, "open_backend", open_backend, raising=False)
    exec(compile(program, "windows-host.md", "exec"), {"__name__": "example"})
    answer, memory = capsys.readouterr().out.split("\n\n" if guest == "linux" else "\n", 1)
    assert ("Linux" if guest == "linux" else "hello") in answer
    assert memory.strip().endswith("MiB on the host")
    assert asked == ["hcs"]
    assert not backend.leftovers()
