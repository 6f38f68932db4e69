/* Compute systems, processes and the service: each call names its question. */
#include "double.h"

/* Call on an object that exists: its handle is checked before the operation is. */
static HRESULT ask_about(
    const void *handle, enum kind kind, HCS_OPERATION operation, const char *call, const text_t *document)
{
    double_acquire();
    bool open = object_find(handle, kind, call) != NULL;
    double_release();
    if (!open)
        return E_HANDLE_;
    return ask_for_operation(operation, &(struct request){call, (uint64_t)(uintptr_t)handle, 0, NULL, document});
}

/* Call that makes an object, whose handle the caller has before the answer. */
static HRESULT ask_for_new(
    enum kind kind, HCS_OPERATION operation, struct request request, void **handle)
{
    double_acquire();
    struct object *object = object_make(kind, request.subject);
    object->parent = request.parent;
    request.object = object->handle;
    double_release();
    HRESULT result = ask_for_operation(operation, &request);
    *handle = give_or_drop(object, result);
    return result;
}

static HRESULT register_callback(
    const void *handle, enum kind kind, const char *call, int options, void *context, HCS_EVENT_CALLBACK callback)
{
    double_acquire();
    struct object *object = object_find(handle, kind, call);
    HRESULT result = object == NULL ? E_HANDLE_ : planned_failure(call);
    if (result != S_OK) {
        /* Refused. */
    } else if (callback != NULL && object->on_event != NULL) {
        result = HCS_E_OPERATION_SYSTEM_CALLBACK_ALREADY_SET_;
    } else {
        object->reports_operations = callback != NULL && (options & HcsEventOptionEnableOperationCallbacks);
        if (object->reports_operations)
            double_misuse("%s: with this option operations cannot have callbacks of their own", call);
        object->on_event = callback;
        object->context = context;
        if (callback == NULL)
            object_drain(object, call);
    }
    double_release();
    return result;
}

/* Systems */

HRESULT WINAPI HcsEnumerateComputeSystems(PCWSTR query, HCS_OPERATION operation)
{
    return ask_for_operation(operation, &(struct request){"HcsEnumerateComputeSystems", 0, 0, NULL, query});
}

HRESULT WINAPI HcsCreateComputeSystem(
    PCWSTR id,
    PCWSTR configuration,
    HCS_OPERATION operation,
    const SECURITY_DESCRIPTOR *securityDescriptor,
    HCS_SYSTEM *computeSystem)
{
    (void)securityDescriptor;
    if (id == NULL || configuration == NULL || computeSystem == NULL)
        return E_INVALIDARG_;
    struct request request = {"HcsCreateComputeSystem", 0, 0, id, configuration};
    void *handle;
    HRESULT result = ask_for_new(KIND_SYSTEM, operation, request, &handle);
    *computeSystem = handle;
    return result;
}

HRESULT WINAPI HcsOpenComputeSystem(PCWSTR id, DWORD requestedAccess, HCS_SYSTEM *computeSystem)
{
    (void)requestedAccess;
    if (id == NULL || computeSystem == NULL)
        return E_INVALIDARG_;
    struct request request = {"HcsOpenComputeSystem", 0, 0, id, NULL};
    void *handle;
    HRESULT result = ask_for_handle(&request, KIND_SYSTEM, &handle, HEAP_LOCAL, NULL);
    *computeSystem = handle;
    return result;
}

void WINAPI HcsCloseComputeSystem(HCS_SYSTEM computeSystem)
{
    close_object(computeSystem, KIND_SYSTEM, "HcsCloseComputeSystem");
}

HRESULT WINAPI HcsStartComputeSystem(HCS_SYSTEM computeSystem, HCS_OPERATION operation, PCWSTR options)
{
    return ask_about(computeSystem, KIND_SYSTEM, operation, "HcsStartComputeSystem", options);
}

