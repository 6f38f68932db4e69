"""Templates and clones: what is sent, what a clone has of its template, and what a failure leaves behind."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from attrs import evolve

import uvm
from tests.clocks import jumping_backends
from tests.points import Point, points, spoil
from tests.vm.audit import check_at_rest
from tests.vm.support import (
    DEVICE,
    DISK,
    ENDPOINT,
    FILE,
    NAMESPACE,
    OTHER_DISK,
    OTHER_FILE,
    OTHER_SHARED,
    PIPE,
    SHARED,
    Running,
    host_backend,
    quiet,
    wcow,
)
from uvm._buses.network import TEMPLATE_NAMESPACE
from uvm.backends.fake import FakeBackend, WindowsGuest
from uvm.errors import (
    BridgeClosedError,
    GuestError,
    HostError,
    NotSupportedError,
    OptionsError,
    VMExitedError,
    VMStateError,
)
from uvm.hresult import HResult
from uvm.schema.devices import VirtualSmbShareOptions

pytestmark = pytest.mark.anyio
anyio_backend = jumping_backends

DIRECTORY = r"C:\clones\one"
CONTAINER = {"SchemaVersion": {"Major": 2, "Minor": 1}, "Container": {}}
GUID = "6fb1ab1e-3c4b-4d8d-8d0c-2d6a4a9b8c11"
ROOT = r"C:\mounts\root"

TEMPLATE = wcow(template=True)
OTHER_BOOT = uvm.VmbFSBootFiles(
    os_files_path=r"C:\other", os_relative_boot_directory="boot", scratch_vhd_path=r"C:\vm\scratch.vhdx"
)


def clone_options(of: uvm.Template, **options: Any) -> uvm.WCOWOptions:
    """The least that the options of a clone say."""
    return uvm.WCOWOptions(**{"id": "clone", "clone_of": of, "scratch_directory": DIRECTORY, **options})


async def fill(vm: uvm.UtilityVM) -> None:
    """Attach one of each that can be saved, and have a container run."""
    share = await vm.vsmb.add(OTHER_SHARED, read_only=True)
    await (await vm.vsmb.add(SHARED)).release()
    await vm.vsmb.add(FILE, read_only=True)
    await vm.vsmb.add(OTHER_FILE, read_only=True)
    await vm.scsi.attach(DISK, mount=uvm.Mount(guest_path=ROOT))
    await vm.scsi.attach(OTHER_DISK, read_only=True)
    await vm.layers.combine(ROOT, [(GUID, share.guest_path)])
    await vm.network.setup(NAMESPACE)
    container = await vm.create_container("c1", CONTAINER)
    await container.start()
    await container.open_process(["sleep", "3600"])
    await quiet()


@asynccontextmanager
async def template_of(
    backend: FakeBackend,
    options: uvm.WCOWOptions = TEMPLATE,
    *,
    full: bool = True,
) -> AsyncIterator[tuple[uvm.UtilityVM, uvm.Template]]:
    """A VM that is saved as a template."""
    async with uvm.UtilityVM.create(options, backend=backend) as vm:
        await vm.start()
        if full:
            await fill(vm)
        yield vm, await vm.save_template()


def said(backend: FakeBackend, after: int) -> list[str]:
    """What was asked after a call: of whom, and what for."""
    return [
        f"{each.to} {each.call.operation} {each.call.request_type} {_short(each.call.resource)}".strip()
        for each in backend.request_log
        if each.seq > after
    ]


def _short(resource: str) -> str:
    return resource.removeprefix("VirtualMachine/Devices/").partition("/")[0]


def last(backend: FakeBackend) -> int:
    return max((each.seq for each in backend.request_log), default=0)


def paths(backend: FakeBackend) -> set[str]:
    return set(backend.files._nodes)


# What a template shares.


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("given", [None, VirtualSmbShareOptions(use_share_root_identity=True)])
async def test_all_that_a_template_shares_can_be_saved(read_only: bool, given: Any) -> None:
    options = given and given.replaced(read_only=read_only)
    backend = host_backend()
    async with uvm.UtilityVM.create(TEMPLATE, backend=backend) as vm:
        await vm.start()
        await vm.vsmb.add(SHARED, read_only=read_only, options=options)
        await vm.vsmb.add(FILE, read_only=read_only, options=options)
        shares = backend.vms["vm1"].tree.vsmb.shares
    read = {"ShareRead", "CacheIo", "ReadOnly", "PseudoOplocks"} if read_only else {"NoOplocks"}
    wanted = {"NoLocks", "PseudoDirnotify", "NoDirectmap"} | read
    own = {"UseShareRootIdentity"} if given else set()
    of_files = {"RestrictFileAccess", "SingleFileMapping"}
    assert names_of(shares["s1"]) == wanted | own
    assert names_of(shares["s2"]) == wanted | own | of_files
    assert names_of(shares["os"]) == {
        *("NoLocks", "PseudoDirnotify", "NoDirectmap", "TakeBackupPrivilege"),
        *("ShareRead", "CacheIo", "ReadOnly", "PseudoOplocks"),
    }


def names_of(share: Any) -> set[str]:
    """The options of a share that are set, by HCS's names."""
    from uvm.schema.json import to_json

    return set(to_json(share.options))


