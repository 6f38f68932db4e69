"""What a guest quotes of what it was sent is shown to nobody: it may be secret."""

from __future__ import annotations

import json
import logging
from itertools import pairwise

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gcs.guests import Guest, Refusal, connected
from tests.gcs.support import stream_pair
from uvm._guest.logs import read_log
from uvm._guest.quotes import QuoteCleaner, without_quotes
from uvm._guest.specs import Command, linux_container
from uvm._wire.frames import Procedure
from uvm.errors import GuestError
from uvm.hresult import HResult

#: As the Linux guest of hcsshim says it.
SAID = (
    'failed to unmarshal JSON for ContainerConfig "{"OciSpecification":{"hostname":5,"process":'
    '{"env":["TOKEN=s3cret"]}}}": HRESULT 0xc037010d: json: no string'
)
SHOWN = 'failed to unmarshal JSON for ContainerConfig "(hidden)": HRESULT 0xc037010d: json: no string'


def test_a_quoted_document_is_hidden_and_what_was_wrong_with_it_is_not() -> None:
    assert without_quotes(SAID) == SHOWN
    assert without_quotes({"ErrorRecords": [{"Message": SAID, "Line": 1}]}) == {
        "ErrorRecords": [{"Message": SHOWN, "Line": 1}]
    }


def test_a_quoted_document_is_hidden_where_it_is_cut_off_or_quoted_again() -> None:
    for text in (SAID[:130], json.dumps({"ErrorMessage": SAID}), json.dumps(json.dumps({"a": SAID}))):
        assert "s3cret" in text
        assert "s3cret" not in without_quotes(text)
        assert "for ContainerConfig" in without_quotes(text)


#: What it quotes has quotation marks and braces of its own.
TRICKY = SAID.replace("TOKEN=s3cret", 'A={1}","TOKEN=s3cret')


def test_a_text_that_is_cut_off_is_hidden_to_its_end() -> None:
    for size in range(len(TRICKY)):
        assert "s3" not in without_quotes(TRICKY[:size], cut_off=True)


@given(st.lists(st.integers(0, 500)), st.sampled_from([TRICKY, json.dumps({"msg": TRICKY, "error": TRICKY})]))
def test_what_is_quoted_is_hidden_whatever_the_pieces_in_which_it_comes(cuts: list[int], text: str) -> None:
    text = f"{'x' * 200}{text}"
    cleaner, places = QuoteCleaner(), sorted({min(cut, len(text)) for cut in cuts})
    pieces = [text[a:b] for a, b in pairwise([0, *places, len(text)])]
    cleaned = [cleaner.clean(piece, last=False) for piece in pieces[:-1]]
    shown = "".join([*cleaned, cleaner.clean(pieces[-1], last=True)])
    assert "s3" not in shown
    assert "TOKEN" not in shown
    assert "A={" not in shown
    assert "for ContainerConfig" in shown
    assert shown.startswith("x" * 200)


def test_other_text_stays() -> None:
    for text in ("", 'exec: "{}": not found', "failed to unmarshal JSON", "}" * 10_000):
        assert without_quotes(text) == text


def test_the_environment_of_a_command_is_not_in_its_repr() -> None:
    assert "s3cret" not in repr(Command(["env"], env={"TOKEN": "s3cret"}))


@pytest.mark.anyio
async def test_a_guest_that_quotes_its_request_puts_no_secret_into_an_error_or_the_trace(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, logger="uvm.gcs")
    guest = Guest()
    guest.answers[Procedure.CREATE] = lambda _: Refusal(HResult.ERROR_VMCOMPUTE_INVALID_JSON, SAID)
    spec = {"process": {"env": ["TOKEN=s3cret"]}, "linux": {}, "root": {}, "hostname": 5}
    async with connected(guest) as connection:
        with pytest.raises(GuestError) as caught:
            await connection.create_container("c1", linux_container(spec, bundle_path="/c1"))
    assert caught.value.text == SHOWN
    assert "json: no string" in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.anyio
async def test_a_guest_that_quotes_its_request_in_its_log_puts_no_secret_into_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, logger="uvm.guest")
    host, guest = stream_pair()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read_log, host, "vm")
        await guest.send(json.dumps({"level": "error", "msg": SAID, "error": SAID}).encode())
        await guest.send(f"\npanic: {SAID}".encode())
        await guest.send_eof()
    assert len(caplog.records) == 2
    assert caplog.records[0].message == f"vm: {SHOWN}"
    assert "s3cret" not in "".join(str(record.__dict__) for record in caplog.records)


@pytest.mark.anyio
async def test_an_entry_of_the_log_that_comes_in_pieces_puts_no_secret_into_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, logger="uvm.guest")
    document = json.dumps({"env": [f"SECRET{n}={{{n}}}" for n in range(20_000)]})
    said = f'failed to unmarshal JSON for ContainerConfig "{document}": no string'
    host, guest = stream_pair()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read_log, host, "vm")
        await guest.send(json.dumps({"level": "error", "msg": said}).encode())
        await guest.send(b'\n{"level":"info","msg":"next"}\n')
        await guest.send_eof()
    assert len(caplog.records) > 3
    assert [record.getMessage() for record in caplog.records][-1] == "vm: next"
    assert "no string" in caplog.records[-2].__dict__["guest_text"]
    assert "SECRET" not in "".join(str(record.__dict__) for record in caplog.records)
