"""VMs that survive their process, over a stand-in: the next one has their devices, and their guest anew."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.backends.qemu import images
from tests.backends.qemu.machine import ADAPTERS, PLAN9, VPMEM
from tests.backends.qemu.standin import StandIn, StandInBackend, StandInLauncher
from tests.backends.qemu.test_vm import document
from uvm._wire.ports import LINUX_GCS_PORT, vsock_service_id
from uvm.backend import JSON, System
from uvm.backends.qemu.devices.journal import Journal
from uvm.backends.qemu.guestimage.cache import Cache, Image
from uvm.errors import HostError, HostPathError
from uvm.schema.requests import scsi_attachment_path

pytestmark = pytest.mark.anyio

FIRST, SECOND = scsi_attachment_path(0, 5), scsi_attachment_path(0, 6)
ADAPTER = f"{ADAPTERS}/nic1"
MEMORY = "VirtualMachine/ComputeTopology/Memory/SizeInMB"
MAPPING = f"{VPMEM}/3/Mappings/0"


@pytest.fixture
async def launcher() -> AsyncIterator[StandInLauncher]:
    """What starts stand-ins that outlive their backends."""
    made = StandInLauncher()
    async with anyio.create_task_group() as made.survivors:
        yield made
        for each in made.started.values():
            each.kill()


@pytest.fixture
def asked(tmp_path: Path) -> JSON:
    """The document of a VM that survives, with the host connected to its guest."""
    (tmp_path / "vmlinux").touch()
    devices: JSON = {
        "Scsi": {"df6d0690-79e5-55b6-a5ec-c1e2f77f580a": {}},
        "Plan9": {},
        "VirtualPMem": {"MaximumCount": 8, "MaximumSizeBytes": 64 * images.MIB},
    }
    made = document(str(tmp_path / "vmlinux"), Devices=devices, GuestConnection={})
    return {**made, "ShouldTerminateOnLastHandleClosed": False}


@asynccontextmanager
async def process(launcher: StandInLauncher, tmp_path: Path, **options: Any) -> AsyncIterator[StandInBackend]:
    """A backend as each process has one: it knows what is in the runtime directory, and no more."""
    async with StandInBackend(launcher, tmp_path / "run", **options) as backend:
        yield backend


def change(path: str, action: str = "Add", **settings: Any) -> JSON:
    return {"ResourcePath": path, "RequestType": action, "Settings": settings}


async def fill(backend: StandInBackend, system: System, tmp_path: Path) -> None:
    """Attach one device of each kind."""
    disk = images.written(tmp_path / "disk.img", bytes(images.MIB))
    layer = images.written(tmp_path / "layer.vhd", images.fixed_vhd(images.MIB))
    (tmp_path / "shared").mkdir()
    await backend.grant_access(disk, system.id, "all")
    await system.modify(change(FIRST, Type="VirtualDisk", Path=disk))
    await system.modify(change(MAPPING, HostPath=layer, ImageFormat="Vhd1"))
    await system.modify(change(PLAN9, Name="1", Path=str(tmp_path / "shared"), Flags=1))
    endpoint = await backend.network.create_endpoint("restricted", {"Name": "eth0"})
    await system.modify(change(ADAPTER, EndpointId=endpoint["ID"], MacAddress=endpoint["MacAddress"]))


@asynccontextmanager
async def left(launcher: StandInLauncher, tmp_path: Path, asked: JSON) -> AsyncIterator[JSON]:
    """A VM with devices that its process has left; yields what is attached."""
    async with process(launcher, tmp_path, root_ports=20, share_slots=3) as backend:
        system = await backend.create("vm1", asked)
        await system.start()
        await fill(backend, system, tmp_path)
        found = backend._vms["vm1"].devices.inventory()
        await system.close()
    yield found


async def test_the_image_of_a_vm_that_survives_is_not_pruned_until_its_qemu_has_ended(
    launcher: StandInLauncher, tmp_path: Path, asked: JSON, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path / "cache")
    cache.prepare()
    image = cache.add("a", write_image)

    async def newest() -> Image:
        return image

    del asked["VirtualMachine"]["Chipset"]["LinuxKernelDirect"]["KernelFilePath"]
    async with process(launcher, tmp_path) as backend:
        monkeypatch.setattr(backend._boots, "_guest_image", newest)
        await (await backend.create("vm1", asked)).close()
    assert not cache.prune(image)
    async with process(launcher, tmp_path) as backend:
        system = await backend.open("vm1")
        assert not cache.prune(image)
        await system.terminate()
        await system.wait()
    assert cache.prune(image)


def write_image(directory: Path) -> dict[str, object]:
    for name in ("kernel", "initrd"):
        (directory / name).touch()
    return {}


async def test_the_next_process_has_the_devices_and_changes_them(
    launcher: StandInLauncher, tmp_path: Path, asked: JSON
) -> None:
    async with left(launcher, tmp_path, asked) as attached, process(launcher, tmp_path) as backend:
        system = await backend.open("vm1")
        machine, devices = launcher.started["vm1"].machine, backend._vms["vm1"].devices
        assert devices.inventory() == attached
        assert {*machine.devices} == {"disk-0-5", "pmem-3-0", "plan9-roshare0", "nic-1"}
        assert devices.topology.host.ports.free == 18
        for taken in (
            change(FIRST, Type="VirtualDisk", Path="/other"),
            change(ADAPTER, EndpointId="other"),
            change(PLAN9, Name="1", Path="/other"),
        ):
            with pytest.raises(HostError, match="ERROR_ALREADY_EXISTS"):
                await system.modify(taken)
        disk = images.written(tmp_path / "other.img", bytes(images.MIB))
        await backend.grant_access(disk, "vm1", "all")
        await system.modify(change(SECOND, Type="VirtualDisk", Path=disk))
        for path in (FIRST, SECOND, MAPPING, ADAPTER):
            await system.modify(change(path, "Remove"))
        await system.modify(change(PLAN9, "Remove", Name="1"))
        assert machine.inventory == []
        assert devices.count == 0
        assert devices.topology.host.ports.free == 20
        assert backend.network.attachments() == {}
        await system.terminate()


async def test_all_who_open_it_at_once_have_it_and_one_that_is_cancelled_meanwhile_keeps_none_from_it(
    launcher: StandInLauncher, tmp_path: Path, asked: JSON
) -> None:
    async with left(launcher, tmp_path, asked) as attached, process(launcher, tmp_path) as backend:
        states: list[JSON] = []

        async def use() -> None:
            system = await backend.open("vm1")
            # What another process has, it is not asked for.
            states.append(await system.properties("Memory"))
            await system.close()

        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await backend.open("vm1")
            for _ in range(4):
                tasks.start_soon(use)
        assert [each["State"] for each in states] == ["Running"] * 4
        assert backend._vms["vm1"].devices.inventory() == attached


async def test_a_vm_is_the_next_processs_once_it_is_created_and_ends_with_this_one_before(
    launcher: StandInLauncher, tmp_path: Path, asked: JSON
) -> None:
    async with process(launcher, tmp_path) as backend:
        noted: list[bool] = []

        def look(child: StandIn) -> None:
            record = backend._directory.record("vm1")
            assert record is not None
            assert record.qemu is not None
            noted.append(record.survives)

        launcher.prepare = look
        system = await backend.create("vm1", asked)
        record = backend._directory.record("vm1")
        assert record is not None
        assert (noted, record.survives) == ([False], True)
        await system.terminate()


async def test_a_third_process_has_what_the_second_has_changed(
    launcher: StandInLauncher, tmp_path: Path, asked: JSON
) -> None:
    async with left(launcher, tmp_path, asked):
        async with process(launcher, tmp_path) as backend:
            system = await backend.open("vm1")
            await system.modify(change(FIRST, "Remove"))
            await system.modify({"ResourcePath": MEMORY, "RequestType": "Update", "Settings": 256})
            attached = backend._vms["vm1"].devices.inventory()
            await system.close()
        async with process(launcher, tmp_path) as backend:
            await backend.open("vm1")
            assert backend._vms["vm1"].devices.inventory() == attached
            assert attached["ComputeTopology"]["Memory"] == {"SizeInMB": 256}


async def test_an_endpoint_of_the_vm_is_there_and_its_network_is_no_others(
    launcher: StandInLauncher, tmp_path: Path, asked: JSON
) -> None:
    async with left(launcher, tmp_path, asked), process(launcher, tmp_path) as backend:
        await backend.open("vm1")
        kept = await backend.network.endpoint("eth0")
        other = await backend.network.create_endpoint("restricted", {})
        addresses = [each["IpConfigurations"][0]["IpAddress"] for each in (kept, other)]
        assert addresses == ["10.64.0.15", "10.64.1.15"]
        with pytest.raises(HostError, match="HCN_E_ENTITY_HAS_REFERENCES"):
            await backend.network.delete_endpoint(kept["ID"])


async def test_what_a_process_was_about_to_attach_when_it_died_is_removed(
    launcher: StandInLauncher, tmp_path: Path, asked: JSON
) -> None:
    async with left(launcher, tmp_path, asked) as attached:
        [directory] = [each for each in (tmp_path / "run").iterdir() if each.is_dir()]
        settings = {"Type": "VirtualDisk", "Path": "/gone"}
        journal = Journal(str(directory / "devices"))
        journal.note("disk-0-6", {"Path": SECOND, "Settings": settings, "Place": {}})
        machine = launcher.started["vm1"].machine
        before = machine.inventory
        machine.nodes["disk-0-6"] = {}
        machine.fdsets["77"] = {"opaque": "disk-0-6"}
        async with process(launcher, tmp_path) as backend:
            await backend.open("vm1")
            assert machine.inventory == before
            assert backend._vms["vm1"].devices.inventory() == attached
            assert "disk-0-6" not in dict(journal.entries())


async def test_the_guest_connects_anew_to_the_next_process(
    launcher: StandInLauncher, tmp_path: Path, asked: JSON
) -> None:
    async with left(launcher, tmp_path, asked), process(launcher, tmp_path) as backend:
        system = await backend.open("vm1")
        with anyio.fail_after(20):
            started = await system.create_process({"CommandArgs": ["true"]})
            assert await started.wait() == 0
            await started.close()


async def test_a_vm_without_a_connection_of_its_host_is_listened_for_by_the_next_process(
    launcher: StandInLauncher, tmp_path: Path, asked: JSON
) -> None:
    del asked["VirtualMachine"]["GuestConnection"]
    async with left(launcher, tmp_path, asked), process(launcher, tmp_path) as backend:
        listener = await (await backend.open("vm1")).listen(vsock_service_id(LINUX_GCS_PORT))
        with anyio.fail_after(20):
            stream = await listener.accept()
        await stream.aclose()
        await listener.aclose()


async def test_an_entry_that_is_none_is_refused_and_the_vm_is_left_as_it_is(
    launcher: StandInLauncher, tmp_path: Path, asked: JSON
) -> None:
    async with left(launcher, tmp_path, asked):
        [directory] = [each for each in (tmp_path / "run").iterdir() if each.is_dir()]
        broken = directory / "devices" / "disk-0-5.json"
        whole = broken.read_text()
        broken.write_text("{")
        async with process(launcher, tmp_path) as backend:
            with pytest.raises(HostPathError, match="no entry of a device"):
                await backend.open("vm1")
        broken.write_text(whole)
        async with process(launcher, tmp_path) as backend:
            assert (await (await backend.open("vm1")).properties())["State"] == "Running"


async def test_its_memory_is_with_the_process_that_created_it_so_that_it_is_no_template(
    launcher: StandInLauncher, tmp_path: Path, asked: JSON
) -> None:
    async with left(launcher, tmp_path, asked), process(launcher, tmp_path) as backend:
        system = await backend.open("vm1")
        await system.pause()
        with pytest.raises(HostError, match="HCS_E_INVALID_STATE"):
            await system.save({"SaveType": "AsTemplate"})
        assert (await system.properties())["State"] == "Paused"


async def test_the_next_process_removes_the_console_with_the_vm(
    launcher: StandInLauncher, tmp_path: Path, asked: JSON
) -> None:
    console = anyio.Path(tmp_path / "console")
    asked["VirtualMachine"]["Devices"]["ComPorts"] = {"0": {"NamedPipe": str(console)}}
    async with left(launcher, tmp_path, asked), process(launcher, tmp_path) as backend:
        assert await console.is_socket()
        await (await backend.open("vm1")).terminate()
        assert not await console.exists()
