"""Real VMs of Linux guests, with QEMU, on Linux hosts."""
