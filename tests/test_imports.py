"""What ``import uvm`` loads and gives, and that the device machines are pure.

import-linter reads the directions between modules; here stands what really is loaded, packages'
``__init__`` modules included, and what it does not look at: async code and builtins with effects.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules

import pytest

import uvm
import uvm.devices

ASYNC = (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await)
BUILTINS_WITH_EFFECTS = {"__import__", "breakpoint", "eval", "exec", "input", "open", "print"}


#: A VM from its creation to its end; ``make()`` returns its options.
VM = """
import anyio, uvm

async def main():
    backend = uvm.FakeBackend()
    backend.files.add("C:\\\\os\\\\scratch.vhdx")
    async with uvm.UtilityVM.create(make(), backend=backend) as vm:
        await vm.start()

anyio.run(main)
"""
LINUX = f"{VM.replace('make()', 'uvm.LCOWOptions()')}"
FILES = r"""uvm.VmbFSBootFiles(
    os_files_path="C:\\os", os_relative_boot_directory="boot", scratch_vhd_path="C:\\os\\scratch.vhdx"
)"""
WINDOWS = f"{VM.replace('make()', f'uvm.WCOWOptions(boot_files={FILES})')}"

#: What one VM that has no device needs of no kind.
UNUSED = {
    *("uvm.cli", "uvm.testing", "uvm.backends.hcs", "uvm._hcsguest", "uvm.options.hcsshim", "trio"),
    *(f"uvm._buses.{bus}" for bus in ("directories", "layers", "network", "pipes", "plan9", "scsi")),
    *(f"uvm._buses.{bus}" for bus in ("vpci", "vpmem", "vsmb")),
    *(f"uvm._vm.{part}" for part in ("attached", "layers", "pool")),
    # Of the standard library, what takes as long as a package of ours.
    *("email", "importlib.metadata", "importlib.resources", "tempfile", "zipfile"),
}
LINUX_ONLY = {"uvm._document.lcow", "uvm.backends.fake.guest.linux"}
WINDOWS_ONLY = {
    *("uvm._document.wcow", "uvm._guest.etw", "uvm._vm.logforwarding", "uvm.options.wcow"),
    "uvm.backends.fake.guest.windows",
}


def loaded_by(*modules: str) -> set[str]:
    """The modules that a fresh interpreter gains by importing these."""
    return loaded_running(f"import {', '.join(modules)}")


def loaded_running(program: str) -> set[str]:
    """The modules that a fresh interpreter gains by a program."""
    program = f"import json, sys; bare = {{*sys.modules}}\n{program}\n"
    program += "print(json.dumps([*({*sys.modules} - bare)]))"
    run = subprocess.run([sys.executable, "-E", "-s", "-c", program], stdout=subprocess.PIPE, check=True)
    return set(json.loads(run.stdout))


@pytest.fixture(scope="module")
def first_linux_vm() -> set[str]:
    return loaded_running(LINUX)


@pytest.fixture(scope="module")
def anyios_own() -> set[str]:
    """What ``import anyio`` loads by itself, which before 4.15 is much."""
    return loaded_by("anyio")


@pytest.fixture(scope="module")
def loops_own(anyios_own: set[str]) -> set[str]:
    """What a running event loop loads by itself, on Windows ``tempfile`` too."""
    return anyios_own | loaded_by("asyncio")


def test_import_uvm_loads_nothing_else() -> None:
    assert loaded_by("uvm") == {"uvm"}


def test_the_simulation_is_loaded_only_with_its_own_name() -> None:
    assert not {"uvm.backends.fake", "uvm.cli", "uvm.testing"} & loaded_by("uvm._public")


def test_a_first_linux_vm_loads_nothing_that_it_does_not_need(
    first_linux_vm: set[str], loops_own: set[str]
) -> None:
    assert first_linux_vm >= LINUX_ONLY
    assert (UNUSED | WINDOWS_ONLY) & first_linux_vm - loops_own == set()


NETWORK = """
import anyio, uvm

NAMESPACE = "4d6a3c5a-7f63-4b8e-9d2a-6a0f5a0c1e11"

async def main():
    backend = uvm.FakeBackend()
    backend.network.add_namespace({"ID": NAMESPACE})
    async with uvm.UtilityVM.create(uvm.LCOWOptions(network_config_proxy=PROXY), backend=backend) as vm:
        await vm.start()
        setup = vm.network_setup()
        try:
            await setup.setup(NAMESPACE)
        except uvm.errors.RPCError:
            pass

