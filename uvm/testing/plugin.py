"""Fixtures for pytest, there wherever ``utilityvm`` is installed.

They are plain fixtures, so that they work under every plugin that runs async tests (anyio's, pytest-asyncio,
pytest-trio), and without any, for synchronous programs. What is async is entered by the test itself, in the
task that leaves it. This module is loaded by every session of pytest: it imports nothing else until a fixture
is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from uvm._vm.vm import UtilityVM
    from uvm.backends.fake import FakeBackend, FakeFiles, Faults

#: The type of :func:`linux_vm` and :func:`windows_vm`.
MakeVM = Callable[..., AbstractAsyncContextManager["UtilityVM"]]


@pytest.fixture
def uvm_backend() -> Iterator[FakeBackend]:
    """Return a host in memory, on which nothing may be left when the test ends: no VM, access, endpoint."""
    from uvm.backends.fake import FakeBackend
    from uvm.testing.vms import put_boot_files

    backend = FakeBackend()
    put_boot_files(backend)
    yield backend
    if left := backend.leftovers():
        pytest.fail("left on the host: " + "; ".join(left), pytrace=False)


@pytest.fixture
def uvm_files(uvm_backend: FakeBackend) -> FakeFiles:
    """Return the files of the host: ``uvm_files.add(path, size=...)``."""
    return uvm_backend.files


@pytest.fixture
def uvm_faults(uvm_backend: FakeBackend) -> Iterator[Faults]:
    """Return the faults of the host; each rule that is in force when the test ends must have fired."""
    yield uvm_backend.faults
    if idle := [rule for rule in uvm_backend.faults.rules if not rule.fired]:
        said = (f"{rule.matcher}, which {rule.seen or 'no'} calls fit" for rule in idle)
        pytest.fail(f"these faults never happened: {'; '.join(said)}", pytrace=False)


@pytest.fixture
def linux_vm(uvm_backend: FakeBackend) -> MakeVM:
    """Return what makes a running VM with a Linux guest when it is called and entered.

    ``async with linux_vm(memory_mb=512) as vm``: it takes the fields of :class:`~uvm.LCOWOptions`; the boot
    files are there.
    """
    from uvm.options import LCOWOptions
    from uvm.testing.vms import started

    return lambda **options: started(LCOWOptions(**options), uvm_backend)


@pytest.fixture
def windows_vm(uvm_backend: FakeBackend) -> MakeVM:
    """Return what makes a running VM with a Windows guest when it is called and entered.

    ``async with windows_vm() as vm``: it takes the fields of :class:`~uvm.WCOWOptions`; the boot files are
    there.
    """
    from uvm.testing.vms import started, windows_options

    return lambda **options: started(windows_options(**options), uvm_backend)


@pytest.fixture(params=["asyncio", "trio"])
def jumping_backends(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Return both event loops, with time that jumps, a fresh one for each test.

    A module whose tests do no real I/O says ``anyio_backend = jumping_backends``, after importing it from
    here; without trio, those on it are skipped. With pytest-trio, use its own ``autojump_clock``; with
    pytest-asyncio, a loop factory that returns a :class:`~uvm.testing.clocks.JumpingLoop`.
    """
    from uvm.testing.clocks import jumping_options

    if request.param == "trio" and find_spec("trio") is None:
        pytest.skip("trio is not installed; run: pip install 'utilityvm[trio]'")
    return request.param, jumping_options(request.param)
