/* Questions to the host, its answers, and the faults between. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

struct planned {
    struct planned *next;
    char *call;
    struct fault fault;
    uint32_t left;
};

static double_host plugged;
static const void *plugging_thread;
static unsigned asking;
static uint64_t plugs;
static struct planned *plans;

/* Faults */

static void forget_plan(struct planned **at)
{
    struct planned *plan = *at;
    *at = plan->next;
    free(plan->call);
    free(plan->fault.document);
    free(plan);
}

void DoubleFault(const char *call, int32_t fault, int32_t result, const text_t *document, uint32_t count)
{
    struct planned *plan = checked(malloc(sizeof *plan));
    size_t length = strlen(call) + 1;
    char *name = memcpy(checked(malloc(length)), call, length);
    *plan = (struct planned){NULL, name, {(enum double_fault)fault, result, text_copy(document)}, count};
    double_acquire();
    struct planned **end = &plans;
    while (*end != NULL)
        end = &(*end)->next;
    *end = plan;
    double_release();
}

/* Take what is planned for a call; the document belongs to the caller. */
static struct fault take_fault(const char *call)
{
    for (struct planned **at = &plans; *at != NULL; at = &(*at)->next) {
        if (strcmp((*at)->call, call) != 0)
            continue;
        struct fault fault = (*at)->fault;
        fault.document = text_copy(fault.document);
        if (--(*at)->left == 0)
            forget_plan(at);
        return fault;
    }
    return (struct fault){FAULT_NONE, S_OK, NULL};
}

HRESULT planned_failure(const char *call)
{
    struct fault fault = take_fault(call);
    free(fault.document);
    return fault.kind == FAULT_NONE ? S_OK : fault.result;
}

void faults_forget(void)
{
    while (plans != NULL)
        forget_plan(&plans);
}

/* Asking */

void DoublePlug(double_host host)
{
    double_acquire();
    plugged = host;
    plugging_thread = platform_this_thread();
    plugs++;
    double_changed();
    while (asking > 0)
        double_wait();
    double_release();
}

/* Put a question to the host, with the lock released meanwhile; false if there is no host. */
static bool ask(uint64_t question, const struct request *request, const struct fault *fault)
{
    double_host host = plugged;
    if (host == NULL)
        return false;
    asking++;
    double_release();
    host(question, request->call, request->object, request->parent, request->subject, request->document,
         (int32_t)fault->kind, fault->result);
    double_acquire();
    asking--;
    double_changed();
    return true;
}

void answer_dispose(struct answer *answer)
{
    free(answer->document);
    platform_close_handle(answer->process.StdInput);
    platform_close_handle(answer->process.StdOutput);
    platform_close_handle(answer->process.StdError);
    *answer = (struct answer){0};
}

/* Keep an answer, and notify its receivers. The answer belongs to the object from here on. */
static void settle(struct object *object, const struct answer *answer)
{
    object->state = STATE_DONE;
    object->answer = *answer;
    double_changed();
    if (object->kind != KIND_OPERATION)
        return;
    if (object->fault == FAULT_SYNCHRONOUSLY) {
        complete_here(object);
        return;
    }
    queue_completion(object, false);
    if (object->fault == FAULT_TWICE)
        queue_completion(object, true);
}

void DoubleAnswer(
    uint64_t question,
    int32_t result,
    const text_t *document,
    uint32_t process_id,
    void *input,
    void *output,
    void *error)
{
    struct answer answer = {result, text_copy(document), {process_id, 0, input, output, error}};
    double_acquire();
    struct object *object = object_look(question);
    if (object != NULL && object->state == STATE_PENDING)
        settle(object, &answer);
    else
        answer_dispose(&answer);
    double_release();
}

void DoubleEvent(uint64_t object, int32_t type, const text_t *data)
{
    double_acquire();
    struct object *found = object_look(object);
    if (found != NULL && !found->closing)
        queue_event(found, type, data);
    double_release();
}

/* Calls with an operation */

static HRESULT refuse(struct object *operation, HRESULT result, text_t *document)
{
    operation->state = STATE_DONE;
    operation->answer = (struct answer){result, document, {0}};
    return result;
}

/* Begin to use an operation: S_OK, or why not. */
static HRESULT engage(struct object *operation, const struct request *request)
{
    if (operation->state != STATE_FRESH) {
        double_misuse("%s: the operation was used before, by %s", request->call, operation->call);
        return HCS_E_OPERATION_ALREADY_STARTED_;
    }
    operation->call = request->call;
    const struct object *object = object_look(request->object);
    const struct object *system = object != NULL && object->kind == KIND_PROCESS ? object_look(object->parent) : object;
    bool reported = (object != NULL && object->reports_operations) || (system != NULL && system->reports_operations);
    if (reported && operation->on_completion != NULL)
        return refuse(operation, HCS_E_OPERATION_SYSTEM_CALLBACK_ALREADY_SET_, NULL);
    operation->state = STATE_PENDING;
    return S_OK;
}

