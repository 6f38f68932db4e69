/* HCN: every call returns with the answer; what it hands out is for CoTaskMemFree. */
#include "double.h"

static uint64_t number_of(const void *handle)
{
    return (uint64_t)(uintptr_t)handle;
}

static void prepare(PWSTR *result)
{
    if (result != NULL)
        *result = NULL;
}

/* The usual form of a GUID, in lower case. */
static void write_guid(const GUID *id, text_t text[37])
{
    uint8_t bytes[16] = {
        (uint8_t)(id->Data1 >> 24), (uint8_t)(id->Data1 >> 16), (uint8_t)(id->Data1 >> 8), (uint8_t)id->Data1,
        (uint8_t)(id->Data2 >> 8),  (uint8_t)id->Data2,         (uint8_t)(id->Data3 >> 8), (uint8_t)id->Data3};
    for (int i = 0; i < 8; i++)
        bytes[8 + i] = id->Data4[i];
    int at = 0;
    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            text[at++] = '-';
        text[at++] = (text_t) "0123456789abcdef"[bytes[i] >> 4];
        text[at++] = (text_t) "0123456789abcdef"[bytes[i] & 15];
    }
    text[at] = 0;
}

static HRESULT open(const char *call, enum kind kind, const GUID *id, void **handle, PWSTR *error)
{
    prepare(error);
    if (id == NULL || handle == NULL)
        return E_INVALIDARG_;
    text_t text[37];
    write_guid(id, text);
    return ask_for_handle(&(struct request){call, 0, 0, text, NULL}, kind, handle, HEAP_TASK, error);
}

static HRESULT ask_about(
    const char *call, const void *handle, enum kind kind, PCWSTR document, PWSTR *result, PWSTR *error)
{
    prepare(result);
    prepare(error);
    double_acquire();
    bool is_open = object_find(handle, kind, call) != NULL;
    double_release();
    if (!is_open)
        return E_HANDLE_;
    return ask_for_text(&(struct request){call, number_of(handle), 0, NULL, document}, HEAP_TASK, result, error);
}

static HRESULT create(
    const char *call, enum kind kind, uint64_t parent, const GUID *id, PCWSTR document, void **handle, PWSTR *error)
{
    prepare(error);
    if (id == NULL || handle == NULL || document == NULL)
        return E_INVALIDARG_;
    text_t text[37];
    write_guid(id, text);
    return ask_for_handle(&(struct request){call, 0, parent, text, document}, kind, handle, HEAP_TASK, error);
}

static HRESULT delete(const char *call, const GUID *id, PWSTR *error)
{
    prepare(error);
    if (id == NULL)
        return E_INVALIDARG_;
    text_t text[37];
    write_guid(id, text);
    return ask_for_text(&(struct request){call, 0, 0, text, NULL}, HEAP_TASK, NULL, error);
}

HRESULT WINAPI HcnOpenNetwork(REFGUID Id, PHCN_NETWORK Network, PWSTR *ErrorRecord)
{
    return open("HcnOpenNetwork", KIND_NETWORK, Id, Network, ErrorRecord);
}

HRESULT WINAPI HcnCloseNetwork(HCN_NETWORK Network)
{
    return close_object(Network, KIND_NETWORK, "HcnCloseNetwork");
}

HRESULT WINAPI HcnCreateNamespace(REFGUID Id, PCWSTR Settings, PHCN_NAMESPACE Namespace, PWSTR *ErrorRecord)
{
    return create("HcnCreateNamespace", KIND_NAMESPACE, 0, Id, Settings, Namespace, ErrorRecord);
}

HRESULT WINAPI HcnOpenNamespace(REFGUID Id, PHCN_NAMESPACE Namespace, PWSTR *ErrorRecord)
{
    return open("HcnOpenNamespace", KIND_NAMESPACE, Id, Namespace, ErrorRecord);
}

HRESULT WINAPI HcnModifyNamespace(HCN_NAMESPACE Namespace, PCWSTR Settings, PWSTR *ErrorRecord)
{
    return ask_about("HcnModifyNamespace", Namespace, KIND_NAMESPACE, Settings, NULL, ErrorRecord);
}

HRESULT WINAPI HcnQueryNamespaceProperties(
    HCN_NAMESPACE Namespace, PCWSTR Query, PWSTR *Properties, PWSTR *ErrorRecord)
{
    return ask_about("HcnQueryNamespaceProperties", Namespace, KIND_NAMESPACE, Query, Properties, ErrorRecord);
}

HRESULT WINAPI HcnDeleteNamespace(REFGUID Id, PWSTR *ErrorRecord)
{
    return delete("HcnDeleteNamespace", Id, ErrorRecord);
}

HRESULT WINAPI HcnCloseNamespace(HCN_NAMESPACE Namespace)
{
    return close_object(Namespace, KIND_NAMESPACE, "HcnCloseNamespace");
}

HRESULT WINAPI HcnEnumerateEndpoints(PCWSTR Query, PWSTR *Endpoints, PWSTR *ErrorRecord)
{
    prepare(Endpoints);
    prepare(ErrorRecord);
    return ask_for_text(
        &(struct request){"HcnEnumerateEndpoints", 0, 0, NULL, Query}, HEAP_TASK, Endpoints, ErrorRecord);
}

HRESULT WINAPI HcnCreateEndpoint(
    HCN_NETWORK Network, REFGUID Id, PCWSTR Settings, PHCN_ENDPOINT Endpoint, PWSTR *ErrorRecord)
{
    prepare(ErrorRecord);
    double_acquire();
    bool is_open = object_find(Network, KIND_NETWORK, "HcnCreateEndpoint") != NULL;
    double_release();
    if (!is_open)
        return E_HANDLE_;
    return create("HcnCreateEndpoint", KIND_ENDPOINT, number_of(Network), Id, Settings, Endpoint, ErrorRecord);
}

HRESULT WINAPI HcnOpenEndpoint(REFGUID Id, PHCN_ENDPOINT Endpoint, PWSTR *ErrorRecord)
{
    return open("HcnOpenEndpoint", KIND_ENDPOINT, Id, Endpoint, ErrorRecord);
}

HRESULT WINAPI HcnQueryEndpointProperties(HCN_ENDPOINT Endpoint, PCWSTR Query, PWSTR *Properties, PWSTR *ErrorRecord)
{
    return ask_about("HcnQueryEndpointProperties", Endpoint, KIND_ENDPOINT, Query, Properties, ErrorRecord);
}

HRESULT WINAPI HcnDeleteEndpoint(REFGUID Id, PWSTR *ErrorRecord)
{
    return delete("HcnDeleteEndpoint", Id, ErrorRecord);
}

HRESULT WINAPI HcnCloseEndpoint(HCN_ENDPOINT Endpoint)
{
    return close_object(Endpoint, KIND_ENDPOINT, "HcnCloseEndpoint");
}
