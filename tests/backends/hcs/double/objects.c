/* The table of objects, and the list of misuses. */
#define __USE_MINGW_ANSI_STDIO 1
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "double.h"
#include "internal.h"

_Static_assert(sizeof(void *) == 8, "a handle holds a generation of 32 bits");

enum { KIND_BITS = 4, INDEX_BITS = 24 };

struct slot {
    uint32_t generation;
    uint32_t next_free;
    struct object *object;
};

static platform_lock lock = PLATFORM_LOCK;
static platform_condition changed = PLATFORM_CONDITION;
static struct slot *slots;
static uint32_t slot_count, slot_capacity, first_free;
static uint64_t object_count;
static struct lines misuses, leaks;

static const char *const KINDS[] = {"", "operation", "system", "process", "namespace", "endpoint", "network", "wait"};

void double_acquire(void)
{
    platform_acquire(&lock);
}

void double_release(void)
{
    platform_release(&lock);
}

void double_wait(void)
{
    platform_wait(&changed, &lock);
}

void double_wait_for(platform_condition *condition)
{
    platform_wait(condition, &lock);
}

void double_changed(void)
{
    platform_wake_all(&changed);
}

void *checked(void *memory)
{
    if (memory == NULL)
        abort();
    return memory;
}

void lines_add(struct lines *lines, const char *line)
{
    size_t length = strlen(line) + 1;
    lines->text = checked(realloc(lines->text, lines->length + length + 1));
    memcpy(lines->text + lines->length, line, length);
    lines->length += length;
    lines->text[lines->length - 1] = '\n';
    lines->text[lines->length] = '\0';
}

void lines_clear(struct lines *lines)
{
    free(lines->text);
    *lines = (struct lines){NULL, 0};
}

void double_misuse(const char *format, ...)
{
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    lines_add(&misuses, line);
}

static uint32_t take_slot(void)
{
    if (slots == NULL || (first_free == 0 && slot_count == slot_capacity)) {
        slot_capacity = slot_capacity ? 2 * slot_capacity : 64;
        slots = checked(realloc(slots, slot_capacity * sizeof *slots));
        /* Nothing has index 0, nor is it free. */
        if (slot_count == 0)
            slots[slot_count++] = (struct slot){0, 0, NULL};
    }
    if (first_free != 0) {
        uint32_t index = first_free;
        first_free = slots[index].next_free;
        return index;
    }
    slots[slot_count] = (struct slot){0, 0, NULL};
    return slot_count++;
}

struct object *object_make(enum kind kind, const text_t *subject)
{
    struct object *object = checked(calloc(1, sizeof *object));
    uint32_t index = take_slot();
    object->kind = kind;
    object->subject = text_narrow(subject);
    uint64_t generation = ++slots[index].generation;
    object->handle = ((generation << INDEX_BITS | index) << KIND_BITS) | (uint64_t)kind;
    slots[index].object = object;
    object_count++;
    return object;
}

static uint32_t index_of(uint64_t handle)
{
    return (uint32_t)(handle >> KIND_BITS) & ((1u << INDEX_BITS) - 1);
}

struct object *object_look(uint64_t handle)
{
    uint32_t index = index_of(handle);
    if (index >= slot_count || slots[index].object == NULL)
        return NULL;
    return slots[index].object->handle == handle ? slots[index].object : NULL;
}

/* The handle is of the right kind, and not open. */
static bool was_ever_made(uint64_t handle)
{
    uint32_t index = index_of(handle);
    uint64_t generation = handle >> (KIND_BITS + INDEX_BITS);
    return index != 0 && index < slot_count && generation != 0 && generation <= slots[index].generation;
}

struct object *object_find(const void *handle, enum kind kind, const char *call)
{
    uint64_t number = (uint64_t)(uintptr_t)handle;
    struct object *object = object_look(number);
    if (object != NULL && object->kind == kind && !object->closing)
        return object;
    unsigned given = (unsigned)number & ((1u << KIND_BITS) - 1);
    if (!was_ever_made(number) || given == 0 || given > KIND_NETWORK)
        double_misuse("%s: 0x%" PRIx64 " never was the handle of anything", call, number);
    else if (given != kind)
        double_misuse("%s: 0x%" PRIx64 " is the handle of a %s, not of a %s", call, number, KINDS[given], KINDS[kind]);
    else
        double_misuse("%s: the %s 0x%" PRIx64 " was closed before", call, KINDS[kind], number);
    return NULL;
}

void object_drop(struct object *object)
{
    uint32_t index = index_of(object->handle);
    slots[index].object = NULL;
    slots[index].next_free = first_free;
    first_free = index;
    object_count--;
    double_changed();
    answer_dispose(&object->answer);
    free(object->subject);
    free(object);
}

bool object_drain(struct object *object, const char *call)
{
    uint64_t handle = object->handle;
    while (object->callbacks_running > 0) {
        if (object->callback_thread == platform_this_thread()) {
            double_misuse("%s: called for the %s %s from its own callback", call, KINDS[object->kind], object->subject);
            return false;
        }
        double_wait();
        if (object_look(handle) == NULL)
            return false;
    }
    return true;
}

static void describe(const struct object *object, struct lines *lines)
{
    char line[512];
    const char *call = object->call ? object->call : "no call";
    static const char *const STATES[] = {"never used", "pending", "done"};
    if (object->kind == KIND_OPERATION)
        snprintf(line, sizeof line, "operation 0x%" PRIx64 " was not closed (%s, %s)", object->handle, call,
                 STATES[object->state]);
    else
        snprintf(line, sizeof line, "%s 0x%" PRIx64 " of %s was not closed%s", KINDS[object->kind], object->handle,
                 object->subject, object->on_event ? ", and its callback is registered" : "");
    lines_add(lines, line);
}

const char *DoubleMisuses(void)
{
    static char *snapshot;
    double_acquire();
    free(snapshot);
    size_t length = misuses.length;
    snapshot = checked(malloc(length + 1));
    memcpy(snapshot, length ? misuses.text : "", length);
    snapshot[length] = '\0';
    double_release();
    return snapshot;
}

const char *DoubleLeaks(void)
{
    double_acquire();
    lines_clear(&leaks);
    for (uint32_t i = 1; i < slot_count; i++)
        if (slots[i].object != NULL && slots[i].object->given)
            describe(slots[i].object, &leaks);
    strings_describe(&leaks);
    const char *text = leaks.text ? leaks.text : "";
    double_release();
    return text;
}

uint64_t DoubleObjects(void)
{
    double_acquire();
    uint64_t count = object_count;
    double_release();
    return count;
}

/* Whether some call still has an object in its hands: one that it makes or closes, or its wait for an answer. */
static bool calls_are_under_way(void)
{
    for (uint32_t i = 1; i < slot_count; i++)
        if (slots[i].object != NULL && (slots[i].object->closing || !slots[i].object->given))
            return true;
    return false;
}

void DoubleReset(void)
{
    DoublePlug(NULL);
    double_acquire();
    queue_forget();
    while (queue_is_busy() || calls_are_under_way())
        double_wait();
    for (uint32_t i = 1; i < slot_count; i++)
        if (slots[i].object != NULL)
            object_drop(slots[i].object);
    strings_forget();
    faults_forget();
    lines_clear(&misuses);
    double_release();
}
