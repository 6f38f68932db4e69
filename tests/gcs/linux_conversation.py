"""A conversation with a Linux guest, byte by byte."""

from __future__ import annotations

from tests.gcs.conversations import CONTAINER, Exchange, Said
from uvm._wire.frames import Procedure
from uvm.schema.common import Version
from uvm.schema.gcs import (
    HOST_CONTAINER_ID,
    ContainerCreateRequest,
    ContainerModifySettingsRequest,
    ContainerNotification,
    DumpStacksResponse,
    ExecuteProcessRequest,
    ExecuteProcessResponse,
    ExecuteProcessSettings,
    GcsCapabilities,
    GetPropertiesRequest,
    GetPropertiesResponse,
    GuestErrorRecord,
    LinuxHostedSystem,
    LinuxProcessParameters,
    NegotiateProtocolRequest,
    NegotiateProtocolResponse,
    RequestBase,
    ResizeConsoleRequest,
    ResponseBase,
    SignalProcessRequest,
    VsockStdioRelaySettings,
    WaitForProcessRequest,
    WaitForProcessResponse,
)
from uvm.schema.guest import (
    RESOURCE_MAPPED_VIRTUAL_DISK,
    LCOWMappedVirtualDisk,
)
from uvm.schema.json import dumps
from uvm.schema.process import ProcessParameters, SignalProcessOptionsLCOW
from uvm.schema.properties import PropertyQuery
from uvm.schema.requests import ADD, ModificationRequest

LINUX_WELCOME = NegotiateProtocolResponse(
    version=4,
    capabilities=GcsCapabilities(
        supported_schema_versions=[Version(major=2, minor=1)],
        runtime_os_type="Linux",
        guest_defined_capabilities={
            "NamespaceAddRequestSupported": True,
            "SignalProcessSupported": True,
            "DumpStacksSupported": True,
            "DeleteContainerStateSupported": True,
        },
    ),
)
LINUX_CONTAINER = LinuxHostedSystem(
    oci_bundle_path="/run/gcs/c/c1a5",
    oci_specification={
        "ociVersion": "1.1.0",
        "process": {"args": ["sh"], "cwd": "/"},
        "root": {"path": "/run/gcs/c/c1a5/rootfs"},
    },
    scratch_dir_path="/run/gcs/c/c1a5",
)
LINUX_INIT = ExecuteProcessSettings(
    process_parameters=dumps(
        LinuxProcessParameters(create_std_in_pipe=True, create_std_out_pipe=True, create_std_err_pipe=True)
    ),
    vsock_stdio_relay_settings=VsockStdioRelaySettings(
        std_in=0x40000001, std_out=0x40000002, std_err=0x40000003
    ),
)
LINUX_EXEC = ExecuteProcessSettings(
    process_parameters=dumps(
        LinuxProcessParameters(
            emulate_console=True,
            create_std_out_pipe=True,
            oci_process={"args": ["top"], "cwd": "/", "terminal": True},
        )
    ),
    vsock_stdio_relay_settings=VsockStdioRelaySettings(std_out=0x40000004),
)
LINUX_TOOL = ExecuteProcessSettings(
    process_parameters=dumps(
        ProcessParameters(command_args=["uname", "-a"], working_directory="/", environment={"PATH": "/bin"})
    ),
    vsock_stdio_relay_settings=VsockStdioRelaySettings(),
)
LINUX_MOUNT = ModificationRequest(
    request_type=ADD,
    resource_type=RESOURCE_MAPPED_VIRTUAL_DISK,
    settings=LCOWMappedVirtualDisk(mount_path="/mnt/0", lun=1, read_only=True),
)
NOT_FOUND = ResponseBase(
    result=-2147023728,
    error_message="no such process",
    error_records=[
        GuestErrorRecord(
            result=-2147023728,
            message="no such process",
            stack_trace="main.go:1",
            module_name="gcs",
            file_name="main.go",
            line=1,
            function_name="main",
        )
    ],
)

