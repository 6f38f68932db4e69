"""The devices of a VM, one small facade per kind."""
