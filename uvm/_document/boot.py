"""How a Linux guest boots: which files, and with which kernel command line."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from uvm._document.common import requested_processors
from uvm._document.paths import Files, join
from uvm._names import host_path
from uvm._wire.ports import LINUX_ENTROPY_PORT, LINUX_LOG_PORT
from uvm.backend import HostInfo
from uvm.errors import OptionsError
from uvm.options import LCOWOptions
from uvm.options.lcow import GCS_COMMAND

#: The first build that boots Linux kernels directly.
KERNEL_DIRECT_BUILD = 18286

_DEFAULT_DIRECTORY = "C:\\Program Files\\Linux Containers"
_KERNEL, _UNCOMPRESSED_KERNEL = "kernel", "vmlinux"
_INITRD, _VHD = "initrd.img", "rootfs.vhd"


@frozen(eq=False, repr=False)
class LinuxBoot:
    """The boot files and their use, with hcsshim's defaults filled in.

    Without paths they are those of the backend's own image.
    """

    directory: str
    kernel_file: str
    kernel_path: str
    kernel_direct: bool
    rootfs_file: str
    rootfs_path: str
    rootfs_type: Literal["initrd", "vhd", "none"]


_OWN_IMAGE = LinuxBoot(
    directory="",
    kernel_file="",
    kernel_path="",
    kernel_direct=True,
    rootfs_file="",
    rootfs_path="",
    rootfs_type="initrd",
)


def boot_directory(options: LCOWOptions, host: HostInfo) -> str:
    """Return the directory of the boot files.

    :raises OptionsError: there is no default on a host whose paths are not Windows's, or it is relative.
    """
    if options.boot_files_path is not None:
        return host_path(options.boot_files_path, host.paths, "boot_files_path")
    if host.paths != "windows":
        raise OptionsError("boot_files_path must be given: this host has no default directory of boot files")
    return _DEFAULT_DIRECTORY


def _kernel_direct_by_default(host: HostInfo) -> bool:
    return host.build >= KERNEL_DIRECT_BUILD and host.machine != "arm64"


def boots_own_image(options: LCOWOptions, host: HostInfo) -> bool:
    """Return whether the guest boots from the backend's own image: there is one, and no file is named."""
    named = options.boot_files_path or options.kernel_file or options.rootfs_file or options.guest_state_file
    fits = options.rootfs_type in (None, "initrd") and options.kernel_direct is not False
    return "linux" in host.guest_images and not named and fits


def boot_files_to_stat(options: LCOWOptions, host: HostInfo) -> tuple[str, ...]:
    """Return the files to boot from, and those on whose presence the choice depends."""
    if boots_own_image(options, host):
        return ()
    directory = boot_directory(options, host)
    kernels = (_UNCOMPRESSED_KERNEL, _KERNEL) if options.kernel_file is None else (options.kernel_file,)
    root_files = (_VHD, _INITRD) if options.rootfs_file is None else (options.rootfs_file, _VHD)
    return tuple(dict.fromkeys(join(host, directory, name) for name in (*kernels, *root_files)))


def resolve_boot(options: LCOWOptions, host: HostInfo, files: Files) -> LinuxBoot:
    """Return the boot files, with defaults as of hcsshim's ``UpdateBootFilesPath``.

    Each default is independent of the other options: an explicit ``kernel_direct`` does not change the
    default kernel, nor a ``rootfs_file`` the type of the root file system.
    """
    if boots_own_image(options, host):
        return _OWN_IMAGE
    directory = boot_directory(options, host)
    has_vhd = files.get(join(host, directory, _VHD)) is not None
    kernel_direct, kernel_file = options.kernel_direct, options.kernel_file
    if kernel_file is None:
        uncompressed = join(host, directory, _UNCOMPRESSED_KERNEL)
        use_it = _kernel_direct_by_default(host) and files.get(uncompressed) is not None
        kernel_file = _UNCOMPRESSED_KERNEL if use_it else _KERNEL
    rootfs_file = options.rootfs_file
    if rootfs_file is None:
        rootfs_file = _VHD if has_vhd else _INITRD
    return LinuxBoot(
        directory=directory,
        kernel_file=kernel_file,
        kernel_path=join(host, directory, kernel_file),
        kernel_direct=_kernel_direct_by_default(host) if kernel_direct is None else kernel_direct,
        rootfs_file=rootfs_file,
        rootfs_path=join(host, directory, rootfs_file),
        rootfs_type=options.rootfs_type or ("vhd" if has_vhd else "initrd"),
    )


