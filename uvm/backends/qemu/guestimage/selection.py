"""Which kernel and programs a guest image is made of: what the user names, else what the machine has."""

from __future__ import annotations

import os
import platform
import re
import shutil
from pathlib import Path
from typing import Final

from attrs import frozen

from uvm.backends.qemu.guestimage.interpreter import this_interpreter
from uvm.backends.qemu.guestimage.kernel import Kernel, KernelError, read_kernel
from uvm.backends.qemu.guestimage.packages import install
from uvm.errors import NotSupportedError, OptionsError

_ROOT: Final = Path("/")
_FETCH: Final = "have it downloaded without installing it: 'uvm image build --fetch' (where there is apt-get)"


#: The module without which a guest has no Plan9 shares.
_9P: Final = "kernel/net/9p/9pnet_virtio.ko"
#: The first processes of guests.
_AGENT: Final = "uvm.agent.__main__"
_FORWARDER: Final = "uvm.agent.forwarder"


@frozen
class ImageOptions:
    """What a guest image is made of. What is None is looked for on the machine.

    :ivar kernel: a ``vmlinuz``, ``vmlinux`` or arm64 ``Image``.
    :ivar modules: the directory of its modules, which has its release for a name.
    :ivar python: the interpreter that runs the guest's service; by default the one that runs this.
    :ivar busybox: the program with the guest's tools.
    :ivar runtime: ``crun`` or ``runc``. Where neither is installed the guest runs no containers.
    :ivar machine: the architecture, as ``uname -m`` has it.
    :ivar guest_binary: hcsshim's ``gcs``, which is the guest's compute service then, for comparison.
    :ivar service: the module that is the guest's first process, by its function ``main``; with `roots`.
        Empty for uvm's agent, and with `guest_binary` for what forwards its connections.
    :ivar roots: directories that hold its packages, before the one that holds uvm.
    """

    kernel: str | None = None
    modules: str | None = None
    python: str | None = None
    busybox: str | None = None
    runtime: str | None = None
    machine: str | None = None
    guest_binary: str | None = None
    service: str = ""
    roots: tuple[str, ...] = ()


@frozen
class Selection:
    """What an image is made of, by path.

    :ivar modules: the directory of the kernel's modules.
    :ivar runtime: None if there is none.
    """

    kernel: str
    release: str
    modules: str
    python: str
    busybox: str
    runtime: str | None
    machine: str
    guest_binary: str | None
    service: str
    roots: tuple[str, ...]


def select(options: ImageOptions, downloads: Path) -> Selection:
    """Choose what the options leave open.

    :param downloads: the directory of the kernels that were downloaded, each a root directory of its own.
    :raises OptionsError: what an option names is not there, or of no use.
    :raises NotSupportedError: something is missing on the machine; it names all that is.
    """
    machine = options.machine or platform.machine()
    missing: list[str] = []
    found = _kernel(options, machine, downloads)
    if found is None:
        missing.append(_no_kernel())
    busybox = _program("busybox", options.busybox, "busybox")
    if busybox is None:
        missing.append(f"there is no busybox, the guest's tools; install it: {install('busybox')}")
    if found is None or busybox is None:
        raise NotSupportedError(f"no guest image can be built on this machine: {'; '.join(missing)}")
    kernel, modules, release = found
    return Selection(
        kernel=kernel,
        release=release,
        modules=modules,
        python=_program("python", options.python) or this_interpreter(),
        busybox=busybox,
        runtime=_program("runtime", options.runtime, "crun", "runc"),
        machine=machine,
        guest_binary=_program("guest_binary", options.guest_binary),
        service=options.service or (_FORWARDER if options.guest_binary else _AGENT),
        roots=(*options.roots, str(_uvm_root())),
    )


def _uvm_root() -> Path:
    return Path(__file__).parents[4]


