/* The threads that run callbacks. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

enum { WORKERS = 4 };

/* A callback to call. An event has data, or a type; a completion has neither. */
struct job {
    struct job *next;
    uint64_t object;
    bool stray;
    HCS_OPERATION_COMPLETION on_completion;
    HCS_EVENT_CALLBACK on_event;
    void *context;
    int32_t type;
    text_t *data;
};

static platform_condition queued = PLATFORM_CONDITION;
static struct job *first, **last = &first;
static unsigned running;
static bool started;

static void dispose(struct job *job)
{
    /* A kept pointer points to no text. */
    if (job->data != NULL)
        memset(job->data, 0xDD, text_length(job->data) * sizeof *job->data);
    free(job->data);
    free(job);
}

static void call(struct job *job)
{
    if (job->on_completion != NULL) {
        job->on_completion((HCS_OPERATION)(uintptr_t)job->object, job->context);
        return;
    }
    HCS_EVENT event = {job->type, job->data, NULL};
    job->on_event(&event, job->context);
}

/* Whether a job's callback may be called now; those of one object come one after the other. */
static bool is_due(const struct job *job)
{
    const struct object *object = object_look(job->object);
    return object == NULL || object->callbacks_running == 0;
}

static struct job *take_due(void)
{
    for (struct job **at = &first; *at != NULL; at = &(*at)->next)
        if (is_due(*at)) {
            struct job *job = *at;
            *at = job->next;
            if (last == &job->next)
                last = at;
            return job;
        }
    return NULL;
}

/* The object as long as it wants this callback. */
static struct object *addressee(const struct job *job)
{
    struct object *object = object_look(job->object);
    if (object == NULL || object->closing)
        return NULL;
    if (job->on_event != NULL && (object->on_event != job->on_event || object->context != job->context))
        return NULL;
    return object;
}

static void begin_callback(struct object *object)
{
    object->callbacks_running++;
    object->callback_thread = platform_this_thread();
}

static void end_callback(uint64_t handle)
{
    struct object *object = object_look(handle);
    if (object != NULL) {
        object->callbacks_running--;
        object->callback_thread = NULL;
    }
    platform_wake_all(&queued);
    double_changed();
}

static void run(struct job *job)
{
    struct object *object = addressee(job);
    if (object == NULL && !job->stray)
        return;
    if (object != NULL)
        begin_callback(object);
    double_release();
    call(job);
    double_acquire();
    if (object != NULL)
        end_callback(job->object);
}

static void work(void)
{
    double_acquire();
    for (;;) {
        struct job *job = take_due();
        if (job == NULL) {
            double_wait_for(&queued);
            continue;
        }
        running++;
        run(job);
        running--;
        dispose(job);
        double_changed();
    }
}

static void queue(struct job *job)
{
    for (int i = 0; !started && i < WORKERS; i++)
        platform_start_thread(work);
    started = true;
    *last = job;
    last = &job->next;
    platform_wake_all(&queued);
}

void queue_completion(const struct object *operation, bool stray)
{
    if (operation->on_completion == NULL)
        return;
    struct job *job = checked(calloc(1, sizeof *job));
    job->object = operation->handle;
    job->stray = stray;
    job->on_completion = operation->on_completion;
    job->context = operation->context;
    queue(job);
}

void queue_event(const struct object *object, int32_t type, const text_t *data)
{
    if (object->on_event == NULL)
        return;
    struct job *job = checked(calloc(1, sizeof *job));
    job->object = object->handle;
    job->on_event = object->on_event;
    job->context = object->context;
    job->type = type;
    job->data = text_copy(data);
    queue(job);
}

void complete_here(struct object *operation)
{
    uint64_t handle = operation->handle;
    HCS_OPERATION_COMPLETION on_completion = operation->on_completion;
    void *context = operation->context;
    if (on_completion == NULL)
        return;
    begin_callback(operation);
    double_release();
    on_completion((HCS_OPERATION)(uintptr_t)handle, context);
    double_acquire();
    end_callback(handle);
}

void queue_forget(void)
{
    while (first != NULL) {
        struct job *job = first;
        first = job->next;
        dispose(job);
    }
    last = &first;
}

bool queue_is_busy(void)
{
    return first != NULL || running > 0;
}

void DoubleDrain(void)
{
    double_acquire();
    while (queue_is_busy())
        double_wait();
    double_release();
}