HRESULT WINAPI HcsShutDownComputeSystem(HCS_SYSTEM computeSystem, HCS_OPERATION operation, PCWSTR options)
{
    return ask_about(computeSystem, KIND_SYSTEM, operation, "HcsShutDownComputeSystem", options);
}

HRESULT WINAPI HcsTerminateComputeSystem(HCS_SYSTEM computeSystem, HCS_OPERATION operation, PCWSTR options)
{
    return ask_about(computeSystem, KIND_SYSTEM, operation, "HcsTerminateComputeSystem", options);
}

HRESULT WINAPI HcsCrashComputeSystem(HCS_SYSTEM computeSystem, HCS_OPERATION operation, PCWSTR options)
{
    return ask_about(computeSystem, KIND_SYSTEM, operation, "HcsCrashComputeSystem", options);
}

HRESULT WINAPI HcsPauseComputeSystem(HCS_SYSTEM computeSystem, HCS_OPERATION operation, PCWSTR options)
{
    return ask_about(computeSystem, KIND_SYSTEM, operation, "HcsPauseComputeSystem", options);
}

HRESULT WINAPI HcsResumeComputeSystem(HCS_SYSTEM computeSystem, HCS_OPERATION operation, PCWSTR options)
{
    return ask_about(computeSystem, KIND_SYSTEM, operation, "HcsResumeComputeSystem", options);
}

HRESULT WINAPI HcsSaveComputeSystem(HCS_SYSTEM computeSystem, HCS_OPERATION operation, PCWSTR options)
{
    return ask_about(computeSystem, KIND_SYSTEM, operation, "HcsSaveComputeSystem", options);
}

HRESULT WINAPI HcsGetComputeSystemProperties(HCS_SYSTEM computeSystem, HCS_OPERATION operation, PCWSTR propertyQuery)
{
    return ask_about(computeSystem, KIND_SYSTEM, operation, "HcsGetComputeSystemProperties", propertyQuery);
}

HRESULT WINAPI HcsModifyComputeSystem(
    HCS_SYSTEM computeSystem, HCS_OPERATION operation, PCWSTR configuration, HANDLE identity)
{
    (void)identity;
    return ask_about(computeSystem, KIND_SYSTEM, operation, "HcsModifyComputeSystem", configuration);
}

HRESULT WINAPI HcsSetComputeSystemCallback(
    HCS_SYSTEM computeSystem, HCS_EVENT_OPTIONS callbackOptions, const void *context, HCS_EVENT_CALLBACK callback)
{
    void *given = (void *)(uintptr_t)context;
    return register_callback(
        computeSystem, KIND_SYSTEM, "HcsSetComputeSystemCallback", (int)callbackOptions, given, callback);
}

/* Processes */

/* The number of a system's handle; 0 if it is not open. */
static uint64_t open_system(HCS_SYSTEM system, const char *call)
{
    double_acquire();
    struct object *object = object_find(system, KIND_SYSTEM, call);
    uint64_t number = object != NULL ? object->handle : 0;
    double_release();
    return number;
}

HRESULT WINAPI HcsCreateProcess(
    HCS_SYSTEM computeSystem,
    PCWSTR processParameters,
    HCS_OPERATION operation,
    const SECURITY_DESCRIPTOR *securityDescriptor,
    HCS_PROCESS *process)
{
    (void)securityDescriptor;
    if (processParameters == NULL || process == NULL)
        return E_INVALIDARG_;
    uint64_t parent = open_system(computeSystem, "HcsCreateProcess");
    if (parent == 0)
        return E_HANDLE_;
    struct request request = {"HcsCreateProcess", 0, parent, NULL, processParameters};
    void *handle;
    HRESULT result = ask_for_new(KIND_PROCESS, operation, request, &handle);
    *process = handle;
    return result;
}

static void write_decimal(uint32_t number, text_t text[11])
{
    text_t digits[10];
    int count = 0;
    do {
        digits[count++] = (text_t)('0' + number % 10);
        number /= 10;
    } while (number != 0);
    for (int i = 0; i < count; i++)
        text[i] = digits[count - 1 - i];
    text[count] = 0;
}

