/* winnt.h, accctrl.h, winsvc.h. */
typedef void *PSID;
typedef struct ACL__ *PACL;
typedef void *PSECURITY_DESCRIPTOR;
typedef DWORD SECURITY_INFORMATION;
typedef int32_t SE_OBJECT_TYPE;
typedef int32_t TOKEN_INFORMATION_CLASS;
typedef int32_t SID_NAME_USE;
typedef struct SC_HANDLE__ *SC_HANDLE;

typedef struct TRUSTEE_W__ {
    struct TRUSTEE_W__ *pMultipleTrustee;
    int32_t MultipleTrusteeOperation;
    int32_t TrusteeForm;
    int32_t TrusteeType;
    PWSTR ptstrName;
} TRUSTEE_W;

typedef struct {
    DWORD grfAccessPermissions;
    int32_t grfAccessMode;
    DWORD grfInheritance;
    TRUSTEE_W Trustee;
} EXPLICIT_ACCESS_W;

typedef struct {
    PSID Sid;
    DWORD Attributes;
} SID_AND_ATTRIBUTES;

typedef struct {
    SID_AND_ATTRIBUTES User;
} TOKEN_USER;

typedef struct {
    DWORD dwServiceType;
    DWORD dwCurrentState;
    DWORD dwControlsAccepted;
    DWORD dwWin32ExitCode;
    DWORD dwServiceSpecificExitCode;
    DWORD dwCheckPoint;
    DWORD dwWaitHint;
} SERVICE_STATUS;