static HRESULT ask_or_fail(struct object *operation, const struct request *request)
{
    struct fault fault = take_fault(request->call);
    operation->fault = fault.kind;
    switch (fault.kind) {
    case FAULT_AT_ONCE:
        return refuse(operation, fault.result, fault.document);
    case FAULT_LATER:
        settle(operation, &(struct answer){fault.result, fault.document, {0}});
        return S_OK;
    case FAULT_NEVER:
        free(fault.document);
        return S_OK;
    default:
        break;
    }
    uint64_t handle = operation->handle;
    free(fault.document);
    if (!ask(handle, request, &fault))
        return refuse(operation, HCS_E_SERVICE_NOT_AVAILABLE_, NULL);
    operation = object_look(handle);
    if (fault.kind == FAULT_SYNCHRONOUSLY && operation != NULL && operation->state == STATE_PENDING)
        double_misuse("%s: the host did not answer while it was asked", request->call);
    return S_OK;
}

HRESULT ask_for_operation(HCS_OPERATION operation, const struct request *request)
{
    double_acquire();
    struct object *found = object_find(operation, KIND_OPERATION, request->call);
    HRESULT result = found == NULL ? E_HANDLE_ : engage(found, request);
    if (result == S_OK)
        result = ask_or_fail(found, request);
    double_release();
    return result;
}

/* Calls that return with the answer */

/* Wait as long as the host is the one that was asked. */
static void await_answer(struct object *wait, uint64_t plug, const char *call)
{
    bool may_wait = platform_this_thread() != plugging_thread;
    if (wait->state == STATE_PENDING && !may_wait)
        double_misuse("%s: it waits, and was called on the event loop's thread", call);
    while (wait->state == STATE_PENDING && may_wait && plug == plugs)
        double_wait();
}

static void wait_for_host(struct object *wait, const struct request *request)
{
    struct fault fault = take_fault(request->call);
    uint64_t plug = plugs;
    wait->state = STATE_PENDING;
    if (fault.kind == FAULT_AT_ONCE || fault.kind == FAULT_LATER) {
        wait->answer = (struct answer){fault.result, fault.document, {0}};
        return;
    }
    free(fault.document);
    if (fault.kind == FAULT_NEVER ? plugged != NULL : ask(wait->handle, request, &fault))
        await_answer(wait, plug, request->call);
    if (wait->state == STATE_PENDING)
        wait->answer.result = HCS_E_SERVICE_NOT_AVAILABLE_;
}

HRESULT ask_and_wait(const struct request *request, struct answer *answer)
{
    double_acquire();
    struct object *wait = object_make(KIND_WAIT, request->subject);
    wait_for_host(wait, request);
    *answer = wait->answer;
    wait->answer = (struct answer){0};
    object_drop(wait);
    double_release();
    return answer->result;
}

HRESULT ask_for_text(const struct request *request, enum heap heap, PWSTR *result, PWSTR *error)
{
    struct answer answer;
    HRESULT outcome = ask_and_wait(request, &answer);
    double_acquire();
    /* A call that has no result may still report an error. */
    string_hand_out(heap, request->call, answer.document, outcome < 0 || result == NULL ? error : result);
    double_release();
    answer_dispose(&answer);
    return outcome;
}

void *give_or_drop(struct object *object, HRESULT result)
{
    double_acquire();
    uint64_t number = result < 0 ? 0 : object->handle;
    object->given = true;
    double_changed();
    if (result < 0)
        object_drop(object);
    double_release();
    return (void *)(uintptr_t)number;
}

HRESULT ask_for_handle(
    const struct request *request, enum kind kind, void **handle, enum heap heap, PWSTR *error)
{
    double_acquire();
    struct object *object = object_make(kind, request->subject);
    uint64_t number = object->handle;
    object->parent = request->parent;
    double_release();
    struct request about = *request;
    about.object = number;
    HRESULT outcome = ask_for_text(&about, heap, NULL, error);
    *handle = give_or_drop(object, outcome);
    return outcome;
}

HRESULT close_object(const void *handle, enum kind kind, const char *call)
{
    double_acquire();
    struct object *object = object_find(handle, kind, call);
    if (object == NULL) {
        double_release();
        return E_HANDLE_;
    }
    object->closing = true;
    object_drain(object, call);
    uint64_t number = object->handle;
    double_release();
    struct answer answer;
    HRESULT result = ask_and_wait(&(struct request){call, number, 0, NULL, NULL}, &answer);
    answer_dispose(&answer);
    double_acquire();
    object_drop(object);
    double_release();
    return result;
}
