"""What the caller wants to run becomes what the guest takes, or is refused before anything is sent."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from uvm._guest.specs import (
    Command,
    check_size,
    container_process,
    host_process,
    linux_container,
    spec_of,
    windows_container,
)
from uvm.errors import NotSupportedError, OptionsError
from uvm.schema.container import Container, CWCOWHostedSystem, HostedSystem
from uvm.schema.json import to_json

SPEC: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {
        "args": ["httpd"],
        "cwd": "/srv",
        "env": ["PATH=/bin", "MODE=live"],
        "user": {"uid": 33, "gid": 34},
        "capabilities": {"bounding": ["CAP_CHOWN"]},
        "noNewPrivileges": True,
    },
    "root": {"path": "rootfs"},
    "linux": {},
}


def spec_with(**parts: Any) -> dict[str, Any]:
    return copy.deepcopy(SPEC) | parts


def cleaned(spec: dict[str, Any]) -> Any:
    return linux_container(spec, bundle_path="/run/c", scratch_path="/run/c/scratch").oci_specification


# Commands.


@pytest.mark.parametrize(
    "args",
    ["echo hello", b"echo", None, 7, {"echo"}, ["echo", 7], ["echo", b"x"], [], [""], ["a\0b"], ["\udc80"]],
)
def test_a_command_is_a_list_of_strings(args: Any) -> None:
    with pytest.raises(OptionsError):
        Command(args)


@pytest.mark.parametrize(
    "env", [["A=b"], {"A=B": "c"}, {"": "c"}, {"A\0": "c"}, {"A": "c\0"}, {"A": 1}, {1: "A"}]
)
def test_an_environment_maps_names_to_strings(env: Any) -> None:
    with pytest.raises(OptionsError):
        Command(["env"], env=env)


def test_what_is_wrong_with_an_environment_is_told_without_its_values() -> None:
    with pytest.raises(OptionsError) as caught:
        Command(["env"], env={"TOKEN=hunter2": "hunter2"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("size", [(0, 80), (24, 65536), (24,), 24, (True, 80), ("24", "80")])
def test_the_size_of_a_terminal_is_two_16_bit_numbers(size: Any) -> None:
    with pytest.raises(OptionsError):
        Command(["sh"], terminal=True, size=size)


def test_a_size_needs_a_terminal() -> None:
    with pytest.raises(OptionsError, match="no terminal"):
        Command(["sh"], size=(24, 80))
    check_size(1, 65535)


def test_a_linux_guest_takes_arguments_and_gets_a_path() -> None:
    assert to_json(host_process(Command(["uname", "-a"]), "linux")) == {
        "CommandArgs": ["uname", "-a"],
        "WorkingDirectory": "/",
        "Environment": {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
    }


def test_a_windows_variable_is_not_set_twice_in_another_case() -> None:
    twice = Command(["x"], env={"Path": "a", "PATH": "b"})
    with pytest.raises(OptionsError, match="the environment has PATH twice"):
        host_process(twice, "windows")
    assert host_process(twice, "linux").environment == {"Path": "a", "PATH": "b"}


def test_an_environment_that_is_given_is_the_whole_environment() -> None:
    wanted = Command(["env"], env={"A": "", "B": "c"}, cwd="/tmp")
    parameters = host_process(wanted, "linux")
    assert parameters.environment == {"A": "", "B": "c"}
    assert parameters.working_directory == "/tmp"


def test_a_windows_guest_takes_one_escaped_command_line() -> None:
    wanted = Command(["cmd", "/c", 'say "hi there"', ""], env={"A": "", "B": "c"}, user="ContainerUser")
    assert to_json(host_process(wanted, "windows")) == {
        "CommandLine": 'cmd /c "say \\"hi there\\"" ""',
        "User": "ContainerUser",
        "WorkingDirectory": "C:\\",
        "Environment": {"B": "c"},
    }


def test_a_terminal_is_an_emulated_console_of_a_height_and_a_width() -> None:
    parameters = host_process(Command(["sh"], terminal=True, size=(24, 80)), "linux")
    assert parameters.emulate_console
    assert parameters.console_size == [24, 80]


def test_a_linux_guest_has_no_other_users_than_root_outside_of_containers() -> None:
    with pytest.raises(NotSupportedError, match="as root"):
        host_process(Command(["id"], user="nobody"), "linux")


def test_a_process_in_a_linux_container_is_like_the_containers_own() -> None:
    process = container_process(Command(["ls"]), SPEC["process"] | {"terminal": True}).oci_process
    assert process == SPEC["process"] | {"args": ["ls"], "terminal": False}


def test_a_process_in_a_linux_container_differs_in_what_the_command_says() -> None:
    wanted = Command(["sh"], env={"A": "b"}, cwd="/tmp", user="1000:100", terminal=True, size=(24, 80))
    process = container_process(wanted, SPEC["process"]).oci_process
    assert process["env"] == ["A=b"]
    assert process["cwd"] == "/tmp"
    assert process["user"] == {"uid": 1000, "gid": 100}
    assert process["terminal"] is True
    assert process["consoleSize"] == {"height": 24, "width": 80}
    assert process["capabilities"] == {"bounding": ["CAP_CHOWN"]}


@pytest.mark.parametrize("user", ["root", "1000:", ":5", "1:2:3", "-1", "4294967296", "٣"])
def test_a_user_of_a_linux_container_is_numbers(user: str) -> None:
    with pytest.raises(OptionsError, match="uid"):
        container_process(Command(["id"], user=user), SPEC["process"])


# Containers.


def test_a_linux_container_is_a_specification_and_its_directories() -> None:
    document = to_json(linux_container(SPEC, bundle_path="/run/c", scratch_path="/run/c/scratch"))
    assert document == {
        "SchemaVersion": {"Major": 2, "Minor": 1},
        "OciBundlePath": "/run/c",
        "OciSpecification": SPEC,
        "ScratchDirPath": "/run/c/scratch",
    }


def test_the_callers_specification_is_left_alone() -> None:
    spec = spec_with(hooks={"prestart": []}, linux={"cgroupsPath": "/x", "resources": {"pids": {"limit": 1}}})
    before = copy.deepcopy(spec)
    document = linux_container(spec, bundle_path="/run/c")
    assert spec == before
    assert document.oci_specification["process"] is not spec["process"]


def test_what_the_guest_does_not_support_is_taken_out_of_a_specification() -> None:
    resources = {
        "devices": [{"allow": False}],
        "pids": {"limit": 5},
        "blockIO": {"weight": 10},
        "hugepageLimits": [],
        "network": {"classID": 1},
        "memory": {"limit": 1},
    }
    spec = spec_with(hooks={"prestart": []}, linux={"cgroupsPath": "/x", "resources": resources})
    assert cleaned(spec) == spec_with(linux={"resources": {"memory": {"limit": 1}}})


def test_a_cpu_period_and_quota_of_zero_mean_the_defaults() -> None:
    spec = spec_with(linux={"resources": {"cpu": {"period": 0, "quota": 0, "shares": 5}}})
    assert cleaned(spec)["linux"]["resources"]["cpu"] == {"period": 100_000, "quota": -1, "shares": 5}
    kept = {"period": 7, "quota": 8}
    assert cleaned(spec_with(linux={"resources": {"cpu": kept}}))["linux"]["resources"]["cpu"] == kept


def test_of_windows_only_the_network_namespace_and_the_devices_are_kept() -> None:
    windows = {
        "layerFolders": ["C:\\l"],
        "network": {"networkNamespace": "ns", "endpointList": ["e"]},
        "devices": [{"id": "d", "idType": "vpci-instance-id"}],
    }
    assert cleaned(spec_with(windows=windows))["windows"] == {
        "network": {"networkNamespace": "ns"},
        "devices": [{"id": "d", "idType": "vpci-instance-id"}],
    }
    assert "windows" not in cleaned(spec_with(windows={"layerFolders": ["C:\\l"], "network": {}}))


def test_a_network_namespace_is_the_one_of_the_adapters_also_in_braces() -> None:
    named = spec_with(windows={"network": {"networkNamespace": "{7F2C1C0E-5D0A-4C3E-9B1F-2A60D0A3E7B4}"}})
    assert cleaned(named)["windows"] == {
        "network": {"networkNamespace": "7F2C1C0E-5D0A-4C3E-9B1F-2A60D0A3E7B4"}
    }


@pytest.mark.parametrize(
    ("value", "filtered"), [("true", False), ("1", False), ("yes", True), ("false", True), (["true"], True)]
)
def test_a_privileged_container_has_no_seccomp_filter(value: Any, filtered: bool) -> None:
    annotations = {"io.microsoft.virtualmachine.lcow.privileged": value}
    spec = spec_with(annotations=annotations, linux={"seccomp": {"defaultAction": "SCMP_ACT_ERRNO"}})
    assert ("seccomp" in cleaned(spec)["linux"]) is filtered


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (None, "not a JSON object"),
        (["a"], "not a JSON object"),
        ("{}", "not a JSON object"),
        ({}, "'process'"),
        ({"process": {}}, "'linux'"),
        ({"process": ["a"], "linux": {}}, "'process'"),
        ({"process": {}, "linux": None}, "'linux'"),
        (spec_with(root=None), "'root'"),
        (spec_with(root="/"), "'root'"),
        (spec_with(linux={"resources": 5}), r"linux\.resources"),
        (spec_with(linux={"resources": {"cpu": 5}}), r"linux\.resources\.cpu"),
        (spec_with(windows=5), "^windows of"),
        (spec_with(windows={"network": 5}), r"windows\.network"),
        (spec_with(annotations=5), "annotations"),
        (spec_with(extra={1, 2}), "JSON"),
        (spec_with(extra=float("nan")), "JSON"),
    ],
)
def test_what_is_no_specification_is_refused(spec: Any, problem: str) -> None:
    with pytest.raises(OptionsError, match=problem):
        cleaned(spec)


def test_a_specification_that_nests_without_end_is_refused() -> None:
    spec = spec_with()
    spec["linux"]["loop"] = spec
    with pytest.raises(OptionsError, match="nests"):
        cleaned(spec)


@pytest.mark.parametrize("document", [{}, {"OciSpecification": None}, {"OciSpecification": {"process": {}}}])
def test_a_document_on_which_the_linux_guest_would_crash_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(OptionsError):
        spec_of(document)


# Windows containers.


def test_a_confidential_windows_vm_takes_a_container_with_its_specification_and_others_without() -> None:
    spec = {"ociVersion": "1.0.2", "process": {"args": ["cmd"]}}
    hosted = HostedSystem(container=Container())
    with_spec = CWCOWHostedSystem(spec=spec, cwcow_hosted_system=hosted)
    assert windows_container(hosted, confidential=False) is hosted
    plain = windows_container(with_spec, confidential=True)
    assert plain == {"Spec": spec, "CWCOWHostedSystem": {"Container": {}}}
    assert windows_container(plain, confidential=True) == plain
    with pytest.raises(OptionsError, match="plain VM is created from a HostedSystem"):
        windows_container(with_spec, confidential=False)
    with pytest.raises(OptionsError, match="confidential VM is created from a CWCOWHostedSystem"):
        windows_container(hosted, confidential=True)


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"CWCOWHostedSystem": {"Container": {}}}, "needs ociVersion and process"),
        ({"Spec": {"process": {}}, "CWCOWHostedSystem": {"Container": {}}}, "needs ociVersion and process"),
        ({"Spec": {"ociVersion": "1"}, "CWCOWHostedSystem": {"Container": {}}}, "needs ociVersion"),
        ({"Spec": {"ociVersion": "1", "process": {}}, "CWCOWHostedSystem": {}}, "has no Container"),
        ({"Spec": {"ociVersion": "1", "process": {}}, "CWCOWHostedSystem": None}, "has no Container"),
    ],
)
def test_what_the_sidecar_would_refuse_or_crash_on_is_not_sent(document: Any, problem: str) -> None:
    with pytest.raises(OptionsError, match=problem):
        windows_container(document, confidential=True)
