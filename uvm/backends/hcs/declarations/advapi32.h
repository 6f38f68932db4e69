/* advapi32.dll, as far as it is used: aclapi.h, sddl.h, windows.h. */
DWORD WINAPI GetSecurityInfo(HANDLE handle, SE_OBJECT_TYPE ObjectType, SECURITY_INFORMATION SecurityInfo, PSID *ppsidOwner, PSID *ppsidGroup, PACL *ppDacl, PACL *ppSacl, PSECURITY_DESCRIPTOR *ppSecurityDescriptor);
DWORD WINAPI SetSecurityInfo(HANDLE handle, SE_OBJECT_TYPE ObjectType, SECURITY_INFORMATION SecurityInfo, PSID psidOwner, PSID psidGroup, PACL pDacl, PACL pSacl);
DWORD WINAPI SetEntriesInAclW(ULONG cCountOfExplicitEntries, EXPLICIT_ACCESS_W *pListOfExplicitEntries, PACL OldAcl, PACL *NewAcl);
BOOL WINAPI ConvertStringSecurityDescriptorToSecurityDescriptorW(PCWSTR StringSecurityDescriptor, DWORD StringSDRevision, PSECURITY_DESCRIPTOR *SecurityDescriptor, ULONG *SecurityDescriptorSize);
BOOL WINAPI ConvertStringSidToSidW(PCWSTR StringSid, PSID *Sid);

BOOL WINAPI OpenProcessToken(HANDLE ProcessHandle, DWORD DesiredAccess, HANDLE *TokenHandle);
BOOL WINAPI GetTokenInformation(HANDLE TokenHandle, TOKEN_INFORMATION_CLASS TokenInformationClass, PVOID TokenInformation, DWORD TokenInformationLength, DWORD *ReturnLength);
BOOL WINAPI LookupAccountSidW(PCWSTR lpSystemName, PSID Sid, PWSTR Name, DWORD *cchName, PWSTR ReferencedDomainName, DWORD *cchReferencedDomainName, SID_NAME_USE *peUse);
BOOL WINAPI CheckTokenMembership(HANDLE TokenHandle, PSID SidToCheck, BOOL *IsMember);

SC_HANDLE WINAPI OpenSCManagerW(PCWSTR lpMachineName, PCWSTR lpDatabaseName, DWORD dwDesiredAccess);
SC_HANDLE WINAPI OpenServiceW(SC_HANDLE hSCManager, PCWSTR lpServiceName, DWORD dwDesiredAccess);
BOOL WINAPI QueryServiceStatus(SC_HANDLE hService, SERVICE_STATUS *lpServiceStatus);
BOOL WINAPI CloseServiceHandle(SC_HANDLE hSCObject);
