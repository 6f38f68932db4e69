/* HCS operations, and how their results are fetched. */
#include "double.h"

HCS_OPERATION WINAPI HcsCreateOperation(const void *context, HCS_OPERATION_COMPLETION callback)
{
    double_acquire();
    if (planned_failure("HcsCreateOperation") != S_OK) {
        double_release();
        return NULL;
    }
    struct object *operation = object_make(KIND_OPERATION, NULL);
    operation->context = (void *)(uintptr_t)context;
    operation->on_completion = callback;
    operation->given = true;
    HCS_OPERATION handle = (HCS_OPERATION)(uintptr_t)operation->handle;
    double_release();
    return handle;
}

void WINAPI HcsCloseOperation(HCS_OPERATION operation)
{
    double_acquire();
    struct object *found = object_find(operation, KIND_OPERATION, "HcsCloseOperation");
    if (found != NULL) {
        found->closing = true;
        object_drain(found, "HcsCloseOperation");
        object_drop(found);
    }
    double_release();
}

/* Why there is no result yet, or S_OK. */
static HRESULT readiness(const struct object *operation)
{
    if (operation == NULL)
        return E_HANDLE_;
    if (operation->state == STATE_FRESH)
        return HCS_E_OPERATION_NOT_STARTED_;
    return operation->state == STATE_PENDING ? HCS_E_OPERATION_PENDING_ : S_OK;
}

/* Hand the handles over to the caller. */
static void hand_out_process(struct object *operation, HCS_PROCESS_INFORMATION *information)
{
    if (operation->process_fetched)
        double_misuse("HcsGetOperationResultAndProcessInfo: the handles were fetched before");
    operation->process_fetched = true;
    *information = operation->answer.process;
    operation->answer.process = (HCS_PROCESS_INFORMATION){0};
}

static HRESULT fetch(HCS_OPERATION operation, const char *call, HCS_PROCESS_INFORMATION *information, PWSTR *document)
{
    if (document != NULL)
        *document = NULL;
    if (information != NULL)
        *information = (HCS_PROCESS_INFORMATION){0};
    double_acquire();
    struct object *found = object_find(operation, KIND_OPERATION, call);
    HRESULT result = readiness(found);
    if (result == S_OK)
        result = planned_failure(call);
    if (result == S_OK) {
        result = found->answer.result;
        string_hand_out(HEAP_LOCAL, call, found->answer.document, document);
        if (information != NULL && result >= 0)
            hand_out_process(found, information);
    }
    double_release();
    return result;
}

HRESULT WINAPI HcsGetOperationResult(HCS_OPERATION operation, PWSTR *resultDocument)
{
    return fetch(operation, "HcsGetOperationResult", NULL, resultDocument);
}

HRESULT WINAPI HcsGetOperationResultAndProcessInfo(
    HCS_OPERATION operation, HCS_PROCESS_INFORMATION *processInformation, PWSTR *resultDocument)
{
    return fetch(operation, "HcsGetOperationResultAndProcessInfo", processInformation, resultDocument);
}
