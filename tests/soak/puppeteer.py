"""Who answers for the hosts and guests of the soak: which call comes next, and what becomes of it."""

from __future__ import annotations

from random import Random
from typing import Final

import anyio.lowlevel
from attrs import define, field

from uvm.backends.fake import Call, FakeBackend, Gate, Parked
from uvm.hresult import HResult

__all__ = ["Puppeteer"]

#: Of so many calls one is refused, one lost though carried out, one lost before, and one crashes the VM.
_REFUSED: Final = 12
_LOST: Final = 60
_VANISHED: Final = 90
_CRASHED: Final = 400
_STARTS: Final = ("create", "start", "execute process", "create process")
_CODES: Final = (HResult.E_FAIL, HResult.E_ACCESSDENIED, HResult.HCS_E_INVALID_STATE)


@define(eq=False)
class Puppeteer:
    """Parks the calls that may go wrong, and lets them go on one by one, in random order.

    :ivar calm: the VMs of which nothing goes wrong any more.
    :ivar working: the VMs that work: what could not be revoked is revoked again when they are closed.
    :ivar unsure: the VMs in which a process or a container may be that the VM cannot end.
    """

    backend: FakeBackend
    random: Random
    calm: set[str] = field(factory=set)
    working: set[str] = field(factory=set)
    unsure: set[str] = field(factory=set)
    _gate: Gate = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._gate = self.backend.faults.hold(where=_may_go_wrong)

    async def run(self) -> None:
        """Answer, until cancelled."""
        while True:
            await self._gate.wait()
            # More calls may come meanwhile, to be chosen from.
            for _ in range(self.random.randrange(6)):
                await anyio.lowlevel.checkpoint()
            if self._gate.pending:
                self._answer(self.random.choice(self._gate.pending))

    def _answer(self, parked: Parked) -> None:
        call = parked.call
        fate = self.random.random()
        if call.vm in self.calm or (call.operation == "revoke" and call.vm not in self.working):
            parked.proceed()
        elif self._crashes(call):
            # Lets go of everything that is parked for the VM.
            self.backend.vms[call.vm].crash()
        elif fate < 1 / _REFUSED:
            self._note(call)
            parked.refuse(self.random.choice(_CODES))
        elif fate < 1 / _REFUSED + 1 / _LOST:
            self._note(call)
            parked.lose(applied=True)
        elif fate < 1 / _REFUSED + 1 / _LOST + 1 / _VANISHED:
            self._note(call)
            parked.lose(applied=False)
        else:
            parked.proceed()

    def _note(self, call: Call) -> None:
        """Take note of what a call that goes wrong may leave in the guest.

        ``kill`` is a process too, and with a connection that breaks goes what was on it.
        """
        if call.to == "guest" or call.operation in _STARTS:
            self.unsure.add(call.vm)

    def _crashes(self, call: Call) -> bool:
        return call.vm in self.backend.vms and self.random.randrange(_CRASHED) == 0


def _may_go_wrong(call: Call) -> bool:
    return call.operation in ("modify", "grant", "revoke", *_STARTS, "delete container state")
