"""KVM, if guests really run with it on this machine; TCG, QEMU's emulation, otherwise.

That ``/dev/kvm`` opens says little: inside some VMs it opens, has a virtual processor, runs an instruction,
and Linux still hangs in silence. So the guest image is booted once, with a deadline, as far as its first
program, which prints a line. What came of it holds until the machine boots again, or QEMU is another.

TCG is no security boundary, says QEMU's documentation (docs/system/security.rst); the log says so too.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import anyio.to_thread
from attrs import asdict, frozen

from uvm._log import Log
from uvm.backends.qemu.guestimage.cache import Cache, Image, default_cache
from uvm.backends.qemu.guestimage.sources import stamp_of
from uvm.errors import NotSupportedError

_log = Log("uvm")

NO_BOUNDARY: Final = "QEMU's emulation (TCG) is no security boundary: do not run hostile code in it"

#: How long a guest may take to run its first program: with KVM, that is under a second.
_DEADLINE_SECONDS: Final = 10.0
_LINE: Final = b"a guest runs"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@frozen
class Accelerator:
    """How guests run.

    :ivar reason: why, for the log.
    """

    name: Literal["kvm", "tcg"]
    reason: str


async def choose(
    wanted: Literal["auto", "kvm", "tcg"],
    binary: str,
    image: Callable[[], Awaitable[Image]],
    problem: str = "",
) -> Accelerator:
    """Choose how guests run, and write it to the log.

    :param wanted: ``"auto"`` asks the machine; the others are not tried.
    :param binary: QEMU.
    :param image: returns the guest image; is called if it has to be booted.
    :param problem: why VMs may not use KVM, whatever this process may; empty if they may.
    :raises NotSupportedError: they may not, and it is what is wanted.
    """
    if wanted == "kvm" and problem:
        raise NotSupportedError(f"create a VM with KVM: {problem}; nothing was started")
    if wanted == "auto":
        problem = kvm_problem() or problem
        chosen = Accelerator("tcg", problem) if problem else await _tried(binary, image)
    else:
        chosen = Accelerator(wanted, "asked for")
    if chosen.name == "tcg":
        _log.warning(None, "guests are emulated (%s). %s", chosen.reason, NO_BOUNDARY)
    else:
        _log.info(None, "guests run with KVM (%s)", chosen.reason)
    return chosen


async def _tried(binary: str, image: Callable[[], Awaitable[Image]]) -> Accelerator:
    noted = await anyio.to_thread.run_sync(partial(recall, binary))
    if noted is not None:
        return noted
    try:
        booted = await image()
    except NotSupportedError as e:
        return Accelerator("tcg", f"KVM cannot be tried without a guest image: {e}")
    # A caller that is cancelled leaves at once; the trial ends by its own deadline.
    return await anyio.to_thread.run_sync(partial(trial, binary, booted), abandon_on_cancel=True)


def kvm_problem(device: str = "/dev/kvm", cpuinfo: str = "/proc/cpuinfo") -> str:
    """Return why KVM need not be tried; empty if it may work."""
    if not os.path.exists(device):
        return f"there is no {device}: the kernel has no KVM, or the processor's virtualization is off"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"{device} may not be opened by this user; as root: 'usermod -aG kvm USER', and log in again"
    if platform.machine() == "x86_64" and not _virtualizes(cpuinfo):
        return f"the processor has no virtualization (no vmx or svm in {cpuinfo})"
    return ""


def _virtualizes(cpuinfo: str) -> bool:
    try:
        words = Path(cpuinfo).read_text().split()
    except OSError:
        return True
    return not {"vmx", "svm"}.isdisjoint(words)


def trial(
    binary: str,
    image: Image,
    cache: Cache | None = None,
    accelerator: str = "kvm",
    seconds: float = _DEADLINE_SECONDS,
) -> Accelerator:
    """Boot a guest image as far as its first program, and note what came of it. Blocks for seconds at most.

    :param accelerator: what is tried.
    :param seconds: how long it may take.
    """
    problem = _boot(binary, image, accelerator, seconds)
    found = Accelerator("tcg", f"KVM was tried: {problem}") if problem else Accelerator("kvm", "it was tried")
    _note(found, binary, cache or default_cache())
    return found


def _note(found: Accelerator, binary: str, cache: Cache) -> None:
    cache.prepare()
    unfinished = _notes(cache).with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps({"of": _circumstances(binary), "found": asdict(found)}))
    unfinished.replace(_notes(cache))


def recall(binary: str, cache: Cache | None = None) -> Accelerator | None:
    """Return what came of an earlier trial; None if there was none since the machine booted."""
    try:
        noted: Any = json.loads(_notes(cache or default_cache()).read_text())
        return Accelerator(**noted["found"]) if noted["of"] == _circumstances(binary) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _notes(cache: Cache) -> Path:
    return cache.root / "acceleration.json"


def _circumstances(binary: str) -> list[Any]:
    return [_BOOT_ID.read_text(), binary, stamp_of(shutil.which(binary) or binary)]


def _boot(binary: str, image: Image, accelerator: str, seconds: float) -> str:
    """Return why no program ran in a guest; empty if one did."""
    first = f"console=ttyS0 quiet panic=-1 no_timer_check rdinit=/bin/echo -- {_LINE.decode()}"
    processor = "host" if accelerator == "kvm" else "max"
    command = [
        # Linux kills it with the thread that waits for it, whatever ends that.
        *("setpriv", "--pdeathsig", "KILL", "--"),
        *(binary, "-machine", "q35", "-accel", accelerator, "-cpu", processor, "-m", "256"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-sandbox", "on"),
        *("-chardev", "stdio,id=console", "-device", "isa-serial,chardev=console"),
        *("-kernel", image.kernel, "-initrd", image.initrd, "-append", first),
    ]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no guest ran its first program within {seconds:g} s"
    except OSError as e:
        return f"QEMU does not start: {e}"
    if _LINE in done.stdout:
        return ""
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return said[-1] if said else f"QEMU exited with {done.returncode}, and no guest had run a program"
