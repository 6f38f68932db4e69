/* The names that the Windows headers give to types, each by its exact size. Where the real headers are
   included, this file is left out. */
typedef int32_t BOOL;
typedef uint8_t BYTE;
typedef uint16_t USHORT;
typedef uint16_t WORD;
typedef uint32_t DWORD;
typedef uint32_t ULONG;
typedef int32_t LONG;
typedef int32_t HRESULT;
typedef uint32_t UINT32;
typedef int64_t LONGLONG;
typedef uint64_t UINT64;
typedef uint64_t ULONGLONG;
typedef uintptr_t ULONG_PTR;
typedef uintptr_t SIZE_T;
typedef uintptr_t UINT_PTR;
typedef void *HANDLE;
typedef void *PVOID;
typedef void *HLOCAL;
typedef char16_t WCHAR;
typedef char16_t *PWSTR;
typedef const char16_t *PCWSTR;

typedef struct {
    uint32_t Data1;
    uint16_t Data2;
    uint16_t Data3;
    uint8_t Data4[8];
} GUID;
typedef const GUID *REFGUID;
