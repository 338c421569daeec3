"""Hypothesis strategies for broken and hostile input: valid data goes in, data that is a little or entirely wrong comes
out. Documents are edited by their structure, files by their bytes."""

from __future__ import annotations

import contextlib
import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import yaml
from hypothesis import strategies as st

CANARY = "kvray_escape"
"""No file, process or name in generated code may ever be called so."""
_CALL = f"{CANARY}()"
# fmt: off
STRINGS = (
    "", " ", "\0", "a\0b", "\ud800", "\udcff.json", "\x1b[2J", "\r\n", "\u202e", "\ufeff", "ｆｕｌｌ", "ß" * 130,
    "A" * 5000, "9" * 5000, "-1", "0", "1e999", "nan", "inf", "-inf", "null", "true", "1_000", "٣", "0x10", "1.5",
    f"../../../../../tmp/{CANARY}", f"/tmp/{CANARY}", f"../{CANARY}", "/etc/passwd", "/dev/zero", "~root", "~nobody0/x",
    ".", "..", "/", "//", "\\\\host\\share", "file:///etc/passwd", "http://127.0.0.1:9/x", "s3://u:p@127.0.0.1:9/b",
    f"__import__('os').system('touch {CANARY}')", f"'); {_CALL}; ('", f'"); {_CALL}; ("', f'"""\n{_CALL}\n"""',
    f"\n{_CALL}\n#", f"\\'\n{_CALL}", f"x\u2028{_CALL}", f"x\x0c{_CALL}", f"# coding: utf-7\n{_CALL}", "{0.__class__}",
    f"{{{{ cycler.__init__.__globals__.os.system('touch {CANARY}') }}}}", "{% for i in range(10**12) %}x{% endfor %}",
    f"!!python/object/apply:os.system ['touch {CANARY}']", "<script>alert(1)</script>", "[bold]", "[/]", "[link=x]",
    "quantized(nbits=4", "dynamic,static", "static(max_cache_len=" + "9" * 400 + ")", "owner/kernel", "a/b@c:d", "%s%n",
)
NUMBERS = (
    0, -0.0, -1, 1, 2, 3, 7, 0.5, 1.5, 5e-324, 1e-300, 1e17, 1e300, 1.7e308, -1e308, 255, 256, 65_536, 100_000, 10**6,
    10**9, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, -(2**63), 2**64, 2**100, 10**400,
)
RAW = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5000, "-" + "7" * 4400, "1e-999", "00", '"\\ud800"')
"""JSON text that no Python value is written as; it takes the place of a mark."""
# fmt: on
_RAW_MARK = re.compile(r'"@raw(\d+)@"')
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
"""What no reader of kvray's own documents may accept."""
_MORE_DOCUMENTS = (
    b"\xef\xbb\xbf{}",
    b"[" * 900 + b"]" * 900,
    b'"' + b"a" * 2_000_000 + b'"',
    b"[" + b"0," * 200_000 + b"0]",
    b"PK\x03\x04",
)
texts = (
    st.sampled_from(STRINGS)
    | st.lists(st.sampled_from(STRINGS), min_size=2, max_size=2).map("".join)
    | st.text(max_size=12)
)
json_values = st.recursive(
    st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.integers(-(10**400), 10**400) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)


def rarely(times_in_20: int = 1) -> st.SearchStrategy[bool]:
    """True that often."""
    return st.integers(0, 19).map(lambda number: number >= 20 - times_in_20)


