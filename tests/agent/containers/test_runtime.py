"""The command lines of runtimes, and what they say where they fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from uvm.agent.containers.runtime import Files, Runtime, can_pivot, failure, find, is_id

_FILES = Files("/run/x")
_TERMINAL = Files("/run/x", terminal=True)


def _crun(*, pivot: bool = True) -> Runtime:
    return Runtime("/usr/bin/crun", pivot=pivot, states="/run/s")


def test_crun_keeps_cgroups_itself_and_writes_its_log_as_json() -> None:
    assert _crun().start("a", _FILES) == [
        *("/usr/bin/crun", "--root", "/run/s", "--cgroup-manager=cgroupfs"),
        *("--log", "/run/x/log", "--log-format", "json", "start", "a"),
    ]


def test_runc_has_no_option_for_the_manager_of_cgroups() -> None:
    command = Runtime("/usr/sbin/runc", pivot=True, states="/run/s").start("a", _FILES)
    assert not [each for each in command if "cgroup" in each]


def test_a_container_is_made_from_its_bundle_and_leaves_the_id_of_its_process() -> None:
    command = _crun().create("a", "/run/gcs/c/a", _FILES)
    assert command[-6:] == ["create", "--bundle", "/run/gcs/c/a", "--pid-file", "/run/x/pid", "a"]


def test_the_root_is_not_pivoted_on_an_initramfs() -> None:
    assert "--no-pivot" in _crun(pivot=False).create("a", "/b", _FILES)
    assert "--no-pivot" not in _crun(pivot=True).create("a", "/b", _FILES)


def test_a_terminal_is_handed_over_at_a_socket() -> None:
    for command in (_crun().create("a", "/b", _TERMINAL), _crun().execute("a", _TERMINAL)):
        assert command[command.index("--console-socket") + 1] == "/run/x/console"
    assert "--console-socket" not in _crun().execute("a", _FILES)


def test_processes_of_a_container_run_on_without_their_runtime() -> None:
    assert _crun().execute("a", _FILES)[8:] == [
        *("exec", "--detach", "--process", "/run/x/document", "--pid-file", "/run/x/pid", "a"),
    ]


def test_resources_are_read_from_a_file() -> None:
    assert _crun().update("a", _FILES)[-4:] == ["update", "--resources", "/run/x/document", "a"]


def test_one_that_was_never_started_is_killed_as_it_is_deleted() -> None:
    assert _crun().delete("a", _FILES)[-3:] == ["delete", "--force", "a"]


@pytest.mark.parametrize("each", ["a", "A-1", "x.y_z", "+1", "0" * 64])
def test_ids_of_runtimes(each: str) -> None:
    assert is_id(each)


@pytest.mark.parametrize("each", ["", ".", "..", "-f", "--help", "a/b", "a b", "a\n", "\u00e9"])
def test_no_ids_of_runtimes(each: str) -> None:
    assert not is_id(each)


def test_the_last_error_in_the_log_is_the_reason() -> None:
    log = (
        '{"msg":"first","level":"error"}\n'
        'no JSON\n{"msg":"careful","level":"warning"}\n'
        '{"msg":"exec: \\"x\\": executable file not found in $PATH","level":"error"}\n'
        '{"msg":"by the way","level":"info"}\n'
    )
    assert failure(log, "noise") == 'exec: "x": executable file not found in $PATH'


def test_what_a_runtime_writes_is_the_reason_if_its_log_has_none() -> None:
    assert failure("", "cannot\n  open  it\n") == "cannot open it"
    assert failure("", "") == "it did not say why"


def test_crun_is_taken_before_runc(tmp_path: Path) -> None:
    assert find([str(tmp_path)]) is None
    for name in ("runc", "crun"):
        (tmp_path / name).write_text("")
    assert find([str(tmp_path)]) is None  # they cannot be run
    (tmp_path / "runc").chmod(0o755)
    assert find([str(tmp_path)]) == f"{tmp_path}/runc"
    (tmp_path / "crun").chmod(0o755)
    assert find([str(tmp_path)]) == f"{tmp_path}/crun"


def test_a_root_that_is_mounted_on_nothing_is_not_pivoted() -> None:
    proc = "22 1 0:21 / /proc rw - proc proc rw\n"
    assert not can_pivot(f"1 1 0:2 / / rw - rootfs rootfs rw\n{proc}")
    assert can_pivot(f"30 1 0:2 / / rw - rootfs rootfs rw\n{proc}")
    assert can_pivot(f"1 1 0:2 / / rw - rootfs rootfs rw\n30 1 8:1 / / rw - ext4 /dev/sda1 rw\n{proc}")
