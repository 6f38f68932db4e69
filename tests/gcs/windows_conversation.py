"""A conversation with a Windows guest, byte by byte."""

from __future__ import annotations

from tests.gcs.conversations import CONTAINER, Exchange, Said
from uvm._wire.frames import Procedure
from uvm.schema.common import Version
from uvm.schema.container import Container, GuestOs, HostedSystem, Storage
from uvm.schema.gcs import (
    HOST_CONTAINER_ID,
    ContainerCreateRequest,
    ContainerModifySettingsRequest,
    ContainerNotification,
    ExecuteProcessRequest,
    ExecuteProcessResponse,
    ExecuteProcessSettings,
    GcsCapabilities,
    NegotiateProtocolRequest,
    NegotiateProtocolResponse,
    RequestBase,
    ResponseBase,
    ServiceModificationRequest,
    SignalProcessRequest,
    StdioRelaySettings,
    UvmConfig,
    WaitForProcessRequest,
    WaitForProcessResponse,
)
from uvm.schema.guest import (
    RESOURCE_HV_SOCKET,
    HvSocketAddress,
    LogForwardServiceRPCRequest,
    SystemTime,
    TimeZoneInformation,
)
from uvm.schema.json import dumps
from uvm.schema.process import ProcessParameters, SignalProcessOptionsWCOW
from uvm.schema.requests import UPDATE, ModificationRequest

WINDOWS_WELCOME = NegotiateProtocolResponse(
    version=4,
    capabilities=GcsCapabilities(
        send_host_create_message=True,
        send_host_start_message=True,
        hv_socket_config_on_startup=True,
        modify_service_settings_supported=True,
        supported_schema_versions=[Version(major=1), Version(major=2, minor=1)],
        runtime_os_type="Windows",
        guest_defined_capabilities={"SignalProcessSupported": True, "LogForwardingSupported": True},
    ),
)
WINDOWS_HOST = UvmConfig(
    time_zone_information=TimeZoneInformation(
        bias=-60,
        standard_name="W. Europe Standard Time",
        standard_date=SystemTime(month=10, day=5, hour=3),
        daylight_name="W. Europe Daylight Time",
        daylight_date=SystemTime(month=3, day=5, hour=2),
        daylight_bias=-60,
    )
)
WINDOWS_ADDRESSES = ModificationRequest(
    request_type=UPDATE,
    resource_type=RESOURCE_HV_SOCKET,
    settings=HvSocketAddress(
        local_address="5f2b1a9c-0001-4000-8000-000000000001",
        parent_address="894cc2d6-9d79-424f-93fe-42969ae6d8d1",
    ),
)
WINDOWS_CONTAINER = HostedSystem(
    schema_version=Version(major=2, minor=1),
    container=Container(guest_os=GuestOs(host_name="web"), storage=Storage(path=r"C:\c\1")),
)
WINDOWS_EXEC = ExecuteProcessSettings(
    process_parameters=dumps(
        ProcessParameters(
            command_line="cmd /c dir",
            working_directory="C:\\",
            create_std_in_pipe=True,
            create_std_out_pipe=True,
            create_std_err_pipe=True,
            console_size=[25, 80],
        )
    ),
    stdio_relay_settings=StdioRelaySettings(
        std_in="40000001-facb-11e6-bd58-64006a7986d3",
        std_out="40000002-facb-11e6-bd58-64006a7986d3",
        std_err="40000003-facb-11e6-bd58-64006a7986d3",
    ),
)

