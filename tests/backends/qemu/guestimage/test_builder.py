"""An image is built once of what it is made of, kept, found again, and built anew when it is damaged."""

from __future__ import annotations

import functools
import gzip
import io
import json
import logging
import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from attrs import evolve

from tests.backends.qemu.guestimage.made import RELEASE, Entry, bzimage, elf, module, read_cpio, vmlinux
from uvm.backends.qemu.guestimage import gather
from uvm.backends.qemu.guestimage.builder import build, guest_image
from uvm.backends.qemu.guestimage.cache import Cache, Image, ImageDamagedError, default_cache
from uvm.backends.qemu.guestimage.interpreter import Interpreter, ask
from uvm.backends.qemu.guestimage.selection import ImageOptions
from uvm.errors import NotSupportedError, OptionsError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="images are built on Linux")

SERVICE = "import json\ndef main():\n    from service import part\n"


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """What images are made of here: a made-up kernel and busybox, and a service."""
    root = tmp_path / "parts"
    modules = root / "lib/modules" / RELEASE / "kernel"
    modules.mkdir(parents=True)
    (modules / "virtio_pci.ko").write_bytes(module(depends=["virtio"]))
    (modules / "virtio.ko.gz").write_bytes(gzip.compress(module()))
    (modules / "unrelated.ko").write_bytes(module())
    (root / "boot").mkdir()
    (root / f"boot/vmlinuz-{RELEASE}").write_bytes(bzimage())
    (root / "busybox").write_bytes(elf(sections={b".debug": bytes(99)}))
    (root / "busybox").chmod(0o755)
    (root / "crun").write_bytes(elf())
    (root / "crun").chmod(0o755)
    (root / "service").mkdir()
    (root / "service/__init__.py").touch()
    (root / "service/first.py").write_text(SERVICE)
    (root / "service/part.py").touch()
    return root


def said(program: str, argument: str) -> str:
    """Return what the made-up programs would say."""
    return {"--list": "sh\nls\nbusybox\n", "--version": "crun version 1.8\n"}[argument]


@functools.cache
def asked(executable: str, modules: tuple[str, ...]) -> Interpreter:
    """Ask an interpreter once: it has the same answer each time."""
    return ask(executable, modules)


@pytest.fixture
def options(parts: Path, monkeypatch: pytest.MonkeyPatch) -> ImageOptions:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(gather, "ask", lambda executable, modules: asked(executable, tuple(modules)))
    monkeypatch.setattr(gather, "_said", said)
    monkeypatch.setattr("uvm.backends.qemu.guestimage.builder.owners", lambda paths: [])
    return ImageOptions(
        kernel=str(parts / f"boot/vmlinuz-{RELEASE}"),
        busybox=str(parts / "busybox"),
        runtime=str(parts / "crun"),
        service="service.first",
        roots=(str(parts),),
    )


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


Builds = list[str]


@pytest.fixture
def builds() -> Builds:
    """What was said while images were built."""
    return []


Make = Callable[..., Image]


@pytest.fixture
def make(options: ImageOptions, cache: Cache, builds: Builds) -> Make:
    """Build an image, with some options."""
    return lambda **given: build(evolve(options, **given), builds.append, cache)


def contents(image: Image) -> dict[str, Entry]:
    return read_cpio(Path(image.initrd).read_bytes())


def test_the_kernel_is_unpacked(make: Make) -> None:
    assert Path(make().kernel).read_bytes() == vmlinux()


def test_the_service_is_started_by_the_guests_python(make: Make) -> None:
    init = contents(make())["init"]
    assert init.data == b"#!/bin/python3 -IS\nfrom service.first import main\nmain()\n"
    assert stat.S_IMODE(init.mode) == 0o755


def test_the_interpreter_has_the_path_that_it_has_here_and_all_that_is_imported_in_a_zip(make: Make) -> None:
    found = contents(make())
    python = os.path.realpath(sys.executable)
    assert found["bin/python3"].data == python.encode()
    assert found[python.lstrip("/")].mode == stat.S_IFREG | 0o755
    assert found[os.__file__.lstrip("/")].data == b""
    [archive] = [name for name in found if name.endswith(".zip")]
    assert f"/{archive}" in sys.path
    with zipfile.ZipFile(io.BytesIO(found[archive].data)) as zipped:
        names = {*zipped.namelist()}
    assert {"service/__init__.pyc", "service/first.pyc", "service/part.pyc", "json/decoder.pyc"} <= names
    assert not any(name.startswith("uvm/") for name in names)


