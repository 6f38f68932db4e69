"""Signals in all forms become what the guest takes."""

from __future__ import annotations

import signal
import sys
from typing import Any

import pytest

from uvm._guest.signals import signal_options
from uvm.errors import OptionsError
from uvm.schema.process import SignalProcessOptionsLCOW, SignalProcessOptionsWCOW


@pytest.mark.parametrize("wanted", [15, "TERM", "SIGTERM", "sigterm", signal.SIGTERM])
def test_a_linux_guest_takes_numbers(wanted: int | str) -> None:
    assert signal_options(wanted, "linux") == SignalProcessOptionsLCOW(signal=15)


def test_names_of_linux_signals_include_the_aliases_and_numbers_the_real_time_signals() -> None:
    assert signal_options("POLL", "linux") == signal_options("IO", "linux")
    assert signal_options(64, "linux") == SignalProcessOptionsLCOW(signal=64)


@pytest.mark.parametrize(
    ("wanted", "number"),
    [
        ("SIGRTMIN", 34),
        ("rtmin", 34),
        ("SIGRTMIN+3", 37),
        ("Rtmin+30", 64),
        ("SIGRTMAX", 64),
        ("RTMAX-2", 62),
        ("sigrtmax-30", 34),
        *([(signal.SIGRTMIN, 34), (signal.SIGRTMAX, 64)] if sys.platform == "linux" else []),
    ],
)
def test_real_time_signals_have_names_and_the_numbers_of_glibc(wanted: int | str, number: int) -> None:
    assert signal_options(wanted, "linux") == SignalProcessOptionsLCOW(signal=number)
    with pytest.raises(OptionsError, match="a Windows guest has no signal"):
        signal_options(wanted, "windows")


@pytest.mark.parametrize(
    "wanted",
    ["RTMIN-1", "RTMAX+1", "RTMIN+31", "RTMIN+", "RTMIN+a", "RTMIN+\u0663", "RT", "RTMIN3", "SIGSIGRTMIN"],
)
def test_what_is_beyond_the_real_time_signals_is_refused(wanted: str) -> None:
    with pytest.raises(OptionsError, match="a Linux guest has no signal"):
        signal_options(wanted, "linux")


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        ("CtrlC", "CtrlC"),
        ("ctrlbreak", "CtrlBreak"),
        ("CtrlClose", "CtrlClose"),
        ("CtrlLogOff", "CtrlLogOff"),
        ("CtrlShutdown", "CtrlShutdown"),
        ("SIGTERM", "CtrlShutdown"),
        (signal.SIGTERM, "CtrlShutdown"),
        (signal.SIGINT, "CtrlC"),
        (0, "CtrlC"),
        (5, "CtrlLogOff"),
    ],
)
def test_a_windows_guest_takes_names_of_control_events(wanted: int | str, sent: str) -> None:
    assert signal_options(wanted, "windows") == SignalProcessOptionsWCOW(signal=sent)


# Python names SIGKILL where the system has it, the control events on Windows.
if sys.platform == "win32":
    KILLS = [9, "KILL", "SIGKILL"]
    EVENTS = {signal.CTRL_C_EVENT: "CtrlC", signal.CTRL_BREAK_EVENT: "CtrlBreak"}
else:
    KILLS = [9, "KILL", "SIGKILL", signal.SIGKILL]
    EVENTS = {"CTRL_C_EVENT": "CtrlC", "CTRL_BREAK_EVENT": "CtrlBreak"}


@pytest.mark.parametrize(("wanted", "sent"), EVENTS.items())
def test_a_windows_guest_takes_the_control_events_of_python(wanted: int | str, sent: str) -> None:
    assert signal_options(wanted, "windows") == SignalProcessOptionsWCOW(signal=sent)


@pytest.mark.parametrize("os", ["linux", "windows"])
@pytest.mark.parametrize("wanted", KILLS)
def test_to_kill_is_to_send_no_signal(wanted: int | str, os: str) -> None:
    assert signal_options(wanted, os) is None


@pytest.mark.parametrize(
    ("wanted", "os"),
    [
        ("CtrlC", "linux"),
        ("NOSUCH", "linux"),
        ("", "linux"),
        (0, "linux"),
        (65, "linux"),
        (-9, "linux"),
        ("HUP", "windows"),
        (3, "windows"),
        (True, "linux"),
        (1.0, "linux"),
        (None, "windows"),
    ],
)
def test_an_unknown_signal_is_refused(wanted: Any, os: str) -> None:
    with pytest.raises(OptionsError):
        signal_options(wanted, os)
