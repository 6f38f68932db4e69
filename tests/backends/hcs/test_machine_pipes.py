"""The handles of named pipes: what Windows is asked for, its clean-up, and Windows's own answers."""

from __future__ import annotations

import os
import sys
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from attrs import define, field

from tests.backends.hcs.windows_dlls import ACCESS_DENIED, INVALID_HANDLE
from uvm.backends.hcs._bindings.advapi32 import ffi as advapi_ffi
from uvm.backends.hcs._bindings.kernel32 import ffi
from uvm.backends.hcs.windows.dlls import SystemLibrary
from uvm.backends.hcs.windows.pipes import PipeHandles
from uvm.errors import HostError, HostPathError
from uvm.hresult import HResult

PATH = r"\\.\pipe\computeagent-c1"
DESCRIPTOR = 0x40
DUPLEX, OVERLAPPED, FIRST_INSTANCE, REJECT_REMOTE_CLIENTS = 0x3, 0x40000000, 0x80000, 0x8
QUALITY_OF_SERVICE_ANONYMOUS = 0x100000


@define(eq=False)
class Pipes:
    """A stand-in for the functions that make pipes, which counts what has to be freed.

    :ivar failing: the function that fails.
    """

    failing: str = ""
    held: list[str] = field(factory=list)
    descriptors: list[str] = field(factory=list)
    made: list[tuple[str, int, int]] = field(factory=list)
    opened: list[tuple[str, int, int]] = field(factory=list)

    @property
    def handles(self) -> PipeHandles:
        def error(code: int) -> tuple[int, str]:
            return (ACCESS_DENIED if code == -1 else code), "as refused"

        me: Any = self
        return PipeHandles(SystemLibrary(me, ffi, error), SystemLibrary(me, advapi_ffi, error))

    def ConvertStringSecurityDescriptorToSecurityDescriptorW(
        self, text: Any, revision: int, descriptor: Any, size: Any
    ) -> int:
        assert (revision, size) == (1, advapi_ffi.NULL)
        if self.failing == "Convert":
            return 0
        self.held.append("descriptor")
        self.descriptors.append(advapi_ffi.string(text))
        descriptor[0] = advapi_ffi.cast("PSECURITY_DESCRIPTOR", DESCRIPTOR)
        return 1

    def CreateNamedPipeW(self, path: Any, mode: int, kind: int, *rest: Any) -> Any:
        instances, _, _, _, security = rest
        assert instances == 255
        assert security.nLength == ffi.sizeof("SECURITY_ATTRIBUTES")
        assert int(ffi.cast("uintptr_t", security.lpSecurityDescriptor)) == DESCRIPTOR
        assert not security.bInheritHandle
        assert self.held == ["descriptor"]
        self.made.append((ffi.string(path), mode, kind))
        return INVALID_HANDLE if self.failing == "Create" else ffi.cast("HANDLE", 4)

    def CreateFileW(self, path: Any, access: int, share: int, *rest: Any) -> Any:
        assert (share, rest[1]) == (0, 3)
        self.opened.append((ffi.string(path), access, rest[2]))
        return INVALID_HANDLE if self.failing == "Open" else ffi.cast("HANDLE", 8)

    def LocalFree(self, memory: Any) -> Any:
        assert int(ffi.cast("uintptr_t", memory)) == DESCRIPTOR
        self.held.remove("descriptor")
        return ffi.NULL


def test_an_instance_is_for_the_system_and_administrators_of_this_machine_alone() -> None:
    pipes = Pipes()
    assert pipes.handles.serve(PATH, first=True) == 4
    assert pipes.descriptors == ["D:P(A;;GA;;;SY)(A;;GA;;;BA)"]
    assert pipes.made == [(PATH, DUPLEX | OVERLAPPED | FIRST_INSTANCE, REJECT_REMOTE_CLIENTS)]
    assert pipes.held == []


