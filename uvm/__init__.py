"""Create and drive utility VMs: QEMU on Linux, Hyper-V on Windows, or a faithful host in memory.

To begin with, on any machine::

    async with uvm.start_vm(uvm.LCOWOptions(memory_mb=512), backend="fake") as vm:
        done = await vm.run(["echo", "hello"], text=True)

:mod:`uvm.sync` has the same without ``await``. What most programs need is here, loaded when the first of its
names is used (PEP 562).
"""

import sys

# Type checkers take it for true; typing itself costs more to import than all of this.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from uvm._public import *  # noqa: F403
    from uvm._public_first import *  # noqa: F403
    from uvm._public_windows import *  # noqa: F403
    from uvm.backends.fake import FakeBackend as FakeBackend

__version__ = "0.1.0"

if not TYPE_CHECKING:
    # What a first VM needs comes first.
    _HOMES = ("uvm._public_first", "uvm._public_windows", "uvm._public")

    def __getattr__(name):
        from importlib import import_module

        if name == "__all__":
            found = ("FakeBackend", *(each for home in _HOMES for each in vars(import_module(home))))
            # pytest rewrites the modules of whatever has fixtures, and adds names that are none.
            return sorted(each for each in found if each.isidentifier() and not each.startswith("_"))
        # The fake is large, and only for those who ask for it.
        for home in ("uvm.backends.fake",) if name == "FakeBackend" else _HOMES:
            module = import_module(home)
            if hasattr(module, name):
                value = globals()[name] = getattr(module, name)
                return value
        # With the module itself, a traceback suggests a name that is like it.
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__]
        )

    def __dir__():
        return sorted({*globals(), *__getattr__("__all__")} - {"TYPE_CHECKING", "sys"})
