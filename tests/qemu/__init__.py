"""Tests that boot real VMs with QEMU: ``make test-qemu``."""
