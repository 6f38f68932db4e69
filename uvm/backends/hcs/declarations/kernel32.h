/* kernel32.dll, as far as it is used: windows.h and psapi.h. */
HANDLE WINAPI CreateFileW(PCWSTR lpFileName, DWORD dwDesiredAccess, DWORD dwShareMode, LPSECURITY_ATTRIBUTES lpSecurityAttributes, DWORD dwCreationDisposition, DWORD dwFlagsAndAttributes, HANDLE hTemplateFile);
HANDLE WINAPI CreateNamedPipeW(PCWSTR lpName, DWORD dwOpenMode, DWORD dwPipeMode, DWORD nMaxInstances, DWORD nOutBufferSize, DWORD nInBufferSize, DWORD nDefaultTimeOut, LPSECURITY_ATTRIBUTES lpSecurityAttributes);
BOOL WINAPI CloseHandle(HANDLE hObject);
BOOL WINAPI GetFileInformationByHandleEx(HANDLE hFile, FILE_INFO_BY_HANDLE_CLASS FileInformationClass, PVOID lpFileInformation, DWORD dwBufferSize);
BOOL WINAPI CopyFileExW(PCWSTR lpExistingFileName, PCWSTR lpNewFileName, LPPROGRESS_ROUTINE lpProgressRoutine, PVOID lpData, BOOL *pbCancel, DWORD dwCopyFlags);
HLOCAL WINAPI LocalFree(HLOCAL hMem);

DWORD WINAPI GetActiveProcessorCount(WORD GroupNumber);
BOOL WINAPI GlobalMemoryStatusEx(MEMORYSTATUSEX *lpBuffer);
DWORD WINAPI GetTimeZoneInformation(TIME_ZONE_INFORMATION *lpTimeZoneInformation);
BOOL WINAPI IsProcessorFeaturePresent(DWORD ProcessorFeature);

HANDLE WINAPI GetCurrentProcess(void);
BOOL WINAPI IsWow64Process2(HANDLE hProcess, USHORT *pProcessMachine, USHORT *pNativeMachine);
HANDLE WINAPI OpenProcess(DWORD dwDesiredAccess, BOOL bInheritHandle, DWORD dwProcessId);
BOOL WINAPI QueryFullProcessImageNameW(HANDLE hProcess, DWORD dwFlags, PWSTR lpExeName, DWORD *lpdwSize);
BOOL WINAPI K32EnumProcesses(DWORD *lpidProcess, DWORD cb, DWORD *lpcbNeeded);
BOOL WINAPI K32GetProcessMemoryInfo(HANDLE Process, PROCESS_MEMORY_COUNTERS *ppsmemCounters, DWORD cb);
