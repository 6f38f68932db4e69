"""What ``uvm image`` builds, lists and removes."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.descriptors import descriptors
from uvm.backends.qemu.guestimage import Image, ImageOptions
from uvm.backends.qemu.guestimage.cache import Cache

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="guest images are built on Linux")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """The user's cache, with nothing in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = Cache(tmp_path / "uvm")
    if sys.platform == "linux":
        cache.prepare()
    return cache


def put(cache: Cache, key: str, built: str = "2026-11-30T07:00:00Z") -> Image:
    """Put an image of 3 KiB into the cache."""

    def write(directory: Path) -> dict[str, object]:
        (directory / "kernel").write_bytes(bytes(1024))
        (directory / "initrd").write_bytes(bytes(2048))
        return {"built": built, "selection": {"release": f"6.1.0-{key}"}, "python": "3.11.7"}

    return cache.add(key, write)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, cache: Cache) -> list[ImageOptions]:
    """What images were built of: each is there at once."""
    options: list[ImageOptions] = []

    def build(given: ImageOptions, progress: object) -> Image:
        options.append(given)
        return put(cache, "made")

    monkeypatch.setattr("uvm.cli.image.build", build)
    return options


@linux_only
def test_building_prints_where_the_image_is_and_how_large_its_files_are(
    run: Run, asked: list[ImageOptions], cache: Cache
) -> None:
    ran = run("image", "build")
    assert ran.status == 0
    assert ran.lines[0] == f"{cache.images}/made"
    assert [line.split() for line in ran.lines[2:]] == [["initrd", "2", "KiB"], ["kernel", "1", "KiB"]]
    assert asked == [ImageOptions()]


@linux_only
def test_each_part_may_be_named(run: Run, asked: list[ImageOptions]) -> None:
    run(
        *("image", "build", "--kernel", "vmlinuz", "--modules", "modules", "--python", "python3.12"),
        *("--busybox", "bb", "--runtime", "runc", "--machine", "x86_64", "--guest-binary", "gcs"),
    )
    assert asked == [
        ImageOptions(
            kernel="vmlinuz",
            modules="modules",
            python="python3.12",
            busybox="bb",
            runtime="runc",
            machine="x86_64",
            guest_binary="gcs",
        )
    ]


@linux_only
def test_a_kernel_is_fetched_if_asked_for(
    run: Run, asked: list[ImageOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz-6.8").touch()
    monkeypatch.setattr("uvm.cli.image.fetch_kernel", lambda cache, machine, progress: tmp_path)
    run("image", "build", "--fetch")
    assert asked == [ImageOptions(kernel=f"{tmp_path}/boot/vmlinuz-6.8")]


@linux_only
def test_what_cannot_be_built_is_one_line(run: Run, cache: Cache) -> None:
    ran = run("image", "build", "--kernel", "/dev/null")
    assert (ran.status, ran.output) == (2, "")
    assert "kernel='/dev/null' cannot be used" in ran.error


@linux_only
def test_images_are_listed_the_newest_first(run: Run, cache: Cache) -> None:
    put(cache, "a" * 64)
    newest = put(cache, "b" * 64)
    # The clock of a file system is coarse.

    os.utime(newest.directory, (2**31, 2**31))
    assert [line.split() for line in run("image", "list").lines[1:]] == [
        ["b" * 12, "2026-11-30T07:00:00Z", "3", "KiB", f"6.1.0-{'b' * 64}"[:80], "3.11.7"],
        ["a" * 12, "2026-11-30T07:00:00Z", "3", "KiB", f"6.1.0-{'a' * 64}"[:80], "3.11.7"],
    ]


@linux_only
def test_without_images_the_list_says_how_one_is_built(run: Run, cache: Cache) -> None:
    assert "uvm image build" in run("image", "list").output


@linux_only
def test_pruning_removes_all_but_the_newest(run: Run, cache: Cache) -> None:

    put(cache, "a")
    os.utime(put(cache, "b").directory, (2**31, 2**31))
    (cache.downloads / "linux-image-6").mkdir()
    assert run("image", "prune").lines == ["removed a: 3 KiB"]
    assert [image.key for image in cache.all()] == ["b"]
    assert run("image", "prune", "--all").lines == ["removed b: 3 KiB", "removed linux-image-6"]
    assert cache.all() == []
    assert [*cache.downloads.iterdir()] == []


@linux_only
def test_what_vms_hold_is_not_pruned_until_the_last_has_ended(run: Run, cache: Cache) -> None:
    image = put(cache, "a")
    held = image.hold()
    assert held is not None
    again = held.again()
    assert again is not None
    held.close()
    held.close()
    assert held.again() is None
    assert run("image", "prune", "--all").lines == ["kept, as VMs or templates use it, a: 3 KiB"]
    image.check()
    again.close()
    assert run("image", "prune", "--all").lines == ["removed a: 3 KiB"]
    assert image.hold() is None


@linux_only
def test_a_damaged_image_is_pruned_as_others_are(run: Run, cache: Cache) -> None:
    (put(cache, "a").directory / "kernel").unlink()
    assert run("image", "prune", "--all").lines == ["removed a: 3 KiB"]


@linux_only
def test_what_is_pruned_goes_at_once_and_what_a_killed_process_left_of_it_with_the_next_one(
    run: Run, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = put(cache, "a")
    with monkeypatch.context() as patch:
        # As if it were killed there.
        patch.setattr(shutil, "rmtree", lambda *given, **how: None)
        assert cache.prune(image)
    assert cache.all() == []
    [left] = cache.images.iterdir()
    assert left.name.startswith(".unfinished-")
    # Of a process that was killed as it noted something.
    (cache.images / ".unfinished-request").touch()
    assert run("image", "prune").status == 0
    assert [*cache.images.iterdir()] == []


@linux_only
def test_an_image_that_is_pruned_while_a_vm_is_about_to_hold_it_is_not_held(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = put(cache, "a")
    before, opened = descriptors(), os.open

    def open_and_lose(*given: object) -> int:
        fd = opened(*given)  # type: ignore[arg-type]
        monkeypatch.undo()
        assert cache.prune(image)
        return fd

    monkeypatch.setattr(os, "open", open_and_lose)
    assert image.hold() is None
    assert descriptors() <= before


@pytest.mark.skipif(sys.platform == "linux", reason="about other systems")
def test_elsewhere_than_on_linux_no_image_is_built(run: Run) -> None:
    ran = run("image", "build")
    assert ran.status == 1
    assert "guest images are built on Linux" in ran.error
