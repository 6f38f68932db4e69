/* A stand-in for computecore.dll and computenetwork.dll, to test uvm's use of them.

   Theory of operation
   -------------------
   The double is a switchboard. It knows how the API behaves (handles, operations, callbacks, who frees what) and
   nothing of compute systems: each call becomes a question, which goes to the host through one function pointer
   (DoublePlug), and the host answers with DoubleAnswer, from any thread, at any time.

   Objects. Systems, processes, namespaces, endpoints, operations, and the waits of calls that return with the answer
   all are objects in one table. A handle is an index into it with a generation and the object's kind, so that no
   handle is ever used twice, and a handle that is closed, invented or of another kind is detected.

   Operations. An operation is good for one question, whose number is the operation's handle. The answer is kept in
   the operation and its completion callback is queued. A call without an operation asks the same way, and waits.
   An answer to an operation that was closed meanwhile is thrown away, with the handles in it.

   Threads. Callbacks run on a small pool of threads of the double's own; those of one object come one after the
   other. Closing an object, or removing its callback, waits for the callback that is running, and none
   follows. One lock guards everything. It is never held while foreign code runs: the host, or a callback.

   Misuse. What no correct caller does is written down as a line of text (DoubleMisuses), and what was not closed or
   freed is listed by DoubleLeaks. The strings handed out are kept in a list with the heap that they belong to, and
   what was freed stays reserved for a while, so that freeing it again, or to the wrong heap, is detected as well.

   Faults. DoubleFault makes the next calls of a name fail without the host.

   computenetwork.dll is linked with computecore.dll, which holds all that they share. */
#ifndef UVM_DOUBLE_H
#define UVM_DOUBLE_H

#include "platform.h"

typedef WCHAR text_t;

/* Windows has the first two by the plain names, mingw's headers lack the others. */
#define E_HANDLE_ ((HRESULT)0x80070006)
#define E_INVALIDARG_ ((HRESULT)0x80070057)
#define HCS_E_SERVICE_NOT_AVAILABLE_ ((HRESULT)0x80370114)
#define HCS_E_OPERATION_NOT_STARTED_ ((HRESULT)0x80370115)
#define HCS_E_OPERATION_ALREADY_STARTED_ ((HRESULT)0x80370116)
#define HCS_E_OPERATION_PENDING_ ((HRESULT)0x80370117)
#define HCS_E_OPERATION_SYSTEM_CALLBACK_ALREADY_SET_ ((HRESULT)0x80370119)

/* The host's side: exported, for the tests. */

/* The faults of a call. The host is not asked in the first three cases. Of the calls that never ask it,
   those that can fail do so at once: HcsCreateOperation, the fetching of results, and setting callbacks.
   AT_ONCE: the call itself fails. LATER: the operation completes, with this result and document. NEVER: no answer
   arrives. TWICE: the completion callback arrives twice, the second time even after the operation was closed.
   SYNCHRONOUSLY: it arrives on the caller's own thread, before the call returns; the host has to answer while it is
   asked. DONE_BUT: the host carries it out, and is to answer with this result nevertheless. */
enum double_fault {
    FAULT_NONE,
    FAULT_AT_ONCE,
    FAULT_LATER,
    FAULT_NEVER,
    FAULT_TWICE,
    FAULT_SYNCHRONOUSLY,
    FAULT_DONE_BUT
};

/* A question. The object is the handle of what it concerns or makes, 0 if none; the parent is the system in which
   a process is made; the subject is an id; the document is what was passed as text. The texts may be NULL, and live
   until the function returns. */
typedef void (*double_host)(
    uint64_t question,
    const char *call,
    uint64_t object,
    uint64_t parent,
    const text_t *subject,
    const text_t *document,
    int32_t fault,
    int32_t fault_result);

/* Set who is asked, or NULL; returns once no question is being asked. Calls that wait for an answer fail: the
   service is not available. The calling thread counts as the one that must never wait for the host. */
void DoublePlug(double_host host);
/* Answer a question. The handles belong to the double from here on. Unknown questions are ignored. */
void DoubleAnswer(
    uint64_t question,
    int32_t result,
    const text_t *document,
    uint32_t process_id,
    void *input,
    void *output,
    void *error);
