/* What the two systems call differently: locks, threads, heaps, and the types of the API. */
#ifndef UVM_DOUBLE_PLATFORM_H
#define UVM_DOUBLE_PLATFORM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <combaseapi.h>
#include <computecore.h>
#include <computenetwork.h>
typedef SRWLOCK platform_lock;
typedef CONDITION_VARIABLE platform_condition;
#define PLATFORM_LOCK SRWLOCK_INIT
#define PLATFORM_CONDITION CONDITION_VARIABLE_INIT
#else
#include <pthread.h>
#include <uchar.h>
#define WINAPI
#include "prelude.h"
#include "memory.h"
#include "computecore_types.h"
#include "computenetwork_types.h"
#include "computecore.h"
#include "computenetwork.h"
#define S_OK ((HRESULT)0)
enum { HcsEventOptionEnableOperationCallbacks = 1 };
typedef pthread_mutex_t platform_lock;
typedef pthread_cond_t platform_condition;
#define PLATFORM_LOCK PTHREAD_MUTEX_INITIALIZER
#define PLATFORM_CONDITION PTHREAD_COND_INITIALIZER
#endif

/* The two heaps that strings come from. */
enum heap { HEAP_LOCAL, HEAP_TASK };

void platform_acquire(platform_lock *lock);
void platform_release(platform_lock *lock);
void platform_wait(platform_condition *condition, platform_lock *lock);
void platform_wake_all(platform_condition *condition);
void platform_start_thread(void (*run)(void));
/* An address of which each thread has its own. */
const void *platform_this_thread(void);
void *platform_allocate(enum heap heap, size_t bytes);
void platform_free(enum heap heap, void *memory);
void platform_close_handle(HANDLE handle);

#endif
