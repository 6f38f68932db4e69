"""Create and drive utility VMs: Hyper-V through the Host Compute Service, or a faithful in-memory fake.

What most programs need is here, loaded when the first of its names is used (PEP 562).
"""

# Type checkers take it for true; typing itself costs more to import than all of this.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from uvm._public import *  # noqa: F403
    from uvm.backends.fake import FakeBackend as FakeBackend

__version__ = "0.1.0"

if not TYPE_CHECKING:

    def __getattr__(name):
        from importlib import import_module

        # The fake is large, and only for those who ask for it.
        home = import_module("uvm.backends.fake" if name == "FakeBackend" else "uvm._public")
        if name == "__all__":
            return sorted(["FakeBackend", *(each for each in vars(home) if not each.startswith("_"))])
        try:
            value = globals()[name] = getattr(home, name)
        except AttributeError:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name) from None
        return value

    def __dir__():
        return sorted({*globals(), *__getattr__("__all__")} - {"TYPE_CHECKING"})
