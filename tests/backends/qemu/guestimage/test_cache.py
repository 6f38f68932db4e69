"""What keeps a guest image from being pruned, and what does not."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import evolve

from tests.descriptors import descriptors
from uvm.backends.qemu.guestimage import Image
from uvm.backends.qemu.guestimage.cache import Cache
from uvm.backends.qemu.runtime import ProcessName
from uvm.errors import HostError, HostPathError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found as Linux has them")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    made = Cache(tmp_path / "uvm")
    made.prepare()
    return made


def put(cache: Cache) -> Image:
    """Put an image into the cache."""

    def write(directory: Path) -> dict[str, object]:
        (directory / "kernel").touch()
        return {}

    return cache.add("a", write)


def me() -> ProcessName:
    found = ProcessName.of(os.getpid())
    assert found is not None
    return found


def test_an_image_is_kept_for_a_process_that_is_noted_until_it_has_ended(cache: Cache) -> None:
    image = put(cache)
    held = image.hold()
    assert held is not None
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        name = ProcessName.of(process.pid)
        assert name is not None
        held.keep_for(name)
        held.close()
        assert not cache.prune(image)
        process.kill()
    assert cache.prune(image)


def test_what_names_processes_that_have_ended_is_forgotten_and_what_cannot_be_named_is_said(
    cache: Cache,
) -> None:
    image = put(cache)
    held = image.hold()
    assert held is not None
    for started in (1, 2, me().started):
        held.keep_for(evolve(me(), started=started))
    [left] = image.directory.glob(".used-*")
    assert left.name == f".used-{me().written()}"
    shutil.rmtree(image.directory)
    with pytest.raises(HostPathError, match="cannot be made there: No such file"):
        held.keep_for(me())
    held.close()


def test_a_process_of_another_container_may_run_and_one_of_an_earlier_boot_does_not(cache: Cache) -> None:
    image = put(cache)
    held = image.hold()
    assert held is not None
    elsewhere = evolve(me(), namespace=me().namespace + 1)
    for name in (elsewhere, evolve(me(), boot="0"), evolve(elsewhere, boot="0")):
        held.keep_for(name)
    held.close()
    assert not cache.prune(image)
    [left] = image.directory.glob(".used-*")
    assert left.name == f".used-{elsewhere.written()}"
    left.unlink()
    assert cache.prune(image)


@pytest.mark.parametrize("name", ["4711-123456", "", "a-b-c-d", "1-2-3-4-5", "0-1-b-2"])
def test_a_process_whose_name_cannot_be_read_may_run_until_the_machine_boots_again(
    cache: Cache, name: str
) -> None:
    image = put(cache)
    named = image.directory / f".used-{name}"
    named.touch()
    held = image.hold()
    assert held is not None
    held.keep_for(evolve(me(), started=1))
    held.close()
    assert not cache.prune(image)
    os.utime(named, (0, 0))
    assert cache.prune(image)


def test_a_process_that_has_an_image_locked_for_itself_keeps_others_waiting_for_a_moment_only(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uvm.backends.qemu.guestimage.cache._HOLD_SECONDS", 0)
    image = put(cache)
    before = descriptors()
    lock = os.open(image.directory, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(HostError, match=r"ERROR_SHARING_VIOLATION.* nothing was started; end that process"):
        image.hold()
    os.close(lock)
    assert descriptors() <= before


def test_a_forked_process_holds_no_image(cache: Cache) -> None:
    image = put(cache)
    program = """
import json, os, sys
from pathlib import Path
from uvm.backends.qemu.guestimage.cache import Image
Image(Path(sys.argv[1]), {}).hold()
if os.fork():
    os._exit(0)
print(flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", program, str(image.directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.wait()
        assert cache.prune(image)