# Saving.


async def test_a_vm_is_saved_without_adapters_and_connection_once_it_is_paused() -> None:
    backend = host_backend()
    async with uvm.UtilityVM.create(TEMPLATE, backend=backend) as vm:
        await vm.start()
        await fill(vm)
        before = last(backend)
        template = await vm.save_template()
        assert said(backend, before) == [
            "guest modify Remove",
            "host modify Remove NetworkAdapters",
            "guest modify Remove",
            "host modify Remove NetworkAdapters",
            "lifecycle pause",
            "lifecycle save",
        ]
        [saved] = [each for each in backend.request_log if each.call.operation == "save"]
        assert saved.document == {"SaveType": "AsTemplate"}
        assert (vm.state, vm.is_clone, vm.template_id) == (uvm.VMState.SAVED, False, "")
        assert template.vm_id == "vm1"
        assert await vm.save_template() is template
    assert vm.state is uvm.VMState.CLOSED
    assert backend.leftovers() == []


async def test_a_template_is_plain_json_that_compares_and_travels() -> None:
    backend = host_backend()
    async with template_of(backend) as (_, template):
        written = json.loads(json.dumps(template.as_json()))
        assert written["Version"] == 1
        for each in (
            uvm.Template.from_json(written),
            pickle.loads(pickle.dumps(template)),
            copy.deepcopy(template),
        ):
            assert each == template
            assert hash(each) == hash(template)


@pytest.mark.parametrize("value", [None, [], {}, {"Version": 2}, "a template"])
def test_what_is_no_template_of_this_version_is_refused(value: Any) -> None:
    with pytest.raises(OptionsError, match="version 1"):
        uvm.Template.from_json(value)


@pytest.mark.parametrize("change", [{"Disks": 1}, {"Other": 1}, {"Shares": [{"Name": 1}]}])
def test_a_template_that_was_damaged_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(uvm.SchemaError):
        uvm.Template.from_json({"Version": 1, **change})


@pytest.mark.parametrize(
    "call",
    [
        lambda vm: vm.pause(),
        lambda vm: vm.resume(),
        lambda vm: vm.save(r"C:\saved"),
        lambda vm: vm.crash(),
        lambda vm: vm.stats(),
        lambda vm: vm.update_memory(memory_mb=2048),
        lambda vm: vm.shutdown(),
        lambda vm: vm.run(["true"]),
        lambda vm: vm.create_container("c2", CONTAINER),
        lambda vm: vm.scsi.attach(DISK, read_only=True),
        lambda vm: vm.vsmb.add(SHARED),
        lambda vm: vm.network.add_endpoint(NAMESPACE, ENDPOINT),
        lambda vm: vm.guest_request({"ResourceType": "Network"}),
        lambda vm: vm.start(),
    ],
)
async def test_what_needs_a_running_vm_is_refused_by_a_saved_one(
    call: Callable[[uvm.UtilityVM], Awaitable[Any]],
) -> None:
    backend = host_backend()
    async with template_of(backend) as (vm, _):
        before = vm.devices(), last(backend)
        with pytest.raises(VMStateError, match="saved"):
            await call(vm)
        assert (vm.devices(), vm.state) == (before[0], uvm.VMState.SAVED)
        asked = [each for each in said(backend, before[1]) if not each.startswith("network")]
        assert asked == []


async def test_what_waits_in_a_vm_that_is_saved_ends_and_what_is_released_stays() -> None:
    backend = host_backend()
    async with uvm.UtilityVM.create(TEMPLATE, backend=backend) as vm:
        await vm.start()
        async with (
            vm.vsmb.add(SHARED) as share,
            vm.scsi.attach(DISK, mount=uvm.Mount()) as disk,
            vm.create_container("c1", CONTAINER) as container,
        ):
            await container.start()
            namespace = await vm.network.setup(NAMESPACE)
            process = await container.open_process(["sleep", "3600"])
            before = vm.devices()
            await vm.save_template()
            with pytest.raises(BridgeClosedError):
                await process.wait()
        assert share.released
        assert disk.released
        await namespace.release()
        assert evolve(before, adapters=()) == vm.devices()
        assert backend.vms["vm1"].tree.vsmb.shares.keys() == {"os", "s1"}
        assert {*backend.vms["vm1"].service.containers} == {"c1"}


