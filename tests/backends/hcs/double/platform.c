/* Locks, threads and heaps of the two systems; see platform.h. */
#include "platform.h"

#include <stdlib.h>

static _Thread_local char this_thread;

const void *platform_this_thread(void)
{
    return &this_thread;
}

#ifdef _WIN32

void platform_acquire(platform_lock *lock)
{
    AcquireSRWLockExclusive(lock);
}

void platform_release(platform_lock *lock)
{
    ReleaseSRWLockExclusive(lock);
}

void platform_wait(platform_condition *condition, platform_lock *lock)
{
    SleepConditionVariableSRW(condition, lock, INFINITE, 0);
}

void platform_wake_all(platform_condition *condition)
{
    WakeAllConditionVariable(condition);
}

static DWORD WINAPI run_thread(void *run)
{
    ((void (*)(void))(uintptr_t)run)();
    return 0;
}

/* So that it stays as long as a thread sleeps in it; build.py sets the linker flag elsewhere. */
static void stay_loaded(void)
{
    HMODULE pinned;
    DWORD flags = GET_MODULE_HANDLE_EX_FLAG_PIN | GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS;
    if (!GetModuleHandleExW(flags, (LPCWSTR)(uintptr_t)run_thread, &pinned))
        abort();
}

void platform_start_thread(void (*run)(void))
{
    stay_loaded();
    HANDLE thread = CreateThread(NULL, 0, run_thread, (void *)(uintptr_t)run, 0, NULL);
    if (thread == NULL)
        abort();
    CloseHandle(thread);
}

void *platform_allocate(enum heap heap, size_t bytes)
{
    return heap == HEAP_LOCAL ? LocalAlloc(LMEM_FIXED, bytes) : CoTaskMemAlloc(bytes);
}

void platform_free(enum heap heap, void *memory)
{
    if (heap == HEAP_LOCAL)
        LocalFree(memory);
    else
        CoTaskMemFree(memory);
}

void platform_close_handle(HANDLE handle)
{
    if (handle != NULL)
        CloseHandle(handle);
}

#else

#include <unistd.h>

void platform_acquire(platform_lock *lock)
{
    pthread_mutex_lock(lock);
}

void platform_release(platform_lock *lock)
{
    pthread_mutex_unlock(lock);
}

void platform_wait(platform_condition *condition, platform_lock *lock)
{
    pthread_cond_wait(condition, lock);
}

void platform_wake_all(platform_condition *condition)
{
    pthread_cond_broadcast(condition);
}

static void *run_thread(void *run)
{
    ((void (*)(void))(uintptr_t)run)();
    return NULL;
}

void platform_start_thread(void (*run)(void))
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, run_thread, (void *)(uintptr_t)run) != 0)
        abort();
    pthread_detach(thread);
}

void *platform_allocate(enum heap heap, size_t bytes)
{
    (void)heap;
    return malloc(bytes);
}

void platform_free(enum heap heap, void *memory)
{
    (void)heap;
    free(memory);
}

/* A handle is a file descriptor here, and no handle is none. */
void platform_close_handle(HANDLE handle)
{
    if (handle != NULL)
        close((int)(intptr_t)handle);
}

#endif
