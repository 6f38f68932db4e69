/* kernel32.dll and ole32.dll: what frees the strings that HCS and HCN hand over. */
HLOCAL WINAPI LocalFree(HLOCAL hMem);
void WINAPI CoTaskMemFree(void *pv);