async def device(vm: uvm.UtilityVM) -> None:
    await vm.vpci.assign(DEVICE)


async def pipe(vm: uvm.UtilityVM) -> None:
    await vm.pipes.add(PIPE)


async def shown(vm: uvm.UtilityVM) -> None:
    await vm.share(SHARED, r"C:\mnt")


async def mounted(vm: uvm.UtilityVM) -> None:
    container = await vm.create_container("c1", CONTAINER)
    await container.start()
    await vm.mount_in_container(container, SHARED, r"C:\in")


async def passed_through(vm: uvm.UtilityVM) -> None:
    await vm.scsi.attach(DISK, type="PassThru")


async def paused(vm: uvm.UtilityVM) -> None:
    await vm.pause()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (device, "PCI"),
        (pipe, "pipes"),
        (shown, "shared directories"),
        (mounted, "mounted in containers"),
        (passed_through, "cannot be copied"),
        (paused, "paused"),
    ],
)
async def test_what_a_clone_could_not_have_is_not_saved(given: Any, why: str) -> None:
    backend = host_backend()
    async with uvm.UtilityVM.create(TEMPLATE, backend=backend) as vm:
        await vm.start()
        await given(vm)
        before = last(backend)
        with pytest.raises(VMStateError, match=f"{why}.*nothing was sent"):
            await vm.save_template()
        assert said(backend, before) == []


async def test_what_is_in_flight_is_waited_for_by_the_caller() -> None:
    backend = host_backend()
    async with uvm.UtilityVM.create(TEMPLATE, backend=backend) as vm:
        await vm.start()
        gate = backend.faults.hold(resource="VirtualMachine/Devices/VirtualSmb/*")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_awaited, vm.vsmb.add(SHARED))
            await gate.wait()
            with pytest.raises(VMStateError, match="settled"):
                await vm.save_template()
            gate.close()
        await vm.save_template()


async def _awaited(opening: Awaitable[Any]) -> None:
    await opening


async def test_only_a_vm_that_is_to_be_a_template_is_saved() -> None:
    backend = host_backend()
    async with uvm.UtilityVM.create(wcow(), backend=backend) as vm:
        with pytest.raises(VMStateError, match="template=False"):
            await vm.save_template()
        await vm.start()
        with pytest.raises(VMStateError, match="template=False"):
            await vm.save_template()
    async with uvm.UtilityVM.create(TEMPLATE, backend=backend) as vm:
        with pytest.raises(VMStateError, match="start it"):
            await vm.save_template()
    with pytest.raises(VMExitedError):
        await vm.save_template()


# What is asked of a template and of a clone.


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"template": True, "fully_physically_backed": True}, "fully_physically_backed"),
        ({"template": True, "external_guest_connection": False}, "external_guest_connection"),
        ({"template": "yes"}, "True or False"),
        ({"clone_of": "vm1", "scratch_directory": DIRECTORY}, "Template"),
        ({"clone_of": {"Version": 1}, "scratch_directory": DIRECTORY}, "Template"),
    ],
)
def test_options_of_a_template_that_cannot_work_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(OptionsError, match=why):
        wcow(**options)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"memory_mb": 4096}, "memory_mb"),
        ({"processors": 1}, "processors"),
        ({"owner": "another"}, "owner"),
        ({"log_forwarding": False, "inherit_time_zone": False}, "inherit_time_zone, log_forwarding"),
        ({"hvsocket_services": {GUID: uvm.HvSocketService()}}, "hvsocket_services"),
        ({"boot_files": OTHER_BOOT}, "boot_files"),
        ({"template": True}, "template"),
        ({"scratch_directory": ""}, "scratch_directory"),
        ({"external_guest_connection": False}, "external_guest_connection"),
    ],
)
async def test_a_clone_that_differs_from_its_template_is_refused(change: dict[str, Any], why: str) -> None:
    backend = host_backend()
    async with template_of(backend, full=False) as (_, template):
        with pytest.raises(OptionsError, match=why):
            clone_options(template, **change)


async def test_options_that_a_template_has_are_to_be_those_of_its_clones() -> None:
    rich = wcow(
        template=True,
        memory_mb=2048,
        registry_values=[uvm.RegistryValue(hive="System", key="k", name="n", type="DWord", dword_value=1)],
        hvsocket_services={GUID: uvm.HvSocketService(allow_wildcard_binds=True)},
        additional_json={"Owner": "template"},
    )
    backend = host_backend()
    async with template_of(backend, rich, full=False) as (_, template):
        template = uvm.Template.from_json(json.loads(json.dumps(template.as_json())))
        assert "template" not in json.dumps(template.document.options)
        with pytest.raises(OptionsError, match="hvsocket_services, memory_mb, registry_values"):
            clone_options(template)
        theirs = evolve(
            rich,
            id="clone",
            template=False,
            clone_of=template,
            scratch_directory=DIRECTORY,
            additional_json=None,
            console_pipe=r"\\.\pipe\clone",
            survive_process=True,
            revoke_released_files=True,
        )
        async with uvm.UtilityVM.create(theirs, backend=backend) as clone:
            await clone.start()


