"""The schema models and their JSON."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from typing import Any, get_args, get_origin

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import uvm.schema
from uvm.errors import UVMError
from uvm.schema import devices, guest, network, process, requests, system
from uvm.schema.field import ALWAYS, JSON_NAME
from uvm.schema.json import SchemaError, dumps, from_json, to_json
from uvm.schema.secrets import HIDDEN

MODULES = [importlib.import_module(f"uvm.schema.{m.name}") for m in pkgutil.iter_modules(uvm.schema.__path__)]
MODELS = [
    cls
    for module in MODULES
    for cls in vars(module).values()
    if isinstance(cls, type) and attrs.has(cls) and cls.__module__ == module.__name__
    if not issubclass(cls, requests.Resource)
]

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(0, 2**64),
    str: st.text(max_size=5),
    bool: st.booleans(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    Any: PLAIN,
}


def values(kind: Any, depth: int) -> st.SearchStrategy[Any]:
    """Return values of a field's type; structures end after a few levels."""
    if kind in SCALARS:
        return SCALARS[kind]
    if attrs.has(kind):
        return models(kind, depth)
    empty: Any = {list: [], dict: {}}.get(get_origin(kind) or kind)
    if depth <= 0:
        return st.just(empty)
    inner = values(get_args(kind)[-1 if empty == {} else 0], depth)
    if empty == []:
        return st.lists(inner, max_size=2)
    return st.dictionaries(st.text(max_size=3), inner, max_size=2) if empty == {} else st.none() | inner


def models(cls: Any, depth: int = 2) -> st.SearchStrategy[Any]:
    fields = attrs.fields(attrs.resolve_types(cls))
    return st.deferred(lambda: st.builds(cls, **{f.name: values(f.type, depth - 1) for f in fields}))


@given(st.data())
def test_json_of_any_model_reads_back_as_the_same_json(data: st.DataObject) -> None:
    cls = data.draw(st.sampled_from(MODELS), label="class")
    document = to_json(data.draw(models(cls), label="model"))
    assert to_json(from_json(cls, document, forbid_extra=True)) == document
    assert json.loads(dumps(document)) == document


@pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)
def test_every_field_has_a_json_name_of_its_own_and_a_zero_value(cls: Any) -> None:
    fields = attrs.fields(cls)
    names = [f.metadata[JSON_NAME] for f in fields]
    assert len(set(names)) == len(names)
    assert cls() == cls()
    assert set(to_json(cls())) == {f.metadata[JSON_NAME] for f in fields if f.metadata[ALWAYS]}


def test_what_a_model_does_not_show_is_hidden_in_the_traces_of_messages_too() -> None:
    secret = {f.metadata[JSON_NAME] for cls in MODELS for f in attrs.fields(cls) if not f.repr}
    # These hold documents, whose own secrets are hidden.
    documents = {
        "ContainerConfig",
        "ProcessParameters",
        "OciProcess",
        "OciSpecification",
        "Request",
        "Settings",
    }
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


def test_text_of_what_json_cannot_say_is_an_error() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        dumps({"a": float("nan")})
    with pytest.raises(TypeError, match="set is not a schema model"):
        dumps({"a": {1}})


def test_missing_and_null_fields_get_their_zero_values() -> None:
    assert from_json(devices.Attachment, {"Path": "p", "ReadOnly": None}) == devices.Attachment(path="p")
    assert from_json(devices.Scsi, {"Attachments": None}, forbid_extra=True) == devices.Scsi()


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (3, "ComputeSystem should be an object, not a whole number"),
        ({"Owner": 1}, "ComputeSystem.Owner should be a string, not a whole number"),
        ({"SchemaVersion": {"Major": "2"}}, "SchemaVersion.Major should be a whole number, not a string"),
        (
            {"SchemaVersion": {"Major": True}},
            "SchemaVersion.Major should be a whole number, not true or false",
        ),
        ({"VirtualMachine": {"Devices": {"Plan9": {"Shares": "x"}}}}, "Plan9.Shares should be a list"),
        ({"VirtualMachine": {"Devices": {"Plan9": {"Shares": [{"Port": "1"}]}}}}, r"Shares\[0\].Port should"),
        ({"VirtualMachine": {"Devices": {"Scsi": [1]}}}, "Devices.Scsi should be an object, not a list"),
        (
            {"VirtualMachine": {"Devices": {"Plan9": {"Shares": {}}}}},
            "Shares should be a list, not an object",
        ),
        (
            {"VirtualMachine": {"Devices": {"VirtualSmb": {"Shares": [{"AllowedFiles": [None]}]}}}},
            r"Shares\[0\].AllowedFiles\[0\] should be a string, not null",
        ),
        (
            {"VirtualMachine": {"Devices": {"Scsi": {"g": {"Attachments": {"0": {"Path": 3}}}}}}},
            r"Scsi\['g'\].Attachments\['0'\].Path should be a string",
        ),
        ({"VirtualMachine": {"StopOnReset": 1}}, "StopOnReset should be true or false, not a whole number"),
    ],
)
def test_a_wrong_type_is_one_clear_error_that_says_where(value: Any, problem: str) -> None:
    with pytest.raises(SchemaError, match=problem) as raised:
        from_json(system.ComputeSystem, value)
    assert isinstance(raised.value, UVMError)


def test_every_problem_of_a_document_is_named_at_once() -> None:
    with pytest.raises(SchemaError) as raised:
        from_json(devices.VirtualSmbShare, {"Name": 1, "Options": {"ReadOnly": "yes"}})
    assert str(raised.value) == (
        "VirtualSmbShare.Name should be a string, not a whole number; "
        "VirtualSmbShare.Options.ReadOnly should be true or false, not a string"
    )


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


def test_only_models_are_written() -> None:
    with pytest.raises(TypeError, match="dict is not a schema model"):
        to_json({"a": 1})


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


def test_importing_the_models_does_not_load_the_converter() -> None:
    code = (
        "import sys, uvm.schema.system, uvm.schema.properties, uvm.schema.network, uvm.schema.json;"
        "sys.exit('cattrs' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
