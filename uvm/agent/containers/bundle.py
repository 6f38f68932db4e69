"""The bundle of a container: its specification as a runtime takes it, and the files that go with it.

What is done to a specification depends on the container. One of its own, and the first of a pod (its
sandbox), have files that name the guest and its name servers; the others of a pod have those of the sandbox,
and mounts in directories of it::

    /run/gcs/c/ID                 the bundle: config.json, hostname, hosts, resolv.conf
    /run/gcs/c/POD/sandboxMounts  what "sandbox://" stands for, for all containers of a pod
                  /sandboxTmpfsMounts           "sandbox-tmp://", a tmpfs
                  /hugepages                    "hugepages://2M/name"

What of a pod's directories a container has is bound for its runtime by :mod:`uvm.agent.containers.shared`.

Source: hcsshim internal/guest/runtime/hcsv2 (standalone_container.go, sandbox_container.go,
workload_container.go) and internal/guest/spec.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import stat
from contextlib import suppress
from enum import Enum
from typing import Any, Final

from uvm.agent.containers.cgroups import PODS
from uvm.agent.containers.users import user_ids
from uvm.agent.refused import Refused

JSON = dict[str, Any]

CONTAINER_TYPE: Final = "io.kubernetes.cri.container-type"
SANDBOX_ID: Final = "io.kubernetes.cri.sandbox-id"
_HOST_NETWORK: Final = "io.microsoft.virtualmachine.lcow.hostnetwork"
_PRIVILEGED: Final = "io.microsoft.virtualmachine.lcow.privileged"
_CORE_LIMIT: Final = "io.microsoft.lcow.rlimitcore"
_SHM_KB: Final = "io.microsoft.lcow.shm.size-kb"
#: What Go's ``strconv.ParseBool`` takes for true.
_TRUE: Final = ("1", "t", "T", "true", "TRUE", "True")

_SANDBOX, _SANDBOX_TMPFS = "sandbox://", "sandbox-tmp://"
_HUGE_PAGES, _GUEST, _BLOCK_DEVICE = "hugepages://", "uvm://", "blockdev://"
#: The directories of a pod, by what stands for them.
SHARED: Final = {_SANDBOX: "sandboxMounts", _SANDBOX_TMPFS: "sandboxTmpfsMounts", _HUGE_PAGES: "hugepages"}

_FILES: Final = ("hostname", "hosts", "resolv.conf")
_HOST_NAME: Final = re.compile(r"[a-zA-Z0-9_\-.]{0,255}")
_HOSTS: Final = """\
127.0.0.1 localhost
127.0.0.1 {names}

# The following lines are desirable for IPv6 capable hosts
::1     ip6-localhost ip6-loopback
fe00::0 ip6-localnet
ff00::0 ip6-mcastprefix
ff02::1 ip6-allnodes
ff02::2 ip6-allrouters
"""

#: The runtimes' own memory is protected from the kernel; what runs in containers is not.
_OOM_SCORE: Final = 0


class Role(Enum):
    """What a container is in a pod."""

    STANDALONE = ""
    SANDBOX = "sandbox"
    WORKLOAD = "container"


class SharedMount:
    """A mount of what the containers of a pod share.

    :ivar mount: its entry in the specification, whose source is the path of what was bound.
    :ivar directory: the directory of the pod.
    :ivar names: of what is below it, from the first to the last.
    :ivar huge_pages: the first of these is the size of huge pages, and they are mounted at the last.
    """

    __slots__ = ("directory", "huge_pages", "mount", "names")

    def __init__(self, mount: JSON, directory: str, names: list[str], huge_pages: bool) -> None:
        self.mount: JSON = mount
        self.directory: str = directory
        self.names: list[str] = names
        self.huge_pages: bool = huge_pages


# What a specification says.


def role_of(spec: JSON) -> Role:
    """Return what a container is; raises Refused where there is no such kind."""
    kind = _annotations(spec).get(CONTAINER_TYPE, "")
    try:
        return Role(kind)
    except ValueError:
        raise Refused(f"unsupported '{CONTAINER_TYPE}': '{kind}'") from None


def sandbox_of(spec: JSON) -> str:
    """Return the id of the pod that a container belongs to."""
    sandbox = _annotations(spec).get(SANDBOX_ID, "")
    if not isinstance(sandbox, str) or not sandbox:
        raise Refused(f"unsupported '{SANDBOX_ID}': '{sandbox}'")
    return sandbox


def namespace_of(spec: JSON) -> str:
    """Return the name of the network namespace that a container is to have; empty if it names none."""
    network = (spec.get("windows") or {}).get("network") or {}
    return str(network.get("networkNamespace") or "").lower()


def in_host_network(spec: JSON) -> bool:
    """Return whether a container, and those of its pod, are in the guest's own network namespace."""
    return _annotations(spec).get(_HOST_NETWORK) in _TRUE


def owns_pids(spec: JSON) -> bool:
    """Return whether a container has a namespace of process ids that ends with its first process."""
    namespaces = spec["linux"].get("namespaces") or []
    return any(each.get("type") == "pid" and not each.get("path") for each in namespaces)


