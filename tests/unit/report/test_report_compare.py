from __future__ import annotations

import io

from report_sweeps import BASELINE, PROFILE, WINNER, candidate, info_of, measured
from rich.console import Console

from kvray.record import Role, TrialResult
from kvray.report.compare import compare_info, render_comparison
from kvray.report.info import ReportInfo


def sweep(speed: float = 1.9, **manifest: object) -> ReportInfo:
    return info_of([base(), measured(WINNER, speed=speed)], **manifest)


def base(**values: str) -> TrialResult:
    return measured(BASELINE, role=Role.BASELINE, **values)  # type: ignore[arg-type]


def test_a_sweep_compared_with_itself_has_no_warning_and_no_change() -> None:
    comparison = compare_info(sweep(), sweep())
    assert comparison.warnings == ()
    assert {(row.ttft_factor, row.throughput_factor, row.memory_factor) for row in comparison.rows} == {(1.0, 1.0, 1.0)}
    assert comparison.verdict == (
        "The winner is the same: dynamic/sdpa_flash/bfloat16.",
        "B against A, mean of 2 shared candidates: first token as fast, the same tok/s and the same memory.",
    )


def test_a_faster_second_sweep_gains() -> None:
    comparison = compare_info(sweep(1.5), sweep(1.8))
    row = next(row for row in comparison.rows if not row.a.is_baseline)
    assert round(row.ttft_factor, 2) == round(row.throughput_factor, 2) == 1.2


def test_a_much_slower_second_sweep_takes_so_many_times_as_long() -> None:
    slow = info_of([base(), measured(WINNER, speed=1.9 / 155)])
    assert compare_info(sweep(1.9), slow).verdict[1] == (
        "B against A, mean of 2 shared candidates: first token 12.4× as long, 1/12 of the tok/s and the same memory."
    )


def test_unlike_sweeps_are_never_compared_in_silence() -> None:
    profile = PROFILE.model_copy(update={"repeats": 5})
    b = info_of(
        [base(torch_version="2.12.0", host="server"), measured(WINNER, speed=1.9)],
        model_id="other/model",
        profile=profile,
        device_name="NVIDIA H100",
        device="cuda",
        kvray_version="0.2.0",
    )
    warnings = " ".join(compare_info(sweep(), b).warnings)
    assert "The model differs: HuggingFaceTB/SmolLM2-135M in A, other/model in B." in warnings
    for name in ("profile", "device", "host", "torch version", "kvray version"):
        assert f"The {name} differs: " in warnings


def test_what_only_one_sweep_ranks_is_named() -> None:
    a = info_of([base(), measured(candidate("static"))])
    comparison = compare_info(a, sweep())
    assert (comparison.only_a, comparison.only_b) == (("static/sdpa/float32",), ("dynamic/sdpa_flash/bfloat16",))
    assert comparison.verdict[0].startswith("The winner changed from ")


def test_empty_sweeps_compare_to_nothing() -> None:
    empty = info_of([])
    assert compare_info(empty, empty).verdict == ("Neither sweep ranks anything.", "No candidate is ranked in both.")
    assert compare_info(empty, sweep()).verdict[0] == "Sweep A ranks nothing."
    assert compare_info(sweep(), empty).verdict[0] == "Sweep B ranks nothing."


def test_the_comparison_fits_eighty_columns() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(render_comparison(compare_info(sweep(), sweep(1.5, model_id="other/model"))))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "These sweeps are not alike" in text
    assert "1→1" in text
