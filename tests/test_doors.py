"""What callers pass is checked at the door: the error names it, and nothing was done."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

import uvm
import uvm.sync
import uvm.testing.backends
from uvm.backends.fake import Checks, Latency

_NONSENSE: tuple[Any, ...] = ("1", b"1", True, -1, math.nan, [], {}, object(), int)

_LANES = ("scsi", "vpmem", "vsmb", "plan9", "vpci", "pipes", "network")

#: Values, with what each of their fields refuses.
_REFUSED: list[tuple[Callable[..., object], dict[str, tuple[Any, ...]]]] = [
    (
        uvm.Concurrency,
        dict.fromkeys(["scsi", "vpmem", "vsmb", "plan9", "vpci", "pipes", "network"], (*_NONSENSE, 0, 1.5)),
    ),
    (
        uvm.GuestTimeouts,
        {
            **dict.fromkeys(("rpc_seconds", "container_seconds"), (*_NONSENSE, 0)),
            **dict.fromkeys(
                ("boot_seconds", "redial_seconds", "close_seconds", "vm_exit_seconds"), _NONSENSE
            ),
        },
    ),
    (
        uvm.HostInfo,
        {
            "build": _NONSENSE,
            "processors": (*_NONSENSE, 0),
            "memory_mb": _NONSENSE,
            "machine": ("x86", None, 1),
            "time_zone": ("UTC", None, []),
            "paths": ("linux", None, 1),
            "concurrency": (None, 1, uvm.Concurrency, {}),
        },
    ),
    (uvm.FileInfo, {"size": _NONSENSE, "is_dir": ("no", 1, None)}),
    (Latency, dict.fromkeys(("host_ms", "guest_ms", "grant_ms", "lifecycle_ms"), _NONSENSE)),
    (Checks, {"access": ("some", None, True), **dict.fromkeys(("host_files", "guest"), ("no", 1, None))}),
]


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [(make, name, value) for make, fields in _REFUSED for name in fields for value in fields[name]],
)
def test_a_value_refuses_a_field_that_cannot_work(
    make: Callable[..., object], name: str, value: object
) -> None:
    with pytest.raises(uvm.OptionsError, match=rf"\.{name} must be "):
        make(**{name: value})


def test_what_is_refused_is_shown_in_brief() -> None:
    long: Any = b"x" * 10**6
    for refuse in (lambda: uvm.LCOWOptions(memory_mb=long), lambda: uvm.Pool(long, backend="fake")):
        with pytest.raises(uvm.OptionsError) as caught:
            refuse()
        assert len(str(caught.value)) < 500


def test_a_time_may_be_infinite() -> None:
    assert uvm.GuestTimeouts(rpc_seconds=math.inf, close_seconds=math.inf).rpc_seconds == math.inf


@pytest.mark.parametrize(
    ("make", "wrong", "suggested"),
    [
        (uvm.LCOWOptions, "memory", "memory_mb"),
        (uvm.LCOWOptions, "processor", "processors"),
        (uvm.WCOWOptions, "memroy_mb", "memory_mb"),
        (uvm.Mount, "path", "guest_path"),
        (uvm.Mount, "readonly", None),
        (uvm.GuestTimeouts, "rpc", "rpc_seconds"),
        (uvm.HostInfo, "path", "paths"),
        (uvm.Concurrency, "plan_9", "plan9"),
        (uvm.PCIDevice, "func", "function"),
        (Latency, "host", "host_ms"),
    ],
)
def test_a_misspelt_field_gets_a_suggestion(
    make: Callable[..., object], wrong: str, suggested: str | None
) -> None:
    with pytest.raises(uvm.UnknownOptionError) as caught:
        make(**{wrong: 1})
    assert caught.value.name == wrong
    assert suggested is None or f"did you mean {suggested}" in str(caught.value)
    assert isinstance(caught.value, TypeError)


@pytest.mark.anyio
async def test_a_misspelt_keyword_of_a_call_gets_a_suggestion() -> None:
    async with uvm.UtilityVM.create(uvm.LCOWOptions(), backend=uvm.FakeBackend()) as vm:
        await vm.start()
        with pytest.raises(TypeError, match="did you mean read_only"):
            vm.scsi.attach("C:\\disk.vhdx", readonly=True)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="did you mean timeout"):
            vm.run(["true"], time_out=1)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="did you mean env"):
            vm.open_process(["true"], envs={})  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="missing"):
            vm.scsi.attach()  # type: ignore[call-arg]


_MAKERS: list[Any] = [uvm.UtilityVM.create, uvm.start_vm, uvm.Pool]


@pytest.mark.anyio
@pytest.mark.parametrize("make", _MAKERS)
@pytest.mark.parametrize(
    ("wrong", "meant"), [("timeout", "timeouts"), ("grace_seconds", "close_grace_seconds")]
)
async def test_a_misspelt_keyword_of_a_vm_gets_a_suggestion(
    make: Callable[..., Any], wrong: str, meant: str
) -> None:
    backend = uvm.FakeBackend()
    with pytest.raises(TypeError, match=f"did you mean {meant}"):
        await make(uvm.LCOWOptions(), backend=backend, **{wrong: 1})
    assert len(backend.request_log) == 0


def test_a_misspelt_keyword_of_a_pool_gets_a_suggestion() -> None:
    with pytest.raises(uvm.UnknownOptionError, match="did you mean max_age_seconds"):
        uvm.Pool(uvm.LCOWOptions(), backend="fake", max_age_second=1)  # type: ignore[call-arg]


@pytest.mark.anyio
async def test_a_keyword_that_no_call_has_suggests_none_that_a_caller_cannot_pass() -> None:
    async with uvm.start_vm(uvm.LCOWOptions(), backend="fake") as vm:
        with pytest.raises(TypeError, match=r"unexpected keyword argument 'shell'$"):
            await vm.run(["true"], shell=True)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match=r"^((?!Did).)*; did you mean read_only\?$"):
            vm.share("C:\\data", "/data", readonly=True)  # type: ignore[call-arg]


@pytest.mark.parametrize("module", [uvm, uvm.sync, uvm.testing.backends])
def test_a_module_that_lacks_a_name_is_known_to_what_suggests_another(module: Any) -> None:
    with pytest.raises(AttributeError) as caught:
        _ = module.LCOWOption
    assert (caught.value.name, caught.value.obj) == ("LCOWOption", module)


@pytest.mark.anyio
async def test_a_vm_that_is_awaited_names_what_may_be_awaited() -> None:
    with pytest.raises(TypeError, match=r"UtilityVM.create\(\) is entered with 'async with'.*uvm.start_vm"):
        await uvm.UtilityVM.create(uvm.LCOWOptions(), backend="fake")  # type: ignore[misc]
    with pytest.raises(AttributeError, match=r"UtilityVM.create.*'start': enter it first"):
        await uvm.UtilityVM.create(uvm.LCOWOptions(), backend="fake").start()  # type: ignore[attr-defined]


def test_a_rule_for_calls_to_what_is_not_there_names_what_is() -> None:
    with pytest.raises(uvm.OptionsError, match="to must be one or several of grant, revoke, host, guest, "):
        uvm.FakeBackend().faults.refuse("E_FAIL", to="hots")  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_text_in_place_of_what_is_wanted_is_answered_with_that() -> None:
    async with uvm.start_vm(uvm.LCOWOptions(), backend="fake") as vm:
        with pytest.raises(uvm.OptionsError, match=r"mount must be a Mount\(guest_path=\.\.\.\), not '/mnt'"):
            await vm.scsi.attach("C:\\disk.vhdx", mount="/mnt")  # type: ignore[arg-type]
        with pytest.raises(uvm.OptionsError, match="is bytes, not a str"):
            await vm.files.write("/note", "text")  # type: ignore[arg-type]
