"""What is mounted where."""

from __future__ import annotations

from uvm.agent.containers.mounted import deepest, inside

_PLACES = ("/", "/run/c/1/rootfs", "/run/c/11", "/run/c/2/a\\040b")
_MOUNTS = "".join(f"x {place} overlay rw 0 0\n" for place in _PLACES)


def test_what_is_mounted_in_a_directory_is_found() -> None:
    assert deepest(_MOUNTS, ["/run/c/1"]) == "/run/c/1/rootfs"
    assert deepest(_MOUNTS, ["/run/c/2/"]) == "/run/c/2/a b"
    assert deepest(_MOUNTS, ["/run/c/11"]) == "/run/c/11"
    assert deepest(_MOUNTS, ["/run/c/3", "/run/c/1"]) == "/run/c/1/rootfs"


def test_a_directory_without_mounts_has_none() -> None:
    assert deepest(_MOUNTS, ["/run/c/3"]) is None
    assert deepest(_MOUNTS, []) is None


def test_the_kernels_own_list_is_read() -> None:
    assert inside(["/proc"]) is not None