anyio.run(main)
"""


def test_the_protocol_of_proxies_is_loaded_only_for_a_vm_with_one() -> None:
    of_proxies = ("google.protobuf", "uvm._ttrpc", "uvm._ncproxy")
    with_one = loaded_running(NETWORK.replace("PROXY", repr(r"\\.\pipe\ncproxy")))
    assert with_one >= {*of_proxies}
    without = loaded_running(NETWORK.replace("PROXY", "''"))
    assert [name for name in without if name.startswith(of_proxies)] == []


def test_an_event_loop_is_loaded_only_when_one_runs(first_linux_vm: set[str], anyios_own: set[str]) -> None:
    first_use = loaded_running("import uvm; uvm.UtilityVM, uvm.FakeBackend(), uvm.LCOWOptions()")
    assert {"asyncio", "socket", "ssl", "subprocess", "trio"} & first_use - anyios_own == set()
    assert "asyncio" in first_linux_vm


def test_a_first_windows_vm_loads_nothing_that_it_does_not_need(loops_own: set[str]) -> None:
    loaded = loaded_running(WINDOWS)
    assert loaded >= WINDOWS_ONLY
    assert (UNUSED | LINUX_ONLY) & loaded - loops_own == set()


def test_the_names_that_come_first_load_no_more_than_a_first_linux_vm(first_linux_vm: set[str]) -> None:
    assert loaded_by("uvm._public_first") <= first_linux_vm


def test_every_module_that_a_first_vm_has_to_do_without_exists() -> None:
    assert [name for name in UNUSED | LINUX_ONLY | WINDOWS_ONLY if find_spec(name) is None] == []


def test_a_name_that_uvm_lacks_is_an_attribute_error() -> None:
    name = "no_such_name"
    with pytest.raises(AttributeError, match=name):
        getattr(uvm, name)


@pytest.fixture(scope="module")
def device_sources() -> dict[str, ast.Module]:
    """The syntax trees of the device machines and of all of uvm that importing them loads."""
    names = [f"uvm.devices.{module.name}" for module in iter_modules(uvm.devices.__path__)]
    assert names
    loaded = [name for name in loaded_by("uvm.devices", *names) if name.partition(".")[0] == "uvm"]
    return {name: syntax_of(name) for name in sorted(loaded)}


def syntax_of(module: str) -> ast.Module:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def impure_modules() -> set[str]:
    """The list of the import contract, so that there is only one."""
    settings = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    [forbidden] = [
        contract["forbidden_modules"] for contract in contracts if contract["id"] == "pure-devices"
    ]
    return set(forbidden)


def imported_in(tree: ast.Module) -> Iterator[str]:
    """The top-level package of each absolute import, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def called_in(tree: ast.Module) -> Iterator[str]:
    """The plain names that are called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id


def test_devices_load_nothing_that_imports_something_impure(device_sources: dict[str, ast.Module]) -> None:
    impure = impure_modules()
    found = {name: impure.intersection(imported_in(tree)) for name, tree in device_sources.items()}
    assert {name: modules for name, modules in found.items() if modules} == {}


def test_devices_hold_no_async_code(device_sources: dict[str, ast.Module]) -> None:
    found = [
        name for name, tree in device_sources.items() if any(isinstance(n, ASYNC) for n in ast.walk(tree))
    ]
    assert found == []


def test_devices_call_no_builtin_with_effects(device_sources: dict[str, ast.Module]) -> None:
    found = {
        name: BUILTINS_WITH_EFFECTS.intersection(called_in(tree)) for name, tree in device_sources.items()
    }
    assert {name: calls for name, calls in found.items() if calls} == {}


def modules_of_uvm() -> dict[str, ast.Module]:
    """Every module of uvm with its syntax tree."""
    root = Path(uvm.__file__).parent
    found = {}
    for path in root.rglob("*.py"):
        parts = ("uvm", *path.relative_to(root).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports_between(modules: dict[str, ast.Module]) -> dict[str, set[str]]:
    """The modules that each module imports: those for type checkers and those in functions too."""
    edges: dict[str, set[str]] = {name: set() for name in modules}
    for name, tree in modules.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                edges[name] |= {alias.name for alias in node.names if alias.name in modules}
            elif isinstance(node, ast.ImportFrom) and node.module in modules:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                # What is no module is a name in the package itself.
                edges[name] |= inner & modules.keys()
                edges[name] |= {node.module} if inner - modules.keys() else set()
    return edges


def circles(edges: dict[str, set[str]]) -> list[set[str]]:
    """The groups of modules that reach each other."""

    def reached(name: str) -> set[str]:
        seen: set[str] = set()
        todo = [name]
        while todo:
            new = edges[todo.pop()] - seen
            seen |= new
            todo += new
        return seen

    reach = {name: reached(name) for name in edges}
    groups = {frozenset(other for other in reach[name] if name in reach[other]) for name in edges}
    return sorted((set(group) for group in groups if group), key=sorted)


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "d"}, "e": set()}) == [
        {"a", "b", "c"},
        {"d"},
    ]


def test_no_modules_import_each_other_in_a_circle() -> None:
    edges = imports_between(modules_of_uvm())
    # For type checkers the package names what _public has; at run time it looks there.
    edges["uvm"] = set()
    assert circles(edges) == []
