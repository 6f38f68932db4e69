"""The schema models and their JSON."""

from __future__ import annotations

import copy
import enum
import json
import re
from collections.abc import Callable
from typing import Annotated, Any, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import fields

from tests.schema.models import MODELS, models
from uvm.errors import UVMError
from uvm.schema import devices, guest, network, process, requests, system
from uvm.schema.json import SchemaError, dumps, from_json, to_json
from uvm.schema.secrets import HIDDEN


@given(st.data())
def test_json_of_any_model_reads_back_as_the_same_json(data: st.DataObject) -> None:
    cls = data.draw(st.sampled_from(MODELS), label="class")
    document = to_json(data.draw(models(cls), label="model"))
    assert to_json(from_json(cls, document, forbid_extra=True)) == document
    assert json.loads(dumps(document)) == document


@pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)
def test_every_field_has_a_json_name_of_its_own_and_a_zero_value(cls: Any) -> None:
    names = [f.encode_name for f in fields(cls)]
    assert len(set(names)) == len(names)
    assert cls() == cls()
    with pytest.raises(TypeError, match="positional"):
        cls("")


@pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)
def test_what_is_omitted_is_a_zero_value_of_go(cls: Any) -> None:
    omitted = {f.name for f in fields(cls) if f.encode_name not in to_json(cls())}
    assert [f.name for f in fields(cls) if f.name in omitted and getattr(cls(), f.name)] == []


def test_what_a_model_does_not_show_is_hidden_in_the_traces_of_messages_too() -> None:
    secret = {f.encode_name for cls in MODELS for f in fields(cls) if get_origin(f.type) is Annotated}
    # These hold documents, whose own secrets are hidden.
    documents = {
        "ContainerConfig",
        "ProcessParameters",
        "OciProcess",
        "OciSpecification",
        "Spec",
        "Request",
        "Settings",
    }
    assert "Environment" in secret
    assert secret - documents <= HIDDEN


def test_zero_values_are_left_out() -> None:
    attachment = devices.Attachment(type="VirtualDisk", path="C:\\a.vhdx", read_only=False)
    assert to_json(attachment) == {"Type": "VirtualDisk", "Path": "C:\\a.vhdx"}
    assert to_json(devices.Scsi(attachments={})) == {}


def test_structures_stay_even_when_they_are_empty() -> None:
    written = to_json(devices.Devices(plan9=devices.Plan9(), keyboard=devices.Keyboard()))
    assert written == {"Plan9": {}, "Keyboard": {}}


def test_a_false_that_is_not_the_default_is_written() -> None:
    assert to_json(system.IsolationSettings(hcl_enabled=False)) == {"HclEnabled": False}
    assert to_json(devices.VirtualPciDevice(propagate_numa_affinity=True)) == {"PropagateNumaAffinity": True}


def test_hcn_documents_carry_what_go_always_writes() -> None:
    assert to_json(network.HostComputeEndpoint(id="e")) == {
        "ID": "e",
        "Dns": {},
        "Health": {"Extra": {}},
        "SchemaVersion": {"Major": 0, "Minor": 0},
    }
    assert to_json(network.EndpointPolicy()) == {"Type": ""}


def test_structures_held_by_value_are_always_written() -> None:
    assert to_json(guest.CWCOWCombinedLayers(container_id="c")) == {
        "ContainerID": "c",
        "CombinedLayers": {},
    }
    assert to_json(guest.BlockCIMDevice()) == {"CimName": "", "Lun": 0}


@pytest.mark.parametrize("settings", [0, "", {}, [], False, 3074])
def test_free_form_settings_are_left_out_only_when_there_are_none(settings: Any) -> None:
    path = requests.MemorySize.PATH
    written = to_json(requests.ModifySettingRequest(resource_path=path, settings=settings))
    assert written == {"ResourcePath": path, "Settings": settings}
    assert "Settings" not in to_json(requests.ModifySettingRequest(resource_path=path))


def test_a_request_relayed_to_the_guest_is_written_inside_the_hosts() -> None:
    inner = requests.ModificationRequest(
        resource_type=guest.RESOURCE_SCSI_DEVICE, request_type=requests.REMOVE, settings=guest.SCSIDevice()
    )
    assert to_json(requests.ModifySettingRequest(guest_request=inner)) == {
        "GuestRequest": {"RequestType": "Remove", "ResourceType": "SCSIDevice", "Settings": {}}
    }


def test_text_is_compact_and_may_hold_models_in_plain_values() -> None:
    assert dumps({"a": [devices.ComPort(named_pipe="p")]}) == '{"a":[{"NamedPipe":"p"}]}'
    assert dumps(devices.ComPort()) == "{}"


class Text(str):
    """Text of a class that a caller has."""


class Bytes(int):
    """A number of a class that a caller has."""


class Share(float):
    """A fraction of such a class."""


class Number(enum.IntEnum):
    """A number that has a name."""

    ONE = 1


