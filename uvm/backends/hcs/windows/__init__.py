"""The Windows machine below HCS: files, access lists, virtual disks, host facts, memory of VMs."""
