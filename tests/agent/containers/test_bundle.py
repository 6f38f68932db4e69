"""What is done to a specification before a runtime gets it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from uvm.agent.containers.bundle import (
    CONTAINER_TYPE,
    SANDBOX_ID,
    Role,
    in_host_network,
    namespace_of,
    owns_pids,
    role_of,
    sandbox,
    sandbox_of,
    standalone,
    workload,
    write,
)
from uvm.agent.refused import Refused

_RESOLVER = "search b.example\nnameserver 10.0.0.1\n"


def _spec(**parts: Any) -> dict[str, Any]:
    return {"process": {"args": ["true"]}, "root": {"path": "/nowhere"}, "linux": {}, **parts}


def _mount(spec: dict[str, Any], destination: str) -> dict[str, Any]:
    (found,) = [each for each in spec["mounts"] if each["destination"] == destination]
    return dict(found)


def _standalone(bundle: Path, **parts: Any) -> dict[str, Any]:
    spec = _spec(**parts)
    standalone(spec, "a", str(bundle), _RESOLVER)
    return spec


def test_a_container_of_its_own_sees_the_names_of_its_guest(tmp_path: Path) -> None:
    spec = _standalone(tmp_path, hostname="box.example")
    assert (tmp_path / "hostname").read_text() == "box.example\n"
    assert "127.0.0.1 box.example box\n" in (tmp_path / "hosts").read_text()
    assert (tmp_path / "resolv.conf").read_text() == _RESOLVER
    for name in ("hostname", "hosts", "resolv.conf"):
        assert _mount(spec, f"/etc/{name}")["source"] == str(tmp_path / name)


def test_a_container_without_a_name_has_that_of_the_guest(tmp_path: Path) -> None:
    _standalone(tmp_path)
    assert (tmp_path / "hostname").read_text() == f"{os.uname().nodename}\n"


def test_a_name_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="invalid"):
        _standalone(tmp_path, hostname="a\n127.0.0.1 bank.example")


def test_mounts_of_the_specification_stay(tmp_path: Path) -> None:
    own = {"destination": "/etc/hosts", "type": "bind", "source": "/own"}
    assert _mount(_standalone(tmp_path, mounts=[own]), "/etc/hosts") == own


def test_names_are_read_only_on_a_read_only_root(tmp_path: Path) -> None:
    spec = _standalone(tmp_path, root={"path": "/nowhere", "readonly": True})
    assert _mount(spec, "/etc/hosts")["options"] == ["bind", "ro"]


def test_each_container_has_a_cgroup_below_that_of_all(tmp_path: Path) -> None:
    assert _standalone(tmp_path)["linux"]["cgroupsPath"] == "/pods/a"
    first, other = _spec(), _spec()
    sandbox(first, "p", str(tmp_path), _RESOLVER)
    workload(other, "w", "p", str(tmp_path), host_network=False)
    assert first["linux"]["cgroupsPath"] == "/pods/p/p"
    assert other["linux"]["cgroupsPath"] == "/pods/p/w"


def test_the_kernel_may_kill_what_runs_in_a_container(tmp_path: Path) -> None:
    assert _standalone(tmp_path)["process"]["oomScoreAdj"] == 0
    own = _standalone(tmp_path, process={"args": ["true"], "oomScoreAdj": 500})
    assert own["process"]["oomScoreAdj"] == 500


def test_what_is_for_windows_is_not_passed_on(tmp_path: Path) -> None:
    assert "windows" not in _standalone(tmp_path, windows={"network": {"networkNamespace": "N"}})


def test_a_network_namespace_is_named_in_lower_case() -> None:
    assert namespace_of(_spec(windows={"network": {"networkNamespace": "ABC"}})) == "abc"
    assert namespace_of(_spec()) == namespace_of(_spec(windows=None)) == ""


def test_the_limit_of_core_files_is_added(tmp_path: Path) -> None:
    spec = _standalone(tmp_path, annotations={"io.microsoft.lcow.rlimitcore": "1;2"})
    assert spec["process"]["rlimits"] == [{"type": "RLIMIT_CORE", "soft": 1, "hard": 2}]
    with pytest.raises(Refused, match="rlimit core"):
        _standalone(tmp_path, annotations={"io.microsoft.lcow.rlimitcore": "1"})


def test_a_container_in_the_guests_network_has_no_namespace_of_it(tmp_path: Path) -> None:
    annotations = {"io.microsoft.virtualmachine.lcow.hostnetwork": "true"}
    namespaces = [{"type": "network"}, {"type": "pid"}]
    spec = _standalone(tmp_path, annotations=annotations, linux={"namespaces": namespaces})
    assert in_host_network(spec)
    assert spec["linux"]["namespaces"] == [{"type": "pid"}]


def test_a_namespace_of_process_ids_by_a_path_is_another_containers() -> None:
    assert owns_pids(_spec(linux={"namespaces": [{"type": "pid"}]}))
    assert not owns_pids(_spec(linux={"namespaces": [{"type": "pid", "path": "/proc/1/ns/pid"}]}))
    assert not owns_pids(_spec())


def test_the_user_is_found_in_the_containers_own_files(tmp_path: Path) -> None:
    etc = tmp_path / "root" / "etc"
    etc.mkdir(parents=True)
    (etc / "passwd").write_text("root:x:0:0::/root:/bin/sh\nweb:x:33:44::/:/bin/false\n")
    (etc / "group").write_text("root:x:0:\nlog:x:55:web\n")

    def user(name: str) -> Any:
        process = {"args": ["true"], "user": {"username": name, "umask": 18}}
        spec = _standalone(tmp_path, process=process, root={"path": str(tmp_path / "root")})
        return spec["process"]["user"]

    assert user("web") == {"uid": 33, "gid": 44, "umask": 18}
    assert user("33") == {"uid": 33, "gid": 44, "umask": 18}
    assert user("77") == {"uid": 77, "gid": 0, "umask": 18}
    assert user("web:log") == {"uid": 33, "gid": 55, "umask": 18}
    assert user("web:9") == {"uid": 33, "gid": 9, "umask": 18}
    for missing in ("nobody", "web:none", "a:b:c", "4294967296"):
        with pytest.raises(Refused, match=r"user|group|uint32"):
            user(missing)


def test_a_link_in_a_container_does_not_lead_to_the_guests_users(tmp_path: Path) -> None:
    etc = tmp_path / "root" / "etc"
    etc.mkdir(parents=True)
    (tmp_path / "passwd").write_text("admin:x:1:1::/:/bin/sh\n")
    (etc / "passwd").symlink_to(tmp_path / "passwd")
    with pytest.raises(Refused, match="admin"):
        _standalone(
            tmp_path,
            process={"args": ["true"], "user": {"username": "admin"}},
            root={"path": str(tmp_path / "root")},
        )


# Pods.


def test_the_role_of_a_container_is_in_its_annotations() -> None:
    assert role_of(_spec()) is Role.STANDALONE
    assert role_of(_spec(annotations={CONTAINER_TYPE: "sandbox"})) is Role.SANDBOX
    of_pod = _spec(annotations={CONTAINER_TYPE: "container", SANDBOX_ID: "p"})
    assert role_of(of_pod) is Role.WORKLOAD
    assert sandbox_of(of_pod) == "p"


def test_a_role_that_is_none_is_refused() -> None:
    with pytest.raises(Refused, match=r"unsupported 'io.kubernetes.cri.container-type': 'x'"):
        role_of(_spec(annotations={CONTAINER_TYPE: "x"}))
    with pytest.raises(Refused, match="sandbox-id"):
        sandbox_of(_spec(annotations={CONTAINER_TYPE: "container"}))


def _workload(pod: Path, **parts: Any) -> dict[str, Any]:
    spec = _spec(**parts)
    assert workload(spec, "w", "p", str(pod), host_network=False) == []
    return spec


def test_the_containers_of_a_pod_have_its_names(tmp_path: Path) -> None:
    assert _mount(_workload(tmp_path), "/etc/hosts")["source"] == f"{tmp_path}/hosts"
    with pytest.raises(Refused, match="must not change hostname: own"):
        _workload(tmp_path, hostname="own")


def test_a_path_of_the_guest_has_to_be_there(tmp_path: Path) -> None:
    spec = _workload(tmp_path, mounts=[{"destination": "/g", "source": f"uvm://{tmp_path}"}])
    assert _mount(spec, "/g")["source"] == str(tmp_path)
    with pytest.raises(Refused, match="could not open uVM mount target"):
        _workload(tmp_path, mounts=[{"destination": "/g", "source": "uvm:///nowhere/at/all"}])


def test_a_device_is_looked_up_in_the_guest_and_allowed(tmp_path: Path) -> None:
    spec = _workload(tmp_path, linux={"devices": [{"path": "/dev/null", "type": "c"}]})
    (device,) = spec["linux"]["devices"]
    assert (device["path"], device["type"], device["major"], device["minor"]) == ("/dev/null", "c", 1, 3)
    rule = {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}
    assert spec["linux"]["resources"]["devices"] == [rule]
    with pytest.raises(Refused, match="/dev/none"):
        _workload(tmp_path, linux={"devices": [{"path": "/dev/none"}]})


def test_a_privileged_container_has_all_devices(tmp_path: Path) -> None:
    annotations = {"io.microsoft.virtualmachine.lcow.privileged": "true"}
    spec = _workload(tmp_path, annotations=annotations)
    assert "/dev/zero" in {each["path"] for each in spec["linux"]["devices"]}
    assert spec["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]


def test_the_size_of_shared_memory_is_set(tmp_path: Path) -> None:
    shm = {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}
    spec = _workload(tmp_path, annotations={"io.microsoft.lcow.shm.size-kb": "64"}, mounts=[shm])
    assert "size=64k" in _mount(spec, "/dev/shm")["options"]
    for size in ("0", "much"):
        with pytest.raises(Refused, match="/dev/shm size must be"):
            _workload(tmp_path, annotations={"io.microsoft.lcow.shm.size-kb": size})


def test_assigned_devices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="assigned devices"):
        _workload(tmp_path, windows={"devices": [{"id": "x"}]})


# The bundle.


def test_nobody_else_can_read_a_specification(tmp_path: Path) -> None:
    write(_spec(), str(tmp_path))
    path = tmp_path / "config.json"
    assert json.loads(path.read_text()) == _spec()
    assert path.stat().st_mode & 0o777 == 0o600