/* Send an event to those registered for the events of an object; it is lost if there are none. */
void DoubleEvent(uint64_t object, int32_t type, const text_t *data);
void DoubleFault(const char *call, int32_t fault, int32_t result, const text_t *document, uint32_t count);
/* Wait until every callback has been called. */
void DoubleDrain(void);
/* Lines of text; each stays valid until the next call of the function. */
const char *DoubleMisuses(void);
const char *DoubleLeaks(void);
/* Forget misuses, faults, and everything that is still open. */
void DoubleReset(void);
/* How many objects and strings there are. */
uint64_t DoubleObjects(void);
uint64_t DoubleStrings(void);
/* What LocalFree and CoTaskMemFree are to the caller under test. */
void *DoubleLocalFree(void *memory);
void DoubleCoTaskMemFree(void *memory);

/* What the parts of the double have in common; the lock is held unless stated otherwise. */

void double_acquire(void);
void double_release(void);
/* Wait for any change of anything. */
void double_wait(void);
void double_changed(void);

enum kind { KIND_OPERATION = 1, KIND_SYSTEM, KIND_PROCESS, KIND_NAMESPACE, KIND_ENDPOINT, KIND_NETWORK, KIND_WAIT };

enum state { STATE_FRESH, STATE_PENDING, STATE_DONE };

struct answer {
    HRESULT result;
    text_t *document;
    HCS_PROCESS_INFORMATION process;
};

struct fault {
    enum double_fault kind;
    HRESULT result;
    text_t *document;
};

/* One object of any kind. The second part is that of systems and processes, the third of operations and waits. */
struct object {
    enum kind kind;
    uint64_t handle;
    char *subject;
    bool given; /* The caller has its handle. */
    bool closing;
    int callbacks_running;
    const void *callback_thread;

    HCS_EVENT_CALLBACK on_event;
    void *context;
    bool reports_operations;
    uint64_t parent;

    enum state state;
    const char *call;
    HCS_OPERATION_COMPLETION on_completion;
    struct answer answer;
    bool process_fetched;
    enum double_fault fault;
};

struct object *object_make(enum kind kind, const text_t *subject);
/* NULL, and a misuse, if the handle is not an open one of that kind. */
struct object *object_find(const void *handle, enum kind kind, const char *call);
/* NULL if there is no such object; one that is being closed counts. */
struct object *object_look(uint64_t handle);
/* Take it out of the table, and free it. */
void object_drop(struct object *object);
/* Wait for the callback that is running; false, and a misuse, within that callback itself. */
bool object_drain(struct object *object, const char *call);

void double_misuse(const char *format, ...)
#ifdef _WIN32
    __attribute__((format(gnu_printf, 1, 2)));
#else
    __attribute__((format(printf, 1, 2)));
#endif

/* Text. */
size_t text_length(const text_t *text);
text_t *text_copy(const text_t *text);
char *text_narrow(const text_t *text);

/* Hand a copy of a text to the caller; does nothing if there is no text. The call names it among the leaks. */
void string_hand_out(enum heap heap, const char *call, const text_t *text, PWSTR *result);

/* What a call that does not ask the host is to fail with now, or S_OK. */
HRESULT planned_failure(const char *call);

/* Queue callbacks. A stray one is called though its operation was closed. */
void queue_completion(const struct object *operation, bool stray);
void queue_event(const struct object *object, int32_t type, const text_t *data);
/* Call an operation's callback on this thread. The lock is released meanwhile. */
void complete_here(struct object *operation);

/* The following take the lock themselves. */

/* What a call asks for. */
struct request {
    const char *call;
    uint64_t object;
    uint64_t parent;
    const text_t *subject;
    const text_t *document;
};

/* Ask, and let the answer complete an operation. */
HRESULT ask_for_operation(HCS_OPERATION operation, const struct request *request);
/* Ask, and wait for the answer; what it holds belongs to the caller, who calls answer_dispose. */
HRESULT ask_and_wait(const struct request *request, struct answer *answer);
void answer_dispose(struct answer *answer);
/* Ask, wait, and hand the document of the answer to the caller, as the result or as the error's. */
HRESULT ask_for_text(const struct request *request, enum heap heap, PWSTR *result, PWSTR *error);
/* Hand the new handle to the caller, or NULL if the call failed. */
void *give_or_drop(struct object *object, HRESULT result);
/* Ask, wait, and hand the handle of a new object to the caller; none if it was refused. */
HRESULT ask_for_handle(
    const struct request *request, enum kind kind, void **handle, enum heap heap, PWSTR *error);
/* Close an object and tell the host. */
HRESULT close_object(const void *handle, enum kind kind, const char *call);

#endif
