"""Containers from specifications in a Windows guest: what is attached, and what the guest is sent. Pure.

Source: hcsshim ``internal/hcsoci`` (``hcsdoc_wcow.go``, ``resources_wcow.go``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from uvm._guest.specs import check_writable
from uvm._vm.pods.plan import Attachment, GuestRoot, Member, devices_of, mounts_of
from uvm.backend import JSON
from uvm.errors import OptionsError


@frozen
class WindowsPlan:
    """What is to be done for a container (:class:`~uvm._vm.pods.plan.ContainerPlan`)."""

    spec: JSON
    member: Member
    attachments: tuple[Attachment, ...] = ()

    def document(self, places: Sequence[str], root: GuestRoot) -> JSON:
        """Return the document of the container."""
        layers = [{"Id": id, "Path": path} for id, path in root.layers]
        container: JSON = {"Storage": {"Path": root.path, "Layers": layers}}
        if self.member.network:
            container["Networking"] = {"Namespace": self.member.network}
        return {"SchemaVersion": {"Major": 2, "Minor": 1}, "Container": container}


def plan(spec: Mapping[str, Any], member: Member) -> WindowsPlan:
    """Return what is to be done for a container in a Windows guest.

    :raises OptionsError: its specification cannot work.
    """
    own: JSON = json.loads(check_writable("the specification", dict(spec)))
    if mounts_of(own, "windows") or devices_of(own):
        raise OptionsError(
            "mounts and devices of a Windows container are not attached from its specification"
        )
    return WindowsPlan(own, member)
