"""An index finds what a walk over all items finds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from uvm._index import Index

KEYS = st.frozensets(st.integers(0, 4))
ITEMS = st.sampled_from("abcd")
EVENTS = st.one_of(
    st.tuples(st.just("add"), ITEMS, KEYS), st.tuples(st.sampled_from(["remove", "look"]), ITEMS, KEYS)
)


@given(events=st.lists(EVENTS, max_size=30))
def test_what_has_one_of_some_keys_is_found_and_nothing_is_kept_of_what_has_left(
    events: list[tuple[str, str, frozenset[int]]],
) -> None:
    index, items = Index[str](), dict[str, frozenset[int]]()
    for event, item, keys in events:
        if event == "add":
            index.add(item, {item: keys}.__getitem__)
            items[item] = keys
        elif event == "remove":
            assert index.remove(item) in (items.pop(item, frozenset()), frozenset())
        else:
            found = index.at(keys)
            assert len(found) == len({*found})
            assert {*found} == {each for each, its in items.items() if its & keys}
            assert {each: index.keys(each) for each in items} == items
            # What was looked up is removed with its keys.
            assert item not in items or index.remove(item) == items.pop(item)
        assert ({*index}, len(index), item in index) == ({*items}, len(items), item in items)
    for item in items:
        index.remove(item)
    assert (index.at(range(5)), index._at) == ([], {})