def test_text_and_numbers_of_classes_of_the_callers_are_plain_and_a_member_of_an_enum_its_value() -> None:
    values = {"a": Text("b"), "c": Number.ONE, "d": (Text("e"), Bytes(2**64), Share(0.5))}
    document = {"RequestType": "Add", "Settings": {"a": "b", "c": 1, "d": ["e", 2**64, 0.5]}}
    request = requests.ModificationRequest(request_type=Text("Add"), settings=values)
    assert json.loads(dumps(request)) == json.loads(json.dumps(to_json(request))) == document
    assert type(to_json(request)["RequestType"]) is str


def untyped(cls: Any, **values: Any) -> Any:
    """Return a model that holds what its types do not allow."""
    return cls(**values)


LOOP: list[Any] = []
LOOP.append(LOOP)
DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]


@pytest.mark.parametrize("write", [to_json, dumps])
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (float("nan"), ".Settings is nan, which is no JSON number"),
        ([1.5, float("-inf")], ".Settings[1] is -inf, which is no JSON number"),
        ({"a": {1}}, ".Settings.a is a set, which is no JSON value"),
        ({"a": [{"b": b"s3cret"}]}, ".Settings.a[0].b is a bytes, which is no JSON value"),
        ({"a": {3: 4}}, ".Settings.a has a key that is no string"),
        (
            network.HostComputeEndpoint(health=network.Health(data=object())),
            ".Settings.Health.Data is an object",
        ),
        (system.ComputeSystem, ".Settings is a "),
        (
            untyped(devices.VirtualSmbShare, path=b"s3cret"),
            ".Settings.Path is a bytes, which is no JSON value",
        ),
        (untyped(devices.VirtualSmbShare, allowed_files={"a"}), ".Settings.AllowedFiles is a set"),
        (untyped(system.Range, max=float("nan")), ".Settings.max is nan, which is no JSON number"),
        (untyped(devices.Devices, scsi={0: devices.Scsi()}), ".Settings.Scsi has a key that is no string"),
        (LOOP, " nests too deeply, or contains itself"),
        (DEEP, " nests too deeply, or contains itself"),
    ],
)
def test_what_json_cannot_represent_is_an_error_that_says_where_it_is(
    value: Any, problem: str, write: Callable[[Any], Any]
) -> None:
    with pytest.raises(SchemaError, match=re.escape(f"ModificationRequest{problem}")) as raised:
        write(requests.ModificationRequest(settings=value))
    assert "s3cret" not in str(raised.value)


def test_half_of_a_surrogate_pair_has_no_text() -> None:
    with pytest.raises(SchemaError, match=r"Attachment.Path is text with half of a surrogate pair"):
        dumps(devices.Attachment(path="a\udc80"))
    with pytest.raises(SchemaError, match="dict has a key with half of a surrogate pair"):
        dumps({"a\udc80": 1})


def test_numbers_of_any_size_are_written_and_read() -> None:
    for number in (2**64, -(2**63) - 1, 10**100):
        written = json.loads(dumps(system.Range(max=number)))
        assert from_json(system.Range, written) == system.Range(max=number)
    with pytest.raises(SchemaError, match="Range"):
        dumps(system.Range(max=10**5000))


def test_missing_and_null_fields_get_their_zero_values() -> None:
    assert from_json(devices.Attachment, {"Path": "p", "ReadOnly": None}) == devices.Attachment(path="p")
    assert from_json(devices.Scsi, {"Attachments": None}, forbid_extra=True) == devices.Scsi()
    share = {"Shares": [{"Name": "s", "AllowedFiles": None, "Options": None}]}
    document = {"VirtualSmb": share, "Scsi": {"g": {"Attachments": None}}, "FlexibleIov": {"a": None}}
    given = copy.deepcopy(document)
    for forbid_extra in (False, True):
        assert from_json(devices.Devices, document, forbid_extra=forbid_extra) == devices.Devices(
            virtual_smb=devices.VirtualSmb(shares=[devices.VirtualSmbShare(name="s")]),
            scsi={"g": devices.Scsi()},
            flexible_iov={"a": None},
        )
    assert document == given


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (3, "ComputeSystem: Expected `object`, got `int`"),
        ({"Owner": 1}, "ComputeSystem.Owner: Expected `str`, got `int`"),
        (
            {"VirtualMachine": {"Devices": {"Scsi": {1: {}}}}},
            "Devices.Scsi: Expected `str`, got `int` for a key",
        ),
        ({"SchemaVersion": {"Major": "2"}}, "SchemaVersion.Major: Expected `int`, got `str`"),
        ({"SchemaVersion": {"Major": True}}, "SchemaVersion.Major: Expected `int`, got `bool`"),
        ({"SchemaVersion": {"Major": 2.0}}, "SchemaVersion.Major: Expected `int`, got `float`"),
        (
            {"VirtualMachine": {"Devices": {"Plan9": {"Shares": "x"}}}},
            "Plan9.Shares: Expected `array`, got `str`",
        ),
        ({"VirtualMachine": {"Devices": {"Plan9": {"Shares": [{"Port": "1"}]}}}}, "Shares[0].Port: Expected"),
        ({"VirtualMachine": {"Devices": {"Scsi": [1]}}}, "Devices.Scsi: Expected `object`, got `array`"),
        (
            {"VirtualMachine": {"Devices": {"Plan9": {"Shares": {}}}}},
            "Shares: Expected `array`, got `object`",
        ),
        (
            {"VirtualMachine": {"Devices": {"VirtualSmb": {"Shares": [{"AllowedFiles": [None]}]}}}},
            "Shares[0].AllowedFiles[0]: Expected `str`, got `null`",
        ),
        (
            {"VirtualMachine": {"Devices": {"Scsi": {"g": {"Attachments": {"0": {"Path": 3}}}}}}},
            "Scsi[...].Attachments[...].Path: Expected `str`",
        ),
        ({"VirtualMachine": {"StopOnReset": 1}}, "StopOnReset: Expected `bool`, got `int`"),
        ({"SchemaVersion": {"Major": "\ud800"}}, "ComputeSystem has half of a surrogate pair"),
        ({"\ud800": 1}, "ComputeSystem has "),
    ],
)
@pytest.mark.parametrize("forbid_extra", [False, True])
def test_a_wrong_type_is_one_clear_error_that_says_where(
    value: Any, problem: str, forbid_extra: bool
) -> None:
    with pytest.raises(SchemaError, match=re.escape(problem)) as raised:
        from_json(system.ComputeSystem, value, forbid_extra=forbid_extra)
    assert isinstance(raised.value, UVMError)


