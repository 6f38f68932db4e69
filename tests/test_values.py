"""Values are their content: they compare by it, and travel with it. What is bound to a VM does not travel."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable, Iterator
from datetime import UTC
from functools import partial
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, get_type_hints

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import uvm
import uvm.backends.fake
import uvm.schema
from tests.schema.models import models
from tests.test_surface import SURFACE
from uvm.backends.fake import FakeFiles
from uvm.schema.json import Model
from uvm.schema.template import TemplateDocument

#: Bound to a VM, though they are attrs classes that compare by what they hold.
_BOUND = {uvm.Orphan}
_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
_JSON = st.dictionaries(_TEXT, st.none() | st.booleans() | st.integers() | _TEXT | st.lists(st.integers()))
_GUID = "6fb1ab1e-3c4b-4d8d-8d0c-2d6a4a9b8c11"

_FILES: Any = {field.alias: f"C:\\{field.name}" for field in attrs.fields(uvm.VmbFSBootFiles)}

_BOOT_FILES = uvm.VmbFSBootFiles(**_FILES)
#: ``fold`` does not travel with older protocols, and no time in UTC has it.
_TIMES = st.datetimes(timezones=st.just(UTC)).map(lambda at: at.replace(fold=0))
#: Fields that not every value of their type fits.
_FIELDS: dict[type, dict[str, Any]] = {
    uvm.RegistryValue: {"hive": st.sampled_from(["System", "Software"])},
    uvm.WCOWOptions: {"boot_files": st.just(_BOOT_FILES)},
    uvm.BlockCIMLayer: {"cims": st.just((uvm.BlockCIM(r"C:\a.vhd", "a.cim"),))},
    uvm.LayerBootFiles: {"layers": st.lists(_TEXT, min_size=1).map(tuple)},
    uvm.Template: {"document": models(TemplateDocument)},
    uvm.StuckDevice: {"since": _TIMES},
    uvm.RecentRequest: {"at": _TIMES},
    uvm.Quarantined: {
        "key": _TEXT,
        "slot": st.integers(),
        "value": _TEXT,
        "cause": st.builds(uvm.HostError, _TEXT, st.integers(0, 2**32 - 1)),
    },
}

#: Values with more than the fields that have no default.
_RICH: list[Any] = [
    uvm.LCOWOptions(id="vm1", memory_mb=512, hvsocket_services={_GUID: uvm.HvSocketService()}),
    uvm.LCOWOptions(assigned_devices=[uvm.PCIDevice("PCI\\1")], additional_json='{"a": 1}'),
    uvm.WCOWOptions(memory_mb=512, boot_files=_BOOT_FILES),
    uvm.Mount(filesystem="ext4", options=("ro",), guest_path="/mnt"),
    uvm.GuestTimeouts(rpc_seconds=float("inf")),
    uvm.HostInfo(time_zone={"Bias": 60}, concurrency=uvm.Concurrency(scsi=4)),
    uvm.ExitStatus("UnexpectedExit", 5, {"Attribution": [{}]}),
    uvm.CreationPlan(
        document={"VirtualMachine": {}}, os="linux", id="vm1", processors=1, memory_mb=2, scsi_controllers=0
    ),
]


def _public_classes() -> Iterator[type]:
    for name, members in SURFACE.items():
        yield from classes_of(name, members.split())
    yield from classes_of("uvm.backends.fake", uvm.backends.fake.__all__)
    for module in iter_modules(uvm.schema.__path__, "uvm.schema."):
        for each in vars(import_module(module.name)).values():
            if isinstance(each, type) and issubclass(each, Model) and each is not Model:
                yield each


def classes_of(module: str, names: list[str]) -> list[type]:
    values = [getattr(import_module(module), name, None) for name in names]
    return [each for each in values if inspect.isclass(each)]


def _is_value(cls: Any) -> bool:
    by_content = attrs.has(cls) or dataclasses.is_dataclass(cls) or issubclass(cls, Model)
    return by_content and cls.__eq__ is not object.__eq__ and cls not in _BOUND


VALUES = [cls for cls in dict.fromkeys(_public_classes()) if _is_value(cls)]


def _made(cls: Any) -> st.SearchStrategy[Any]:
    """Make values of a class, from all that has no default."""
    if issubclass(cls, Model):
        return models(cls)
    if not attrs.has(cls):
        return st.builds(cls)
    hints = get_type_hints(cls, include_extras=False)
    needed = [field for field in attrs.fields(cls) if field.default is attrs.NOTHING and field.init]
    fields = {field.alias: _of(hints[field.name]) for field in needed}
    return st.builds(cls, **{**fields, **_FIELDS.get(cls, {})})


def _of(hint: Any) -> st.SearchStrategy[Any]:
    if hint is str:
        return _TEXT
    if hint is int:
        return st.integers(0, 3)
    return _JSON if getattr(hint, "__origin__", None) is dict else st.from_type(hint)


for _cls in VALUES:
    st.register_type_strategy(_cls, _made(_cls))


def _travels() -> Iterator[Callable[[Any], Any]]:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield partial(_pickled, protocol)
    yield copy.copy
    yield copy.deepcopy


def _pickled(protocol: int, value: Any) -> Any:
    return pickle.loads(pickle.dumps(value, protocol))


def _check_travels(value: Any) -> None:
    for travel in _travels():
        there = travel(value)
        assert there == value
        assert type(there) is type(value)
        assert repr(there) == repr(value)


def test_the_value_classes_are_found() -> None:
    assert {uvm.Mount, uvm.ScsiDisk, uvm.VMStatistics, uvm.ExitStatus, uvm.CreationPlan} <= set(VALUES)
    assert len(VALUES) > 100


@pytest.mark.parametrize("cls", VALUES)
@settings(max_examples=5)
@given(data=st.data())
def test_a_value_travels_with_its_content(cls: type, data: st.DataObject) -> None:
    _check_travels(data.draw(st.from_type(cls)))


@pytest.mark.parametrize("value", _RICH, ids=lambda value: type(value).__name__)
def test_a_value_with_many_fields_travels(value: Any) -> None:
    _check_travels(value)


@pytest.mark.parametrize("value", _RICH, ids=lambda value: type(value).__name__)
def test_a_frozen_value_can_be_a_key_whatever_it_holds(value: Any) -> None:
    assert {value: 1}[copy.deepcopy(value)] == 1


@pytest.mark.anyio
async def test_what_is_bound_to_a_vm_says_that_it_cannot_travel() -> None:
    backend = uvm.FakeBackend(files=FakeFiles(permissive=True))
    backend.files.add_directory("C:\\share")
    async with backend, uvm.UtilityVM.create(uvm.LCOWOptions(), backend=backend) as vm:
        await vm.start()
        lease = await vm.scsi.attach("C:\\disk.vhdx", mount=uvm.Mount())
        async with vm.open_process(["cat"]) as process:
            bound = [vm, vm.guest, vm.scsi, lease, process, process.stdin, process.stdout, backend]
            for each in bound:
                for travel in _travels():
                    with pytest.raises(TypeError, match=f"{type(each).__name__} can be neither copied"):
                        travel(each)
