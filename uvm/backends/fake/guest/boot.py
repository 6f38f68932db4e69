"""How the fake guest boots: the services of the host that it dials, and in which order."""

from __future__ import annotations

import re
from typing import Final

from attrs import frozen

from uvm._names import GuestOS
from uvm._wire.ports import (
    LINUX_GCS_PORT,
    WINDOWS_GCS_SERVICE,
    WINDOWS_SIDECAR_SERVICE,
    vsock_service_id,
)
from uvm.schema.system import VirtualMachine

#: ``-e`` of init itself, and ``-e`` or ``-o`` of the command that it runs, each with a port.
_ENTROPY: Final = re.compile(r"-e (\d+)")
_OUTPUT: Final = re.compile(r"(?: -[oe] (\d+))(?: -[oe] (\d+))?")
_ISOLATED_INIT: Final = "-e 1 /bin/vsockexec -e 109 /bin/gcs"


@frozen(eq=False, repr=False)
class BootPlan:
    """The services that a guest dials.

    :ivar service: the one for its compute service.
    :ivar entropy: the one that it receives random bytes from; empty for none.
    :ivar output: the one for the output of its compute service; empty for none.
    """

    service: str
    entropy: str = ""
    output: str = ""


def boot_plan(vm: VirtualMachine, os: GuestOS) -> BootPlan:
    """Return the services that the guest of a document dials.

    Those of a Linux guest are on its kernel command line, after ``--``; in a confidential Windows VM the
    sidecar replaces the compute service.
    """
    if os == "windows":
        isolation = vm.security_settings.isolation if vm.security_settings is not None else None
        return BootPlan(WINDOWS_GCS_SERVICE if isolation is None else WINDOWS_SIDECAR_SERVICE)
    init = _init_arguments(vm)
    if not init and vm.security_settings is not None:
        # The command line of an isolated VM is part of its measured image.
        init = _ISOLATED_INIT
    own, _, command = init.partition("/bin/vsockexec")
    entropy, output = _ENTROPY.search(own), _OUTPUT.match(command)
    return BootPlan(
        service=vsock_service_id(LINUX_GCS_PORT),
        entropy=vsock_service_id(int(entropy[1])) if entropy else "",
        output=vsock_service_id(int(output[2] or output[1])) if output else "",
    )


def _init_arguments(vm: VirtualMachine) -> str:
    """Return the arguments of init: what follows ``--`` on the kernel command line."""
    chipset = vm.chipset
    if chipset is None:
        return ""
    line = ""
    if chipset.linux_kernel_direct is not None:
        line = chipset.linux_kernel_direct.kernel_cmd_line
    elif chipset.uefi is not None and chipset.uefi.boot_this is not None:
        line = chipset.uefi.boot_this.optional_data
    return f" {line}".partition(" -- ")[2]
