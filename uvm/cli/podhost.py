"""The host that a pod file's VM is created on: the in-memory one that the file describes, or a backend."""

from __future__ import annotations

from uvm.backend import Backend
from uvm.backends import open_backend
from uvm.backends.fake import FakeBackend, FakeFiles, Latency
from uvm.cli.errors import UsageError
from uvm.cli.podfile import PodFile
from uvm.errors import HostError


def open_host(pod: PodFile, backend: str | None) -> Backend:
    """Return the backend of that name, to be entered; without a name, the in-memory one of the file.

    :raises UsageError: a path is a file and a directory, or one GUID is used twice.
    """
    return make_host(pod) if backend in (None, "fake") else open_backend(backend)


def make_host(pod: PodFile) -> FakeBackend:
    """Make the in-memory host that the pod file describes; one without files has boot files of Linux VMs.

    :raises UsageError: a path is a file and a directory, or one GUID is used twice.
    """
    setup = pod.host
    each_ms = setup.latency_ms
    latency = Latency(host_ms=each_ms, guest_ms=each_ms, grant_ms=each_ms, lifecycle_ms=each_ms)
    files = FakeFiles(setup.info.paths) if setup.files or setup.directories else None
    backend = FakeBackend(host=setup.info, files=files, latency=latency)
    try:
        for path in setup.directories:
            backend.files.add_directory(path)
        for path, size_bytes in setup.files.items():
            backend.files.add(path, size=size_bytes)
        for namespace in setup.namespaces:
            backend.network.add_namespace(namespace.document())
        for endpoint in setup.endpoints:
            backend.network.add_endpoint(endpoint.document())
    except (ValueError, HostError) as error:
        raise UsageError(f"{pod.file}: [host]: {error}") from None
    return backend