def test_the_error_does_not_repeat_the_value() -> None:
    with pytest.raises(SchemaError) as raised:
        from_json(guest.ConfidentialOptions, {"EncodedSecurityPolicy": ["s3cret"]})
    assert "s3cret" not in str(raised.value)
    assert raised.value.__suppress_context__


def test_a_model_does_not_show_its_secrets() -> None:
    secrets = [
        guest.ConfidentialOptions(enforcer_type="rego", encoded_security_policy="s3cret"),
        guest.SecurityPolicyFragment(fragment="s3cret"),
        process.ProcessParameters(command_line="sh", environment={"TOKEN": "s3cret"}),
    ]
    shown = repr(requests.ModificationRequest(settings=secrets))
    assert "rego" in shown
    assert "s3cret" not in shown
    assert dumps(secrets).count("s3cret") == 3


def test_json_shares_no_list_with_the_model() -> None:
    share = devices.VirtualSmbShare(name="s", allowed_files=["a"])
    written = to_json(share)
    share.allowed_files.append("b")
    assert written == {"Name": "s", "AllowedFiles": ["a"]}


def test_unknown_fields_are_ignored_or_refused_as_asked() -> None:
    assert from_json(devices.ComPort, {"NamedPipe": "p", "New": 1}) == devices.ComPort(named_pipe="p")
    with pytest.raises(SchemaError, match="VirtualPMem has no field 'Count', 'New'"):
        from_json(devices.Devices, {"VirtualPMem": {"New": 1, "Count": None}}, forbid_extra=True)


def test_unknown_fields_are_refused_wherever_they_are() -> None:
    share = {"VirtualSmb": {"Shares": [{}, {"Nmae": "s"}]}}
    with pytest.raises(SchemaError, match=r"Devices.VirtualSmb.Shares\[1\] has no field 'Nmae'"):
        from_json(devices.Devices, share, forbid_extra=True)
    disk = {"Scsi": {"g": {"Attachments": {"0": {"Lun": 0}}}}}
    with pytest.raises(SchemaError, match=r"Devices.Scsi\['g'\].Attachments\['0'\] has no field 'Lun'"):
        from_json(devices.Devices, disk, forbid_extra=True)
    assert from_json(devices.Devices, {"Mouse": {"Any": 1}}, forbid_extra=True).mouse == {"Any": 1}


def test_resource_paths_are_hcss() -> None:
    assert requests.scsi_attachment_path(1, 5) == (
        "VirtualMachine/Devices/Scsi/0110f83b-de10-5172-a266-78bca56bf50a/Attachments/5"
    )
    paths = {
        requests.VPMemDevice(3).path: "VirtualPMem/Devices/3",
        requests.VPMemMapping(3, 4096).path: "VirtualPMem/Devices/3/Mappings/4096",
        requests.VirtualAdapter("n").path: "NetworkAdapters/n",
        requests.VirtualPci("g").path: "VirtualPci/g",
        requests.MappedPipe("\\\\.\\pipe\\p").path: "MappedPipes/\\\\.\\pipe\\p",
        requests.SocketService("g").path: "HvSocket/HvSocketConfig/ServiceTable/g",
    }
    assert {path: f"VirtualMachine/Devices/{end}" for path, end in paths.items()} == {p: p for p in paths}
