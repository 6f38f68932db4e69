"""The conformance suite on HCS: the library, cffi, the C ABI, and behind it the in-memory host."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import pytest
from attrs import define, evolve, field

from tests.backends.fake.support import host_files
from tests.backends.hcs.harness import Host as Hosted
from tests.backends.hcs.harness import hosted, require_double
from tests.backends.loops import on_both_loops
from uvm.backends.fake import FakeBackend
from uvm.backends.hcs.backend import HCSBackend
from uvm.backends.hcs.dlls import Library
from uvm.hresult import HResult
from uvm.testing.backends import Control, FakeHost, Rig, Scenario

#: Both loops in CI, one of them elsewhere.
LOOPS = ("asyncio", "trio") if os.environ.get("HYPOTHESIS_PROFILE") == "ci" else ("asyncio",)
#: A Linux VM with our own connection calls no function that the two other kinds do not call: what the library
#: makes of the faults in its requests is seen on the fake.
AS_OTHERS = "any_call_of_a_linux_vm_"
CASES = [
    (loop, scenario)
    for loop, scenario in on_both_loops()
    if loop in LOOPS and not scenario.name.startswith(AS_OTHERS)
]

pytestmark = pytest.mark.anyio

#: The functions that ask the host, by their operations in the suite.
FUNCTIONS = {
    "enumerate": "HcsEnumerateComputeSystems",
    "create": "HcsCreateComputeSystem",
    "open": "HcsOpenComputeSystem",
    "start": "HcsStartComputeSystem",
    "shutdown": "HcsShutDownComputeSystem",
    "terminate": "HcsTerminateComputeSystem",
    "crash": "HcsCrashComputeSystem",
    "pause": "HcsPauseComputeSystem",
    "resume": "HcsResumeComputeSystem",
    "save": "HcsSaveComputeSystem",
    "properties": "HcsGetComputeSystemProperties",
    "modify": "HcsModifyComputeSystem",
    "create process": "HcsCreateProcess",
    "open process": "HcsOpenProcess",
    "terminate process": "HcsTerminateProcess",
    "signal process": "HcsSignalProcess",
    "process properties": "HcsGetProcessProperties",
    "modify process": "HcsModifyProcess",
    "service properties": "HcsGetServiceProperties",
    "modify service": "HcsModifyServiceSettings",
    "grant": "HcsGrantVmAccess",
    "revoke": "HcsRevokeVmAccess",
    "namespace": "HcnOpenNamespace",
    "endpoint": "HcnOpenEndpoint",
    "namespace endpoints": "HcnQueryNamespaceProperties",
    "delete namespace": "HcnDeleteNamespace",
    "add endpoint": "HcnModifyNamespace",
}
#: Wine 8 makes any number of first instances of a pipe.
NOT_UNDER_WINE = frozenset({"a_pipe_has_one_listener_however_its_path_is_spelled"})
ASKING = frozenset(FUNCTIONS.values())


class Watched:
    """The functions of a DLL; a hook runs before each that asks the host."""

    def __init__(self, functions: Any) -> None:
        self._functions = functions
        self.before: Callable[[str], None] = lambda name: None

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._functions, name)
        if name not in ASKING:
            return function

        def call(*args: Any) -> Any:
            self.before(name)
            return function(*args)

        return call


@functools.cache
def watched() -> tuple[Library[Any], Library[Any]]:
    """Return the two DLLs of the double, watched; cached, because a loaded DLL is never unloaded."""
    double = require_double()
    return tuple(evolve(each, functions=Watched(each.functions)) for each in (double.core, double.network))  # type: ignore[return-value]


@define(eq=False)
class HCSHost(FakeHost):
    """The in-memory host behind the double; calls can also fail in the C API itself."""

    hosted: Hosted = field(kw_only=True)

    def refuse(self, code: int = HResult.E_FAIL, *, operation: str = "", nth: int = 0) -> None:
        """Have the function itself return the code, without asking the host."""
        self._plan(lambda name: self.hosted.faults.at_once(name, code), operation, nth)

    def answer_twice(self, *, operation: str = "", nth: int = 0) -> None:
        """Have the completion callback arrive twice."""
        self._plan(self.hosted.faults.twice, operation, nth)

    def undisturbed(self) -> None:
        """Undo these too."""
        super().undisturbed()
        for library in watched():
            library.functions.before = lambda name: None

    def leftovers(self) -> list[str]:
        """Return what is left on the host, and in the C API."""
        return [*super().leftovers(), *self.hosted.double.leaks()]

    def _plan(self, fault: Callable[[str], None], operation: str, nth: int) -> None:
        seen = 0

        def before(name: str) -> None:
            nonlocal seen
            if operation and name != FUNCTIONS[operation]:
                return
            seen += 1
            if not nth or seen == nth:
                fault(name)

        for library in watched():
            library.functions.before = before


@pytest.mark.parametrize(("anyio_backend", "scenario"), CASES, ids=str, indirect=["anyio_backend"])
async def test_hcs_conforms(scenario: Scenario) -> None:
    if "UVM_WINE" in os.environ and scenario.name in NOT_UNDER_WINE:
        pytest.skip("Wine lacks it")
    fake = FakeBackend(files=host_files())
    async with hosted(fake) as host:
        core, network = watched()
        platform = evolve(host.platform, core=core, network=network, grace_seconds=2)
        async with HCSBackend(platform=platform) as backend:
            control = HCSHost(fake, frozenset(Control) - {Control.LOSS}, hosted=host)
            rig = Rig(backend, control, control.linux(), control.windows())
            if missing := scenario.lacks(rig):
                pytest.skip(f"the rig lacks {', '.join(missing)}")
            try:
                await scenario.play(rig)
            finally:
                control.undisturbed()
