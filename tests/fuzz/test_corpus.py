"""The fuzz targets over the corpus, without a fuzzer; and that a broken promise would be found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.__main__ import CORPUS, NAMES
from tests.fuzz.targets import TARGETS, split
from uvm._wire import frames as wire
from uvm._wire.frames import FrameDecoder
from uvm.errors import WireError

FILES = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


def test_there_is_a_corpus_for_each_target() -> None:
    assert set(TARGETS) == set(NAMES) == {path.parent.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=[f"{path.parent.name}/{path.name}" for path in FILES])
def test_the_corpus_breaks_no_promise(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("target", NAMES)
@given(data=st.binary(max_size=200))
def test_random_bytes_break_no_promise(target: str, data: bytes) -> None:
    TARGETS[target](data)


@pytest.mark.parametrize("target", NAMES)
@given(data=st.data())
def test_the_corpus_with_some_bytes_changed_breaks_no_promise(target: str, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from([path for path in FILES if path.parent.name == target]), label="file")
    content = bytearray(path.read_bytes())
    changes = st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=5)
    for where, value in data.draw(changes, label="changes"):
        content[where] = value
    TARGETS[target](bytes(content))


def test_a_decoder_that_depends_on_the_pieces_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = FrameDecoder.feed

    def feed_whole_messages_only(self: FrameDecoder, data: bytes) -> Iterator[wire.Frame]:
        if len(data) < wire.HEADER_SIZE:
            raise WireError("too little")
        return feed(self, data)

    monkeypatch.setattr(FrameDecoder, "feed", feed_whole_messages_only)
    with pytest.raises(AssertionError):
        TARGETS["host"](b"\x03" + (CORPUS / "host" / "linux").read_bytes()[1:])


def test_an_error_of_another_class_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(payload: bytes) -> NoReturn:
        raise KeyError(payload)

    monkeypatch.setattr(wire, "parse", fail)
    with pytest.raises(KeyError):
        TARGETS["host"]((CORPUS / "host" / "linux").read_bytes())


def test_the_first_byte_of_an_input_says_in_which_pieces_the_others_come() -> None:
    assert split(b"") == []
    assert split(b"\x00abcde") == [b"abcde"]
    assert split(b"\x02abcde") == [b"ab", b"cd", b"e"]


def test_without_the_fuzzer_the_command_says_that_it_is_skipped() -> None:
    program = (
        "import sys; sys.modules['atheris'] = None; import importlib.util as u; u.find_spec = lambda n: None;"
        "from tests.fuzz.__main__ import main; sys.exit(main([]))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.partition(":")[0]) == (0, "skipped")


def test_an_input_can_be_run_again_by_command(capsys: pytest.CaptureFixture[str]) -> None:
    from tests.fuzz.__main__ import main

    path = CORPUS / "log" / "panic"
    assert main(["--target", "log", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: holds\n"
