"""What the Linux guest refuses under a security policy, whatever the policy allows.

Source: hcsshim internal/guest/runtime/hcsv2/uvm.go.
"""

from __future__ import annotations

import re
from typing import Final

from uvm._guest.specs import bundle_of
from uvm.backends.fake.guest.state import GuestRequest
from uvm.schema.gcs import LinuxHostedSystem
from uvm.schema.guest import LCOWCombinedLayers, LCOWMappedVirtualDisk, LCOWMappedVPMemDevice

_ID: Final = "[0-9a-fA-F]{64}"


def check_disk(request: GuestRequest, wanted: LCOWMappedVirtualDisk) -> None:
    """Refuse mount options other than ``ro``, and a read-only file system other than ext4."""
    if wanted.read_only and wanted.filesystem not in ("", "ext4"):
        raise request.fail("filesystem must be ext4 for read-only scsi mounts")
    expected = ["ro"] if wanted.read_only else []
    if request.action == "Add" and wanted.mount_path and wanted.options != expected:
        raise request.fail(
            f"mounting onto {wanted.mount_path} with mount options {wanted.options} denied by policy: "
            f"expected {expected}"
        )


def check_pmem(request: GuestRequest, wanted: LCOWMappedVPMemDevice) -> None:
    """Refuse a layer that shares its device with others."""
    if wanted.mapping_info is not None:
        raise request.fail("multi mapping is not supported with verity")


def check_layers(request: GuestRequest, wanted: LCOWCombinedLayers) -> None:
    """Refuse paths that are not those of the container."""
    if problem := id_problem(wanted.container_id):
        raise request.fail(problem)
    bundle = bundle_of(wanted.container_id)
    if wanted.container_root_path != f"{bundle}/rootfs":
        raise request.fail(
            f"combined layers target {wanted.container_root_path!r} does not match expected path "
            f"'{bundle}/rootfs'"
        )
    scratch = f"/run/gcs/c/{_ID}/scratch/{wanted.container_id}"
    if wanted.scratch_path and not re.fullmatch(scratch, wanted.scratch_path):
        raise request.fail(f"scratch path {wanted.scratch_path!r} must match regex '^{scratch}$'")


def id_problem(container_id: str) -> str:
    """Return why an id is none of a container; empty if it is one."""
    return "" if re.fullmatch(_ID, container_id) else f"invalid container id {container_id!r}"


def container_problem(container_id: str, hosted: LinuxHostedSystem) -> str:
    """Return why a container is refused; empty if it is not."""
    if problem := id_problem(container_id):
        return problem
    bundle = bundle_of(container_id)
    spec = hosted.oci_specification or {}
    root = spec.get("root") or {}
    annotations = spec.get("annotations") or {}
    pod = annotations.get("io.kubernetes.cri.sandbox-id") or container_id
    scratches = [f"{owner}/scratch/{container_id}" for owner in (bundle, bundle_of(pod))]
    for what, path, expected in (
        ("OCIBundlePath", hosted.oci_bundle_path, [bundle]),
        ("OCISpecification.Root.Path", root.get("path"), [f"{bundle}/rootfs"]),
        ("ScratchDirPath", hosted.scratch_dir_path, scratches),
    ):
        if path not in expected:
            return f"{what} {path!r} must equal expected {' or '.join(map(repr, expected))}"
    return "OCISpecification.Hooks must be nil." if spec.get("hooks") is not None else ""
