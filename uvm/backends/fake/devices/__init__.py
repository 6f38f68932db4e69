"""The devices of a fake VM: one module for each kind, registered in :mod:`~uvm.backends.fake.tree`."""