def _program(option: str, given: str | None, *names: str) -> str | None:
    if given is None:
        return next(filter(None, map(shutil.which, names)), None)
    path = shutil.which(given)
    if path is None:
        raise OptionsError(f"{option}={given!r}: there is no such program, or it is not executable")
    return os.path.abspath(path)


def _kernel(options: ImageOptions, machine: str, downloads: Path) -> tuple[str, str, str] | None:
    """Return the kernel, the directory of its modules, and its release."""
    if options.kernel is None:
        if options.modules is not None:
            raise OptionsError("modules=... is of no use without kernel=...: name their kernel")
        return _found(_candidates(downloads))
    path = os.path.abspath(options.kernel)
    try:
        kernel = read_kernel(Path(path).read_bytes())
    except (OSError, KernelError) as e:
        raise OptionsError(f"kernel={options.kernel!r} cannot be used: {e}") from e
    if kernel.machine != machine:
        raise OptionsError(f"kernel={options.kernel!r} is a kernel of {kernel.machine}, not of {machine}")
    return path, _modules_of(kernel, path, options.modules), kernel.release


def _modules_of(kernel: Kernel, path: str, given: str | None) -> str:
    # An unpacked package has them beside it: boot/vmlinuz-RELEASE and lib/modules/RELEASE.
    roots = (os.path.dirname(os.path.dirname(path)), _ROOT)
    places = [given] if given else [os.path.join(root, "lib/modules", kernel.release) for root in roots]
    found = next(filter(os.path.isdir, places), None)
    if found is None or not os.listdir(found):
        where = " or ".join(places)
        raise OptionsError(f"the kernel {path} has no modules: there is no directory {where}, or it is empty")
    return os.path.abspath(found)


def _candidates(downloads: Path) -> list[tuple[str, str, str]]:
    """Return the kernels that have modules: the one that runs, then the newest; then downloads.

    Those that have no shares come last.
    """
    running = platform.release()
    installed = _kernels_below(_ROOT)
    installed.sort(key=lambda each: (each[2] == running, _natural(each[2])), reverse=True)
    roots = list(downloads.iterdir()) if downloads.is_dir() else []
    downloaded = [each for root in roots for each in _kernels_below(root)]
    downloaded.sort(key=lambda each: _natural(each[2]), reverse=True)
    return sorted(installed + downloaded, key=lambda each: not _has_9p(each[1]))


def has_shares(selection: Selection) -> bool:
    """Return whether guests can use Plan9 shares: kernels that are made for clouds lack 9p."""
    return _has_9p(selection.modules)


def _has_9p(modules: str) -> bool:
    # As a module, in whatever form; or built in.
    if any(Path(modules).glob(f"{_9P}*")):
        return True
    try:
        return f"{_9P}\n" in Path(modules, "modules.builtin").read_text("utf-8", "replace")
    except OSError:
        return False


def _kernels_below(root: Path) -> list[tuple[str, str, str]]:
    below = (*root.glob("lib/modules/*"), *root.glob("usr/lib/modules/*"))
    return [
        (str(kernel), str(modules), modules.name)
        for modules in below
        for kernel in (root / "boot" / f"vmlinuz-{modules.name}", modules / "vmlinuz")
        if (modules / "kernel").is_dir() and kernel.is_file()
    ]


def _found(candidates: list[tuple[str, str, str]]) -> tuple[str, str, str] | None:
    return next((each for each in candidates if os.access(each[0], os.R_OK)), None)


def _no_kernel() -> str:
    unreadable = sorted(
        str(path) for path in (_ROOT / "boot").glob("vmlinuz-*") if not os.access(path, os.R_OK)
    )
    if unreadable:
        return f"the kernel {unreadable[-1]} may be read by root only; {_FETCH}, or name a copy: --kernel"
    return f"there is no kernel with modules in /boot; install one: {install('kernel')}; or {_FETCH}"


def _natural(release: str) -> list[int]:
    """Return the numbers of a release, to be compared."""
    return [int(number) for number in re.findall(r"\d+", release)]
