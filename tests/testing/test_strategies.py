"""What the strategies make is valid; and the machine that users extend finds what is wrong."""

from __future__ import annotations

from typing import Any, Literal

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

import uvm
from uvm.backends.fake import FakeBackend
from uvm.testing import strategies as uvm_st
from uvm.testing.clocks import run_without_waiting
from uvm.testing.machines import VMMachine
from uvm.testing.types import register
from uvm.testing.vms import put_boot_files, windows_options

strategies_of_options = uvm_st.options()
SCRIPTS: st.SearchStrategy[tuple[Any, uvm_st.DeviceScript]] = st.one_of(
    st.tuples(st.just(uvm.LCOWOptions()), uvm_st.device_scripts("linux")),
    st.tuples(st.just(windows_options()), uvm_st.device_scripts("windows")),
)
#: Each boots a VM.
few = settings(max_examples=40)


def host() -> FakeBackend:
    backend = FakeBackend()
    put_boot_files(backend)
    return backend


@few
@given(options=strategies_of_options)
def test_any_options_boot_a_vm(options: uvm.LCOWOptions | uvm.WCOWOptions) -> None:
    backend = host()

    async def run() -> None:
        async with uvm.UtilityVM.create(options, backend=backend) as vm:
            await vm.start()
            assert (await vm.run(["true"])).exit_code == 0

    run_without_waiting(run, backend="asyncio")
    assert backend.leftovers() == []


@few
@given(made=SCRIPTS, fault=st.none() | uvm_st.faults())
def test_any_script_plays_and_only_a_fault_has_a_step_fail(
    made: tuple[Any, uvm_st.DeviceScript], fault: uvm_st.Fault | None
) -> None:
    (options, script), backend = made, host()
    script.prepare(backend)

    async def run() -> None:
        async with uvm.UtilityVM.create(options, backend=backend) as vm:
            await vm.start()
            applied = fault.apply(backend) if fault else None
            outcomes = await script.play(vm)
            assert len(outcomes) == len(script.steps)
            assert (applied and applied.fired) or not any(outcomes), outcomes
            backend.faults.clear()

    run_without_waiting(run, backend="asyncio")
    assert backend.leftovers() == []


@few
@given(data=st.data())
def test_any_mount_is_one_that_the_guest_can_have(data: st.DataObject) -> None:
    os: Literal["linux", "windows"] = data.draw(st.sampled_from(["linux", "windows"]))
    mount = data.draw(uvm_st.mounts(os))
    backend = host()
    backend.files.add(r"C:\disk.vhdx")

    async def run() -> None:
        options = uvm.LCOWOptions() if os == "linux" else windows_options()
        async with uvm.UtilityVM.create(options, backend=backend) as vm:
            await vm.start()
            await vm.scsi.attach(r"C:\disk.vhdx", mount=mount)

    run_without_waiting(run, backend="asyncio")


@pytest.mark.parametrize("kind", [uvm.LCOWOptions, uvm.WCOWOptions, uvm.Mount])
def test_hypothesis_knows_the_types(kind: type) -> None:
    register()
    made = find(st.from_type(kind), lambda value: True)
    assert isinstance(made, kind)


def test_given_fields_are_always_drawn() -> None:
    @few
    @given(options=uvm_st.lcow_options(memory_mb=st.just(512), allow_overcommit=st.just(False)))
    def check(options: uvm.LCOWOptions) -> None:
        assert (options.memory_mb, options.allow_overcommit) == (512, False)

    check()


class _Tidy(VMMachine):
    """A user's machine that does no harm."""

    @rule()
    def look(self) -> None:
        assert self.call(self.vm.settled) is None


class _Leaky(VMMachine):
    """A user's machine that has the host hold what the VM knows nothing of."""

    @rule()
    def leak(self) -> None:
        self.backend.files.add(r"C:\leaked.vhdx")
        self.call(self.backend.grant_access, r"C:\leaked.vhdx", "another")


_QUICK = settings(
    max_examples=10, stateful_step_count=10, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)


def test_a_machine_with_rules_of_ones_own_holds() -> None:
    run_state_machine_as_test(_Tidy, settings=_QUICK)


def test_a_machine_finds_what_is_left_on_the_host() -> None:
    with pytest.raises(AssertionError):
        run_state_machine_as_test(_Leaky, settings=_QUICK)


@pytest.mark.skipif(hypothesis.__version_info__ < (6, 150), reason="hypothesis shows all fields")
def test_a_failure_shows_options_as_they_are_written() -> None:
    @settings(max_examples=1, database=None, phases=[Phase.generate])
    @given(options=uvm_st.lcow_options(memory_mb=st.just(512)), fault=uvm_st.faults())
    def fails(options: uvm.LCOWOptions, fault: uvm_st.Fault) -> None:
        raise ValueError

    # No lambdas, and neither the fields that were not drawn nor the numbers of result codes.
    with pytest.raises(ValueError, match=r"options=LCOWOptions\(\s*memory_mb=512(?s:.*)=Fault\(\s*'\w+',"):
        fails()
