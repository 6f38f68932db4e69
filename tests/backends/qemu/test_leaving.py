"""Callers that leave while a thread acquires what is to be theirs: it is released, and nothing is left."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from attrs import define, field

from tests.backends.qemu.standin import StandIn, StandInBackend, StandInLauncher
from tests.backends.qemu.test_adoption import asked, launcher, process
from tests.backends.qemu.test_vm import document, entered, kernel, left, running
from tests.descriptors import descriptors
from uvm.backend import JSON
from uvm.backends.qemu import backend as backends
from uvm.backends.qemu import saving, vm
from uvm.backends.qemu.cgroups import Cgroup
from uvm.backends.qemu.frozen import FrozenDisks
from uvm.backends.qemu.guestimage.cache import Cache, Image
from uvm.backends.qemu.inherited import Inherited
from uvm.backends.qemu.launch import Launcher
from uvm.backends.qemu.runtime import ProcessName, RuntimeDirectory
from uvm.backends.qemu.users import Chosen, Identity
from uvm.backends.waker import Signal, Waker

__all__ = ["asked", "kernel", "launcher"]

pytestmark = pytest.mark.anyio


@define(eq=False)
class Held:
    """A blocking call that has all but returned until it may."""

    begun: Signal = field(factory=lambda: Signal(Waker()))
    let: threading.Event = field(factory=threading.Event)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def held(*args: Any, **options: Any) -> Any:
            found = function(*args, **options)
            self.begun.set()
            assert self.let.wait(30)
            return found

        return held


@pytest.fixture(params=["scope", "task", "task twice"])
def how(request: pytest.FixtureRequest, anyio_backend_name: str) -> str:
    """How a caller is cancelled: by a scope of anyio's, or by asyncio, which no shield keeps off."""
    if request.param != "scope" and anyio_backend_name != "asyncio":
        pytest.skip("a matter of asyncio alone")
    return str(request.param)


