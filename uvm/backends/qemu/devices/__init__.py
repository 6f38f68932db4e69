"""The devices of a VM: one module for each kind, which turns modify requests into commands of QMP."""