def kernel_command_line(options: LCOWOptions, host: HostInfo, boot: LinuxBoot, *, vpmem: bool) -> str:
    """Return the kernel's command line; init's own arguments follow ``--``."""
    arm = host.machine == "arm64"
    words = [_root(options, boot, vpmem=vpmem)]
    # hv_sock has to be the transport, in kernels that have virtio's too.
    words.append("initcall_blacklist=virtio_vsock_init")
    if options.console_pipe:
        serial = "8250_core.nr_uarts=1 8250_core.skip_txen_test=1 console=ttyS0,115200"
        words.append("console=ttyAMA0,115200" if arm else serial)
    elif not arm:
        words.append("8250_core.nr_uarts=0")
    if options.graphics_console:
        words.append("console=tty")
    if not _has_console(options):
        # A panic that no console shows has to end the VM.
        words.append("panic=-1 quiet")
    if options.kernel_boot_options:
        words.append(options.kernel_boot_options)
    if not options.vpci_enabled:
        words.append("pci=off")
    # The requested count, even if the VM gets fewer: hcsshim's choice.
    words.append(f"nr_cpus={requested_processors(options, host)}")
    words.append(f"brd.rd_nr=0 pmtmr=0 -- {_init(options, boot)}")
    return " ".join(words)


def _has_console(options: LCOWOptions) -> bool:
    return bool(options.console_pipe) or options.graphics_console


def _root(options: LCOWOptions, boot: LinuxBoot, *, vpmem: bool) -> str:
    if boot.rootfs_type == "none":
        return ""
    if boot.rootfs_type == "initrd":
        return "" if boot.kernel_direct else f"initrd=/{boot.rootfs_file}"
    if vpmem:
        return "root=/dev/pmem0 ro rootwait init=/init"
    if not options.dm_verity_mode:
        return "root=/dev/sda ro rootwait init=/init"
    if not options.dm_verity_create_args:
        raise OptionsError("dm_verity_mode with a VHD on SCSI needs dm_verity_create_args")
    return f"root=/dev/dm-0 dm-mod.create={_quoted(options.dm_verity_create_args)} init=/init"


def _init(options: LCOWOptions, boot: LinuxBoot) -> str:
    """Return init's arguments: entropy first, then the command."""
    words = [f"-e {LINUX_ENTROPY_PORT}"]
    if options.writable_overlay_dirs and boot.rootfs_type == "vhd":
        words.append("-w")
    command = _command(options)
    words.append(f'sh -c "{command} & exec sh"' if _has_console(options) else command)
    return " ".join(words)


def _command(options: LCOWOptions) -> str:
    """Return init's command: the guest's compute service, its output sent to the host."""
    words = ["/bin/vsockexec"]
    if options.forward_stdout:
        words.append(f"-o {LINUX_LOG_PORT}")
    if options.forward_stderr:
        words.append(f"-e {LINUX_LOG_PORT}")
    command = options.exec_command_line
    if command is None:
        command = GCS_COMMAND.format(options.guest_log_level)
    words.append(command)
    if options.disable_time_sync:
        words.append("-disable-time-sync")
    if not options.scrub_guest_logs:
        words.append("-scrub-logs=false")
    if options.process_dump_location:
        words.append(f"-core-dump-location {options.process_dump_location}")
    return " ".join(words)


_ESCAPES = {char: f"\\{name}" for char, name in zip('"\\\a\b\f\n\r\t\v', '"\\abfnrtv', strict=True)}


def _quoted(text: str) -> str:
    """Quote as Go's ``%q`` does."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    code = ord(char)
    if code < 0x20 or code == 0x7F:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
