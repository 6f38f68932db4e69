"""Scenarios: files, networks and pipes of the host."""

from __future__ import annotations

import anyio
import anyio.lowlevel

from uvm.backend import ByteStream
from uvm.errors import HostPathError, OptionsError
from uvm.testing.backends.checks import check, equal, raises, refused
from uvm.testing.backends.rig import Control, Rig
from uvm.testing.backends.scenario import scenario

UNKNOWN_ID = "deadbeef-0000-0000-0000-000000000000"

# Files.


@scenario(Control.FILES)
async def files_and_directories_are_found(rig: Rig) -> None:
    files = rig.backend.files
    file = await files.stat(rig.host.put_file("some.txt", size_bytes=3, content=b"abc"))
    check(file is not None and file.size == 3 and not file.is_dir, f"a file of 3 bytes: {file}")
    directory = await files.stat(rig.host.put_directory("directory"))
    check(directory is not None and directory.is_dir, f"a directory: {directory}")
    equal(await files.stat(rig.host.path_of("missing")), None, "what is not there")


@scenario(Control.FILES)
async def files_are_read_whole_or_not_at_all(rig: Rig) -> None:
    files, path = rig.backend.files, rig.host.put_file("some.txt", size_bytes=3, content=b"abc")
    equal(await files.read(path, 3), b"abc", "what is in it")
    with raises(HostPathError):
        await files.read(path, 2)
    with raises(HostPathError):
        await files.read(rig.host.path_of("missing"), 10)


@scenario(Control.FILES)
async def files_are_copied_over_what_is_there_and_removed(rig: Rig) -> None:
    files = rig.backend.files
    source = rig.host.put_file("source.txt", size_bytes=3, content=b"new")
    target = rig.host.put_file("target.txt", size_bytes=3, content=b"old")
    await files.copy(source, target)
    equal(await files.read(target, 10), b"new", "what is in the copy")
    with raises(HostPathError):
        await files.copy(rig.host.path_of("missing"), target)
    await files.remove(target)
    equal(await files.stat(target), None, "what was removed")
    await files.remove(target)


@scenario(Control.FILES)
async def an_overlay_is_made_over_a_disk_where_nothing_is(rig: Rig) -> None:
    files, base = rig.backend.files, rig.host.put_file("base.vhdx")
    target = rig.host.path_of("overlay.vhdx.qcow2")
    if not (await rig.backend.host()).overlays:
        return
    before = await files.stat(base)
    await files.make_overlay(base, target)
    check(await files.stat(target) is not None, "the overlay is there")
    equal(await files.stat(base), before, "the disk below it")
    with refused("ERROR_FILE_EXISTS"):
        await files.make_overlay(base, target)
    await files.remove(target)


@scenario(Control.FILES)
async def directories_are_made_with_their_parents_and_removed_when_empty(rig: Rig) -> None:
    files, join = rig.backend.files, (await rig.backend.host()).path.join
    outer = rig.host.put_directory("made")
    inner = join(outer, "a", "b")
    await files.mkdir(inner)
    await files.mkdir(inner)
    found = await files.stat(inner)
    check(found is not None and found.is_dir, f"a directory: {found}")
    with raises(HostPathError):
        await files.remove(join(outer, "a"))
    await files.remove(inner)
    await files.remove(join(outer, "a"))
    equal(await files.stat(join(outer, "a")), None, "what was removed")


@scenario(Control.FILES)
async def a_file_has_an_id_and_a_disk_takes_one(rig: Rig) -> None:
    path = rig.host.put_file("disk.vhdx")
    check(await rig.backend.files.has_file_ids(path), "the file system has file ids")
    await rig.backend.files.set_disk_id(path, rig.backend.new_id())
    with raises(HostPathError):
        await rig.backend.files.set_disk_id(rig.host.path_of("missing.vhdx"), rig.backend.new_id())


@scenario(Control.FILES, Control.LINKS)
async def a_link_is_resolved_to_what_it_leads_to(rig: Rig) -> None:
    files, host = rig.backend.files, rig.host
    join = (await rig.backend.host()).path.join
    directory, file = host.put_directory("real"), host.put_file("real.vhd", size_bytes=3, content=b"abc")
    link = host.put_link("link.vhd", file)
    equal(await files.resolve(link), file, "the target of a link")
    equal(await files.resolve(host.put_link("chain.vhd", link)), file, "the target of a chain of links")
    equal(await files.read(link, 10), b"abc", "what is read through a link")
    inside = join(directory, "inside")
    await files.mkdir(inside)
    through = join(host.put_link("directory-link", directory), "inside")
    equal(await files.resolve(through), inside, "a path through a link to a directory")
    await files.remove(link)
    equal(await files.stat(link), None, "a link that was removed")
    check(await files.stat(file) is not None, "the target of a link that was removed is still there")
    await files.remove(inside)