async def test_a_clone_has_a_guest_of_its_template_s_kind() -> None:
    backend = host_backend()
    async with template_of(backend, full=False) as (_, template):
        with pytest.raises(OptionsError, match="clone_of: the guest of vm1 is a Windows one"):
            uvm.LCOWOptions(clone_of=template, scratch_directory=DIRECTORY)
        linux = uvm.Template(template.document.replaced(os="linux", options={}))
        with pytest.raises(OptionsError, match="clone_of: the guest of vm1 is a Linux one"):
            clone_options(linux)


async def test_a_host_that_makes_no_templates_says_so_and_is_asked_nothing() -> None:
    backend = host_backend()
    async with template_of(backend, full=False) as (_, template):
        other = host_backend(host=uvm.HostInfo(templates=()))
        for options in (TEMPLATE, clone_options(template), uvm.LCOWOptions(template=True)):
            with pytest.raises(NotSupportedError, match="no guests"):
                async with uvm.UtilityVM.create(options, backend=other):
                    pass
        with pytest.raises(NotSupportedError, match="Windows guests, not of Linux"):
            async with uvm.UtilityVM.create(uvm.LCOWOptions(template=True), backend=backend):
                pass
        assert len(other.request_log) == 0


@pytest.mark.parametrize(
    ("state", "code"),
    [("", HResult.HCS_E_SYSTEM_NOT_FOUND), ("Running", HResult.HCS_E_INVALID_STATE)],
)
async def test_what_is_no_template_any_more_has_no_clones(state: str, code: int) -> None:
    backend = host_backend()
    async with template_of(backend, full=False) as (_, template):
        pass
    before = paths(backend)
    async with uvm.UtilityVM.create(wcow(id="vm1" if state else "vm2"), backend=backend) as vm:
        await vm.start()
        begun = last(backend)
        with pytest.raises(HostError, match="nothing was created") as caught:
            async with uvm.UtilityVM.create(clone_options(template), backend=backend):
                pass
        assert caught.value.hresult == code
        assert set(said(backend, begun)) == {"query enumerate"}
    assert paths(backend) == before


async def test_the_fake_saves_no_template_that_runs_or_has_adapters_or_a_connection() -> None:
    backend = host_backend()
    async with uvm.UtilityVM.create(TEMPLATE, backend=backend) as vm:
        await vm.start()
        system = vm._system
        with pytest.raises(HostError, match=r"INVALID_STATE.*Running"):
            await system.save({"SaveType": "AsTemplate"})
        await vm.network.setup(NAMESPACE)
        await vm.pause()
        with pytest.raises(HostError, match=r"INVALID_STATE.*adapters"):
            await system.save({"SaveType": "AsTemplate"})
        await vm.resume()
        await vm.network.remove_all_adapters()
        await vm.pause()
        with pytest.raises(HostError, match=r"INVALID_STATE.*connected"):
            await system.save({"SaveType": "AsTemplate"})
        assert backend.vms["vm1"].state == "Paused"
        await vm.resume()
        assert (await vm.run(["true"])).exit_code == 0


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        (("RestoreState",), {"TemplateSystemId": "vm9"}, r"SYSTEM_NOT_FOUND.*no VM vm9"),
        (("RestoreState",), {"TemplateSystemId": "vm2"}, r"INVALID_STATE.*not saved as a template"),
        (("Devices", "Scsi"), {}, r"E_INVALIDARG.*the template has"),
        (("Devices", "VirtualSmb"), {}, r"E_INVALIDARG.*the template has"),
    ],
)
async def test_the_fake_makes_no_clone_of_what_is_no_template_or_without_its_devices(
    path: tuple[str, ...], value: Any, why: str
) -> None:
    backend = host_backend()

    def amend(plan: uvm.CreationPlan) -> uvm.CreationPlan:
        document = copy.deepcopy(plan.document)
        *outer, name = path
        part = document["VirtualMachine"]
        for each in outer:
            part = part[each]
        part[name] = value
        return evolve(plan, document=document)

    async with (
        template_of(backend) as (_, template),
        uvm.UtilityVM.create(host_linux(id="vm2"), backend=backend),
    ):
        with pytest.raises(HostError, match=why):
            async with uvm.UtilityVM.create(clone_options(template), backend=backend, amend=amend):
                pass
        assert {*backend.vms} == {"vm1", "vm2"}


