"""The guest's compute service, PID 1 of a VM. The standard library only."""