@scenario(Control.FILES, Control.LINKS)
async def a_path_that_leads_nowhere_else_stays_as_it_is(rig: Rig) -> None:
    files, host = rig.backend.files, rig.host
    missing = host.path_of("missing.vhd")
    for path in (host.put_file("plain.vhd"), missing, host.put_link("dangling.vhd", missing)):
        equal(await files.resolve(path), path, "a path that leads nowhere else")
    host.put_link("one.vhd", host.path_of("two.vhd"))
    loop = host.put_link("two.vhd", host.path_of("one.vhd"))
    with refused("ERROR_CANT_RESOLVE_FILENAME"):
        await files.resolve(loop)


# Networks.


@scenario(Control.NETWORKS)
async def a_namespace_and_its_endpoints_are_found(rig: Rig) -> None:
    network, found = rig.backend.network, rig.host.put_network(2)
    namespace = await network.namespace(found.id)
    equal(namespace["ID"].casefold(), found.id.casefold(), "the id")
    endpoints = await network.namespace_endpoints(found.id)
    equal([each["ID"] for each in endpoints], [each["ID"] for each in found.endpoints], "the endpoints")


@scenario(Control.NETWORKS)
async def an_endpoint_is_found_by_id_in_any_case_and_by_name(rig: Rig) -> None:
    [expected] = rig.host.put_network(1).endpoints
    for wanted in (expected["ID"], expected["ID"].upper(), expected["Name"]):
        found = await rig.backend.network.endpoint(wanted)
        equal((found["ID"], found["Name"]), (expected["ID"], expected["Name"]), f"what is found by {wanted}")


@scenario(Control.NETWORKS)
async def what_is_not_there_is_not_found(rig: Rig) -> None:
    network, there = rig.backend.network, rig.host.put_network(1)
    with refused("ERROR_NOT_FOUND"):
        await network.namespace(UNKNOWN_ID)
    with refused("ERROR_NOT_FOUND"):
        await network.namespace_endpoints(UNKNOWN_ID)
    for endpoint in (UNKNOWN_ID, "unknown"):
        with refused("HCN_E_ENDPOINT_NOT_FOUND"):
            await network.endpoint(endpoint)
    with refused("ERROR_NOT_FOUND"):
        await network.add_namespace_endpoint(UNKNOWN_ID, there.endpoints[0]["ID"])
    with refused("HCN_E_ENDPOINT_NOT_FOUND"):
        await network.add_namespace_endpoint(there.id, UNKNOWN_ID)


@scenario(Control.NETWORKS)
async def an_endpoint_is_in_one_namespace_at_a_time(rig: Rig) -> None:
    network = rig.backend.network
    first, second = rig.host.put_network(1), rig.host.put_network(0)
    endpoint = first.endpoints[0]["ID"]
    with refused("HCN_E_ENDPOINT_NAMESPACE_ALREADY_EXISTS"):
        await network.add_namespace_endpoint(second.id, endpoint)
    await network.remove_namespace_endpoint(first.id, endpoint)
    with refused("ERROR_NOT_FOUND"):
        await network.remove_namespace_endpoint(first.id, endpoint)
    await network.add_namespace_endpoint(second.id, endpoint)
    equal([each["ID"] for each in await network.namespace_endpoints(second.id)], [endpoint], "the endpoints")
    equal(await network.namespace_endpoints(first.id), [], "what is left in the first")


@scenario(Control.NETWORKS)
async def a_namespace_is_deleted_once_or_more_and_leaves_its_endpoints(rig: Rig) -> None:
    network, there = rig.backend.network, rig.host.put_network(1)
    await network.delete_namespace(there.id)
    await network.delete_namespace(there.id)
    with refused("ERROR_NOT_FOUND"):
        await network.namespace(there.id)
    equal((await network.endpoint(there.endpoints[0]["ID"]))["ID"], there.endpoints[0]["ID"], "the endpoint")


@scenario(Control.NETWORKS)
async def namespaces_and_endpoints_are_created_and_deleted(rig: Rig) -> None:
    network, there = rig.backend.network, rig.host.put_network(0)
    namespace_id, endpoint_id = UNKNOWN_ID, rig.backend.new_id()
    made = await network.create_namespace({"ID": namespace_id})
    equal(made["ID"].casefold(), namespace_id, "the id")
    asked = {"ID": endpoint_id, "Name": "conformance-eth0"}
    endpoint = await network.create_endpoint(there.host_network, asked)
    equal((endpoint["ID"], endpoint["Name"]), (endpoint_id, "conformance-eth0"), "the endpoint")
    placed = endpoint["HostComputeNetwork"], endpoint.get("HostComputeNamespace")
    equal(placed, (there.host_network, None), "where it is")
    await network.add_namespace_endpoint(namespace_id, endpoint_id)
    [listed] = await network.namespace_endpoints(namespace_id)
    equal(listed["ID"], endpoint_id, "the endpoint in the namespace")
    await network.delete_endpoint(endpoint_id)
    await network.delete_endpoint(endpoint_id)
    equal(await network.namespace_endpoints(namespace_id), [], "the endpoints after that")
    for missing in (endpoint_id, "conformance-eth0"):
        with refused("HCN_E_ENDPOINT_NOT_FOUND"):
            await network.endpoint(missing)
    await network.delete_namespace(namespace_id)


