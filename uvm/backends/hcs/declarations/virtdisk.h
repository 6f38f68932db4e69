/* virtdisk.dll, as far as it is used. */
DWORD WINAPI OpenVirtualDisk(VIRTUAL_STORAGE_TYPE *VirtualStorageType, PCWSTR Path, VIRTUAL_DISK_ACCESS_MASK VirtualDiskAccessMask, OPEN_VIRTUAL_DISK_FLAG Flags, OPEN_VIRTUAL_DISK_PARAMETERS *Parameters, HANDLE *Handle);
DWORD WINAPI SetVirtualDiskInformation(HANDLE VirtualDiskHandle, SET_VIRTUAL_DISK_INFO *VirtualDiskInfo);
