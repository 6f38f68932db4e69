"""Commands of processes, and their streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from attrs import Factory, frozen

from uvm._repr import Value
from uvm.backends.fake.guest.programs import FakeProcess
from uvm.backends.fake.guest.stdio import ProcessInput, ProcessOutput, Terminal
from uvm.backends.fake.streams import FakeStream
from uvm.schema.gcs import LinuxProcessParameters
from uvm.schema.process import ProcessParameters

V = TypeVar("V")


@frozen(repr=False)
class Command(Value):
    """A command to run."""

    args: tuple[str, ...]
    env: Mapping[str, str] = Factory(dict)
    cwd: str = "/"
    user: str = ""
    terminal: Terminal | None = None


def asked_streams(
    parameters: LinuxProcessParameters | ProcessParameters, places: tuple[V, V, V]
) -> dict[str, V]:
    """Return the places of the standard streams that a process is to have, by name."""
    asked = (parameters.create_std_in_pipe, parameters.create_std_out_pipe, parameters.create_std_err_pipe)
    streams = zip(("stdin", "stdout", "stderr"), places, asked, strict=True)
    return {name: place for name, place, wanted in streams if wanted}


def close_streams(streams: Mapping[str, FakeStream]) -> None:
    """Close the streams of a process that does not start."""
    for stream in streams.values():
        stream.close()


def attach_streams(view: FakeProcess, streams: Mapping[str, FakeStream]) -> None:
    """Attach the streams of a process; on a terminal, both outputs are one."""
    view.stdin = ProcessInput(view.vm, streams.get("stdin"))
    terminal = view.terminal is not None
    view.stdout = ProcessOutput(view.vm, streams.get("stdout"), terminal)
    view.stderr = view.stdout if terminal else ProcessOutput(view.vm, streams.get("stderr"))