HRESULT WINAPI HcsOpenProcess(HCS_SYSTEM computeSystem, DWORD processId, DWORD requestedAccess, HCS_PROCESS *process)
{
    (void)requestedAccess;
    if (process == NULL)
        return E_INVALIDARG_;
    uint64_t parent = open_system(computeSystem, "HcsOpenProcess");
    if (parent == 0)
        return E_HANDLE_;
    text_t number[11];
    write_decimal(processId, number);
    struct request request = {"HcsOpenProcess", 0, parent, number, NULL};
    void *handle;
    HRESULT result = ask_for_handle(&request, KIND_PROCESS, &handle, HEAP_LOCAL, NULL);
    *process = handle;
    return result;
}

void WINAPI HcsCloseProcess(HCS_PROCESS process)
{
    close_object(process, KIND_PROCESS, "HcsCloseProcess");
}

HRESULT WINAPI HcsTerminateProcess(HCS_PROCESS process, HCS_OPERATION operation, PCWSTR options)
{
    return ask_about(process, KIND_PROCESS, operation, "HcsTerminateProcess", options);
}

HRESULT WINAPI HcsSignalProcess(HCS_PROCESS process, HCS_OPERATION operation, PCWSTR options)
{
    return ask_about(process, KIND_PROCESS, operation, "HcsSignalProcess", options);
}

HRESULT WINAPI HcsGetProcessInfo(HCS_PROCESS process, HCS_OPERATION operation)
{
    return ask_about(process, KIND_PROCESS, operation, "HcsGetProcessInfo", NULL);
}

HRESULT WINAPI HcsGetProcessProperties(HCS_PROCESS process, HCS_OPERATION operation, PCWSTR propertyQuery)
{
    return ask_about(process, KIND_PROCESS, operation, "HcsGetProcessProperties", propertyQuery);
}

HRESULT WINAPI HcsModifyProcess(HCS_PROCESS process, HCS_OPERATION operation, PCWSTR settings)
{
    return ask_about(process, KIND_PROCESS, operation, "HcsModifyProcess", settings);
}

HRESULT WINAPI HcsSetProcessCallback(
    HCS_PROCESS process, HCS_EVENT_OPTIONS callbackOptions, void *context, HCS_EVENT_CALLBACK callback)
{
    return register_callback(process, KIND_PROCESS, "HcsSetProcessCallback", (int)callbackOptions, context, callback);
}

/* The service */

static HRESULT ask_service(const char *call, PCWSTR document, PWSTR *result)
{
    if (result == NULL)
        return E_INVALIDARG_;
    *result = NULL;
    return ask_for_text(&(struct request){call, 0, 0, NULL, document}, HEAP_LOCAL, result, result);
}

HRESULT WINAPI HcsGetServiceProperties(PCWSTR propertyQuery, PWSTR *result)
{
    return ask_service("HcsGetServiceProperties", propertyQuery, result);
}

HRESULT WINAPI HcsModifyServiceSettings(PCWSTR settings, PWSTR *result)
{
    return ask_service("HcsModifyServiceSettings", settings, result);
}

/* What is asked about a path; the document is the path itself. */
static HRESULT ask_about_path(const char *call, PCWSTR id, PCWSTR path)
{
    if (id == NULL || path == NULL)
        return E_INVALIDARG_;
    struct answer answer;
    HRESULT result = ask_and_wait(&(struct request){call, 0, 0, id, path}, &answer);
    answer_dispose(&answer);
    return result;
}

HRESULT WINAPI HcsGrantVmAccess(PCWSTR vmId, PCWSTR filePath)
{
    return ask_about_path("HcsGrantVmAccess", vmId, filePath);
}

HRESULT WINAPI HcsRevokeVmAccess(PCWSTR vmId, PCWSTR filePath)
{
    return ask_about_path("HcsRevokeVmAccess", vmId, filePath);
}