def test_only_the_first_instance_asks_to_be_the_first() -> None:
    pipes = Pipes()
    pipes.handles.serve(PATH, first=False)
    assert pipes.made == [(PATH, DUPLEX | OVERLAPPED, REJECT_REMOTE_CLIENTS)]


@pytest.mark.parametrize("failing", ["Convert", "Create"])
def test_what_windows_refuses_leaves_nothing(failing: str) -> None:
    pipes = Pipes(failing)
    with pytest.raises(HostError, match=r"listen at .*computeagent-c1: E_ACCESSDENIED") as caught:
        pipes.handles.serve(PATH, first=True)
    assert caught.value.hresult == HResult.E_ACCESSDENIED
    assert pipes.held == []


def test_the_server_of_a_pipe_cannot_act_as_its_client() -> None:
    pipes = Pipes()
    assert pipes.handles.dial(PATH) == 8
    assert pipes.opened == [(PATH, 0xC0000000, OVERLAPPED | QUALITY_OF_SERVICE_ANONYMOUS)]


def test_a_pipe_that_cannot_be_opened_is_said() -> None:
    with pytest.raises(HostError, match=r"dial .*computeagent-c1: E_ACCESSDENIED"):
        Pipes("Open").handles.dial(PATH)


def test_a_path_that_c_would_cut_is_refused() -> None:
    with pytest.raises(HostPathError):
        Pipes().handles.dial(PATH + "\0x")


windows_only = pytest.mark.skipif(sys.platform != "win32", reason="named pipes are Windows's")


@windows_only
@pytest.mark.skipif("UVM_WINE" in os.environ, reason="Wine 8 makes any number of first instances")
@pytest.mark.anyio
async def test_windows_has_one_first_instance() -> None:
    from uvm.backends.hcs.pipes import NamedPipes
    from uvm.backends.hcs.windows.pipes import windows_pipes

    pipes = NamedPipes()
    path = rf"\\.\pipe\uvm-test-{id(pipes):x}"
    listener = await pipes.listen(path)
    with pytest.raises(HostError) as caught:
        windows_pipes().serve(path, first=True)
    assert caught.value.hresult == HResult.E_ACCESSDENIED
    await listener.aclose()
    pipes.close()


@windows_only
@pytest.mark.anyio
async def test_a_client_that_has_left_is_passed_over() -> None:
    from uvm.backends.hcs.pipes import NamedPipes

    pipes = NamedPipes()
    path = rf"\\.\pipe\uvm-test-{id(pipes):x}"
    listener = await pipes.listen(path)
    await (await pipes.dial(path)).aclose()

    async def dial() -> None:
        stream = await pipes.dial(path)
        await stream.send(b"here")
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()

    received: list[bytes] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(dial)
        while received != [b"here"]:
            # What has left is skipped by Windows's own refusal, or is a stream that has ended.
            stream = await listener.accept()
            try:
                received.append(await stream.receive())
            except anyio.EndOfStream:
                continue
            finally:
                await stream.aclose()
    await listener.aclose()
    pipes.close()


@windows_only
@pytest.mark.anyio
async def test_closing_ends_an_accept_and_a_dial_waits_while_a_pipe_is_busy() -> None:
    from uvm.backends.hcs.pipes import NamedPipes

    pipes = NamedPipes()
    path = rf"\\.\pipe\uvm-test-{id(pipes):x}"
    listener = await pipes.listen(path)
    first = await pipes.dial(path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pipes.dial, path)
        await anyio.lowlevel.checkpoint()
        servers = [await listener.accept(), await listener.accept()]
    async with anyio.create_task_group() as tasks:

        async def accept() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await listener.accept()

        tasks.start_soon(accept)
        await anyio.wait_all_tasks_blocked()
        await listener.aclose()
    for stream in (first, *servers):
        await stream.aclose()
    pipes.close()
    with pytest.raises(anyio.ClosedResourceError):
        await pipes.listen(path)
