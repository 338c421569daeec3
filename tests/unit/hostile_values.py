"""Broken and hostile files for property tests: edits of valid JSON, and documents that no parser should meet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

DOCUMENTS = (
    b"",
    b"\xff\xfe",
    b"NaN",
    b"{",
    b"[" * 100_000,
    b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    b"1" * 5000,
    b'{"plan_version": ' + b"1" * 5000 + b"}",
    b'{"manifest_version": 1e999}',
    b'"\\ud800"',
    b'{"\\ud800": "\\udfff"}',
    b"\0" * 100,
    b"- &a [*a]\n",
    b"- cache: !!python/object/apply:os.system ['false']\n",
    b"- " * 2000,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def edited(draw: st.DrawFn, sample: Any) -> bytes:
    """JSON of `sample` with one to three of its values dropped, replaced or added to; now and then torn."""
    value = json.loads(json.dumps(sample))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        match draw(st.integers(0, 3)):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[draw(st.text(max_size=8))] = draw(json_values)
            case _:
                holder[key] = draw(json_values)
    data = json.dumps(value).encode()
    return data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 9)) == 0 else data


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (holder, key) within `value`."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])
