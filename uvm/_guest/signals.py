"""Signals to the processes of a guest, as that guest takes them. Pure.

Signals go by name wherever they can, since the numbers of the machine that this runs on may be others.

Source: hcsshim internal/signals.
"""

from __future__ import annotations

import re
import signal
from typing import Final

from uvm._arguments import kind_of
from uvm.errors import OptionsError
from uvm.schema.process import SignalProcessOptionsLCOW, SignalProcessOptionsWCOW

SignalOptions = SignalProcessOptionsLCOW | SignalProcessOptionsWCOW


#: The signals of a Linux guest that have names, from 1 on; and other names of some.
_LINUX_NAMES: Final = (
    "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN "
    "TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS"
)
_LINUX_NUMBERS: Final = {
    **{name: number for number, name in enumerate(_LINUX_NAMES.split(), 1)},
    "IOT": 6,
    "CLD": 17,
    "POLL": 29,
}
LINUX_KILL: Final = 9

#: The real-time signals of glibc, whatever C library the host has.
_RTMIN, _RTMAX = 34, 64
_REAL_TIME: Final = re.compile(r"RT(MIN|MAX)(?:([+-])(\d{1,2}))?", re.ASCII)

#: Windows' control events, by their own names, those of Python's signal module, what comes closest of Unix's,
#: and numbers: Windows', and Unix's TERM.
_WINDOWS_EVENTS: Final[dict[str, tuple[str | int, ...]]] = {
    "CtrlC": ("CTRLC", "CTRL_C_EVENT", "INT", 0),
    "CtrlBreak": ("CTRLBREAK", "CTRL_BREAK_EVENT", "BREAK", 1),
    "CtrlClose": ("CTRLCLOSE", 2),
    "CtrlLogOff": ("CTRLLOGOFF", 5),
    "CtrlShutdown": ("CTRLSHUTDOWN", "TERM", 6, 15),
}


def signal_options(wanted: int | str, os: str) -> SignalOptions | None:
    """Return a signal as a guest takes it; None to kill.

    :param wanted: a number of the guest's system, a member of :class:`signal.Signals`, or a name with or
        without ``SIG``: ``TERM``, ``SIGTERM``, ``SIGRTMIN+3``, ``RTMAX``; for Windows ``CtrlC``,
        ``CtrlBreak``, ``CtrlClose``, ``CtrlLogOff``, ``CtrlShutdown``; there TERM means CtrlShutdown and
        INT CtrlC.
    :param os: the guest's, ``"linux"`` or ``"windows"``.
    :raises OptionsError: the guest's system has no such signal.
    """
    value = wanted.name if isinstance(wanted, signal.Signals) else wanted
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise OptionsError(f"a signal is a number or a name, not {kind_of(value)}")
    named = value.upper().removeprefix("SIG") if isinstance(value, str) else value
    if named in ("KILL", LINUX_KILL):
        return None
    if os == "windows":
        for event, names in _WINDOWS_EVENTS.items():
            if named in names:
                return SignalProcessOptionsWCOW(signal=event)
    else:
        number = _linux_number(named) if isinstance(named, str) else named
        if number is not None and 1 <= number <= _RTMAX:
            return SignalProcessOptionsLCOW(signal=number)
    raise OptionsError(f"a {os.capitalize()} guest has no signal {value!r}")


def _linux_number(name: str) -> int | None:
    match = _REAL_TIME.fullmatch(name)
    if match is None:
        return _LINUX_NUMBERS.get(name)
    end, sign, steps = match.groups()
    number = (_RTMIN if end == "MIN" else _RTMAX) + int(f"{sign or '+'}{steps or 0}")
    return number if _RTMIN <= number <= _RTMAX else None