def test_the_programs_are_there_without_what_is_not_loaded(make: Make, parts: Path) -> None:
    found = contents(make())
    busybox = found["bin/busybox"].data
    assert busybox.startswith(b"\x7fELF")
    assert len(busybox) < len((parts / "busybox").read_bytes())
    assert found["bin/ls"].data == found["bin/sh"].data == b"busybox"
    assert "usr/bin/crun" in found


def test_the_modules_that_guests_use_are_there_with_what_they_depend_on(make: Make) -> None:
    found = contents(make())
    assert {name for name in found if name.endswith(".ko")} == {
        "lib/modules/virtio.ko",
        "lib/modules/virtio_pci.ko",
    }
    assert found["lib/modules/virtio.ko"].data == module()
    index = json.loads(found["lib/modules/index.json"].data)
    assert index == {"virtio": [], "virtio_pci": ["virtio"]}


def test_the_manifest_says_what_it_was_made_of(make: Make, parts: Path) -> None:
    manifest = make().manifest
    assert manifest["selection"]["release"] == RELEASE
    assert manifest["modules"] == ["virtio", "virtio_pci"]
    assert f"{parts}/service/part.py" in manifest["sources"]
    assert {*manifest["files"]} == {"kernel", "initrd"}


def test_an_image_is_built_once(make: Make, builds: Builds) -> None:
    assert make() == make()
    assert len(builds) == 1


def test_only_its_user_may_read_it(make: Make, cache: Cache) -> None:
    image = make()
    for directory in (cache.root, cache.images, image.directory):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "part", ["service/part.py", "crun", "busybox", f"lib/modules/{RELEASE}/kernel/virtio_pci.ko"]
)
def test_each_part_that_changes_makes_another_image(
    make: Make, builds: Builds, parts: Path, part: str
) -> None:
    first = make()
    path = parts / part
    path.write_bytes(path.read_bytes() + (b"\nx = 1\n" if part.endswith(".py") else b"\0"))
    second = make()
    assert second.key != first.key
    assert len(builds) == 2


def test_parts_that_are_the_same_again_make_the_same_image(make: Make, parts: Path) -> None:
    first = make()
    (parts / "service/part.py").write_text("")
    assert make().key == first.key


def test_without_a_runtime_it_is_another_image(
    make: Make, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "usr/bin/crun" not in contents(make(runtime=None))


def test_a_runtime_has_its_own_name_whatever_its_file_is_called(
    make: Make, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        gather, "_said", lambda *command: "runc version 1.1" if "--version" in command else "sh"
    )
    found = contents(make(runtime=f"{parts}/crun"))
    assert "usr/bin/runc" in found
    assert "usr/bin/crun" not in found


def test_what_is_no_busybox_is_refused_with_what_to_install(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "_said", lambda program, argument: argument.replace("--version", "crun 1"))
    with pytest.raises(NotSupportedError, match=r"is no busybox with a shell; install one: .*busybox-static"):
        make()


def test_what_is_no_runtime_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "_said", lambda program, argument: "youki version 0.3")
    with pytest.raises(NotSupportedError, match=r"crun is neither crun nor runc: .* 'youki'"):
        make()


def test_programs_that_do_not_run_are_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(NotSupportedError, match="does not run on this machine"):
        make()


def test_a_kernel_that_holds_none_is_named(make: Make, parts: Path) -> None:
    (parts / f"boot/vmlinuz-{RELEASE}").write_bytes(bzimage(b"no kernel"))
    with pytest.raises(NotSupportedError, match=f"the kernel {parts}/boot.* cannot be used"):
        make()


def test_hcsshims_guest_is_taken_along(make: Make, parts: Path) -> None:
    assert "bin/gcs" in contents(make(guest_binary=f"{parts}/crun"))


@pytest.mark.parametrize("name", ["kernel", "initrd"])
def test_an_image_cut_short_is_found_and_built_again(
    make: Make, builds: Builds, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    image = make()
    path = image.directory / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ImageDamagedError, match=rf"{name} is not as it was built.*uvm image prune"):
        image.check()
    with caplog.at_level(logging.WARNING, "uvm"):
        make().check()
    assert "damaged" in caplog.text
    assert path.read_bytes() == whole
    assert len(builds) == 2