LINUX: list[Exchange | Said] = [
    Exchange(
        Procedure.NEGOTIATE_PROTOCOL,
        NegotiateProtocolRequest(),
        "010b1010 7c000000 0000000000000000",
        '{"ContainerId":"","ActivityId":"00000000-0000-0000-0000-000000000000","MinimumVersion":4,"Ma'
        'ximumVersion":4}',
        LINUX_WELCOME,
        "010b1020 22010000 0000000000000000",
        '{"Result":0,"Version":4,"Capabilities":{"SupportedSchemaVersions":[{"Major":2,"Minor":1}],"R'
        'untimeOsType":"Linux","GuestDefinedCapabilities":{"NamespaceAddRequestSupported":true,"Signa'
        'lProcessSupported":true,"DumpStacksSupported":true,"DeleteContainerStateSupported":true}}}',
    ),
    Exchange(
        Procedure.CREATE,
        ContainerCreateRequest(container_id=CONTAINER, container_config=dumps(LINUX_CONTAINER)),
        "01011010 76010000 0100000000000000",
        '{"ContainerId":"c1a5","ActivityId":"00000000-0000-0000-0000-000000000000","ContainerConfig":'
        r'"{\"SchemaVersion\":{\"Major\":2,\"Minor\":1},\"OciBundlePath\":\"/run/gcs/c/c1a5\",\"OciSpe'
        r"cification\":{\"ociVersion\":\"1.1.0\",\"process\":{\"args\":[\"sh\"],\"cwd\":\"/\"},\"root"
        r'\":{\"path\":\"/run/gcs/c/c1a5/rootfs\"}},\"ScratchDirPath\":\"/run/gcs/c/c1a5\"}"}',
        ResponseBase(),
        "01011020 1c000000 0100000000000000",
        '{"Result":0}',
    ),
    Exchange(
        Procedure.START,
        RequestBase(container_id=CONTAINER),
        "01021010 5a000000 0200000000000000",
        '{"ContainerId":"c1a5","ActivityId":"00000000-0000-0000-0000-000000000000"}',
        ResponseBase(),
        "01021020 1c000000 0200000000000000",
        '{"Result":0}',
    ),
    Exchange(
        Procedure.EXECUTE_PROCESS,
        ExecuteProcessRequest(container_id=CONTAINER, settings=LINUX_INIT),
        "01051010 23010000 0300000000000000",
        '{"ContainerId":"c1a5","ActivityId":"00000000-0000-0000-0000-000000000000","Settings":{"Proce'
        r'ssParameters":"{\"CreateStdInPipe\":true,\"CreateStdOutPipe\":true,\"CreateStdErrPipe\":true'
        '}","VsockStdioRelaySettings":{"StdIn":1073741825,"StdOut":1073741826,"StdErr":1073741827}}}',
        ExecuteProcessResponse(process_id=42),
        "01051020 2b000000 0300000000000000",
        '{"Result":0,"ProcessId":42}',
    ),
    Exchange(
        Procedure.EXECUTE_PROCESS,
        ExecuteProcessRequest(container_id=CONTAINER, settings=LINUX_EXEC),
        "01051010 25010000 0400000000000000",
        '{"ContainerId":"c1a5","ActivityId":"00000000-0000-0000-0000-000000000000","Settings":{"Proce'
        r'ssParameters":"{\"EmulateConsole\":true,\"CreateStdOutPipe\":true,\"OciProcess\":{\"args\":['
        r'\"top\"],\"cwd\":\"/\",\"terminal\":true}}","VsockStdioRelaySettings":{"StdOut":1073741828}}'
        "}",
        ExecuteProcessResponse(process_id=43),
        "01051020 2b000000 0400000000000000",
        '{"Result":0,"ProcessId":43}',
    ),
    Exchange(
        Procedure.EXECUTE_PROCESS,
        ExecuteProcessRequest(container_id=HOST_CONTAINER_ID, settings=LINUX_TOOL),
        "01051010 1e010000 0500000000000000",
        '{"ContainerId":"00000000-0000-0000-0000-000000000000","ActivityId":"00000000-0000-0000-0000-'
        r'000000000000","Settings":{"ProcessParameters":"{\"CommandArgs\":[\"uname\",\"-a\"],\"Working'
        r'Directory\":\"/\",\"Environment\":{\"PATH\":\"/bin\"}}","VsockStdioRelaySettings":{}}}',
        ExecuteProcessResponse(process_id=44),
        "01051020 2b000000 0500000000000000",
        '{"Result":0,"ProcessId":44}',
    ),
    Exchange(
        Procedure.WAIT_FOR_PROCESS,
        WaitForProcessRequest(container_id=CONTAINER, process_id=43, timeout_in_ms=50),
        "01061010 7a000000 0600000000000000",
        '{"ContainerId":"c1a5","ActivityId":"00000000-0000-0000-0000-000000000000","ProcessId":43,"Ti'
        'meoutInMs":50}',
        ResponseBase(result=-1070137079, error_message="timed out"),
        "01061020 41000000 0600000000000000",
        '{"Result":-1070137079,"ErrorMessage":"timed out"}',
    ),
    Exchange(
        Procedure.RESIZE_CONSOLE,
        ResizeConsoleRequest(container_id=CONTAINER, process_id=43, height=25, width=80),
        "01081010 80000000 0700000000000000",
        '{"ContainerId":"c1a5","ActivityId":"00000000-0000-0000-0000-000000000000","ProcessId":43,"He'
        'ight":25,"Width":80}',
        ResponseBase(),
        "01081020 1c000000 0700000000000000",
        '{"Result":0}',
    ),
    Exchange(
        Procedure.SIGNAL_PROCESS,
        SignalProcessRequest(
            container_id=CONTAINER, process_id=43, options=SignalProcessOptionsLCOW(signal=15)
        ),
        "01071010 81000000 0800000000000000",
        '{"ContainerId":"c1a5","ActivityId":"00000000-0000-0000-0000-000000000000","ProcessId":43,"Op'
        'tions":{"Signal":15}}',
        ResponseBase(),
        "01071020 1c000000 0800000000000000",
        '{"Result":0}',
    ),
    Exchange(
        Procedure.SIGNAL_PROCESS,
        SignalProcessRequest(container_id=CONTAINER, process_id=43),
        "01071010 69000000 0900000000000000",
        '{"ContainerId":"c1a5","ActivityId":"00000000-0000-0000-0000-000000000000","ProcessId":43}',
        NOT_FOUND,
        "01071020 eb000000 0900000000000000",
        '{"Result":-2147023728,"ErrorMessage":"no such process","ErrorRecords":[{"Result":-2147023728'
        ',"Message":"no such process","StackTrace":"main.go:1","ModuleName":"gcs","FileName":"main.go","'
        'Line":1,"FunctionName":"main"}]}',
    ),
    Exchange(
        Procedure.WAIT_FOR_PROCESS,
        WaitForProcessRequest(container_id=CONTAINER, process_id=43),
        "01061010 82000000 0a00000000000000",
        '{"ContainerId":"c1a5","ActivityId":"00000000-0000-0000-0000-000000000000","ProcessId":43,"Ti'
        'meoutInMs":4294967295}',
        WaitForProcessResponse(exit_code=143),
        "01061020 2b000000 0a00000000000000",
        '{"Result":0,"ExitCode":143}',
    ),
    Exchange(
        Procedure.GET_PROPERTIES,
        GetPropertiesRequest(
            container_id=CONTAINER, query=dumps(PropertyQuery(property_types=["ProcessList"]))
        ),
        "01091010 8a000000 0b00000000000000",
        r'{"ContainerId":"c1a5","ActivityId":"00000000-0000-0000-0000-000000000000","Query":"{\"Proper'
        r'tyTypes\":[\"ProcessList\"]}"}',
        GetPropertiesResponse(properties=dumps({"ProcessList": [{"ProcessId": 42}]})),
        "01091020 52000000 0b00000000000000",
        r'{"Result":0,"Properties":"{\"ProcessList\":[{\"ProcessId\":42}]}"}',
    ),
    Exchange(
        Procedure.MODIFY_SETTINGS,
        ContainerModifySettingsRequest(container_id=HOST_CONTAINER_ID, request=LINUX_MOUNT),
        "010a1010 f7000000 0c00000000000000",
        '{"ContainerId":"00000000-0000-0000-0000-000000000000","ActivityId":"00000000-0000-0000-0000-'
        '000000000000","Request":{"RequestType":"Add","ResourceType":"MappedVirtualDisk","Settings":{'
        '"MountPath":"/mnt/0","Lun":1,"ReadOnly":true}}}',
        ResponseBase(),
        "010a1020 1c000000 0c00000000000000",
        '{"Result":0}',
    ),
    Exchange(
        Procedure.DUMP_STACKS,
        RequestBase(container_id=HOST_CONTAINER_ID),
        "010c1010 7a000000 0d00000000000000",
        '{"ContainerId":"00000000-0000-0000-0000-000000000000","ActivityId":"00000000-0000-0000-0000-'
        '000000000000"}',
        DumpStacksResponse(guest_stacks="goroutine 1 [running]:"),
        "010c1020 43000000 0d00000000000000",
        '{"Result":0,"GuestStacks":"goroutine 1 [running]:"}',
    ),
    Exchange(
        Procedure.SHUTDOWN_GRACEFUL,
        RequestBase(container_id=CONTAINER),
        "01031010 5a000000 0e00000000000000",
        '{"ContainerId":"c1a5","ActivityId":"00000000-0000-0000-0000-000000000000"}',
        ResponseBase(),
        "01031020 1c000000 0e00000000000000",
        '{"Result":0}',
    ),
    Exchange(
        Procedure.SHUTDOWN_FORCED,
        RequestBase(container_id=CONTAINER),
        "01041010 5a000000 0f00000000000000",
        '{"ContainerId":"c1a5","ActivityId":"00000000-0000-0000-0000-000000000000"}',
        ResponseBase(),
        "01041020 1c000000 0f00000000000000",
        '{"Result":0}',
    ),
    Said(
        ContainerNotification(container_id=CONTAINER, type="ForcedExit", operation="None"),
        "01011030 8c000000 0000000000000000",
        '{"ContainerId":"c1a5","ActivityId":"00000000-0000-0000-0000-000000000000","Type":"ForcedExit'
        '","Operation":"None","Result":0}',
    ),
    Exchange(
        Procedure.DELETE_CONTAINER_STATE,
        RequestBase(container_id=CONTAINER),
        "010d1010 5a000000 1000000000000000",
        '{"ContainerId":"c1a5","ActivityId":"00000000-0000-0000-0000-000000000000"}',
        ResponseBase(),
        "010d1020 1c000000 1000000000000000",
        '{"Result":0}',
    ),
    Exchange(
        Procedure.SHUTDOWN_GRACEFUL,
        RequestBase(container_id=HOST_CONTAINER_ID),
        "01031010 7a000000 1100000000000000",
        '{"ContainerId":"00000000-0000-0000-0000-000000000000","ActivityId":"00000000-0000-0000-0000-'
        '000000000000"}',
    ),
]
