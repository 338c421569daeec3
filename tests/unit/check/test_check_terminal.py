from __future__ import annotations

import io

import pytest
from checks import (
    ALL,
    BETTER,
    EMPTY,
    HOSTILE,
    NOT_MEASURED,
    OTHER_KERNEL,
    PASSED,
    SEVERAL,
    SLOWER,
    UNDECIDED,
    check_of,
    checked,
    metric,
)
from rich.console import Console

from kvray.analysis.comparison import ComparedMetric, Verdict
from kvray.check.outputs import wording
from kvray.check.outputs.markdown import render_markdown
from kvray.check.outputs.terminal import render_terminal
from kvray.check.result import Change, CheckMode, CheckResult


def printed(result: CheckResult, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(render_terminal(result))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("name", ALL)
def test_the_verdict_is_the_first_word(name: str) -> None:
    assert printed(ALL[name]).startswith(f"{ALL[name].verdict.upper()}: ")


def test_a_check_that_passes_says_so_and_no_more() -> None:
    assert printed(PASSED).splitlines()[0] == "PASS: nothing is worse than its margin."


def test_a_better_result_passes_and_is_said() -> None:
    text = printed(BETTER)
    assert text.startswith("PASS: nothing is worse than its margin. ")
    assert "is better than before: 12.3 % higher (+10.3 % to +14.3 %)." in text
    assert "PASS, better" in text


def test_a_metric_outside_its_margin_that_is_no_failure_says_why() -> None:
    for which, value in ((ComparedMetric.TTFT, 0.2), (ComparedMetric.DECODE, -0.2)):
        told = wording.metric_sentence(metric(which, value, Verdict.INCONCLUSIVE))
        assert told.endswith("the margin is 5 %. That it is worse is not certain enough for a FAIL.")
    open_one = wording.metric_sentence(metric(ComparedMetric.TTFT, 0.06, Verdict.INCONCLUSIVE))
    assert open_one.endswith("; the margin is 5 %.")


def test_a_failure_names_the_change_its_interval_and_the_margin() -> None:
    lines = printed(SLOWER).splitlines()
    assert lines[0].endswith("is 12.3 % longer (+10.3 % to +14.3 %); the margin is 5 %. 2 more reasons below.")
    assert any("at 64→16 tokens is 20.1 % longer" in line and "outside the margin by itself" in line for line in lines)
    assert any("0.48× as high (0.46× to 0.50×)" in line for line in lines)
    assert sum("12.3 % longer" in line for line in lines) == 1, "what the headline says is not said again"


def test_rounds_that_do_not_count_are_said() -> None:
    one = checked(measured_rounds=4, disturbed_rounds=1, rounds=3)
    text = printed(check_of(one), width=300)
    assert text.count("4 rounds, 1 of them set aside because other programs disturbed it") == 2
    text = printed(check_of(one, checked(measured_rounds=6)))
    assert " · 6 rounds · " in text
    assert text.count("4 rounds, 1 of them set aside") == 1
    assert " · 6 rounds · " in printed(check_of(checked())), "a check.json of before knows only the rounds that count"


def test_what_differs_comes_before_the_metrics() -> None:
    text = printed(SLOWER)
    assert text.index("What differs") < text.index("transformers 5.22.0 in A, 5.23.0 in B") < text.index("before")


def test_another_kernel_fails_whatever_the_numbers() -> None:
    text = printed(OTHER_KERNEL)
    assert text.startswith("FAIL: another kernel ran in decode: sdpa_math, before sdpa_flash.\n")
    assert "differs: kernel in decode" in text
    assert "1 failed measurement" in text


def test_what_the_suite_remarks_on_is_not_said_to_differ() -> None:
    same = "outputs are the same bit by bit"
    suite = check_of(checked(differences=(same,))).model_copy(update={"mode": CheckMode.SUITE})
    assert any(line.strip() == same for line in printed(suite).splitlines())
    assert f"differs: {same}" not in printed(suite) + render_markdown(suite)


def test_no_verdict_is_cut_on_a_narrow_terminal() -> None:
    text = printed(UNDECIDED, width=72)
    assert any(line.rstrip().endswith("5 %  INCONCLUSIVE") for line in text.splitlines())
    assert "…" not in text


def test_an_undecided_check_says_what_it_would_take() -> None:
    lines = printed(UNDECIDED).splitlines()
    assert "lies between −2.0 % and +8.0 %; the margin is 5 %." in lines[0]
    assert lines[1] == "About 14 more rounds (about 9 min) would decide. Give a larger --budget."
    interrupted = UNDECIDED.model_copy(update={"is_interrupted": True})
    assert printed(interrupted).splitlines()[1] == "It was interrupted. Check again."


def test_what_was_not_measured_shows_as_missing() -> None:
    text = printed(NOT_MEASURED)
    assert "was not measured on both sides." in text
    assert "nan" not in text


def test_of_many_candidates_the_worst_come_first_and_the_quiet_ones_are_named() -> None:
    text = printed(SEVERAL)
    assert text.startswith("FAIL: 1 of 4 cases fails.")
    assert text.index("FAIL  dynamic/sdpa_flash") < text.index("PASS  offloaded") < text.index("PASS: 2 more cases")
    assert text.index("PASS: 2 more cases") < text.index("random:llama quantized/eager/float32")
    moved = SEVERAL.candidates[0].model_copy(update={"differences": ("log-probabilities moved by 1e-5 nats",)})
    some = SEVERAL.model_copy(update={"candidates": (moved, *SEVERAL.candidates[1:])})
    assert "static/sdpa_flash/bfloat16: log-probabilities moved by 1e-5 nats" in printed(some)
    changes = {"candidates": SEVERAL.candidates[2:], "verdict": Verdict.PASS, "mode": CheckMode.A_B}
    better = SEVERAL.model_copy(update=changes)
    assert printed(better).startswith(
        "PASS: nothing is worse than its margin. 1 of 2 candidates is better than before."
    )


def test_a_check_without_candidates_says_why() -> None:
    assert printed(EMPTY).startswith("FAIL: nothing of the baseline can be measured here.")


def test_outside_text_cannot_move_the_cursor_or_begin_a_line() -> None:
    text = printed(HOSTILE, width=4000)
    assert "\x1b" not in text
    assert "\x00" not in text
    assert not any(line.strip().startswith("next") for line in text.splitlines())


def test_every_line_of_eighty_columns_fits() -> None:
    for result in ALL.values():
        assert max(map(len, printed(result, width=80).splitlines())) <= 80


@pytest.mark.parametrize(
    ("change", "text", "words"),
    [
        (0.0, "±0.0 %", "the same"),
        (0.0004, "±0.0 %", "the same"),
        (0.049, "+4.9 %", "4.9 % longer"),
        (-0.049, "−4.9 %", "4.9 % shorter"),
        (0.92, "1.92×", "1.92× as long"),
        (-0.6, "0.40×", "0.40× as long"),
    ],
)
def test_changes_are_finer_than_a_margin(change: float, text: str, words: str) -> None:
    assert wording.change_text(change) == text
    assert wording.change_words(ComparedMetric.TTFT, change) == words


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (-0.01, 0.03, "−1.0 % to +3.0 %"),
        (-0.62, 0.10, "−62.0 % to +10.0 %"),
        (-0.2, -0.0004, "−20.0 % to −0.04 %"),
        (0.001, 1.2, "1.001× to 2.20×"),
        (0.4, 1.2, "1.40× to 2.20×"),
        (-0.7, -0.45, "0.30× to 0.55×"),
    ],
)
def test_both_ends_of_an_interval_are_written_in_one_way(low: float, high: float, shown: str) -> None:
    assert wording.interval_text(Change(value=(low + high) / 2, low=low, high=high)) == shown