@scenario(Control.NETWORKS)
async def what_names_no_id_gets_one_and_what_cannot_be_created_is_refused(rig: Rig) -> None:
    network, there = rig.backend.network, rig.host.put_network(1)
    first, second = [await network.create_namespace({}) for _ in range(2)]
    equal(first["ID"] == second["ID"], False, "two namespaces with one id")
    for each in (first, second):
        await network.namespace(each["ID"])
        await network.delete_namespace(each["ID"])
    with refused("ERROR_ALREADY_EXISTS"):
        await network.create_namespace({"ID": there.id})
    with refused("HCN_E_INVALID_JSON"):
        await network.create_namespace({"NamespaceId": "seven"})
    with refused("HCN_E_NETWORK_NOT_FOUND"):
        await network.create_endpoint(UNKNOWN_ID, {})
    with refused("ERROR_ALREADY_EXISTS"):
        await network.create_endpoint(there.host_network, {"ID": there.endpoints[0]["ID"]})


# Pipes.


@scenario(Control.PIPES)
async def what_dials_a_pipe_is_accepted_and_bytes_go_both_directions(rig: Rig) -> None:
    pipes, path = rig.backend.pipes, rig.host.pipe_path("both-directions")
    listener = await pipes.listen(path)
    try:
        for number in range(3):
            client = await pipes.dial(path)
            await client.send(b"request %d" % number)
            server = await listener.accept()
            equal(await server.receive(), b"request %d" % number, "what the client sent")
            await server.send(b"answer")
            equal(await client.receive(), b"answer", "what the server sent")
            await server.aclose()
            with raises(anyio.EndOfStream):
                await client.receive()
            await client.aclose()
    finally:
        await listener.aclose()


@scenario(Control.PIPES)
async def several_clients_of_a_pipe_are_served_at_once(rig: Rig) -> None:
    pipes, path = rig.backend.pipes, rig.host.pipe_path("several")
    listener = await pipes.listen(path)
    accepted: list[ByteStream] = []

    async def accept() -> None:
        for _ in range(3):
            accepted.append(await listener.accept())  # noqa: PERF401

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(accept)
        clients = [await pipes.dial(path) for _ in range(3)]
    for number, client in enumerate(clients):
        await client.send(b"%d" % number)
    received = sorted([await server.receive() for server in accepted])
    equal(received, [b"0", b"1", b"2"], "what they sent")
    await listener.aclose()
    for stream in (*clients, *accepted):
        await stream.aclose()


@scenario(Control.PIPES)
async def a_pipe_has_one_listener_however_its_path_is_spelled(rig: Rig) -> None:
    pipes, path = rig.backend.pipes, rig.host.pipe_path("one-listener")
    listener = await pipes.listen(path)
    with refused("E_ACCESSDENIED"):
        await pipes.listen(path)
    if (await rig.backend.host()).paths == "windows":
        with refused("E_ACCESSDENIED"):
            await pipes.listen(path.upper())
    await listener.aclose()
    with raises(anyio.ClosedResourceError):
        await listener.accept()
    await (await pipes.listen(path)).aclose()


@scenario(Control.PIPES)
async def a_pipe_is_not_there_before_it_is_listened_at_nor_afterwards(rig: Rig) -> None:
    pipes, path = rig.backend.pipes, rig.host.pipe_path("not-there")
    with refused("ERROR_FILE_NOT_FOUND"):
        await pipes.dial(path)
    await (await pipes.listen(path)).aclose()
    with refused("ERROR_FILE_NOT_FOUND"):
        await pipes.dial(path)


@scenario(Control.PIPES)
async def an_accept_that_is_cancelled_loses_no_client(rig: Rig) -> None:
    pipes, path = rig.backend.pipes, rig.host.pipe_path("cancelled")
    listener = await pipes.listen(path)
    for turns in range(4):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.accept)
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    client = await pipes.dial(path)
    server = await listener.accept()
    await client.send(b"x")
    equal(await server.receive(), b"x", "what the client sent")
    await listener.aclose()
    for stream in (client, server):
        await stream.aclose()


@scenario(Control.PIPES)
async def what_is_no_path_of_a_pipe_is_refused(rig: Rig) -> None:
    for path in ("", "relative", "a\0b"):
        with raises(OptionsError):
            await rig.backend.pipes.listen(path)
        with raises(OptionsError):
            await rig.backend.pipes.dial(path)