# Clones.


async def test_the_document_of_a_clone_is_that_of_any_vm_with_what_its_template_has() -> None:
    backend = host_backend()
    async with uvm.UtilityVM.create(wcow(id="clone"), backend=backend) as plain:
        document = copy.deepcopy(plain.plan.document)
    async with (
        template_of(backend) as (_, template),
        uvm.UtilityVM.create(clone_options(template), backend=backend) as clone,
    ):
        machine = document["VirtualMachine"]
        machine["RestoreState"] = {"TemplateSystemId": "vm1"}
        saveable = {"NoLocks": True, "PseudoDirnotify": True, "NoDirectmap": True}
        saveable |= dict.fromkeys(("ReadOnly", "ShareRead", "CacheIo", "PseudoOplocks"), True)
        machine["Devices"]["VirtualSmb"]["Shares"] += [
            {"Name": "s1", "Path": OTHER_SHARED, "Options": saveable},
            {
                "Name": "s3",
                "Path": SHARED,
                "AllowedFiles": [FILE, OTHER_FILE],
                "Options": saveable | {"RestrictFileAccess": True, "SingleFileMapping": True},
            },
        ]
        [controller] = machine["Devices"]["Scsi"].values()
        controller["Attachments"] = {
            "0": {"Type": "VirtualDisk", "Path": rf"{DIRECTORY}\scratch.vhdx"},
            "1": {"Type": "VirtualDisk", "Path": rf"{DIRECTORY}\clone-mount-0-1-clone\a.vhdx"},
            "2": {"Type": "VirtualDisk", "Path": OTHER_DISK, "ReadOnly": True},
        }
        assert clone.plan.document == document
        assert sorted(backend.access.paths("clone")) == [
            rf"{DIRECTORY}\clone-mount-0-1-clone\a.vhdx",
            rf"{DIRECTORY}\scratch.vhdx",
            OTHER_DISK,
        ]


async def test_the_guest_of_a_clone_is_greeted_and_neither_created_nor_started() -> None:
    backend = host_backend()
    async with (
        template_of(backend) as (_, template),
        uvm.UtilityVM.create(clone_options(template), backend=backend) as clone,
    ):
        begun = last(backend)
        await clone.start()
        assert [each for each in said(backend, begun) if "listen" not in each] == [
            "lifecycle start",
            "guest connect",
            "guest negotiate protocol",
            "guest modify Update HvSocket",
            "guest modify service settings",
            "guest modify service settings",
        ]
        assert (clone.is_clone, clone.template_id) == (True, "vm1")


async def test_a_clone_has_the_devices_of_its_template_each_with_one_reference() -> None:
    backend = host_backend()
    async with (
        template_of(backend) as (vm, template),
        uvm.UtilityVM.create(clone_options(template), backend=backend) as clone,
    ):
        await clone.start()
        run = Running(clone, backend)
        check_at_rest(run)
        theirs, ours = vm.devices(), clone.devices()
        assert [(d.controller, d.lun, d.mounts, d.references) for d in ours.disks] == [
            (0, 1, (ROOT,), 1),
            (0, 2, (), 1),
        ]
        assert [(s.name, s.guest_path, s.files) for s in ours.vsmb_shares] == [
            (s.name, s.guest_path, s.files) for s in theirs.vsmb_shares
        ]
        assert [evolve(root, references=1) for root in theirs.roots] == list(ours.roots)
        await clone.layers.remove(ROOT)
        copied = rf"{DIRECTORY}\clone-mount-0-1-clone\a.vhdx"
        for disk in (copied, OTHER_DISK):
            assert disk in backend.access.paths("clone")
            await clone.scsi.detach(disk)
            assert disk not in backend.access.paths("clone")
        for path in (OTHER_SHARED, FILE, OTHER_FILE):
            await clone.vsmb.remove(path, read_only=True)
        assert [*clone.devices().vsmb_shares, *clone.devices().disks, *clone.devices().roots] == []
        check_at_rest(run)
        assert (await clone.vsmb.add(SHARED)).name == "s4"
        assert (await clone.scsi.attach(OTHER_DISK, read_only=True)).lun == 1
        check_at_rest(run)


async def test_what_runs_in_a_template_goes_on_in_each_clone() -> None:
    backend = host_backend()
    backend.files.add_directory(r"C:\clones")
    async with template_of(backend) as (_, template), anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(_use, backend, template, number)
    assert backend.leftovers() == []


