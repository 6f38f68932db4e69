/* virtdisk.h. */
typedef int32_t VIRTUAL_DISK_ACCESS_MASK;
typedef int32_t OPEN_VIRTUAL_DISK_FLAG;

typedef struct {
    ULONG DeviceId;
    GUID VendorId;
} VIRTUAL_STORAGE_TYPE;

typedef struct {
    int32_t Version;
    union {
        struct {
            ULONG RWDepth;
        } Version1;
        struct {
            BOOL GetInfoOnly;
            BOOL ReadOnly;
            GUID ResiliencyGuid;
        } Version2;
    };
} OPEN_VIRTUAL_DISK_PARAMETERS;

typedef struct {
    int32_t Version;
    union {
        GUID UniqueIdentifier;
        GUID VirtualDiskId;
        struct {
            ULONG ChildDepth;
            PCWSTR ParentFilePath;
        } ParentPathWithDepthInfo;
        struct {
            GUID LinkageId;
            PCWSTR ParentFilePath;
        } ParentLocator;
    };
} SET_VIRTUAL_DISK_INFO;
