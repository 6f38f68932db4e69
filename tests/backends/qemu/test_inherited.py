"""What QEMU inherits: files that its user may not find, or not open, and the console that it listens at."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.descriptors import descriptors
from uvm.backends.qemu.inherited import Inherited, copied_mb
from uvm.backends.qemu.runtime import ProcessName, Record, RuntimeDirectory, VMDirectory
from uvm.backends.qemu.saving import Boot
from uvm.backends.qemu.sockets import SocketFile
from uvm.backends.qemu.users import Chosen, Identity
from uvm.errors import HostError
from uvm.schema.common import MIB


@pytest.fixture
def boot(tmp_path: Path) -> Boot:
    for name in ("kernel", "initrd"):
        (tmp_path / name).write_text(f"the {name}")
    return Boot("tcg", str(tmp_path / "kernel"), str(tmp_path / "initrd"))


@pytest.fixture
def claimed(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[VMDirectory]:
    host = ProcessName.of(os.getpid())
    assert host is not None
    user = Identity(60600, 60600) if getattr(request, "param", True) else None
    record = Record("vm1", "guid", "", "Created", host)
    made = RuntimeDirectory(tmp_path / "run").claim(record, lambda: Chosen(user))
    before = descriptors()
    yield made
    assert descriptors() <= before
    made.remove()


def test_boot_files_are_opened_here_and_copied_if_root_alone_may_read_them(
    boot: Boot, claimed: VMDirectory
) -> None:
    os.chmod(boot.kernel, 0o600)
    with Inherited(boot, claimed, 1, "") as files:
        assert Path(files.kernel).read_text() == "the kernel"
        assert Path(files.initrd).read_text() == "the initrd"
        assert os.stat(files.kernel).st_mode & 0o004
        assert os.path.samefile(files.initrd, boot.initrd)
        assert not os.path.samefile(files.kernel, boot.kernel)
        assert os.path.samefile(files.shares, claimed.shares)
        paths = (files.kernel, files.initrd, files.shares)
        assert files.fds == [int(path.rpartition("/")[2]) for path in paths]


@pytest.mark.parametrize("claimed", [False], indirect=True)
def test_the_user_of_this_process_opens_boot_files_itself(boot: Boot, claimed: VMDirectory) -> None:
    with Inherited(boot, claimed, 1, "") as files:
        assert (files.kernel, files.initrd, files.console) == (boot.kernel, boot.initrd, "")


def test_a_console_is_listened_at_here_in_place_of_one_that_was_left(
    tmp_path: Path, boot: Boot, claimed: VMDirectory
) -> None:
    path = tmp_path / "console"
    for _ in range(2):
        with Inherited(boot, claimed, 1, str(path)) as files, socket.socket(socket.AF_UNIX) as caller:
            assert re.fullmatch(r"fd=\d+,server=on,wait=off", files.console)
            assert int(files.console[3:].partition(",")[0]) in files.fds
            caller.connect(str(path))


def test_a_console_that_is_listened_at_is_not_replaced_by_another(
    tmp_path: Path, boot: Boot, claimed: VMDirectory
) -> None:
    path = str(tmp_path / "console")
    with Inherited(boot, claimed, 1, path) as first:
        for _ in range(2):
            with pytest.raises(HostError, match=r"ERROR_ALREADY_EXISTS.*console, the console"):
                Inherited(boot, claimed, 1, path)
        assert first.console_socket == SocketFile.at(path)


def test_a_file_is_not_replaced_by_a_console(tmp_path: Path, boot: Boot, claimed: VMDirectory) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(HostError, match=r"create vm1: ERROR_ALREADY_EXISTS.*file, the console"):
        Inherited(boot, claimed, 1, str(path))
    assert path.read_text() == "precious"


def test_copies_of_boot_files_are_counted_as_memory(tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "vmlinux", tmp_path / "initrd"
    boot = Boot("tcg", str(kernel), str(initrd))
    for path in (kernel, initrd):
        path.write_bytes(bytes(MIB))
        path.chmod(0o600)
    with initrd.open("ab") as file:
        file.write(b"x")
    other = Identity(os.getuid() + 1, 60600)
    assert copied_mb(boot, other, "create vm1") == 3
    assert copied_mb(boot, None, "create vm1") == 0
    assert copied_mb(boot, Identity(os.getuid(), 60600), "create vm1") == 0
    kernel.chmod(0o604)
    assert copied_mb(boot, other, "create vm1") == 2
    assert copied_mb(Boot("tcg", str(kernel), ""), other, "create vm1") == 0


def test_no_more_is_copied_than_there_was_room_for(boot: Boot, claimed: VMDirectory) -> None:
    for path in (boot.kernel, boot.initrd):
        os.chmod(path, 0o600)
    with open(boot.initrd, "ab") as file:
        file.write(bytes(MIB))
    with pytest.raises(HostError, match=r"create vm1: ERROR_SHARING_VIOLATION.*initrd has grown"):
        Inherited(boot, claimed, 1, "")
    with Inherited(boot, claimed, 2, "") as files:
        assert os.stat(files.initrd).st_size == os.stat(boot.initrd).st_size


def test_a_boot_file_that_has_gone_is_said_to_be_missing(
    tmp_path: Path, boot: Boot, claimed: VMDirectory
) -> None:
    os.unlink(boot.initrd)
    with pytest.raises(HostError, match=r"create vm1: ERROR_FILE_NOT_FOUND.*initrd"):
        copied_mb(boot, claimed.record.user, "create vm1")
    with pytest.raises(HostError, match=r"create vm1: ERROR_FILE_NOT_FOUND.*initrd"):
        Inherited(boot, claimed, 1, "")