async def _use(backend: FakeBackend, template: uvm.Template, number: int) -> None:
    options = clone_options(template, id=f"clone{number}", scratch_directory=rf"C:\clones\{number}")
    async with uvm.UtilityVM.create(options, backend=backend) as clone:
        await clone.start()
        container = clone.open_container("c1")
        assert [each.image_name for each in await container.processes()] == ["sleep"]
        assert (await container.run(["echo", str(number)])).stdout == f"{number}\n".encode()
        assert (await clone.run(["true"])).exit_code == 0
        await container.terminate()
        assert (await container.wait()).type == "ForcedExit"
        await (await clone.create_container("c2", CONTAINER)).aclose()


async def test_the_network_of_a_clone_is_the_namespace_that_its_guest_is_in() -> None:
    backend = host_backend()
    async with (
        template_of(backend) as (vm, template),
        uvm.UtilityVM.create(clone_options(template), backend=backend) as clone,
    ):
        announced = [
            each.document["Settings"]
            for each in backend.request_log
            if each.call.resource == "NetworkNamespace"
        ]
        assert [each["ID"] for each in announced] == [TEMPLATE_NAMESPACE]
        await clone.start()
        for _ in range(2):
            begun = last(backend)
            namespace = await clone.network.setup(NAMESPACE)
            assert namespace.id == TEMPLATE_NAMESPACE
            assert not any("NetworkNamespace" in each for each in said(backend, begun))
            assert {each.namespace_id for each in clone.network.adapters} == {TEMPLATE_NAMESPACE}
            assert len(clone.network.adapters) == 2
            with pytest.raises(OptionsError, match="already"):
                await clone.network.add_namespace(NAMESPACE)
            await namespace.release()
            assert not [*clone.network.adapters]
        await clone.network.setup(NAMESPACE)
        await clone.network.remove_endpoint(NAMESPACE, ENDPOINT)
        await clone.network.remove_namespace(NAMESPACE)
        guest = backend.vms["clone"].guest
        assert isinstance(guest, WindowsGuest)
        assert {*guest.namespaces} == {TEMPLATE_NAMESPACE.lower()}
        check_at_rest(Running(clone, backend))
        assert vm.network.adapters == ()


# Containers by their ids.


async def test_a_container_of_another_connection_is_opened_by_its_id_without_a_request() -> None:
    backend = host_backend()
    async with (
        template_of(backend) as (_, template),
        uvm.UtilityVM.create(clone_options(template), backend=backend) as clone,
    ):
        with pytest.raises(VMStateError):
            clone.open_container("c1")
        await clone.start()
        begun = last(backend)
        async with clone.open_container("c1") as container:
            assert said(backend, begun) == []
            with pytest.raises(OptionsError, match="open container c1"):
                clone.open_container("c1")
            with pytest.raises(NotSupportedError, match="no process of its own"):
                await container.open_init()
        assert container.exit is not None
        for id in ("", 1):
            with pytest.raises(OptionsError):
                clone.open_container(id)  # type: ignore[arg-type]
        with pytest.raises(GuestError):
            await clone.open_container("c9").processes()


@pytest.mark.parametrize("os", ["linux", "windows"])
async def test_through_hcs_no_container_is_opened(os: str) -> None:
    options = wcow if os == "windows" else host_linux
    backend = host_backend()
    async with uvm.UtilityVM.create(options(external_guest_connection=False), backend=backend) as vm:
        await vm.start()
        with pytest.raises(NotSupportedError, match="external_guest_connection"):
            vm.open_container("c1")


def host_linux(**options: Any) -> uvm.LCOWOptions:
    return uvm.LCOWOptions(boot_files_path=r"C:\boot", **options)


# Ends.


async def test_a_template_is_deleted_once_and_its_clones_run_on() -> None:
    backend = host_backend()
    async with (
        template_of(backend) as (vm, template),
        uvm.UtilityVM.create(clone_options(template), backend=backend) as clone,
    ):
        await clone.start()
        await template.delete(backend)
        assert (await vm.wait()).exit_type == "ForcedExit"
        assert list(backend.access.paths("vm1")) == []
        await template.delete(backend)
        assert (await clone.run(["true"])).exit_code == 0
    await template.delete(backend)
    assert backend.leftovers() == []


async def test_a_template_outlives_its_process_and_is_deleted_by_another() -> None:
    backend = host_backend()
    async with template_of(backend, evolve(TEMPLATE, survive_process=True)) as (vm, template):
        vm.detach()
    template = uvm.Template.from_json(template.as_json())
    options = clone_options(template)
    async with uvm.UtilityVM.create(options, backend=backend) as clone:
        await clone.start()
    assert backend.vms["vm1"].state == "SavedAsTemplate"
    await template.delete(backend)
    assert backend.leftovers() == []