async def leave(held: Held, how: str, work: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Cancel what works while it is held; it waits, so that what the thread uses is still its own."""
    if how == "scope":
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            await held.begun.wait()
            tasks.cancel_scope.cancel()
            held.let.set()
        return
    task = asyncio.create_task(work())
    await held.begun.wait()
    for _ in how.split():
        task.cancel()
        await anyio.wait_all_tasks_blocked()
    assert not task.done()
    held.let.set()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


def states(directory: Path) -> list[str]:
    """The files of saved states, finished or not."""
    return [name for name in os.listdir(directory) if name.startswith("state")]


@pytest.mark.parametrize(
    ("owner", "name"), [(RuntimeDirectory, "claim"), (Inherited, "__init__")], ids=["claim", "inherited"]
)
async def test_a_creation_that_is_cancelled_leaves_no_directory_no_user_and_no_console(
    tmp_path: Path, kernel: str, how: str, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    console = {"ComPorts": {"0": {"NamedPipe": str(tmp_path / "console")}}}
    async with entered(tmp_path) as backend:
        user = Identity(os.getuid(), os.getgid())
        backend._choose_user = lambda: Chosen(user, os.open(kernel, os.O_RDONLY))
        before, held = descriptors(), Held()
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, held.around(getattr(owner, name)))
            await leave(held, how, lambda: backend.create("vm1", document(kernel, Devices=console)))
        assert left(tmp_path) == []
        assert not (tmp_path / "console").exists()
        assert descriptors() <= before
        # Its id and its console are free.
        system = await backend.create("vm1", document(kernel, Devices=console))
        await system.terminate()
    assert left(tmp_path) == []


async def test_a_creation_that_is_cancelled_leaves_its_guest_image_to_be_pruned(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, held = Image(tmp_path / "image", {"key": "none"}), Held()
    image.directory.mkdir()
    for name in ("kernel", "initrd"):
        (image.directory / name).touch()

    async def guest_image() -> Image:
        return image

    async with entered(tmp_path) as backend:
        monkeypatch.setattr(backend._boots, "_guest_image", guest_image)
        monkeypatch.setattr(Image, "hold", held.around(Image.hold))
        await leave(held, how, lambda: backend.create("vm1", document("")))
        assert Cache(tmp_path).prune(image)


async def test_a_creation_that_is_cancelled_leaves_no_cgroup(
    tmp_path: Path, kernel: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, there = Held(), tmp_path / "made"

    def make(self: Cgroup, *_: object, **__: object) -> None:
        there.touch()

    async with StandInBackend(StandInLauncher(), tmp_path / "run", cgroup=tmp_path) as backend:
        monkeypatch.setattr(backends, "delegated", Path)
        monkeypatch.setattr(Cgroup, "make", held.around(make))
        monkeypatch.setattr(Cgroup, "remove", lambda self: there.unlink(missing_ok=True))
        # It is removed after it was made, and not before.
        await leave(held, how, lambda: backend.create("vm1", document(kernel)))
        assert not there.exists()
        assert left(tmp_path) == []


async def test_a_creation_that_is_cancelled_again_as_it_is_undone_leaves_its_id_free(
    tmp_path: Path, kernel: str, anyio_backend_name: str
) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("a matter of asyncio alone")
    asked = asyncio.Event()

    async def never(name: str, arguments: JSON) -> None:
        asked.set()
        await anyio.sleep_forever()

    def disturb(child: StandIn) -> None:
        child.disturb = never

    async with entered(tmp_path) as backend:
        backend.launcher.prepare = disturb
        task = asyncio.create_task(backend.create("vm1", document(kernel)))
        await asked.wait()
        exited = backend._vms["vm1"].lifetime.exit
        task.cancel()
        while not exited.terminated:
            await anyio.lowlevel.checkpoint()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert backend._vms == {}
        await exited.wait()
        assert left(tmp_path) == []


async def test_an_opening_that_is_cancelled_leaves_the_vm_to_the_next(
    launcher: StandInLauncher, tmp_path: Path, asked: JSON, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with process(launcher, tmp_path) as backend:
        await (await backend.create("vm1", asked)).start()
    async with process(launcher, tmp_path) as backend:
        before, held = descriptors(), Held()
        with monkeypatch.context() as patch:
            patch.setattr(RuntimeDirectory, "adopt", held.around(RuntimeDirectory.adopt))
            await leave(held, how, lambda: backend.open("vm1"))
        assert backend._vms == {}
        assert descriptors() <= before
        system = await backend.open("vm1")
        assert (await system.properties("Memory"))["State"] == "Running"
        await system.terminate()


@pytest.mark.parametrize("kind", ["AsTemplate", "ToFile"])
async def test_a_save_that_is_cancelled_leaves_no_file_and_nothing_open(
    tmp_path: Path, kernel: str, how: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, path = Held(), tmp_path / "state"

    def freeze(*_: object) -> FrozenDisks:
        return FrozenDisks([kernel], [os.open(kernel, os.O_RDONLY)])

    async with running(tmp_path, kernel, IsTemplate=kind == "AsTemplate") as (system, _):
        await system.pause()
        monkeypatch.setattr(FrozenDisks, "freeze", held.around(freeze))
        monkeypatch.setattr(saving, "_begin_file", held.around(saving._begin_file))
        before = descriptors()
        await leave(held, how, lambda: system.save({"SaveType": kind, "SaveStateFilePath": str(path)}))
        assert descriptors() <= before
        assert states(tmp_path) == []
        assert (await system.properties())["State"] == "Paused"


async def test_a_save_that_is_cancelled_as_its_file_is_finished_leaves_it_whole(
    tmp_path: Path, kernel: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, path = Held(), tmp_path / "state"
    async with running(tmp_path, kernel) as (system, _):
        await system.pause()
        monkeypatch.setattr(saving, "_finish_file", held.around(saving._finish_file))
        await leave(held, how, lambda: system.save({"SaveType": "ToFile", "SaveStateFilePath": str(path)}))
        assert states(tmp_path) == ["state"]


async def test_a_creation_that_is_cancelled_closes_the_state_that_it_starts_from(
    tmp_path: Path, kernel: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held()
    monkeypatch.setattr(vm, "open_saved", held.around(lambda *_: os.open(kernel, os.O_RDONLY)))
    asked = document(kernel, RestoreState={"SaveStateFilePath": "/state"})
    async with entered(tmp_path) as backend:
        before = descriptors()
        await leave(held, how, lambda: backend.create("vm1", asked))
        assert descriptors() <= before
        assert left(tmp_path) == []


async def test_a_qemu_whose_starter_is_cancelled_is_killed(how: str) -> None:
    starter, held = Launcher(), Held()
    pids: list[int] = []
    before = descriptors()
    await leave(held, how, lambda: starter.start(["sleep", "3600"], (), note=held.around(pids.append)))
    assert ProcessName.of(pids[0]) is None
    assert descriptors() <= before
    starter.close()
