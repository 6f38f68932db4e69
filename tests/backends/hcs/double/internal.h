/* What only computecore's own parts have in common; the lock is held everywhere. */
#ifndef UVM_DOUBLE_INTERNAL_H
#define UVM_DOUBLE_INTERNAL_H

#include "double.h"

/* Lines of text, each with its end. */
struct lines {
    char *text;
    size_t length;
};

void lines_add(struct lines *lines, const char *line);
void lines_clear(struct lines *lines);

/* The memory, or the end of the process if there is none. */
void *checked(void *memory);

/* Wait, with the lock released meanwhile. */
void double_wait_for(platform_condition *condition);

void strings_describe(struct lines *lines);
void strings_forget(void);
void faults_forget(void);
/* Forget callbacks that were not called yet; and whether one is running, or waits to. */
void queue_forget(void);
bool queue_is_busy(void);

#endif
