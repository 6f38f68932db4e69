"""Every parameter of every method of a VM and its devices is checked before anything is sent."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import anyio
import pytest

import uvm
from tests.vm.support import OPTIONS, host_backend
from uvm._vm.keywords import CreationSettings
from uvm.backends.fake import FakeBackend, FakeProcess

pytestmark = pytest.mark.anyio

_GUID = "6fb1ab1e-3c4b-4d8d-8d0c-2d6a4a9b8c11"
_GUEST_PATHS = {"linux": "/mnt/x", "windows": "C:\\x"}
#: Of no parameter's type.
_WRONG = (object(), int, 1.5)
_BUSES = ("scsi", "vpmem", "plan9", "vsmb", "vpci", "pipes", "network", "layers")
#: Times may have a fraction, a service may be set to any JSON value, and a class can be called.
_FITTING = {
    ("timeout_seconds", 1.5),
    ("settings", 1.5),
    ("timeout", 1.5),
    ("on_stdout", int),
    ("on_stderr", int),
}


def _right(os: str) -> dict[str, Any]:
    spec = {"process": {"args": ["x"]}, "linux": {}, "root": {"path": "/r"}}
    layer: Any = "C:\\layer.vhd" if os == "linux" else uvm.WCOWLayer("C:\\layer", id=_GUID)
    return {
        "path": "C:\\disk.vhdx",
        "scratch_path": "C:\\disk.vhdx",
        "guest_path": _GUEST_PATHS[os],
        "root": _GUEST_PATHS[os],
        "layers": [layer],
        "args": ["true"],
        "read_only": True,
        "spec": spec,
        "request": {},
        "service": uvm.HvSocketService(),
        "service_id": _GUID,
        "namespace_id": _GUID,
    }


#: They are anyio's own, or take a task group.
_NOT_OURS = ("extra", "serve")


def _methods(holder: object) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in dir(type(holder)):
        static = inspect.getattr_static(type(holder), name)
        if not name.startswith("_") and name not in _NOT_OURS and inspect.isfunction(static):
            yield name, getattr(holder, name)


def _cases(holder: object, os: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    for name, method in _methods(holder):
        parameters = inspect.signature(method).parameters.values()
        needed = {p.name: _right(os).get(p.name, "x") for p in parameters if p.default is p.empty}
        for each in parameters:
            if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
                continue
            for value in _WRONG:
                if (each.name, value) not in _FITTING:
                    arguments = {**_keywords(parameters, needed), each.name: value}
                    yield f"{name}({each.name}={value!r})", lambda m=method, a=arguments: m(**a)  # type: ignore[misc]


def _keywords(parameters: Any, needed: dict[str, Any]) -> dict[str, Any]:
    variable = {p.name for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    return {name: value for name, value in needed.items() if name not in variable}


async def _outcome(backend: FakeBackend, call: Callable[[], Any]) -> str:
    """Return what is wrong with how a wrong argument was refused; empty if nothing is."""
    before = len(backend.request_log)
    try:
        with anyio.fail_after(5):
            made = call()
            if isinstance(made, Awaitable):
                await made
    except (uvm.OptionsError, uvm.SchemaError, uvm.NotSupportedError):
        sent = len(backend.request_log) - before
        return f"{sent} requests were sent" if sent else ""
    except Exception as error:
        return f"{error!r}"
    return "it was accepted"


async def _wait_for_input(process: FakeProcess) -> int:
    async for _ in process.stdin:
        pass
    return 0


async def _served(vm: uvm.UtilityVM) -> dict[str, object]:
    """Return what a guest serves: a container, its process with its streams, and the connection itself."""
    document = {"Container": {"Storage": {"Path": "C:\\root"}}}
    spec = {"process": {"args": ["server"], "cwd": "/"}, "linux": {}, "root": {"path": "/r"}}
    container = await vm.create_container("c1", spec if vm.os == "linux" else document)
    await container.start()
    process = await container.open_process(["server"])
    streams = {"stdin": process.stdin, "stdout": process.stdout, "stderr": process.stderr}
    connection = {"guest": vm._link.guest} if isinstance(vm._link.guest, uvm.GuestConnection) else {}
    return {"container": container, "process": process, **streams, **connection}


@pytest.mark.parametrize("way", ["bridge", "relay"])
@pytest.mark.parametrize("os", ["linux", "windows"])
async def test_a_wrong_argument_is_refused_before_anything_is_sent(os: str, way: str) -> None:
    backend = host_backend()
    backend.programs.register("server")(_wait_for_input)
    wrong = []
    options = OPTIONS[os](external_guest_connection=way == "bridge")
    async with uvm.UtilityVM.create(options, backend=backend) as vm:
        await vm.start()
        buses = {each: getattr(vm, each) for each in _BUSES}
        for name, holder in {"vm": vm, **buses, **await _served(vm)}.items():
            for case, call in _cases(holder, os):
                if problem := await _outcome(backend, call):
                    wrong.append(f"{name}.{case}: {problem}")
    assert wrong == [], "\n".join(wrong)


_POOL = {
    "options": (*_WRONG, uvm.LCOWOptions, None),
    "backend": (*_WRONG, FakeBackend, None),
    "ready": (object(), int, 1.5, 0, None),
    "max_size": (object(), int, 1.5, 0),
    "max_uses": (object(), int, 1.5, 0, None),
    "max_age_seconds": (object(), int, 0, "1"),
    "prepare": (object(), int, 1.5),
    "check": (object(), int, 1.5),
    "clones": (object(), 1, "yes", None),
    "prepare_template": (object(), int, 1.5),
    "hook_seconds": (object(), int, "1", 0, None),
    "concurrency": (*_WRONG, uvm.Concurrency),
    "timeouts": (*_WRONG, uvm.GuestTimeouts),
    "amend": _WRONG,
    "guest_output": _WRONG,
    "close_grace_seconds": (object(), int, "1", -1, None),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in _POOL for value in _POOL[name]])
def test_a_pool_is_not_made_of_a_wrong_argument(name: str, value: Any) -> None:
    arguments: dict[str, Any] = {"options": uvm.LCOWOptions(), "backend": FakeBackend(), name: value}
    with pytest.raises(uvm.OptionsError, match=name):
        uvm.Pool(arguments.pop("options"), **arguments)


def test_every_parameter_of_a_pool_is_tried() -> None:
    own = {name for name in inspect.signature(uvm.Pool).parameters if name != "settings"}
    assert _POOL.keys() == own | CreationSettings.__annotations__.keys()
    assert inspect.signature(uvm.UtilityVM.create).parameters.keys() - {"options", "backend"} == set(
        CreationSettings.__annotations__
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backend", FakeBackend),
        ("backend", None),
        ("backend", 5),
        ("backend", object()),
        ("options", uvm.LCOWOptions),
        ("options", None),
        ("concurrency", uvm.Concurrency),
        ("concurrency", 1),
        ("timeouts", 5),
        ("timeouts", uvm.GuestTimeouts),
        ("amend", 5),
        ("guest_output", "out"),
        ("close_grace_seconds", "1"),
        ("close_grace_seconds", -1),
    ],
)
async def test_a_vm_is_not_created_of_a_wrong_argument(name: str, value: Any) -> None:
    backend = FakeBackend()
    arguments = {"options": uvm.LCOWOptions(), "backend": backend, name: value}
    with pytest.raises(uvm.OptionsError, match=name):
        async with uvm.UtilityVM.create(arguments.pop("options"), **arguments):
            pass
    assert len(backend.request_log) == 0


async def test_paths_may_be_objects() -> None:
    backend = host_backend()
    backend.files.add(PureWindowsPath("C:\\objects\\disk.vhdx"), size=1 << 20)
    backend.files.add_directory(PureWindowsPath("C:\\objects"))
    async with uvm.UtilityVM.create(OPTIONS["linux"](), backend=backend) as vm:
        await vm.start()
        path = PureWindowsPath("C:\\objects\\disk.vhdx")
        lease = await vm.scsi.attach(path, mount=uvm.Mount(guest_path=PurePosixPath("/mnt/disk")))
        assert lease.guest_path == "/mnt/disk"
        assert vm.scsi.find(path) is not None
        assert backend.files.is_open(str(path))
        share = await vm.share(path.parent, PurePosixPath("/mnt/share"))
        assert share.host_path == "C:\\objects"
        for wrong in (PurePosixPath("/objects"), PureWindowsPath("objects"), "/objects"):
            with pytest.raises(uvm.OptionsError, match="host path"):
                await vm.scsi.attach(wrong)
        for wrong in (PureWindowsPath("C:\\mnt"), "mnt", "C:\\mnt"):
            with pytest.raises(uvm.OptionsError, match="guest path"):
                await vm.share(path.parent, wrong)
