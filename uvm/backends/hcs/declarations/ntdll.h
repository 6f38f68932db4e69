/* ntdll.dll, as far as it is used: wdm.h. It does not adapt its answer to the program's manifest. */
LONG WINAPI RtlGetVersion(OSVERSIONINFOW *lpVersionInformation);
