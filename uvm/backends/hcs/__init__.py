"""Windows: the Host Compute Service, through computecore.dll and computenetwork.dll.

:class:`uvm.backends.hcs.backend.HCSBackend` is the backend; ``uvm.open_backend("hcs")`` makes it.
"""