WINDOWS: list[Exchange | Said] = [
    Exchange(
        Procedure.NEGOTIATE_PROTOCOL,
        NegotiateProtocolRequest(),
        "010b1010 7c000000 0000000000000000",
        '{"ContainerId":"","ActivityId":"00000000-0000-0000-0000-000000000000","MinimumVersion":4,"Ma'
        'ximumVersion":4}',
        WINDOWS_WELCOME,
        "010b1020 68010000 0000000000000000",
        '{"Result":0,"Version":4,"Capabilities":{"SendHostCreateMessage":true,"SendHostStartMessage":'
        'true,"HvSocketConfigOnStartup":true,"ModifyServiceSettingsSupported":true,"SupportedSchemaVe'
        'rsions":[{"Major":1},{"Major":2,"Minor":1}],"RuntimeOsType":"Windows","GuestDefinedCapabilit'
        'ies":{"SignalProcessSupported":true,"LogForwardingSupported":true}}}',
    ),
    Exchange(
        Procedure.CREATE,
        ContainerCreateRequest(container_id=HOST_CONTAINER_ID, container_config=dumps(WINDOWS_HOST)),
        "01011010 ac010000 0100000000000000",
        '{"ContainerId":"00000000-0000-0000-0000-000000000000","ActivityId":"00000000-0000-0000-0000-'
        r'000000000000","ContainerConfig":"{\"SystemType\":\"Container\",\"TimeZoneInformation\":{\"Bi'
        r"as\":-60,\"StandardName\":\"W. Europe Standard Time\",\"StandardDate\":{\"Month\":10,\"Day\""
        r":5,\"Hour\":3},\"DaylightName\":\"W. Europe Daylight Time\",\"DaylightDate\":{\"Month\":3,\""
        r'Day\":5,\"Hour\":2},\"DaylightBias\":-60}}"}',
        ResponseBase(),
        "01011020 1c000000 0100000000000000",
        '{"Result":0}',
    ),
    Exchange(
        Procedure.START,
        RequestBase(container_id=HOST_CONTAINER_ID),
        "01021010 7a000000 0200000000000000",
        '{"ContainerId":"00000000-0000-0000-0000-000000000000","ActivityId":"00000000-0000-0000-0000-'
        '000000000000"}',
        ResponseBase(),
        "01021020 1c000000 0200000000000000",
        '{"Result":0}',
    ),
    Exchange(
        Procedure.MODIFY_SETTINGS,
        ContainerModifySettingsRequest(container_id=HOST_CONTAINER_ID, request=WINDOWS_ADDRESSES),
        "010a1010 31010000 0300000000000000",
        '{"ContainerId":"00000000-0000-0000-0000-000000000000","ActivityId":"00000000-0000-0000-0000-'
        '000000000000","Request":{"RequestType":"Update","ResourceType":"HvSocket","Settings":{"Local'
        'Address":"5f2b1a9c-0001-4000-8000-000000000001","ParentAddress":"894cc2d6-9d79-424f-93fe-429'
        '69ae6d8d1"}}}',
        ResponseBase(),
        "010a1020 1c000000 0300000000000000",
        '{"Result":0}',
    ),
    Exchange(
        Procedure.MODIFY_SERVICE_SETTINGS,
        ServiceModificationRequest(
            container_id=HOST_CONTAINER_ID,
            property_type="LogForwardService",
            settings=LogForwardServiceRPCRequest(rpc_type="ModifyServiceSettings", settings="e30="),
        ),
        "01012010 de000000 0400000000000000",
        '{"ContainerId":"00000000-0000-0000-0000-000000000000","ActivityId":"00000000-0000-0000-0000-'
        '000000000000","PropertyType":"LogForwardService","Settings":{"RPCType":"ModifyServiceSetting'
        's","Settings":"e30="}}',
        ResponseBase(),
        "01012020 1c000000 0400000000000000",
        '{"Result":0}',
    ),
    Exchange(
        Procedure.MODIFY_SERVICE_SETTINGS,
        ServiceModificationRequest(
            container_id=HOST_CONTAINER_ID,
            property_type="LogForwardService",
            settings=LogForwardServiceRPCRequest(rpc_type="StartLogForwarding"),
        ),
        "01012010 c9000000 0500000000000000",
        '{"ContainerId":"00000000-0000-0000-0000-000000000000","ActivityId":"00000000-0000-0000-0000-'
        '000000000000","PropertyType":"LogForwardService","Settings":{"RPCType":"StartLogForwarding"}'
        "}",
        ResponseBase(),
        "01012020 1c000000 0500000000000000",
        '{"Result":0}',
    ),
    Exchange(
        Procedure.CREATE,
        ContainerCreateRequest(container_id=CONTAINER, container_config=dumps(WINDOWS_CONTAINER)),
        "01011010 f7000000 0600000000000000",
        '{"ContainerId":"c1a5","ActivityId":"00000000-0000-0000-0000-000000000000","ContainerConfig":'
        r'"{\"SchemaVersion\":{\"Major\":2,\"Minor\":1},\"Container\":{\"GuestOs\":{\"HostName\":\"web'
        r'\"},\"Storage\":{\"Path\":\"C:\\\\c\\\\1\"}}}"}',
        ResponseBase(),
        "01011020 1c000000 0600000000000000",
        '{"Result":0}',
    ),
    Exchange(
        Procedure.EXECUTE_PROCESS,
        ExecuteProcessRequest(container_id=CONTAINER, settings=WINDOWS_EXEC),
        "01051010 c9010000 0700000000000000",
        '{"ContainerId":"c1a5","ActivityId":"00000000-0000-0000-0000-000000000000","Settings":{"Proce'
        r'ssParameters":"{\"CommandLine\":\"cmd /c dir\",\"WorkingDirectory\":\"C:\\\\\",\"CreateStdIn'
        r'Pipe\":true,\"CreateStdOutPipe\":true,\"CreateStdErrPipe\":true,\"ConsoleSize\":[25,80]}","S'
        'tdioRelaySettings":{"StdIn":"40000001-facb-11e6-bd58-64006a7986d3","StdOut":"40000002-facb-1'
        '1e6-bd58-64006a7986d3","StdErr":"40000003-facb-11e6-bd58-64006a7986d3"}}}',
        ExecuteProcessResponse(process_id=1200),
        "01051020 2d000000 0700000000000000",
        '{"Result":0,"ProcessId":1200}',
    ),
    Exchange(
        Procedure.SIGNAL_PROCESS,
        SignalProcessRequest(
            container_id=CONTAINER, process_id=1200, options=SignalProcessOptionsWCOW(signal="CtrlC")
        ),
        "01071010 88000000 0800000000000000",
        '{"ContainerId":"c1a5","ActivityId":"00000000-0000-0000-0000-000000000000","ProcessId":1200,"'
        'Options":{"Signal":"CtrlC"}}',
        ResponseBase(),
        "01071020 1c000000 0800000000000000",
        '{"Result":0}',
    ),
    Exchange(
        Procedure.WAIT_FOR_PROCESS,
        WaitForProcessRequest(container_id=CONTAINER, process_id=1200),
        "01061010 84000000 0900000000000000",
        '{"ContainerId":"c1a5","ActivityId":"00000000-0000-0000-0000-000000000000","ProcessId":1200,"'
        'TimeoutInMs":4294967295}',
        WaitForProcessResponse(exit_code=3221225786),
        "01061020 32000000 0900000000000000",
        '{"Result":0,"ExitCode":3221225786}',
    ),
    Exchange(
        Procedure.SHUTDOWN_GRACEFUL,
        RequestBase(container_id=CONTAINER),
        "01031010 5a000000 0a00000000000000",
        '{"ContainerId":"c1a5","ActivityId":"00000000-0000-0000-0000-000000000000"}',
        ResponseBase(result=-1070137074, activity_id="6b29fc40-ca47-1067-b31d-00dd010662da"),
        "01031020 5a000000 0a00000000000000",
        '{"Result":-1070137074,"ActivityId":"6b29fc40-ca47-1067-b31d-00dd010662da"}',
    ),
    Said(
        ContainerNotification(
            container_id=CONTAINER,
            type="UnexpectedExit",
            operation="None",
            result=-1070137082,
            result_info="{}",
        ),
        "01011030 ac000000 0000000000000000",
        '{"ContainerId":"c1a5","ActivityId":"00000000-0000-0000-0000-000000000000","Type":"Unexpected'
        'Exit","Operation":"None","Result":-1070137082,"ResultInfo":"{}"}',
    ),
    Exchange(
        Procedure.SHUTDOWN_GRACEFUL,
        RequestBase(container_id=HOST_CONTAINER_ID),
        "01031010 7a000000 0b00000000000000",
        '{"ContainerId":"00000000-0000-0000-0000-000000000000","ActivityId":"00000000-0000-0000-0000-'
        '000000000000"}',
        ResponseBase(),
        "01031020 1c000000 0b00000000000000",
        '{"Result":0}',
    ),
]
