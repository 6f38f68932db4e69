"""The public names of :mod:`uvm` that a first VM with a Windows guest needs too."""

from uvm.options import BlockCIMBootFiles as BlockCIMBootFiles
from uvm.options import LayerBootFiles as LayerBootFiles
from uvm.options import RegistryValue as RegistryValue
from uvm.options import VmbFSBootFiles as VmbFSBootFiles
from uvm.options import WCOWOptions as WCOWOptions
