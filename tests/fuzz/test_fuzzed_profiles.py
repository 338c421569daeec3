"""Files of profiles and of spaces, in previews of a sweep."""

from __future__ import annotations

import contextlib

from hostile_values import damaged, edited, edited_yaml, rarely
from hypothesis import strategies as st
from promises import CELL, Place, fuzzes

from kvray.errors import ProfileError
from kvray.workload import get_profile, load_profile

FAKE = ("tune", "fake:ok", "--engine", "fake")
SPACE = [
    {
        "cache": ["dynamic", "static", "quantized(backend=hqq,nbits=4)", "sliding_window(window=8,sinks=2)"],
        "attention": ["sdpa", "eager"],
        "dtype": ["float32"],
        "compile": ["off"],
    },
    {"cache": ["static"], "tile": ["64"], "layout": ["rows"], "batch_size": ["1"]},
]
_NUMBERS = ", ".join(map(str, range(1, 400)))
_LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [*{before}, *{before}, *{before}, *{before}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
SNIPPETS = (
    "- cache: &a [static]\n  attention: *a\n",
    "- cache: !!python/object/apply:os.system ['touch kvray_escape']\n",
    "- !!python/object/new:type {}\n",
    _LAUGHS,
    "- &a [*a]\n",
    "- cache: &b\n    - static\n    - *b\n",
    "? [a]\n: b\n",
    "- <<: *x\n",
    "- {cache: [dynamic], cache: [static]}\n",
    "%YAML 9.9\n---\n- cache: [dynamic]\n",
    "- cache: [dynamic]\n---\n- cache: [static]\n",
    "- cache:\n\t- dynamic\n",
    *("[" * 5000, "{" * 5000, "- " * 5000, "- batch_size: [" + "1," * 50_000 + "]\n"),
    f"- cache: [{', '.join(f'static(max_cache_len={size})' for size in range(1, 400))}]\n"
    f"  batch_size: [{_NUMBERS}]\n  tile: [{_NUMBERS}]\n",
)
snippets = st.sampled_from([text.encode() for text in SNIPPETS])


@fuzzes("profiles", content=edited(get_profile("chat-agent").model_dump(mode="json")), as_json=rarely(6))
def test_a_profile_is_used_or_refused(content: bytes, as_json: bool, place: Place) -> bool:
    path = place.input / "profile.json"
    path.write_bytes(content)
    code, _ = place.cli(*FAKE, "--device", "cpu", "--dry-run", "--profile", path, *(["--json"] if as_json else []))
    with contextlib.suppress(ProfileError), place.watched(ProfileError):
        load_profile(path)
    return code == 0


@fuzzes("spaces", content=edited_yaml(SPACE))
def test_an_edited_space_is_used_or_refused_in_a_preview(content: bytes, place: Place) -> bool:
    return preview(content, place)


@fuzzes("spaces", content=snippets)
def test_a_space_of_yaml_tricks_is_used_or_refused(content: bytes, place: Place) -> bool:
    return preview(content, place)


@fuzzes("spaces", content=snippets.flatmap(damaged))
def test_damaged_yaml_is_used_or_refused(content: bytes, place: Place) -> bool:
    return preview(content, place)


def preview(content: bytes, place: Place) -> bool:
    path = place.input / "space.yaml"
    path.write_bytes(content)
    code, _ = place.cli(*FAKE, *CELL, "--space", path)
    return code == 0
