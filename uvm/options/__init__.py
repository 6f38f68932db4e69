"""The options of utility VMs: frozen classes that check their values when they are made.

Every option of hcsshim 0.15 is here, under a PEP 8 name with its unit; the field's metadata ``hcsshim`` holds
its name there, and :func:`from_hcsshim` reads options under those names. The defaults are hcsshim's. What
depends on the host is checked when the document is built.
"""

from typing import TYPE_CHECKING

from uvm._checks import HCSSHIM, INVERTED
from uvm._lazy import names_from
from uvm.options.common import HvSocketService, Options, decode_policy
from uvm.options.lcow import LCOWOptions, PCIDevice
from uvm.options.template import Template

if TYPE_CHECKING:
    from uvm.options.annotations import (
        expanded_annotations,
        options_from_annotations,
        unknown_annotations,
    )
    from uvm.options.containerannotations import ContainerAnnotations, container_annotations
    from uvm.options.hcsshim import from_hcsshim
    from uvm.options.wcow import (
        BlockCIMBootFiles,
        LayerBootFiles,
        RegistryValue,
        VmbFSBootFiles,
        WCOWOptions,
    )
else:
    __getattr__, __dir__ = names_from(
        __name__,
        {
            "uvm.options.annotations": "expanded_annotations options_from_annotations unknown_annotations",
            "uvm.options.containerannotations": "ContainerAnnotations container_annotations",
            "uvm.options.hcsshim": "from_hcsshim",
            "uvm.options.wcow": "BlockCIMBootFiles LayerBootFiles RegistryValue VmbFSBootFiles WCOWOptions",
        },
    )

__all__ = [
    "HCSSHIM",
    "INVERTED",
    "BlockCIMBootFiles",
    "ContainerAnnotations",
    "HvSocketService",
    "LCOWOptions",
    "LayerBootFiles",
    "Options",
    "PCIDevice",
    "RegistryValue",
    "Template",
    "VmbFSBootFiles",
    "WCOWOptions",
    "container_annotations",
    "decode_policy",
    "expanded_annotations",
    "from_hcsshim",
    "options_from_annotations",
    "unknown_annotations",
]