@pytest.mark.parametrize("name", ["kernel", "initrd", "manifest.json"])
def test_an_image_that_lacks_a_file_is_built_again(make: Make, builds: Builds, name: str) -> None:
    (make().directory / name).unlink()
    make().check()
    assert len(builds) == 2


def test_processes_that_ask_at_once_build_it_once(options: ImageOptions, cache: Cache) -> None:
    program = f"""
import platform, sys
from pathlib import Path
from uvm.backends.qemu.guestimage import builder, gather
from uvm.backends.qemu.guestimage.cache import Cache
from uvm.backends.qemu.guestimage.interpreter import Interpreter, ask
from uvm.backends.qemu.guestimage.selection import ImageOptions
gather._said = lambda *command: "crun version" if "--version" in command else "sh"
builder.owners = lambda paths: []
platform.machine = lambda: "x86_64"
sys.stdin.read()
print(builder.build({options!r}, print, Cache(Path({str(cache.root)!r}))).key)
"""
    command = [sys.executable, "-c", program]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for each in running:
        assert each.stdin is not None
        each.stdin.close()
        each.stdin = None
    said = [each.communicate()[0].splitlines() for each in running]
    assert [each.returncode for each in running] == [0, 0, 0]
    assert len({lines[-1] for lines in said}) == 1
    assert sum(len(lines) - 1 for lines in said) == 1


def test_what_a_killed_builder_left_is_removed(make: Make, cache: Cache) -> None:
    cache.prepare()
    left = cache.images / ".unfinished-abc"
    left.mkdir()
    (left / "initrd").touch()
    make()
    assert not left.exists()
    assert len(cache.all()) == 1


def test_a_build_that_fails_leaves_nothing(make: Make, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("uvm.backends.qemu.guestimage.contents.Contents.write", no_room)
    with pytest.raises(NotSupportedError, match="No space left"):
        make()
    assert [path.name for path in cache.images.iterdir()] == []


def test_modules_of_another_kernel_are_refused(make: Make, parts: Path) -> None:
    path = parts / "lib/modules" / RELEASE / "kernel/virtio.ko.gz"
    path.write_bytes(gzip.compress(module(release="6.1.0-8-made")))
    with pytest.raises(NotSupportedError, match=f"of Linux 6.1.0-8-made, not of {RELEASE}"):
        make()


def test_a_busybox_that_is_a_script_is_refused(make: Make, parts: Path) -> None:
    (parts / "busybox").write_text("#!/bin/sh\n")
    with pytest.raises(NotSupportedError, match="busybox cannot be taken into the guest image: no ELF"):
        make()


def test_a_service_that_is_not_there_is_refused(make: Make) -> None:
    with pytest.raises(OptionsError, match=r"service='service\.second' cannot be used"):
        make(service="service.second")


def test_a_cache_that_others_may_write_to_is_refused(make: Make, cache: Cache) -> None:
    cache.prepare()
    cache.root.chmod(0o770)
    with pytest.raises(NotSupportedError, match=f"open to other users; 'chmod 700 {cache.root}'"):
        make()


def test_a_cache_that_cannot_be_made_is_an_error(tmp_path: Path, options: ImageOptions) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotSupportedError, match="XDG_CACHE_HOME"):
        build(options, print, Cache(tmp_path / "file" / "uvm"))


def test_the_cache_is_where_the_user_keeps_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache().root == tmp_path / "uvm"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache().root == tmp_path / ".cache/uvm"
    # As in a container that is run as a user whom it does not have.
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 1 << 30)
    with pytest.raises(NotSupportedError, match=r"user 1073741824 has no home directory .*XDG_CACHE_HOME"):
        default_cache()


@pytest.mark.anyio
async def test_the_event_loop_goes_on_while_an_image_is_built(
    options: ImageOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = anyio.Event()
    turns = 0

    async def ask() -> None:
        (await guest_image(options, lambda text: None)).check()
        built.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        while not built.is_set():
            await anyio.lowlevel.checkpoint()
            turns += 1
    assert turns > 100
