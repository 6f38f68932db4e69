"""The fixtures, in a package of a user's own: under each plugin that runs async tests, and under none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

#: A user's tests. The names of those that must fail say so.
TESTS = r"""
import anyio
import pytest
import pytest_asyncio
import uvm

pytest_plugins = []
DISK = r"C:\vm\disk.vhdx"


async def use(linux_vm, windows_vm, uvm_files):
    uvm_files.add(DISK)
    async with linux_vm(memory_mb=512) as vm, windows_vm(processors=1) as other:
        assert (vm.os, other.os, vm.options.memory_mb) == ("linux", "windows", 512)
        await vm.scsi.attach(DISK)
        assert (await other.run(["echo", "hello"])).stdout == b"hello\n"


@pytest.mark.anyio
async def test_under_anyio(linux_vm, windows_vm, uvm_files):
    await use(linux_vm, windows_vm, uvm_files)


@pytest.mark.asyncio
async def test_under_pytest_asyncio(linux_vm, windows_vm, uvm_files):
    await use(linux_vm, windows_vm, uvm_files)


@pytest.mark.trio
async def test_under_pytest_trio(linux_vm, windows_vm, uvm_files):
    await use(linux_vm, windows_vm, uvm_files)


@pytest_asyncio.fixture
async def fixed_asyncio_vm(linux_vm):
    async with linux_vm() as vm:
        yield vm


@pytest.mark.asyncio
async def test_in_a_fixture_of_pytest_asyncio(fixed_asyncio_vm):
    await fixed_asyncio_vm.run(["true"])


@pytest.mark.anyio
async def test_forgets_to_close_and_fails(uvm_backend):
    await uvm.start_vm(uvm.LCOWOptions(), backend=uvm_backend)


def test_under_none(linux_vm, windows_vm, uvm_files):
    anyio.run(use, linux_vm, windows_vm, uvm_files)


def test_leaves_access_and_fails(uvm_backend, uvm_files):
    uvm_files.add(DISK)
    anyio.run(uvm_backend.grant_access, DISK, "vm1")


def test_a_fault_that_happens(uvm_backend, uvm_faults, uvm_files):
    uvm_files.add(DISK)
    uvm_faults.refuse("E_FAIL", to="grant")
    with pytest.raises(uvm.HostError):
        anyio.run(uvm_backend.grant_access, DISK, "vm1")


def test_a_fault_that_never_happens_and_fails(uvm_faults):
    uvm_faults.refuse("E_FAIL", to="grant", nth=2)
"""
#: Tests that share an event loop.
SHARED = """
import anyio
import pytest


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
async def shared_loop(anyio_backend):
    yield


@pytest.mark.anyio
async def test_cancelled_under_a_loop_that_goes_on(shared_loop, linux_vm):
    with anyio.move_on_after(0):
        async with linux_vm():
            await anyio.sleep(0)
"""
INI = """
[pytest]
asyncio_mode = strict
asyncio_default_fixture_loop_scope = function
filterwarnings = error
"""
PLUGINS = ("anyio", "pytest_asyncio.plugin", "pytest_trio.plugin", "uvm.testing.plugin")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest reports of the user's tests."""
    for plugin in ("pytest_asyncio", "pytest_trio"):
        pytest.importorskip(plugin)
    package = tmp_path_factory.mktemp("package")
    (package / "test_mine.py").write_text(TESTS, "utf-8")
    (package / "test_shared.py").write_text(SHARED, "utf-8")
    (package / "pytest.ini").write_text(INI, "utf-8")
    loaded = [argument for plugin in PLUGINS for argument in ("-p", plugin)]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-rA",
            "--tb=short",
            "-p",
            "no:cacheprovider",
            *loaded,
            str(package),
        ],
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=package,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def outcomes(report: str, name: str) -> list[str]:
    return re.findall(rf"^([A-Z]+) \S+::{name}\b", report, re.MULTILINE)


@pytest.mark.parametrize("plugin", ["anyio", "pytest_asyncio", "pytest_trio", "none"])
def test_vms_run_under_every_plugin(report: str, plugin: str) -> None:
    found = outcomes(report, f"test_under_{plugin}")
    assert found, report
    assert set(found) == {"PASSED"}, report


def test_a_vm_may_be_a_fixture_that_another_task_leaves(report: str) -> None:
    assert outcomes(report, "test_in_a_fixture_of_pytest_asyncio") == ["PASSED"], report


def test_a_vm_whose_user_is_cancelled_has_gone_when_the_test_ends(report: str) -> None:
    assert outcomes(report, "test_cancelled_under_a_loop_that_goes_on") == ["PASSED"], report


def test_a_vm_that_is_not_closed_fails_the_test_if_warnings_are_errors(report: str) -> None:
    assert {*outcomes(report, "test_forgets_to_close_and_fails")} & {"FAILED", "ERROR"}, report
    assert "was not closed before its event loop ended" in report


def test_without_trio_its_half_of_the_tests_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        """if True:
        import sys
        import pytest
        from uvm.testing.plugin import jumping_backends

        sys.modules["trio"] = None  # as if it were not installed
        pytestmark = pytest.mark.anyio
        anyio_backend = jumping_backends

        async def test_one(linux_vm):
            async with linux_vm() as vm:
                await vm.run(["true"])
        """,
        "utf-8",
    )
    loaded = [argument for plugin in ("anyio", "uvm.testing.plugin") for argument in ("-p", plugin)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", *loaded, str(tmp_path)],
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed, 1 skipped" in done.stdout, done.stdout
    assert "trio is not installed; run: pip install 'utilityvm[trio]'" in done.stdout


@pytest.mark.parametrize("module", ["strategies", "machines"])
def test_what_needs_hypothesis_names_the_extra_that_has_it(module: str) -> None:
    program = f"import sys; sys.modules['hypothesis'] = None; import uvm.testing.{module}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith("install it with: pip install 'utilityvm[testing]'")


def test_what_is_left_on_the_host_fails_the_test(report: str) -> None:
    assert outcomes(report, "test_leaves_access_and_fails") == ["PASSED", "ERROR"], report
    assert re.search(r"left on the host: access of vm1 to C:\\vm\\disk\.vhdx", report), report


def test_a_fault_has_to_happen(report: str) -> None:
    assert outcomes(report, "test_a_fault_that_happens") == ["PASSED"], report
    assert outcomes(report, "test_a_fault_that_never_happens_and_fails") == ["PASSED", "ERROR"], report
    assert "these faults never happened" in report


def test_the_plugin_loads_nothing_of_the_library_before_a_fixture_is_used() -> None:
    program = "import sys, uvm.testing.plugin; print(*sorted(m for m in sys.modules if m.startswith('uvm')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"uvm", "uvm._lazy", "uvm.testing", "uvm.testing.plugin"}


def test_the_entry_point_is_the_module_of_its_name() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    assert re.search(r'pytest11\]\n"(\S+)" = "\1"\n', project)