async def test_a_vm_that_is_no_template_is_not_deleted_as_one() -> None:
    backend = host_backend()
    async with template_of(backend, full=False) as (_, template):
        pass
    async with uvm.UtilityVM.create(wcow(), backend=backend) as vm:
        await vm.start()
        with pytest.raises(VMStateError, match=r"Running, no template; nothing was changed"):
            await template.delete(backend)
        assert (await vm.run(["true"])).exit_code == 0


# Failures: one run for each call, in which it fails, its answer is lost, or the caller is cancelled there.


HOW = pytest.mark.parametrize("how", ["refuse", "lose", "cancelled"])


@HOW
async def test_a_clone_that_cannot_be_made_leaves_the_host_as_it_was(how: str) -> None:
    backend = host_backend()
    async with template_of(backend) as (vm, template):
        options = clone_options(template)

        async def create() -> None:
            async with uvm.UtilityVM.create(options, backend=backend):
                pass

        begun = last(backend)
        await create()
        kinds = ("query", "grant", "lifecycle")
        wanted = [p for p in points(backend, begun) if p.to in kinds and p.operation != "terminate"]
        assert len(wanted) == 6
        before = paths(backend), sorted(backend.access.entries()), vm.devices()
        for point in wanted:
            done = await spoil(backend, how, point, create)
            await quiet()
            assert not done, point
            assert {*backend.vms} == {"vm1"}, point
            assert (paths(backend), sorted(backend.access.entries()), vm.devices()) == before, point
        await create()


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("written", [False, True])
async def test_a_copy_that_fails_leaves_none(
    number: int, written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = host_backend()
    made: list[str] = []
    copy_file = backend.files.copy

    async def fail(source: str, target: str) -> None:
        made.append(target)
        if len(made) < number or written:
            await copy_file(source, target)
        if len(made) == number:
            raise OSError("the disk is full") if written else uvm.HostPathError(source, "no room")

    async with template_of(backend) as (_, template):
        before = paths(backend), sorted(backend.access.entries())
        monkeypatch.setattr(backend.files, "copy", fail)
        with pytest.raises((OSError, uvm.HostPathError)):
            async with uvm.UtilityVM.create(clone_options(template), backend=backend):
                pass
        assert (paths(backend), sorted(backend.access.entries())) == before
        assert len(made) == number


async def test_the_copies_of_a_clone_and_its_access_go_with_it() -> None:
    backend = host_backend()
    async with template_of(backend) as (_, template):
        before = paths(backend), sorted(backend.access.entries())
        async with uvm.UtilityVM.create(clone_options(template), backend=backend) as clone:
            assert paths(backend) != before[0]
            await clone.start()
        assert (paths(backend), sorted(backend.access.entries())) == before


async def test_a_clone_does_not_copy_over_a_disk_of_its_template() -> None:
    backend = host_backend()
    async with template_of(backend) as (_, template):
        with pytest.raises(OptionsError, match="scratch_directory, must be apart"):
            async with uvm.UtilityVM.create(
                clone_options(template, scratch_directory=r"C:\vm"), backend=backend
            ):
                pass


@HOW
async def test_a_clone_whose_start_fails_leaves_the_host_as_it_was(how: str) -> None:
    backend = host_backend()
    async with template_of(backend) as (_, template):
        options = clone_options(template)

        async def run() -> None:
            async with uvm.UtilityVM.create(options, backend=backend) as clone:
                await clone.start()

        begun = last(backend)
        await run()
        wanted = [p for p in points(backend, begun) if p.to in ("guest", "host") or p.operation == "start"]
        before = paths(backend), sorted(backend.access.entries())
        for point in wanted:
            await spoil(backend, how, point, run)
            await quiet()
            assert {*backend.vms} == {"vm1"}, point
            assert (paths(backend), sorted(backend.access.entries())) == before, point


@HOW
async def test_the_network_of_a_clone_that_cannot_be_set_up_is_as_it_was(how: str) -> None:
    backend = host_backend()
    async with template_of(backend) as (_, template):
        async with started_clone(backend, template) as clone:
            begun = last(backend)
            await clone.network.setup(NAMESPACE)
            wanted = [point for point in points(backend, begun) if point.to != "query"]
        assert {point.to for point in wanted} == {"network", "guest", "host"}
        for point in wanted:
            if how == "lose" and point.to == "guest":
                # The connection goes with an answer of the guest.
                continue
            async with started_clone(backend, template) as clone:
                await spoil(backend, how, point, lambda: clone.network.setup(NAMESPACE))
                await quiet()
                check_at_rest(Running(clone, backend))
                assert clone.network.adapters == (), point
                # Whether the adapter is there is unknown, and reported.
                assert bool(clone.quarantined) is (how == "lose" and point.to == "host"), point


@asynccontextmanager
async def started_clone(backend: FakeBackend, template: uvm.Template) -> AsyncIterator[uvm.UtilityVM]:
    async with uvm.UtilityVM.create(clone_options(template), backend=backend) as clone:
        await clone.start()
        yield clone


SAVE = [
    Point("guest", "modify", "Remove", 1),
    Point("host", "modify", "Remove", 1),
    Point("guest", "modify", "Remove", 2),
    Point("host", "modify", "Remove", 2),
    Point("lifecycle", "pause", "", 1),
    Point("lifecycle", "save", "", 1),
]


@HOW
@pytest.mark.parametrize("point", SAVE, ids=str)
async def test_a_save_that_fails_is_done_by_the_next_one_or_leaves_the_vm_as_it_was(
    how: str, point: Point
) -> None:
    backend = host_backend()
    async with uvm.UtilityVM.create(TEMPLATE, backend=backend) as vm:
        await vm.start()
        await fill(vm)
        before = vm.devices()
        done = await spoil(backend, how, point, vm.save_template)
        await quiet()
        # What was begun goes on without its caller; the host is asked for an answer that is lost; a guest
        # whose connection is lost holds nothing.
        saved = how == "cancelled" or (how == "lose" and (point.to, point.operation) != ("host", "modify"))
        assert (done or how == "cancelled") is saved
        assert vm.state is (uvm.VMState.SAVED if saved else uvm.VMState.RUNNING)
        assert backend.vms["vm1"].state == ("SavedAsTemplate" if saved else "Running")
        assert evolve(vm.devices(), adapters=(), quarantined=()) == evolve(before, adapters=())
        if not saved and point.to == "lifecycle":
            with pytest.raises(VMStateError, match="save it again or close it"):
                await vm.run(["true"])
        if vm.quarantined:
            assert (how, point.to) == ("lose", "host")
            with pytest.raises(VMStateError, match=r"unknown \(vm.quarantined\)"):
                await vm.save_template()
        else:
            template = await vm.save_template()
            async with uvm.UtilityVM.create(clone_options(template), backend=backend) as clone:
                await clone.start()
                check_at_rest(Running(clone, backend))
    assert backend.leftovers() == []


async def test_a_vm_that_was_neither_saved_nor_resumed_is_saved_by_the_next_call() -> None:
    backend = host_backend()
    async with uvm.UtilityVM.create(TEMPLATE, backend=backend) as vm:
        await vm.start()
        rules = [backend.faults.refuse(operation=each) for each in ("save", "resume")]
        with pytest.raises(HostError) as caught:
            await vm.save_template()
        assert "resuming the VM failed" in caught.value.__notes__[0]
        assert vm.state.value == "paused"
        for rule in rules:
            rule.remove()
        await vm.save_template()
        assert vm.state.value == "saved"


async def test_two_that_save_a_vm_get_one_template() -> None:
    backend = host_backend()
    found: list[uvm.Template] = []

    async def save(vm: uvm.UtilityVM) -> None:
        found.append(await vm.save_template())

    async with uvm.UtilityVM.create(TEMPLATE, backend=backend) as vm:
        await vm.start()
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(save, vm)
    assert found[0] is found[1]
    assert [each.call.operation for each in backend.request_log].count("save") == 1


@pytest.mark.parametrize("how", ["crash", "close"])
@pytest.mark.parametrize("point", SAVE, ids=str)
async def test_a_vm_that_ends_while_it_is_saved_has_exited(how: str, point: Point) -> None:
    backend = host_backend()
    async with uvm.UtilityVM.create(TEMPLATE, backend=backend) as vm:
        await vm.start()
        await fill(vm)
        gate = backend.faults.hold(**point.matching)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_exits, vm)
            await gate.wait()
            if how == "crash":
                backend.vms["vm1"].crash()
            else:
                tasks.start_soon(vm.close)
            await quiet()
            gate.close()
    assert backend.leftovers() == []


async def _exits(vm: uvm.UtilityVM) -> None:
    with pytest.raises(VMExitedError):
        await vm.save_template()


@HOW
@pytest.mark.parametrize("nth", range(6))
async def test_a_deletion_that_fails_is_finished_by_the_next_one(how: str, nth: int) -> None:
    backend = host_backend()
    async with template_of(backend, evolve(TEMPLATE, survive_process=True)) as (vm, template):
        vm.detach()
    begun = last(backend)
    other = host_backend()
    async with template_of(other, evolve(TEMPLATE, survive_process=True)) as (vm, same):
        vm.detach()
    before = last(other)
    await same.delete(other)
    wanted = [*points(other, before)]
    assert len(wanted) == 6
    await spoil(backend, how, wanted[nth], lambda: template.delete(backend))
    await quiet()
    assert last(backend) > begun
    await template.delete(backend)
    assert backend.leftovers() == []
