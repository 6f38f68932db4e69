/* Text, and the strings that belong to the caller once handed out. */
#define __USE_MINGW_ANSI_STDIO 1
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* How many freed strings stay reserved, so that no new one gets the address of one that is freed twice. */
enum { RESERVED = 256 };

struct string {
    struct string *next;
    text_t *text;
    enum heap heap;
    const char *call;
    size_t bytes;
    bool forgotten;
};

static struct string *handed_out;
static struct string *reserved[RESERVED];
static unsigned oldest;
static uint64_t string_count;

static const char *const FREES[] = {"LocalFree", "CoTaskMemFree"};

size_t text_length(const text_t *text)
{
    size_t length = 0;
    while (text[length] != 0)
        length++;
    return length;
}

text_t *text_copy(const text_t *text)
{
    if (text == NULL)
        return NULL;
    size_t bytes = (text_length(text) + 1) * sizeof *text;
    return memcpy(checked(malloc(bytes)), text, bytes);
}

char *text_narrow(const text_t *text)
{
    size_t length = text ? text_length(text) : 0;
    char *narrow = checked(malloc(length + 1));
    for (size_t i = 0; i < length; i++)
        narrow[i] = text[i] < 128 ? (char)text[i] : '?';
    narrow[length] = '\0';
    return narrow;
}

void string_hand_out(enum heap heap, const char *call, const text_t *text, PWSTR *result)
{
    if (text == NULL || result == NULL)
        return;
    struct string *string = checked(malloc(sizeof *string));
    size_t bytes = (text_length(text) + 1) * sizeof *text;
    *string = (struct string){handed_out, checked(platform_allocate(heap, bytes)), heap, call, bytes, false};
    memcpy(string->text, text, bytes);
    handed_out = string;
    string_count++;
    *result = string->text;
}

/* Keep a freed string for a while, filled with what is no text. */
static void reserve(struct string *string)
{
    struct string *evicted = reserved[oldest];
    if (evicted != NULL) {
        platform_free(evicted->heap, evicted->text);
        free(evicted);
    }
    memset(string->text, 0xDD, string->bytes - sizeof *string->text);
    reserved[oldest] = string;
    oldest = (oldest + 1) % RESERVED;
}

static struct string *take(const void *memory)
{
    for (struct string **at = &handed_out; *at != NULL; at = &(*at)->next)
        if ((*at)->text == memory) {
            struct string *found = *at;
            *at = found->next;
            string_count -= !found->forgotten;
            return found;
        }
    return NULL;
}

static bool was_freed(const void *memory)
{
    for (unsigned i = 0; i < RESERVED; i++)
        if (reserved[i] != NULL && reserved[i]->text == memory)
            return true;
    return false;
}

static void release(enum heap heap, void *memory)
{
    if (memory == NULL)
        return;
    double_acquire();
    struct string *string = take(memory);
    if (string == NULL)
        double_misuse("%s: %s", FREES[heap], was_freed(memory) ? "a string was freed twice" : "not a string of ours");
    else if (string->heap != heap)
        double_misuse("%s: a string of %s, which is for %s", FREES[heap], string->call, FREES[string->heap]);
    if (string != NULL)
        reserve(string);
    double_release();
}

void *DoubleLocalFree(void *memory)
{
    release(HEAP_LOCAL, memory);
    return NULL;
}

void DoubleCoTaskMemFree(void *memory)
{
    release(HEAP_TASK, memory);
}

#ifndef _WIN32
void *LocalFree(void *memory)
{
    return DoubleLocalFree(memory);
}

void CoTaskMemFree(void *memory)
{
    DoubleCoTaskMemFree(memory);
}
#endif

void strings_describe(struct lines *lines)
{
    for (struct string *string = handed_out; string != NULL; string = string->next) {
        if (string->forgotten)
            continue;
        char line[256];
        char *text = text_narrow(string->text);
        snprintf(line, sizeof line, "a string of %s was not freed: %.160s", string->call, text);
        free(text);
        lines_add(lines, line);
    }
}

/* Their owners may still free them. */
void strings_forget(void)
{
    for (struct string *string = handed_out; string != NULL; string = string->next)
        string->forgotten = true;
    string_count = 0;
}

uint64_t DoubleStrings(void)
{
    double_acquire();
    uint64_t count = string_count;
    double_release();
    return count;
}
