"""What guests refuse under a security policy, and the sidecar of a Windows guest before there is one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.backends.fake.support import (
    JSON,
    LAYER,
    SHARED,
    add,
    disk,
    expect_guest_refusal,
    guest_of,
    lcow,
    running,
    slot,
    to_guest,
    wcow,
)
from uvm._gcs.connection import GuestConnection
from uvm.backends.fake import FakeSystem
from uvm.errors import GuestError
from uvm.hresult import HResult
from uvm.schema.gcs import LinuxHostedSystem
from uvm.schema.json import to_json
from uvm.schema.requests import VSMBShares

pytestmark = pytest.mark.anyio

ID = "a" * 64
BUNDLE = f"/run/gcs/c/{ID}"
POLICY = to_guest("SecurityPolicy", "Add", EncodedSecurityPolicy="cA==")
VOLUME = r"\\?\Volume{6fb1ab1e-3c4b-4d8d-8d0c-2d6a4a9b8c11}\Files"
SPEC: JSON = {"ociVersion": "1.0.2", "process": {"args": ["cmd"]}}


@asynccontextmanager
async def guest(document: JSON, policy: bool = True) -> AsyncIterator[tuple[FakeSystem, GuestConnection]]:
    async with running(document) as system, guest_of(system) as connection:
        if policy:
            await connection.modify(POLICY)
        yield system, connection


def confidential_wcow() -> JSON:
    document = wcow()
    document["VirtualMachine"]["SecuritySettings"] = {"Isolation": {"IsolationType": "SecureNestedPaging"}}
    return document


# Linux.


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({}, True),
        ({"ReadOnly": True, "Options": ["ro"]}, True),
        ({"ReadOnly": True, "Options": ["ro"], "Filesystem": "ext4"}, True),
        ({"ReadOnly": True}, False),
        ({"Options": ["ro"]}, False),
        ({"Options": ["data=journal"]}, False),
        ({"ReadOnly": True, "Options": ["ro"], "Filesystem": "xfs"}, False),
    ],
)
async def test_a_disk_is_mounted_with_ro_if_it_is_read_only_and_with_nothing_else(
    changes: JSON, allowed: bool
) -> None:
    async with guest(lcow()) as (system, connection):
        await system.modify(add(slot(0), disk()))
        request = to_guest("MappedVirtualDisk", "Add", MountPath="/m", Lun=0, **changes)
        if allowed:
            await connection.modify(request)
        else:
            with expect_guest_refusal(HResult.E_FAIL):
                await connection.modify(request)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"ContainerID": "c1"}, "invalid container id"),
        ({"ContainerRootPath": "/run/x/rootfs"}, "does not match expected path"),
        ({"ScratchPath": f"/run/gcs/c/other/scratch/{ID}"}, "must match regex"),
    ],
)
async def test_layers_are_combined_only_where_the_container_is_to_be(changes: JSON, text: str) -> None:
    settings = {"ContainerID": ID, "ContainerRootPath": f"{BUNDLE}/rootfs", "Layers": [{"Path": "/l"}]}
    async with guest(lcow()) as (_, connection):
        with pytest.raises(GuestError, match=text):
            await connection.modify(to_guest("CombinedLayers", "Add", **settings | changes))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, ""),
        ({"scratch_dir_path": f"/run/gcs/c/pod/scratch/{ID}"}, ""),
        ({"oci_bundle_path": "/run/x"}, "OCIBundlePath '/run/x' must equal"),
        ({"scratch_dir_path": "/run/x"}, "ScratchDirPath '/run/x' must equal"),
        ({"root": {"path": "/run/x"}}, "Root.Path '/run/x' must equal"),
        ({"hooks": {}}, "Hooks must be nil"),
        ({"id": "c1"}, "invalid container id"),
    ],
)
async def test_a_container_is_created_only_with_its_own_paths(changes: JSON, text: str) -> None:
    spec: JSON = {
        "process": {"args": ["cat"]},
        "linux": {},
        "root": {"path": f"{BUNDLE}/rootfs"},
        "annotations": {"io.kubernetes.cri.sandbox-id": "pod"},
        **{name: changes[name] for name in ("root", "hooks") if name in changes},
    }
    hosted = LinuxHostedSystem(
        oci_bundle_path=changes.get("oci_bundle_path", BUNDLE),
        oci_specification=spec,
        scratch_dir_path=changes.get("scratch_dir_path", f"{BUNDLE}/scratch/{ID}"),
    )
    async with guest(lcow()) as (_, connection):
        if text:
            with pytest.raises(GuestError, match=text):
                await connection.create_container(changes.get("id", ID), hosted)
        else:
            await connection.create_container(ID, hosted)


# Both.


@pytest.mark.parametrize("document", [lcow(), confidential_wcow()], ids=["linux", "windows"])
@pytest.mark.parametrize(
    ("resource", "settings", "text"),
    [
        ("SecurityPolicy", {"EnforcerType": "standard"}, 'unknown enforcer: "standard"'),
        ("SecurityPolicy", {"EncodedSecurityPolicy": "?"}, "failed to decode policy"),
        ("SecurityPolicyFragment", {"Fragment": "?"}, "failed to decode fragment"),
        ("SecurityPolicyFragment", {"MediaType": "text/plain"}, 'unsupported media type "text/plain"'),
    ],
)
async def test_a_policy_or_a_fragment_that_cannot_be_read_is_refused(
    document: JSON, resource: str, settings: JSON, text: str
) -> None:
    async with guest(document, policy=resource != "SecurityPolicy") as (_, connection):
        with pytest.raises(GuestError, match=text):
            await connection.modify(to_guest(resource, "Add", **settings))


# Windows.


def container(**changes: Any) -> JSON:
    return {"Spec": SPEC, "CWCOWHostedSystem": {"Container": {}}, **changes}


async def test_before_there_is_a_policy_the_sidecar_refuses_what_it_would_be_asked() -> None:
    layers = {"ContainerRootPath": r"C:\c1", "Layers": [{"Path": VOLUME}]}
    async with guest(confidential_wcow(), policy=False) as (_, connection):
        for request in (
            to_guest("CWCOWCombinedLayers", "Add", ContainerID="c1", CombinedLayers=layers),
            to_guest("WCOWBlockCims", "Add", ContainerID="c1"),
        ):
            with pytest.raises(GuestError, match="denied by policy"):
                await connection.modify(request)
        with pytest.raises(GuestError, match="denied by policy"):
            await connection.create_container("c1", container())
        with pytest.raises(GuestError, match="denied due to policy"):
            await connection.run(["cmd"])


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (container(), ""),
        ({"Container": {}}, "invalid request to createContainer"),
        (container(Spec={"process": {}}), "invalid request to createContainer"),
        (container(CWCOWHostedSystem={}), "invalid request to createContainer"),
    ],
)
async def test_the_sidecar_takes_containers_with_their_specification(document: JSON, text: str) -> None:
    async with guest(confidential_wcow()) as (_, connection):
        if text:
            with pytest.raises(GuestError, match=text):
                await connection.create_container("c1", document)
            return
        await (await connection.create_container("c1", document)).start()


@pytest.mark.parametrize(
    ("paths", "text"),
    [
        ([VOLUME], ""),
        ([VOLUME, VOLUME], "exactly one layer"),
        ([r"\\?\VMSMB\VSMB-{dcc079ae-60ba-4d07-847c-3493609c0870}\s1"], "invalid volumeGUID"),
    ],
)
async def test_the_one_layer_of_a_confidential_container_is_a_volume_of_block_cims(
    paths: list[str], text: str
) -> None:
    async with guest(confidential_wcow()) as (system, connection):
        await system.modify(add(VSMBShares.PATH, {"Name": "s1", "Path": SHARED}))
        await system.modify(add(slot(0), disk()))
        await connection.modify(
            to_guest("MappedVirtualDiskForContainerScratch", "Add", ContainerPath=r"C:\c1", Lun=0)
        )
        await system.modify(add(slot(1), disk(LAYER, ReadOnly=True)))
        volume = {"VolumeGUID": "6fb1ab1e-3c4b-4d8d-8d0c-2d6a4a9b8c11", "MountFlags": 16}
        cims = [{"CimName": "a.cim", "Lun": 1}]
        await connection.modify(to_guest("WCOWBlockCims", "Add", BlockCIMs=cims, **volume))
        layers = {"ContainerRootPath": r"C:\c1", "Layers": [{"Path": path} for path in paths]}
        request = to_guest("CWCOWCombinedLayers", "Add", ContainerID="c1", CombinedLayers=layers)
        if text:
            with pytest.raises(GuestError, match=text):
                await connection.modify(request)
        else:
            await connection.modify(request)


async def test_a_plain_guest_takes_no_container_with_its_specification() -> None:
    async with guest(wcow(), policy=False) as (_, connection):
        with pytest.raises(GuestError):
            await connection.create_container("c1", container())


def test_the_document_is_that_of_hcsshim() -> None:
    from uvm.schema.container import Container, CWCOWHostedSystem, HostedSystem

    made = CWCOWHostedSystem(spec=SPEC, cwcow_hosted_system=HostedSystem(container=Container()))
    assert to_json(made) == container()
    assert "cmd" not in repr(made)