def mostly(usual: st.SearchStrategy[Any], *others: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """`usual`, and in three of 20 cases one of `others`. `st.one_of` gives each alternative the same weight."""
    return rarely(3).flatmap(lambda odd: st.one_of(*others) if odd else usual)


@st.composite
def edited(draw: st.DrawFn, sample: Any) -> bytes:
    """JSON of `sample` with one to four of its parts dropped, replaced, nested or retyped; now and then its bytes are
    damaged too, or it is another document entirely."""
    if draw(rarely()):
        return draw(st.sampled_from((*DOCUMENTS, *_MORE_DOCUMENTS)))
    text = _json_text(draw(changed(sample)))
    if text.startswith('{"') and draw(rarely()):
        text = f"{text[: text.index(':') + 1]} 1, {text[1:]}"  # a key that stands there twice
    data = text.encode("utf-8", errors="surrogatepass")
    return draw(damaged(data)) if draw(rarely(4)) else data


@st.composite
def edited_yaml(draw: st.DrawFn, sample: Any) -> bytes:
    """The same in JSON, which YAML reads, or in YAML's own way of writing."""
    data = draw(edited(sample))
    if draw(st.booleans()):
        with contextlib.suppress(ValueError, RecursionError, yaml.YAMLError):
            text: str = yaml.safe_dump(json.loads(data), allow_unicode=True)
            return text.encode("utf-8", errors="surrogatepass")
    return data


@st.composite
def changed(draw: st.DrawFn, sample: Any) -> Any:
    """A copy of a tree of lists and dicts with one to four changes."""
    if draw(rarely()):
        return draw(_junk())
    root = copy.deepcopy(sample)
    for _ in range(draw(st.integers(1, 4))):
        places = list(_places(root))
        if places:
            _change_one(draw, places)
    return root


def _change_one(draw: st.DrawFn, places: list[tuple[Any, Any]]) -> None:
    holder, key = draw(st.sampled_from(places))
    match draw(st.integers(0, 6)):
        case 0:
            del holder[key]
        case 1 | 2:
            holder[key] = draw(_junk())
        case 3:
            other, name = draw(st.sampled_from(places))
            holder[key] = copy.deepcopy(other[name])
        case 4 if isinstance(holder, dict):
            holder[draw(texts)] = draw(_junk())
        case 4:
            holder.append(copy.deepcopy(holder[key]))
        case 5:
            holder[key] = draw(_alike(holder[key]))
        case _:
            holder[key] = draw(st.sampled_from(([holder[key]], {"value": holder[key]})))


def _junk() -> st.SearchStrategy[Any]:
    marks = st.integers(0, len(RAW) - 1).map("@raw{}@".format)
    return json_values | marks | st.sampled_from((5, 60, 400)).map(_nested)


def _alike(value: Any) -> st.SearchStrategy[Any]:
    """Another value of the same type."""
    match value:
        case bool():
            return st.just(not value)
        case int() | float():
            return st.sampled_from(NUMBERS)
        case str():
            return texts | texts.map(value.__add__) | st.sampled_from((value.upper(), value[:-1]))
        case list():
            return st.sampled_from((value[::-1], [], *(list(range(1, size + 1)) for size in (100, 1000, 20_000))))
        case dict():
            return st.just(dict(list(value.items())[: len(value) // 2]))
    return _junk()


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` torn, or with bytes flipped, dropped, put in, repeated, or replaced by a number's."""
    place, length = draw(st.integers(0, max(0, len(data) - 1))), draw(st.integers(1, 64))
    before, after = data[:place], data[place:]
    match draw(st.integers(0, 5)):
        case 0:
            return before
        case 1:
            torn = bytearray(data)
            for _ in range(draw(st.integers(1, 8)) if data else 0):
                torn[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
            return bytes(torn)
        case 2:
            return before + after[length:]
        case 3:
            return before + draw(st.binary(min_size=1, max_size=32)) + after
        case 4:
            return before + after[: length**2] + after
        case _:
            bits = draw(st.sampled_from((8, 16, 32, 64)))
            number: int = draw(st.sampled_from((0, 1, 2**bits - 1, 2 ** (bits - 1), 2 ** (bits // 2))))
            return before + number.to_bytes(bits // 8, "little") + after[bits // 8 :]


def _json_text(value: Any) -> str:
    try:
        text = json.dumps(value)
    except (RecursionError, ValueError):
        return "[" * 100_000
    return _RAW_MARK.sub(lambda match: RAW[int(match[1])], text)


def _nested(depth: int) -> Any:
    value: Any = 1
    for number in range(depth):
        value = [value] if number % 2 else {"a": value}
    return value


def _places(root: Any) -> Iterator[tuple[Any, Any]]:
    """Every (holder, key) in `root`; a long list by its first hundred."""
    waiting = [root]
    while waiting:
        holder = waiting.pop()
        keys: list[Any] = list(holder) if isinstance(holder, dict) else []
        for key in keys or range(min(100, len(holder)) if isinstance(holder, list) else 0):
            yield holder, key
            waiting.append(holder[key])
