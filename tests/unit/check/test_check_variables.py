"""What a check says of the variables in which its sides differ."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kvray.check.judge import side_differences
from kvray.check.measured import _speed_variables
from kvray.check.outcome import Outcome
from kvray.check.result import CheckMode, SideInfo
from kvray.check.side import SideSpec
from kvray.check.suite.running import _without_names
from kvray.store.speed_variables import LIST, SPEED_VARIABLES

SIDES = (SideInfo(name="A"), SideInfo(name="B"))


def told(mode: CheckMode, *, baseline: Any = None, b: dict[str, str] | None = None) -> tuple[str, ...]:
    """What `Outcome` tells, of which nothing but the sides' variables counts here."""
    facts = SimpleNamespace(kvray_source="s", kvray_version="1")
    sides: Any = [SimpleNamespace(spec=SimpleNamespace(variables=one), facts=facts) for one in ({}, b or {})]
    unused: Any = dict.fromkeys(("config", "margins", "run_id", "results", "started_at", "elapsed_s"))
    subject: Any = SimpleNamespace(mode=mode, baseline=baseline)
    return Outcome(subject=subject, sides=sides, **unused)._differences(SIDES)


def test_another_sides_variables_are_told_with_the_values_that_change_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {"ATEN_CPU_CAPABILITY": "avx512", "MINE": "a", "SAME": "1"})
    changed = {"ATEN_CPU_CAPABILITY": "avx2", "MINE": "b", "SAME": "1", "NEW": "secret", "GOMP_CPU_AFFINITY": "0"}
    assert told(CheckMode.A_B, b=changed) == (
        "ATEN_CPU_CAPABILITY: avx512 → avx2",
        "GOMP_CPU_AFFINITY: not set → 0",
        "MINE has another value",
        "NEW: not set → set",
    )


def test_what_both_sides_have_written_down_is_compared_by_what_both_looked_at() -> None:
    def side(variables: dict[str, str | None] | None, number: int | None = LIST) -> SideInfo:
        return SideInfo(name="B", speed_variables=variables, speed_variables_list=number)

    threads, waits = {"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    assert side_differences(side({}), side({**threads})) == ("OMP_NUM_THREADS: not set → 1",)
    assert side_differences(side({**threads}), side({**waits})) == ("OMP_WAIT_POLICY: not set → passive",)
    assert side_differences(side({**threads}, None), side({**waits})) == (), "the list of before did not have it"
    assert side_differences(side(None), side({**waits})) == ()
    left_out = side({"LD_PRELOAD": None})
    assert side_differences(left_out, side({"LD_PRELOAD": "/lib/a.so"})) == ()
    assert side_differences(side({}), left_out) == ("LD_PRELOAD: not set → set",)


def test_a_side_writes_down_its_own_variables_and_a_record_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {"OMP_NUM_THREADS": "2", "LD_PRELOAD": "/lib/a.so", "HOME": "/root"})
    spec = SideSpec(name="B", variables={"OMP_NUM_THREADS": "1", "TOKEN": "secret"})
    side: Any = SimpleNamespace(spec=spec)
    written = _speed_variables(side)
    assert written == {"LD_PRELOAD": "/lib/a.so", "OMP_NUM_THREADS": "1"}
    record = _without_names(SideInfo(name="now", speed_variables=written))
    assert record.speed_variables == {"LD_PRELOAD": None, "OMP_NUM_THREADS": "1"}


def test_of_a_record_only_the_variables_that_it_knows_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"})
    known = SimpleNamespace(variables={"OMP_NUM_THREADS": "2"}, known_variables=frozenset({"OMP_NUM_THREADS"}))
    assert told(CheckMode.RECORD, baseline=known) == ("OMP_NUM_THREADS: 2 → 1",)
    known.known_variables = SPEED_VARIABLES
    assert told(CheckMode.RECORD, baseline=known) == ("OMP_NUM_THREADS: 2 → 1", "OMP_WAIT_POLICY: not set → passive")
    nothing = SimpleNamespace(variables={}, known_variables=frozenset())
    assert told(CheckMode.RECORD, baseline=nothing) == ()
