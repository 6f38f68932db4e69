"""Each row of the ledger's table of transitions, driven through the machine.

A script is a line of events at the key ``p``, a share of two parts that takes out each file with its last
holder. ``+a`` acquires the file a (``+a2``: once more, for another party) and ``-a`` drops that ticket.
``begin`` begins the operation in flight; ``ok``, ``refused`` and ``unknown`` end it. ``half`` is refused
after one step, which stays: of a removal it is not undone, of an add the undo is refused as well. ``gone``
is the exit of the VM. ``full`` takes every slot that is left. The last word is the event of the row.
"""

from __future__ import annotations

import pytest

from tests.devices.synthetic import FilesTicket, Narrowing
from tests.devices.world import World
from uvm.devices.base import (
    ABSENT,
    ADDING,
    APPLIED,
    PARTIAL,
    QUARANTINED,
    REMOVING,
    TRANSITIONS,
    UPDATING,
    State,
)

HAVE_A = "+a begin ok"
HAVE_AB = "+a +b begin ok"

Row = tuple[State, str, State]

SCRIPTS: dict[Row, str] = {
    (ABSENT, "acquire", ADDING): "+a",
    (ABSENT, "acquire", ABSENT): "full +a",
    (ADDING, "acquire", ADDING): "+a +b",
    (ADDING, "drop", ADDING): "+a -a",
    (ADDING, "ok", APPLIED): "+a begin ok",
    (ADDING, "ok", UPDATING): "+a begin +b ok",
    (ADDING, "ok", REMOVING): "+a begin -a ok",
    (ADDING, "ok", ABSENT): "+a -a begin ok",
    (ADDING, "ok", ADDING): "+a -a begin +b ok",
    (ADDING, "refused", ABSENT): "+a begin refused",
    (ADDING, "refused", PARTIAL): "+a begin half",
    (ADDING, "unknown", QUARANTINED): "+a begin unknown",
    (APPLIED, "acquire", APPLIED): f"{HAVE_A} +a2",
    (APPLIED, "acquire", UPDATING): f"{HAVE_A} +b",
    (APPLIED, "drop", APPLIED): f"{HAVE_A} +a2 -a",
    (APPLIED, "drop", UPDATING): f"{HAVE_AB} -a",
    (APPLIED, "drop", REMOVING): f"{HAVE_A} -a",
    (UPDATING, "acquire", UPDATING): f"{HAVE_A} +b +c",
    (UPDATING, "drop", UPDATING): f"{HAVE_A} +b -b",
    (UPDATING, "ok", APPLIED): f"{HAVE_A} +b begin ok",
    (UPDATING, "ok", UPDATING): f"{HAVE_A} +b begin +c ok",
    (UPDATING, "ok", REMOVING): f"{HAVE_A} +b begin -a -b ok",
    (UPDATING, "refused", APPLIED): f"{HAVE_A} +b begin refused",
    (UPDATING, "refused", UPDATING): f"{HAVE_A} +b begin +c refused",
    (UPDATING, "refused", REMOVING): f"{HAVE_A} +b begin -a refused",
    (UPDATING, "unknown", APPLIED): f"{HAVE_A} +b begin unknown",
    (UPDATING, "unknown", UPDATING): f"{HAVE_A} +b begin +c unknown",
    (UPDATING, "unknown", REMOVING): f"{HAVE_A} +b begin -a unknown",
    (REMOVING, "acquire", REMOVING): f"{HAVE_A} -a +b",
    (REMOVING, "drop", REMOVING): f"{HAVE_A} -a +b -b",
    (REMOVING, "ok", ABSENT): f"{HAVE_A} -a begin ok",
    (REMOVING, "ok", ADDING): f"{HAVE_A} -a begin +b ok",
    (REMOVING, "ok", APPLIED): f"{HAVE_A} -a +a2 begin ok",
    (REMOVING, "ok", UPDATING): f"{HAVE_A} -a +b begin ok",
    (REMOVING, "ok", REMOVING): f"{HAVE_A} -a +b begin -b ok",
    (REMOVING, "refused", APPLIED): f"{HAVE_A} -a begin refused",
    (REMOVING, "refused", UPDATING): f"{HAVE_A} -a begin +b refused",
    (REMOVING, "refused", PARTIAL): f"{HAVE_A} -a begin half",
    (REMOVING, "unknown", QUARANTINED): f"{HAVE_A} -a begin unknown",
    (REMOVING, "unknown", ADDING): f"{HAVE_A} -a begin +b unknown",
    (PARTIAL, "acquire", REMOVING): f"{HAVE_A} -a begin half +b",
    (PARTIAL, "drop", REMOVING): f"{HAVE_A} -a begin half -a",
    (ADDING, "gone", ABSENT): "+a gone",
    (APPLIED, "gone", ABSENT): f"{HAVE_A} gone",
    (UPDATING, "gone", ABSENT): f"{HAVE_A} +b gone",
    (REMOVING, "gone", ABSENT): f"{HAVE_A} -a gone",
    (PARTIAL, "gone", ABSENT): f"{HAVE_A} -a begin half gone",
    (QUARANTINED, "gone", ABSENT): "+a begin unknown gone",
}


class Player:
    """Plays a script, and notes each event with the states before and after it."""

    def __init__(self) -> None:
        self.world = World(Narrowing(slots=2, parts=2))
        self.tickets: dict[str, FilesTicket] = {}
        self.seen: list[Row] = []

    def play(self, script: str) -> None:
        for word in script.split():
            if word == "full":
                self.fill()
                continue
            before, withheld = self.state(), len(self.world.withheld)
            event = self.do(word)
            after = self.state()
            if after is ABSENT and len(self.world.withheld) > withheld:
                after = QUARANTINED
            elif before is ABSENT and withheld:
                before = QUARANTINED
            if event is not None:
                self.seen.append((before, event, after))
            self.world.check()

    def fill(self) -> None:
        while self.world.acquire(f"other {len(self.world.ledger)}", "a"):
            pass

    def do(self, word: str) -> str | None:
        if word[0] == "+":
            if (ticket := self.world.acquire("p", word[1])) is not None:
                self.tickets[word[1:]] = ticket
            return "acquire"
        if word[0] == "-":
            self.world.drop(self.tickets[word[1:]])
            return "drop"
        if word == "begin":
            self.world.begin("p")
            return None
        if word == "gone":
            self.world.gone()
            return "gone"
        how = "refused" if word == "half" else word
        self.world.done("p", how, count=1 if word == "half" else 0)
        return how

    def state(self) -> State:
        entry = self.world.ledger.get("p")
        return ABSENT if entry is None else entry.state


def test_there_is_a_script_for_each_row_of_the_table() -> None:
    assert set(SCRIPTS) == {(*row, after) for row, states in TRANSITIONS.items() for after in states}


@pytest.mark.parametrize(
    ("row", "script"),
    [
        pytest.param(row, script, id=f"{row[0].value}-{row[1]}-{row[2].value}")
        for row, script in SCRIPTS.items()
    ],
)
def test_the_ledger_goes_through_this_row(row: Row, script: str) -> None:
    player = Player()
    player.play(script)
    assert player.seen[-1] == row
    player.world.wind_up()
