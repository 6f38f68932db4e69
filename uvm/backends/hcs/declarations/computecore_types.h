/* computedefs.h. */
typedef struct HCS_OPERATION__ *HCS_OPERATION;
typedef struct HCS_SYSTEM__ *HCS_SYSTEM;
typedef struct HCS_PROCESS__ *HCS_PROCESS;
typedef void SECURITY_DESCRIPTOR;

typedef int32_t HCS_EVENT_TYPE;
typedef int32_t HCS_EVENT_OPTIONS;

typedef struct HCS_EVENT {
    HCS_EVENT_TYPE Type;
    PCWSTR EventData;
    HCS_OPERATION Operation;
} HCS_EVENT;

typedef struct {
    DWORD ProcessId;
    DWORD Reserved;
    HANDLE StdInput;
    HANDLE StdOutput;
    HANDLE StdError;
} HCS_PROCESS_INFORMATION;

typedef void (WINAPI *HCS_OPERATION_COMPLETION)(HCS_OPERATION operation, void *context);
typedef void (WINAPI *HCS_EVENT_CALLBACK)(HCS_EVENT *event, void *context);
