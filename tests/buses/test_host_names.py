"""One device, whatever its host path is called, and look-ups that answer from what is attached."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import anyio
import pytest
from attrs import define, frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import uvm
from tests.vm.audit import check_at_rest
from tests.vm.orders import Choose, run_example
from tests.vm.support import (
    DEVICE,
    DISK,
    FILE,
    LAYER,
    MIB,
    OTHER_DISK,
    OTHER_FILE,
    OTHER_LAYER,
    OTHER_SHARED,
    PIPE,
    SHARED,
    Attempt,
    Running,
    host_backend,
    lcow,
    quiet,
    running,
    wcow,
)
from uvm.backend import HostInfo
from uvm.backends.fake import FakeBackend, FakeFiles
from uvm.devices.scsi import DiskType
from uvm.errors import HostError, HostPathError, NotAttachedError, OptionsError

pytestmark = pytest.mark.anyio

LINK = r"C:\links\it"


@frozen
class Kind:
    """A kind of device that has a name on the host.

    :ivar found: returns the place of a device by its name, or raises NotAttachedError.
    """

    os: str
    name: str
    other: str
    add: Callable[[uvm.UtilityVM, Any], Awaitable[Any]]
    remove: Callable[[uvm.UtilityVM, Any], Awaitable[None]]
    found: Callable[[uvm.UtilityVM, Any], Awaitable[Any]]
    listed: Callable[[uvm.UtilityVM], tuple[Any, ...]]

    @property
    def links(self) -> bool:
        """Whether its name is a path of the file system."""
        return self.name.startswith("C:")


async def _slot(vm: uvm.UtilityVM, name: Any) -> Any:
    slot = vm.scsi.find(name)
    if slot is None:
        raise NotAttachedError(str(name))
    return slot


async def _layer(vm: uvm.UtilityVM, name: Any) -> Any:
    return vm.vpmem.guest_path(name)


async def _share(vm: uvm.UtilityVM, name: Any) -> Any:
    return await vm.vsmb.guest_path(name, read_only=True)


def _unsearchable(listed: Callable[[uvm.UtilityVM], tuple[Any, ...]]) -> Any:
    """Devices of this kind are only removed by name; here it is looked whether one is attached at all."""

    async def found(vm: uvm.UtilityVM, name: Any) -> Any:
        if not listed(vm):
            raise NotAttachedError(str(name))
        return listed(vm)[0]

    return found


def _shares(vm: uvm.UtilityVM) -> tuple[Any, ...]:
    return tuple(share for share in vm.vsmb.shares if share.references)


KINDS: dict[str, Kind] = {
    "disk": Kind(
        "linux",
        DISK,
        OTHER_DISK,
        lambda vm, name: vm.scsi.attach(name),
        lambda vm, name: vm.scsi.detach(name),
        _slot,
        lambda vm: vm.scsi.disks,
    ),
    "layer": Kind(
        "linux",
        LAYER,
        OTHER_LAYER,
        lambda vm, name: vm.vpmem.add(name),
        lambda vm, name: vm.vpmem.remove(name),
        _layer,
        lambda vm: vm.vpmem.layers,
    ),
    "directory": Kind(
        "windows",
        SHARED,
        OTHER_SHARED,
        lambda vm, name: vm.vsmb.add(name, read_only=True),
        lambda vm, name: vm.vsmb.remove(name, read_only=True),
        _share,
        _shares,
    ),
    "file": Kind(
        "windows",
        FILE,
        OTHER_FILE,
        lambda vm, name: vm.vsmb.add(name, read_only=True),
        lambda vm, name: vm.vsmb.remove(name, read_only=True),
        _share,
        _shares,
    ),
    "pipe": Kind(
        "windows",
        PIPE,
        r"\\.\pipe\two",
        lambda vm, name: vm.pipes.add(name),
        lambda vm, name: vm.pipes.remove(name),
        _unsearchable(lambda vm: vm.pipes.pipes),
        lambda vm: vm.pipes.pipes,
    ),
    "PCI device": Kind(
        "linux",
        DEVICE,
        r"PCI\VEN_1234\2",
        lambda vm, name: vm.vpci.assign(name),
        lambda vm, name: vm.vpci.remove(name),
        _unsearchable(lambda vm: vm.vpci.devices),
        lambda vm: vm.vpci.devices,
    ),
}
KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
OF_FILES = pytest.mark.parametrize(
    "kind", [kind for kind in KINDS.values() if kind.links], ids=[n for n, k in KINDS.items() if k.links]
)


def options_of(kind: Kind) -> Any:
    """Options of a VM that has the kind; its shares and their files go with their last lease."""
    if kind.os == "windows":
        return wcow(no_direct_map=True, revoke_released_files=True)
    return lcow(vpci_enabled=True)


@st.composite
def respelled(draw: st.DrawFn, name: str) -> str:
    """Another spelling of a Windows name."""
    # One draw, not one for each character, which took most of the time of an example.
    upper = draw(st.integers(0, (1 << len(name)) - 1))
    cased = "".join(c.upper() if upper >> at & 1 else c.lower() for at, c in enumerate(name))
    if name.startswith("PCI"):
        return cased
    root = name[:3] if name.startswith("C:") else name[:4]
    words = cased[len(root) :].split("\\")
    verbatim = draw(st.sampled_from([False, False, True]))
    if verbatim:
        return "\\\\?\\" + root.removeprefix("\\\\.\\") + "\\".join(words)
    between = st.sampled_from(["\\", "/", "//", "\\.\\", "/x/../"])
    end = draw(st.sampled_from(["", "", "/", "\\"]))
    return root.replace("\\", draw(st.sampled_from("\\/"))) + draw(between).join(words) + end


async def is_found(kind: Kind, vm: uvm.UtilityVM, name: Any) -> bool:
    try:
        await kind.found(vm, name)
    except NotAttachedError:
        return False
    return True


@define(eq=False)
class Caller:
    """Somebody that attaches the device by a name of its own."""

    name: str
    attempt: Attempt

    @property
    def holds(self) -> bool:
        held = (uvm.LeaseState.HELD, uvm.LeaseState.REFUSED)
        return self.attempt.done and self.attempt.error is None and self.attempt.result.state in held


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_by_any_name_and_in_any_order_it_is_one_device_that_is_found_while_it_is_attached(
    kind: Kind, loop: str, data: st.DataObject
) -> None:
    names = data.draw(st.lists(respelled(kind.name), min_size=1, max_size=4), label="names")
    if kind.links:
        names += data.draw(st.lists(respelled(LINK), max_size=2), label="links")

    async def example(choose: Choose) -> None:
        backend = host_backend()
        backend.files.add_link(LINK, kind.name)
        async with running(options_of(kind), backend=backend) as run, anyio.create_task_group() as tasks:
            callers: list[Caller] = []
            with run.hold() as gate:
                while len(callers) < len(names) or gate.pending:
                    actions = ["begin"] * (len(callers) < len(names)) + ["answer"] * bool(gate.pending)
                    if choose([*actions, "release"], "action") == "release":
                        held = [caller for caller in callers if caller.holds]
                        if held:
                            Attempt.begin(tasks, choose(held, "release").attempt.result.release)
                    elif choose(actions, "action") == "begin":
                        name = names[len(callers)]
                        callers.append(Caller(name, Attempt.begin(tasks, partial(kind.add, run.vm, name))))
                    else:
                        choose(list(gate.pending), "answer").proceed()
                    await quiet()
                    assert len(kind.listed(run.vm)) <= 1
                    for caller in callers:
                        assert not caller.holds or await is_found(kind, run.vm, caller.name)
            await quiet()
            assert [caller.attempt.error for caller in callers if caller.attempt.error] == []
            for caller in callers:
                if caller.holds:
                    await kind.remove(run.vm, caller.name)
            assert not any(caller.holds for caller in callers)
            for name in (kind.name, *names):
                assert not await is_found(kind, run.vm, name)
            check_at_rest(run)
            assert all(not driver.ledger._named for _, driver in run.vm._drivers())

    run_example(example, loop, data)


@KIND
async def test_two_spellings_at_once_are_one_operation(kind: Kind) -> None:
    async with running(options_of(kind)) as run:
        with run.hold(to="host") as gate:
            async with anyio.create_task_group() as tasks:
                attempts = [
                    Attempt.begin(tasks, partial(kind.add, run.vm, name))
                    for name in (kind.name, kind.name.swapcase())
                ]
                await quiet()
                assert len(gate.pending) == 1
                gate.close()
        assert [attempt.error for attempt in attempts] == [None, None]
        assert len(kind.listed(run.vm)) == 1


@KIND
async def test_the_first_spelling_is_sent_and_shown(kind: Kind) -> None:
    async with running(options_of(kind)) as run:
        await kind.add(run.vm, kind.name)
        sent = str([entry.document for entry in run.sent()])
        await kind.add(run.vm, kind.name.swapcase())
        assert str([entry.document for entry in run.sent()]) == sent
        assert kind.name.replace("\\", "\\\\") in sent


@OF_FILES
async def test_a_pathlib_path_is_taken_wherever_a_path_is(kind: Kind) -> None:
    path = PureWindowsPath(kind.name)
    async with running(options_of(kind)) as run:
        await kind.add(run.vm, path)
        assert await is_found(kind, run.vm, path)
        await kind.remove(run.vm, path)
        assert not await is_found(kind, run.vm, path)


@OF_FILES
@pytest.mark.parametrize("path", ["x.vhd", r"dir\x.vhd", "C:x.vhd", "C:", r"\x.vhd", ""])
async def test_a_path_without_a_root_is_refused_and_nothing_is_sent(kind: Kind, path: str) -> None:
    async with running(options_of(kind)) as run:
        for use in (kind.add, kind.remove, kind.found):
            with pytest.raises(OptionsError, match=r"relative|no root|no drive|empty"):
                await use(run.vm, path)
        assert run.sent() == []


# Links.


@OF_FILES
async def test_what_a_link_leads_to_is_sent_and_granted(kind: Kind) -> None:
    backend = host_backend()
    backend.files.add_link(LINK, kind.name)
    async with running(options_of(kind), backend=backend) as run:
        by_link, direct = await kind.add(run.vm, LINK), await kind.add(run.vm, kind.name)
        assert "links" not in str([entry.document for entry in run.sent()])
        assert by_link.host_path == direct.host_path == kind.name
        assert len(kind.listed(run.vm)) == 1
        await by_link.release()
        assert await kind.found(run.vm, LINK) == await kind.found(run.vm, kind.name)
        await direct.release()
        assert not await is_found(kind, run.vm, LINK)


@OF_FILES
async def test_a_link_that_leads_elsewhere_now_is_the_newest_of_what_it_was_taken_for(kind: Kind) -> None:
    backend = host_backend()
    backend.files.add_link(LINK, kind.name)
    async with running(options_of(kind), backend=backend) as run:
        old = await kind.add(run.vm, LINK)
        backend.files.delete(LINK)
        backend.files.add_link(LINK, kind.other)
        assert await kind.found(run.vm, LINK) == await kind.found(run.vm, kind.name)
        new = await kind.add(run.vm, LINK)
        assert await kind.found(run.vm, LINK) == await kind.found(run.vm, kind.other)
        await new.release()
        assert await kind.found(run.vm, LINK) == await kind.found(run.vm, kind.name)
        await kind.remove(run.vm, LINK)
        assert old.released


async def test_removal_by_a_link_takes_the_oldest_lease_of_all_that_it_was_taken_for() -> None:
    backend = host_backend()
    backend.files.add_link(LINK, DISK)
    async with running(backend=backend) as run:
        first = await run.vm.scsi.attach(LINK, read_only=True)
        backend.files.delete(LINK)
        backend.files.add_link(LINK, OTHER_DISK)
        second, third = await run.vm.scsi.attach(LINK), await run.vm.scsi.attach(DISK, read_only=True)
        await run.vm.scsi.detach(LINK)
        assert (first.released, second.released, third.released) == (True, False, False)
        await run.vm.scsi.detach(LINK)
        assert (second.released, third.released) == (True, False)


# Look-ups answer from what is attached.


@OF_FILES
async def test_what_has_gone_from_the_host_is_found_and_removed(kind: Kind) -> None:
    async with running(options_of(kind)) as run:
        lease = await kind.add(run.vm, kind.name)
        run.backend.files.delete(kind.name)
        assert await is_found(kind, run.vm, kind.name.upper())
        await kind.remove(run.vm, kind.name.lower())
        assert lease.released
        with pytest.raises(HostPathError):
            await kind.add(run.vm, kind.name)


async def test_a_disk_is_found_while_it_is_being_attached_in_another_way() -> None:
    async with running() as run:
        with run.hold(to="host", request_type="Add", nth=1) as gate:
            async with anyio.create_task_group() as tasks:
                writable = Attempt.begin(tasks, lambda: run.vm.scsi.attach(DISK))
                (parked,) = await gate.wait(1)
                lease = await run.vm.scsi.attach(DISK, read_only=True, mount=uvm.Mount())
                assert run.vm.scsi.find(DISK) == (lease.controller, lease.lun)
                assert run.vm.scsi.guest_path(DISK) == lease.guest_path
                assert run.vm.scsi.find(DISK, read_only=False) is None
                await run.vm.scsi.detach(DISK)
                assert lease.released
                parked.refuse(0x80070020)
        assert isinstance(writable.error, HostError)


async def test_a_disk_that_is_leaving_hides_none_that_is_attached() -> None:
    backend = host_backend()
    backend.files.add_link(LINK, DISK)
    async with running(backend=backend) as run:
        stays = await run.vm.scsi.attach(LINK, read_only=True)
        backend.files.delete(LINK)
        backend.files.add_link(LINK, OTHER_DISK)
        leaves = await run.vm.scsi.attach(LINK)
        with run.hold(request_type="Remove") as gate:
            async with anyio.create_task_group() as tasks:
                Attempt.begin(tasks, leaves.release)
                await gate.wait()
                assert run.vm.scsi.find(LINK) == (stays.controller, stays.lun)
                gate.close()


async def test_a_layer_that_the_guest_has_unmounted_is_not_found_while_the_host_removes_it() -> None:
    async with running() as run:
        layer = await run.vm.vpmem.add(LAYER)
        with run.hold(to="host", request_type="Remove") as gate:
            async with anyio.create_task_group() as tasks:
                Attempt.begin(tasks, layer.release)
                await gate.wait()
                with pytest.raises(NotAttachedError):
                    run.vm.vpmem.guest_path(LAYER)
                gate.close()


async def test_shares_of_a_directory_and_of_its_files_are_told_apart() -> None:
    async with running(wcow(no_direct_map=True)) as run:
        directory = await run.vm.vsmb.add(SHARED, read_only=True)
        writable = await run.vm.vsmb.add(SHARED)
        one, other = (
            await run.vm.vsmb.add(FILE, read_only=True),
            await run.vm.vsmb.add(OTHER_FILE, read_only=True),
        )
        assert one.name == other.name != directory.name
        assert await run.vm.vsmb.guest_path(FILE.upper(), read_only=True) == one.guest_path
        assert await run.vm.vsmb.guest_path(SHARED.upper(), read_only=False) == writable.guest_path
        await run.vm.vsmb.remove(OTHER_FILE.upper(), read_only=True)
        await run.vm.vsmb.remove(SHARED.upper(), read_only=True)
        assert [each.released for each in (directory, writable, one, other)] == [True, False, False, True]


async def test_a_revoked_file_is_not_found_and_leaves_no_name() -> None:
    async with running(wcow(no_direct_map=True, revoke_released_files=True)) as run:
        await run.vm.vsmb.add(FILE)
        names = set(run.vm.vsmb._shares.ledger._named)
        await (await run.vm.vsmb.add(OTHER_FILE)).release()
        with pytest.raises(NotAttachedError):
            await run.vm.vsmb.guest_path(OTHER_FILE, read_only=False)
        assert set(run.vm.vsmb._shares.ledger._named) == names


async def test_the_same_file_has_one_path_in_a_windows_guest() -> None:
    async with running(wcow()) as run:
        one, two = await run.vm.vsmb.add(FILE), await run.vm.vsmb.add(FILE.upper())
        assert one.guest_path == two.guest_path


async def test_a_mounted_and_an_unmounted_lease_of_a_disk_go_by_age() -> None:
    async with running() as run:
        bare = await run.vm.scsi.attach(DISK)
        mounted = await run.vm.scsi.attach(DISK, mount=uvm.Mount())
        await run.vm.scsi.detach(DISK)
        assert (bare.released, mounted.released) == (True, False)


# Extensible virtual disks, and physical ones.


@pytest.mark.parametrize("path", ["evd://space/some/mount", "space/some/mount"])
async def test_an_extensible_disk_is_found_as_it_was_attached_and_as_its_lease_shows_it(path: str) -> None:
    async with running() as run:
        lease = await run.vm.scsi.attach(path, type=DiskType.EXTENSIBLE_VIRTUAL_DISK)
        assert lease.host_path == run.vm.scsi.disks[0].host_path == "evd://space/some/mount"
        for name in (path, lease.host_path):
            assert run.vm.scsi.find(name) == (lease.controller, lease.lun)
        assert run.vm.scsi.find("evd://other/some/mount") is None
        await run.vm.scsi.detach(path)
        assert run.vm.scsi.find(lease.host_path) is None


async def test_disks_of_two_types_at_one_path_are_two() -> None:
    async with running() as run:
        paths = ("evd://one/x/y", "evd://two/x/y")
        leases = [await run.vm.scsi.attach(path, type="ExtensibleVirtualDisk") for path in paths]
        assert [run.vm.scsi.find(lease.host_path) for lease in leases] == [(0, 0), (0, 1)]


async def test_the_host_path_in_the_path_of_an_extensible_disk_is_compared_as_one() -> None:
    async with running() as run:
        one = await run.vm.scsi.attach(r"evd://space/C:\x\y", type=DiskType.EXTENSIBLE_VIRTUAL_DISK)
        two = await run.vm.scsi.attach("evd://space/c:/X/y/", type=DiskType.EXTENSIBLE_VIRTUAL_DISK)
        assert one.lun == two.lun


@pytest.mark.parametrize("path", [r"\\.\PhysicalDrive2", r"\\?\physicaldrive2", "//./PHYSICALDRIVE2"])
async def test_a_physical_disk_is_one_in_any_case(path: str) -> None:
    backend = host_backend()
    backend.files.add(r"\\.\PHYSICALDRIVE2", size=MIB)
    async with running(backend=backend) as run:
        one = await run.vm.scsi.attach(r"\\.\PHYSICALDRIVE2", type=DiskType.PASS_THRU)
        two = await run.vm.scsi.attach(path, type="PassThru")
        assert (one.lun, two.host_path) == (two.lun, two.host_path)
        assert run.vm.scsi.find(path) == (0, 0)


# PCI devices, pipes, and access.


async def test_the_guid_of_a_pci_device_is_one_with_and_without_braces() -> None:
    async with running(lcow(vpci_enabled=True)) as run:
        guid = "7F2C1C0E-5D0A-4C3E-9B1F-2A60D0A3E7B4"
        lease = await run.vm.vpci.assign(DEVICE, vmbus_guid="{" + guid + "}")
        assert lease.vmbus_guid == guid
        with pytest.raises(OptionsError, match="another device has the VMBus GUID"):
            await run.vm.vpci.assign(r"PCI\VEN_1234\2", vmbus_guid=guid.lower())


async def test_a_pci_device_of_boot_is_removed_however_it_is_spelled() -> None:
    options = lcow(assigned_devices=[uvm.PCIDevice(DEVICE)], vpci_enabled=True)
    async with running(options) as run:
        assert [device.instance_path for device in run.vm.vpci.devices] == [DEVICE]
        await run.vm.vpci.remove(DEVICE.lower())
        assert run.vm.vpci.devices == ()


async def test_access_to_one_file_is_granted_and_revoked_under_one_spelling() -> None:
    async with running() as run:
        await run.vm.scsi.attach(DISK, read_only=True)
        await run.vm.vpmem.add(DISK.upper())
        assert {entry.document["path"] for entry in run.sent("grant")} == {DISK}


# What a lease says.


async def test_the_size_of_a_layer_is_known_whoever_holds_it() -> None:
    async with running(lcow(vpmem_multi_mapping=False)) as run:
        first = await run.vm.vpmem.add(LAYER)
        run.backend.files.delete(LAYER)
        await run.vm.vpmem.add(LAYER)
        await first.release()
        assert [layer.size_bytes for layer in run.vm.vpmem.layers] == [MIB]


async def test_a_single_file_is_where_its_lease_says_in_a_linux_guest() -> None:
    backend = host_backend()
    backend.files.add_link(r"C:\links\other.txt", FILE)
    async with running(backend=backend) as run:
        assert (await run.vm.share(FILE, "/one")).guest_path == "/one/one.txt"
        # It has its own name there, and not that of the link.
        assert (await run.vm.share(r"C:\links\other.txt", "/two")).guest_path == "/two/one.txt"
        names: Any = [PurePosixPath("one.txt"), "two.txt"]
        shared = await run.vm.plan9.add(SHARED, "/some", restrict=True, allowed_names=names)
        assert (shared.guest_path, shared.files) == ("/some", ("/some/one.txt", "/some/two.txt"))
        assert (await run.vm.plan9.add(SHARED, "/all")).files == ()


async def test_a_share_is_shown_once_however_its_path_is_spelled() -> None:
    backend = host_backend()
    backend.files.add_link(LINK, SHARED)
    async with running(wcow(), backend=backend) as run:
        await run.vm.share(SHARED, r"C:\there")
        sent = len(run.sent())
        for path in (SHARED.upper(), LINK):
            await run.vm.share(path, r"C:\there")
        assert len(run.sent()) == sent
        with pytest.raises(OptionsError, match="another share"):
            await run.vm.share(OTHER_SHARED, r"C:\there")


# Hosts with POSIX paths.


@asynccontextmanager
async def posix() -> AsyncIterator[Running]:
    """A Linux VM on a host with POSIX paths: two disks, and a link to the first."""
    files = FakeFiles("posix")
    for path in ("/boot/vmlinux", "/boot/initrd.img", "/srv/a.img", "/srv/A.img", "/srv/d/one.txt"):
        files.add(path, size=MIB)
    files.add_link("/srv/link", "a.img")
    backend = FakeBackend(host=HostInfo(paths="posix"), files=files)
    async with running(lcow(boot_files_path="/boot"), backend=backend) as run:
        yield run


async def test_posix_paths_differ_in_case_and_are_one_through_links() -> None:
    async with posix() as run:
        one = await run.vm.scsi.attach("/srv//./a.img", read_only=True)
        assert (await run.vm.scsi.attach(PurePosixPath("/srv/link"), read_only=True)).lun == one.lun
        assert (await run.vm.scsi.attach("/srv/A.img")).lun != one.lun
        assert run.vm.scsi.find("//srv/link/") == run.vm.scsi.find("/srv/a.img") == (0, one.lun)
        assert run.vm.scsi.find("/srv/A.img", read_only=True) is None
        layers = [await run.vm.vpmem.add(path) for path in ("/srv/a.img", "/srv/link")]
        assert layers[0].guest_path == layers[1].guest_path
        assert {entry.document["path"] for entry in run.sent("grant")} == {"/srv/a.img", "/srv/A.img"}
        check_at_rest(run)


async def test_posix_files_are_shared_with_a_linux_guest() -> None:
    async with posix() as run:
        shared = await run.vm.share("/srv//d/one.txt", "/x")
        assert (shared.host_path, shared.guest_path) == ("/srv/d/one.txt", "/x/one.txt")
        with pytest.raises(OptionsError, match="relative"):
            await run.vm.share("d/one.txt", "/y")


async def test_a_device_may_be_named_with_its_function_as_specifications_do() -> None:
    async with running() as run:
        first = await run.vm.vpci.assign(f"{DEVICE}/3")
        second = await run.vm.vpci.assign(DEVICE.lower(), 3)
        assert (first.instance_path, first.function) == (DEVICE, 3)
        assert first.vmbus_guid == second.vmbus_guid
        [device] = run.vm.vpci.devices
        assert device.references == 2
        assert device.vmbus_instance_id == first.vmbus_instance_id
        assert first.vmbus_guid in first.vmbus_instance_id
        before = len(run.sent())
        with pytest.raises(OptionsError, match="names function 3"):
            await run.vm.vpci.assign(f"{DEVICE}/3", 1)
        assert len(run.sent()) == before
        await run.vm.vpci.remove(f"{DEVICE}/3")
        await second.release()
        assert run.vm.vpci.devices == ()
        check_at_rest(run)


async def test_a_device_of_the_options_may_be_named_with_its_function() -> None:
    named = uvm.PCIDevice(f"{DEVICE}/3")
    assert named == uvm.PCIDevice(DEVICE, 3)
    async with running(lcow(assigned_devices=[named], vpci_enabled=True)) as run:
        [device] = run.vm.vpci.devices
        assert (device.instance_path, device.function) == (DEVICE, 3)
