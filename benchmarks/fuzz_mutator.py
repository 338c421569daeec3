"""Hostile values and mutations for `fuzz.py`: valid data goes in, bytes that are a little or entirely wrong come out.

Everything is drawn from one `random.Random`, so that a seed repeats an input.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

CANARY = "kvray_escape"
"""No file, process or name in generated code may ever be called so."""
_CALL = f"{CANARY}()"
STRINGS = (
    *(
        "",
        " ",
        "\0",
        "a\0b",
        "\ud800",
        "\udcff.json",
        "\x1b[2J",
        "\r\n",
        "\u202e",
        "\ufeff",
        "ｆｕｌｌ",
        "ß" * 130,
        "A" * 300,
    ),
    *("A" * 5000, "9" * 5000, "-1", "0", "1e999", "nan", "inf", "-inf", "null", "true", "1_000", "٣", "0x10", "1.5"),
    *(
        f"../../../../../tmp/{CANARY}",
        f"/tmp/{CANARY}",
        f"../{CANARY}",
        "/etc/passwd",
        "/dev/zero",
        "~root",
        "~nobody0/x",
    ),
    *(".", "..", "/", "//", "\\\\host\\share", "file:///etc/passwd", "http://127.0.0.1:9/x", "s3://u:p@127.0.0.1:9/b"),
    *(f"__import__('os').system('touch {CANARY}')", f"'); {_CALL}; ('", f'"); {_CALL}; ("', f'"""\n{_CALL}\n"""'),
    *(
        f"\n{_CALL}\n#",
        f"\\'\n{_CALL}",
        f"x\u2028{_CALL}",
        f"x\x0c{_CALL}",
        f"# coding: utf-7\n{_CALL}",
        "{0.__class__}",
    ),
    *(
        f"{{{{ cycler.__init__.__globals__.os.system('touch {CANARY}') }}}}",
        "{% for i in range(10**12) %}x{% endfor %}",
    ),
    *(f"!!python/object/apply:os.system ['touch {CANARY}']", "<script>alert(1)</script>", "[bold]", "[/]", "[link=x]"),
    *(
        "quantized(nbits=4",
        "dynamic,static",
        "static(max_cache_len=" + "9" * 400 + ")",
        "owner/kernel",
        "a/b@c:d",
        "%s%n",
    ),
)
NUMBERS: tuple[int | float, ...] = (
    *(0, -0.0, -1, 1, 2, 3, 7, 0.5, 1.5, 5e-324, 1e-300, 1e17, 1e300, 1.7e308, -1e308, 255, 256, 65_536, 100_000),
    *(10**6, 10**9, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, -(2**63), 2**64, 2**100, 10**400),
)
RAW = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5000, "-" + "7" * 4400, "1e-999", "00", '"\\ud800"')
"""JSON text that no Python value is written as; put in place of a marked value."""
_RAW_MARK = re.compile(r'"@raw(\d+)@"')
_LENGTHS = (100, 1000, 20_000)


class Mutator:
    """One input's choices."""

    def __init__(self, seed: object) -> None:
        self.random = random.Random(str(seed))

    def chance(self, share: float) -> bool:
        """True in `share` of all calls."""
        return self.random.random() < share

    def one_of(self, *values: T) -> T:
        """Any of `values`."""
        return self.random.choice(values)

    def string(self) -> str:
        """A hostile string, now and then two together, or random characters."""
        if self.chance(0.15):
            return "".join(chr(self.random.randrange(0xD800)) for _ in range(self.random.randrange(12)))
        text = self.random.choice(STRINGS)
        return text + self.random.choice(STRINGS) if self.chance(0.1) else text

    def junk(self, depth: int = 0) -> Any:
        """Any JSON-like value."""
        kind = self.random.randrange(9 if depth < 3 else 6)
        if kind < 2:
            return self.string()
        if kind < 4:
            return self.random.choice(NUMBERS)
        if kind == 4:
            return self.random.choice((None, True, False, [], {}))
        if kind == 5:
            return f"@raw{self.random.randrange(len(RAW))}@"
        if kind == 6:
            return self._nested(self.random.choice((5, 60, 400)))
        if kind == 7:
            return [self.junk(depth + 1) for _ in range(self.random.randrange(4))]
        return {self.string(): self.junk(depth + 1) for _ in range(self.random.randrange(4))}

    def mutated(self, value: Any) -> Any:
        """A copy of `value` with one to five places changed."""
        changed = copy.deepcopy(value)
        for _ in range(min(5, 1 + int(self.random.expovariate(1.0)))):
            changed = self._mutate_once(changed)
        return changed

    def json_bytes(self, value: Any) -> bytes:
        """JSON of a mutation of `value`; in a quarter of all cases no longer JSON, or no longer UTF-8."""
        if self.chance(0.03):
            return self._hostile_document()
        text = self.json_text(self.mutated(value))
        data = text.encode("utf-8", errors="surrogatepass")
        return self.damaged(data) if self.chance(0.2) else data

    def json_text(self, value: Any) -> str:
        """JSON of `value`, raw numbers put in; a key is doubled now and then."""
        try:
            text = json.dumps(value, ensure_ascii=self.chance(0.7))
        except (RecursionError, ValueError):
            return "[" * 100_000
        text = _RAW_MARK.sub(lambda match: RAW[int(match[1])], text)
        if text.startswith("{") and self.chance(0.05):
            text = '{"' + next(iter(value), "a").replace('"', "") + '": 1, ' + text[1:]
        return text

    def damaged(self, data: bytes) -> bytes:
        """Torn, spliced, or with bytes flipped."""
        changed = bytearray(data)
        match self.random.randrange(6):
            case 0:
                del changed[self.random.randrange(len(changed) + 1) :]
            case 1:
                for _ in range(1 + self.random.randrange(8)):
                    if changed:
                        changed[self.random.randrange(len(changed))] ^= 1 << self.random.randrange(8)
            case 2:
                begin, end = sorted(self.random.randrange(len(changed) + 1) for _ in range(2))
                place = self.random.randrange(len(changed) + 1)
                changed[place:place] = changed[begin : min(end, begin + 4096)]
            case 3:
                begin = self.random.randrange(len(changed) + 1)
                del changed[begin : begin + self.random.randrange(1, 64)]
            case 4:
                place = self.random.randrange(len(changed) + 1)
                changed[place:place] = self.random.randbytes(self.random.randrange(1, 32))
            case _:
                width = self.one_of(1, 2, 4, 8)
                place = self.random.randrange(max(1, len(changed) - width))
                number = self.one_of(0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 2 ** (4 * width))
                changed[place : place + width] = number.to_bytes(width, "little")
        return bytes(changed)

    def _hostile_document(self) -> bytes:
        document: bytes = self.one_of(
            b"",
            b"\xff\xfe{}",
            b"\xef\xbb\xbf{}",
            b"[" * 100_000,
            b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
            b"[" * 900 + b"]" * 900,
            b"1" * 20_000,
            b'"' + b"a" * 2_000_000 + b'"',
            b"NaN",
            b"[" + b"0," * 200_000 + b"0]",
            b"\0" * 1000,
            b"PK\x03\x04",
        )
        return document

    def _mutate_once(self, root: Any) -> Any:
        places = list(_places(root))
        if not places or self.chance(0.02):
            return self.junk()
        holder, key = self.random.choice(places)
        match self.random.randrange(8):
            case 0:
                del holder[key]
            case 1 | 2 | 3:
                holder[key] = self.junk()
            case 4:
                other, name = self.random.choice(places)
                holder[key] = copy.deepcopy(other[name]) if name in _keys(other) else None
            case 5:
                if isinstance(holder, dict):
                    holder[self.string()] = holder[key] if self.chance(0.5) else self.junk()
                else:
                    holder.append(copy.deepcopy(holder[key]))
            case 6:
                holder[key] = self._nudged(holder[key])
            case _:
                holder[key] = [holder[key]] if self.chance(0.5) else {"value": holder[key]}
        return root

    def _nudged(self, value: Any) -> Any:
        """Another value of the same type."""
        match value:
            case bool():
                return not value
            case int() | float():
                return self.random.choice(NUMBERS)
            case str():
                return self.one_of(self.string(), value + self.string(), value.upper(), value[:-1])
            case list() if value:
                return list(range(1, 1 + self.random.choice(_LENGTHS))) if self.chance(0.3) else value[::-1]
            case dict():
                return dict(list(value.items())[: len(value) // 2])
        return self.junk()

    def _nested(self, depth: int) -> Any:
        value: Any = 1
        for _ in range(depth):
            value = [value] if self.chance(0.5) else {"a": value}
        return value


def _places(root: Any) -> Any:
    """Every (holder, key) in a tree of lists and dicts; a long list by its first hundred."""
    waiting, seen = [root], 0
    while waiting and seen < 5000:
        holder = waiting.pop()
        for key in _keys(holder):
            seen += 1
            yield holder, key
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])


def _keys(holder: Any) -> list[Any]:
    if isinstance(holder, Mapping):
        return list(holder)
    return list(range(min(100, len(holder)))) if isinstance(holder, list) else []