def _annotations(spec: JSON) -> JSON:
    return spec.get("annotations") or {}


# What is done to it.


def standalone(spec: JSON, container_id: str, bundle: str, resolver: str) -> None:
    """Make the specification of a container of its own that of a runtime, and write its files.

    :param resolver: the text of its ``/etc/resolv.conf``.
    """
    write_names(spec, bundle, resolver)
    _add_names(spec, bundle)
    _finish(spec, f"{PODS}/{container_id}", in_host_network(spec))


def sandbox(spec: JSON, container_id: str, bundle: str, resolver: str) -> None:
    """Make the specification of a pod's first container that of a runtime, and write the pod's files."""
    write_names(spec, bundle, resolver)
    _finish(spec, f"{PODS}/{container_id}/{container_id}", in_host_network(spec))


def workload(
    spec: JSON, container_id: str, pod: str, pod_directory: str, host_network: bool
) -> list[SharedMount]:
    """Make the specification of another container of a pod that of a runtime.

    :param pod_directory: the bundle of the pod's first container.
    :return: the mounts of what the pod shares, whose sources are to be bound.
    """
    if spec.get("hostname"):
        raise Refused(f"workload container must not change hostname: {spec['hostname']}")
    if (spec.get("windows") or {}).get("devices"):
        raise Refused("assigned devices are not supported")
    shared = []
    for mount in _mounts(spec):
        found = _shared(mount, pod_directory)
        if found is not None:
            shared.append(found)
            continue
        _find_in_guest(mount)
        _expose_device(spec, mount)
    _add_names(spec, pod_directory)
    _apply_annotations(spec)
    _finish(spec, f"{PODS}/{pod}/{container_id}", host_network)
    return shared


def write_names(spec: JSON, directory: str, resolver: str) -> None:
    """Write the files that name the guest and its name servers."""
    host = spec.get("hostname") or ""
    if not isinstance(host, str) or not _HOST_NAME.fullmatch(host):
        raise Refused(f'hostname "{host}" invalid: must match ^{_HOST_NAME.pattern}$')
    host = host or os.uname().nodename
    first, dot, _ = host.partition(".")
    hosts = _HOSTS.format(names=f"{host} {first}" if dot else host)
    os.makedirs(directory, exist_ok=True)
    for name, text in zip(_FILES, (f"{host}\n", hosts, resolver), strict=True):
        with open(f"{directory}/{name}", "w", encoding="utf-8") as file:
            file.write(text)


def _add_names(spec: JSON, directory: str) -> None:
    there = {mount.get("destination") for mount in _mounts(spec)}
    options = ["bind", "ro"] if spec["root"].get("readonly") else ["bind"]
    for name in _FILES:
        if f"/etc/{name}" not in there:
            source = f"{directory}/{name}"
            mount = {"destination": f"/etc/{name}", "type": "bind", "source": source, "options": options}
            _mounts(spec).append(mount)


def _finish(spec: JSON, cgroup: str, host_network: bool) -> None:
    """Do what is done for every container."""
    process, linux = spec["process"], spec["linux"]
    linux["cgroupsPath"] = cgroup
    spec.pop("windows", None)
    set_user(process, spec["root"].get("path") or "")
    process.setdefault("oomScoreAdj", _OOM_SCORE)
    if core := _annotations(spec).get(_CORE_LIMIT):
        process["rlimits"] = [*(process.get("rlimits") or []), _core_limit(core)]
    if host_network:
        namespaces = linux.get("namespaces") or []
        linux["namespaces"] = [each for each in namespaces if each.get("type") != "network"]


def set_user(process: JSON, root: str) -> None:
    """Replace the name of a process's user by its numbers, which a container's own files have."""
    user = process.get("user") or {}
    if name := user.pop("username", ""):
        process["user"] = {**user, **user_ids(root, name)}


def for_exec(process: JSON, spec: JSON) -> None:
    """Make a process that is to run in a container that of a runtime.

    :param spec: the container's specification, as the runtime has it.
    """
    limits = spec["process"].get("rlimits")
    process.pop("rlimits", None)
    process |= {} if limits is None else {"rlimits": limits}
    set_user(process, spec["root"].get("path") or "")
    process.setdefault("oomScoreAdj", _OOM_SCORE)


def _core_limit(text: str) -> JSON:
    soft, _, hard = text.partition(";")
    if not (soft.isdecimal() and hard.isdecimal()):
        raise Refused("wrong number of values supplied for rlimit core")
    return {"type": "RLIMIT_CORE", "soft": int(soft), "hard": int(hard)}


def _mounts(spec: JSON) -> list[JSON]:
    if not isinstance(spec.get("mounts"), list):
        spec["mounts"] = []
    mounts: list[JSON] = spec["mounts"]
    return mounts


