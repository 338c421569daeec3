"""`kvray compare` of checks, plans and sweeps."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from checked import candidate, checked, side
from typer.testing import CliRunner, Result

from kvray.analysis.comparison import ComparedMetric, Verdict
from kvray.candidate import CacheStrategy
from kvray.check.check_file import write_check
from kvray.check.comparing import ComparedPlaces, compare_places, read_place
from kvray.check.comparison_text import sentence
from kvray.check.result import CheckedCandidate, SideInfo
from kvray.cli.compare import app
from kvray.errors import InconclusiveError, RegressionError, ResultsError

RESULTS = Path(__file__).parents[2] / "assets" / "results_v3"
TINY, FAKE = "20261127-023230-e83e", "20261127-023553-8bef"
MARGINS = {ComparedMetric.TTFT: 0.05}


def check_file(
    path: Path, ttft_ms: float, *, session: str = "s1", kernel: str = "sdpa", rounds: int = 8, **info: object
) -> str:
    """A check whose `now` side took `ttft_ms` in every round."""
    one = CheckedCandidate(
        label=candidate().label,
        candidate=candidate(),
        verdict=Verdict.PASS,
        now=side(ttft_ms, session=session, kernel=kernel, rounds=rounds),
    )
    write_check(checked(candidates=(one,), sides=(SideInfo(name="A"), SideInfo(name="B", **info))), path)
    return str(path)


def compared(a: str, b: str, **options: bool) -> ComparedPlaces:
    return compare_places(read_place(a), read_place(b), margins=MARGINS, **{"force": False, **options})


def compare(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "100"})


def test_two_checks_are_compared_in_words(tmp_path: Path) -> None:
    a, b = check_file(tmp_path / "a.json", 10.0), check_file(tmp_path / "b.json", 8.0)
    found = compared(a, b)
    assert found.verdict is Verdict.PASS
    told = sentence(found.candidates[0])
    assert re.fullmatch(
        r"B is 25 % faster to first token \(\+\d+ % to \+\d+ %\), with the same tok/s \(.*\)\.", told
    ), told


def test_what_got_slower_fails_with_the_exit_code_of_check(tmp_path: Path) -> None:
    a, b = check_file(tmp_path / "a.json", 10.0), check_file(tmp_path / "b.json", 13.0)
    done = compare(a, b, "--margin", "ttft=5%")
    assert isinstance(done.exception, RegressionError)
    assert "FAIL: time to first token got worse by more than the margin." in done.stdout
    assert compare(a, b).exit_code == 0, "without a margin nothing is judged"


def test_a_row_writes_change_and_interval_in_one_way(tmp_path: Path) -> None:
    a, b = check_file(tmp_path / "a.json", 10.0), check_file(tmp_path / "b.json", 6.0)
    row = next(line for line in compare(a, b).stdout.splitlines() if line.startswith("time to first token"))
    assert re.search(r" −40 % +−\d\d % to −\d\d %$", row.rstrip()), row


def test_what_lies_near_the_margin_is_inconclusive(tmp_path: Path) -> None:
    a, b = check_file(tmp_path / "a.json", 10.0), check_file(tmp_path / "b.json", 10.4, session="s2")
    done = compare(a, b, "--margin", "ttft=5%")
    assert isinstance(done.exception, InconclusiveError)
    assert "B is 4 % slower to first token within noise (" in done.stdout
    assert "More processes would not tell; kvray check --against measures both in turn." in " ".join(
        done.stdout.split()
    )
    narrow = CliRunner().invoke(app, [a, b, "--margin", "ttft=5%"], env={"COLUMNS": "80"}).stdout
    assert " 5 %  inconclusive" in narrow
    assert "…" not in narrow
    assert compare(a, b, "--margin", "ttft=5%", "--on-inconclusive", "pass").exit_code == 0
    mapped = compare(a, b, "--margin", "ttft=5%", "--on-inconclusive", "fail")
    assert isinstance(mapped.exception, RegressionError)


def test_what_differs_is_said_first(tmp_path: Path) -> None:
    a = check_file(tmp_path / "a.json", 10.0, engine_versions={"torch": "2.12.0"}, kvray_version="0.1.0")
    b = check_file(tmp_path / "b.json", 10.0, engine_versions={"torch": "2.13.0"}, kvray_version="0.2.0", kernel="math")
    text = compare(a, b).stdout
    places = [
        text.index(one) for one in ("torch: 2.12.0 → 2.13.0", "another kernel ran in decode: sdpa → math", "B is")
    ]
    assert places == sorted(places)
    assert "kvray: 0.1.0 → 0.2.0" in text
    assert compared(a, b).verdict is Verdict.FAIL, "another kernel is a FAIL whatever the numbers"


def test_variables_that_change_speed_are_named_for_two_checks(tmp_path: Path) -> None:
    a = check_file(tmp_path / "a.json", 10.0, speed_variables={}, speed_variables_list=2)
    b = check_file(tmp_path / "b.json", 10.0, speed_variables={"OMP_NUM_THREADS": "1"}, speed_variables_list=2)
    assert "- OMP_NUM_THREADS: not set → 1" in compare(a, b).stdout


def test_unlike_machines_are_refused_unless_forced(tmp_path: Path) -> None:
    a = check_file(tmp_path / "a.json", 10.0, device_name="one CPU", cpus=2)
    b = check_file(tmp_path / "b.json", 10.0, device_name="another CPU", cpus=8)
    with pytest.raises(ResultsError, match=r"unlike machines .device: one CPU → another CPU; usable CPUs: 2 → 8."):
        compared(a, b)
    assert compared(a, b, force=True).machine == ("device: one CPU → another CPU", "usable CPUs: 2 → 8")
    assert "device: one CPU → another CPU" in compare(a, b, "--force").stdout


def test_json_has_the_intervals_and_the_verdict(tmp_path: Path) -> None:
    a, b = check_file(tmp_path / "a.json", 10.0), check_file(tmp_path / "b.json", 13.0)
    found = json.loads(compare(a, b, "--margin", "ttft=5%", "--format", "json").stdout)
    ttft = found["candidates"][0]["metrics"][0]
    assert (found["verdict"], ttft["metric"], ttft["verdict"]) == ("fail", "ttft", "fail")
    assert ttft["change"]["low"] < 0.3 < ttft["change"]["high"]


def test_markdown_is_a_table(tmp_path: Path) -> None:
    a, b = check_file(tmp_path / "a.json", 10.0), check_file(tmp_path / "b.json", 13.0)
    lines = compare(a, b, "--margin", "ttft=5%", "--format", "markdown").stdout.splitlines()
    heads = next(line for line in lines if line.startswith("| metric"))
    assert all(line.count("|") == heads.count("|") for line in lines if line.startswith("|"))
    assert any(line.startswith("| time to first token, ms | 10.0 | 13.0 | +30 % |") for line in lines)


def test_checks_that_share_no_candidate_cannot_be_judged(tmp_path: Path) -> None:
    a = check_file(tmp_path / "a.json", 10.0)
    other = CheckedCandidate(
        label="other", candidate=candidate(CacheStrategy.STATIC), verdict=Verdict.PASS, now=side(10.0)
    )
    write_check(checked(candidates=(other,)), tmp_path / "b.json")
    with pytest.raises(ResultsError, match="nothing to judge"):
        compared(a, str(tmp_path / "b.json"))
    for form in ("table", "markdown", "json"):
        done = compare(a, str(tmp_path / "b.json"), "--format", form)
        assert (done.exit_code, done.exception) == (0, None)
        text = " ".join(done.stdout.split())
        assert "There is nothing to compare: A and B have no single measurements of a candidate that they sh" in text
        assert "Compare two sweeps or checks of the same candidate." in text


def test_a_copied_plan_says_why_nothing_of_it_can_be_compared(tmp_path: Path) -> None:
    copied = shutil.copy(RESULTS / "reports" / FAKE / "best_plan.json", tmp_path / "best_plan.json")
    text = " ".join(compare(str(copied), f"{RESULTS}#{TINY}").stdout.split())
    assert "There is nothing to compare: A and B have no" in text
    assert "holds no single measurements, and the results folder that it was made in is not around it." in text
    assert "are the same run" not in text


@pytest.mark.parametrize("place", [f"{RESULTS}#{FAKE}", str(RESULTS / "reports" / FAKE / "best_plan.json")])
def test_a_run_compared_with_itself_is_told_so(place: str) -> None:
    told = f"A and B are the same run, {FAKE}, so nothing can differ."
    found = compare_places(read_place(place), read_place(f"{RESULTS}#{FAKE}"), margins={}, force=False)
    assert found.remarks == (told,)
    assert told in " ".join(compare(place, f"{RESULTS}#{FAKE}").stdout.split())
    other = compare_places(read_place(place), read_place(f"{RESULTS}#{TINY}"), margins={}, force=False)
    assert not any("same run" in one for one in other.remarks)


@pytest.mark.parametrize(
    "place",
    [RESULTS, f"{RESULTS}#{FAKE}", RESULTS / "reports" / FAKE, RESULTS / "reports" / FAKE / "best_plan.json"],
    ids=["folder", "run", "folder of a run", "plan"],
)
def test_sweeps_and_their_plans_are_compared(place: Path | str) -> None:
    found = compare_places(read_place(str(place)), read_place(f"{RESULTS}#{FAKE}"), margins={}, force=False)
    assert [one.label_a for one in found.candidates] == ["static/sdpa/bfloat16"]
    assert sentence(found.candidates[0]).startswith("B is as fast to first token")
    assert (found.verdict, found.differences) == (None, ())


def test_two_sweeps_keep_the_table_of_their_candidates() -> None:
    text = compare(str(RESULTS), f"{RESULTS}#{FAKE}").stdout
    places = [text.index(one) for one in ("static/sdpa/bfloat16 in both", "The winner is the same", "1→1")]
    assert places == sorted(places)


def test_the_table_in_json_names_directions_and_units() -> None:
    found = json.loads(compare(str(RESULTS), f"{RESULTS}#{FAKE}", "--format", "json").stdout)
    for row in found["sweeps"]["candidates"]:
        assert row.keys() == {"label", "rank_a", "rank_b", "ttft_speedup", "decode_speedup", "peak_ratio"}


def test_winners_that_differ_are_compared_with_each_other() -> None:
    found = compare_places(
        read_place(f"{RESULTS}#{TINY}"), read_place(f"{RESULTS}#{FAKE}"), margins=MARGINS, force=False
    )
    assert [(one.label_a, one.label_b) for one in found.candidates] == [
        ("dynamic/sdpa/float32+chunk:32×2", "static/sdpa/bfloat16")
    ]
    assert sentence(found.candidates[0]) == "A and B measured nothing in common."
    assert found.verdict is Verdict.FAIL