def _shared(mount: JSON, pod_directory: str) -> SharedMount | None:
    """Return what of a pod's directories a mount is of; None if of nothing."""
    source = str(mount.get("source") or "")
    prefix = next((each for each in SHARED if source.startswith(each)), None)
    if prefix is None:
        return None
    if str(mount.get("destination")).startswith(_BLOCK_DEVICE):
        raise Refused(f"{source} is no disk of the guest, whose device could be mounted")
    directory = f"{pod_directory}/{SHARED[prefix]}"
    place = posixpath.normpath(posixpath.join(directory, source.removeprefix(prefix).lstrip("/")))
    if place != directory and not place.startswith(f"{directory}/"):
        raise Refused(f"mount path {place} for mount {source} is not within {directory}")
    names = [name for name in place.removeprefix(directory).split("/") if name]
    return SharedMount(mount, directory, names, prefix == _HUGE_PAGES)


def _find_in_guest(mount: JSON) -> None:
    """Have a mount of a path of the guest itself name that."""
    source = str(mount.get("source") or "")
    if source.startswith(_GUEST):
        mount["source"] = source.removeprefix(_GUEST)
        if not os.path.exists(mount["source"]):
            raise Refused(f"could not open uVM mount target: {mount['source']}: no such file or directory")


def _expose_device(spec: JSON, mount: JSON) -> None:
    """Allow the block device that is to be bound into a container."""
    destination = str(mount.get("destination") or "")
    if not destination.startswith(_BLOCK_DEVICE):
        return
    mount["destination"] = destination.removeprefix(_BLOCK_DEVICE)
    device = _device(os.path.realpath(str(mount.get("source") or "")))
    access = "r" if "ro" in (mount.get("options") or []) else "rwm"
    _allow(spec, device, access)


def _apply_annotations(spec: JSON) -> None:
    annotations, linux = _annotations(spec), spec["linux"]
    if _SHM_KB in annotations:
        _set_shm(spec, annotations[_SHM_KB])
    if annotations.get(_PRIVILEGED) in _TRUE:
        linux["devices"] = [*(linux.get("devices") or []), *_all_devices("/dev")]
        _resources(spec)["devices"] = [{"allow": True, "access": "rwm"}]
        return
    linux["devices"] = [_device(str(each.get("path"))) for each in linux.get("devices") or []]
    for device in linux["devices"]:
        _allow(spec, device, "rwm")


def _set_shm(spec: JSON, size: object) -> None:
    if not (isinstance(size, str) and size.isdecimal()):
        raise Refused("/dev/shm size must be a valid integer")
    if not int(size):
        raise Refused("/dev/shm size must be non-zero")
    options = ["nosuid", "noexec", "nodev", "mode=1777", f"size={size}k"]
    mount = {"source": "shm", "destination": "/dev/shm", "type": "tmpfs", "options": options}
    spec["mounts"] = [each for each in _mounts(spec) if each.get("destination") != "/dev/shm"] + [mount]


def _allow(spec: JSON, device: JSON, access: str) -> None:
    kind, major, minor = device["type"], device["major"], device["minor"]
    rule = {"allow": True, "type": kind, "major": major, "minor": minor, "access": access}
    _resources(spec).setdefault("devices", []).append(rule)


def _resources(spec: JSON) -> JSON:
    resources: JSON = spec["linux"].get("resources") or {}
    spec["linux"]["resources"] = resources
    return resources


def _device(path: str) -> JSON:
    """Return a device of the guest as a container is to have it."""
    try:
        found = os.lstat(path)
    except OSError as error:
        raise Refused(f"failed to get device from path: {path}: {error.strerror}") from None
    kinds = ((stat.S_ISBLK, "b"), (stat.S_ISCHR, "c"))
    kind = next((letter for is_kind, letter in kinds if is_kind(found.st_mode)), None)
    if kind is None:
        raise Refused(f"failed to get device from path: {path}: not a device node")
    numbers = {"major": os.major(found.st_rdev), "minor": os.minor(found.st_rdev)}
    owner = {"uid": found.st_uid, "gid": found.st_gid}
    return {"path": path, "type": kind, **numbers, "fileMode": stat.S_IMODE(found.st_mode), **owner}


#: Directories of devices that each container has of its own (runc's ``devices.HostDevices``).
_OWN_DEVICES: Final = ("pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console", "ptmx")


def _all_devices(directory: str) -> list[JSON]:
    """Return all devices of the guest."""
    found: list[JSON] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name in _OWN_DEVICES or entry.is_symlink():
                continue
            if entry.is_dir():
                found += _all_devices(entry.path)
            elif not entry.is_file():
                try:
                    found.append(_device(entry.path))
                except Refused:
                    continue  # a socket, or one that has just gone
    return found


def write(spec: JSON, bundle: str) -> None:
    """Write the specification for the runtime, which alone may read it: it may hold secrets."""
    write_secret(f"{bundle}/config.json", spec)


def write_secret(path: str, document: object) -> None:
    """Write a JSON document that only root may read."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        json.dump(document, file)


def remove(bundle: str) -> None:
    """Remove what was written of a container that is not there, and its bundle if nothing else is in it.

    Its root file system may be, and be mounted there.
    """
    for name in ("config.json", *_FILES):
        with suppress(FileNotFoundError):
            os.unlink(f"{bundle}/{name}")
    with suppress(OSError):
        os.rmdir(bundle)
