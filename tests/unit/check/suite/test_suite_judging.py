from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from suite_samples import CASE, recorded

from kvray.analysis.comparison import ComparedMetric, Verdict
from kvray.candidate import DeviceType
from kvray.check.result import CheckedCandidate, MeasuredSide, ProcessSample, RanFacts, SideInfo
from kvray.check.suite.cases import SUITE_PROFILE
from kvray.check.suite.judging import (
    SuiteRules,
    judge_case,
    lost_case,
    same_kernels,
    same_machine,
    same_output_variables,
)
from kvray.check.suite.outputs import OutputRules
from kvray.record import TrialStatus
from kvray.store.speed_variables import LIST

MARGINS = {ComparedMetric.TTFT: 0.15, ComparedMetric.DECODE: 0.15, ComparedMetric.MEMORY: 0.05}
SIDE = SideInfo(name="now", device_name="a CPU", cpus=2, memory_gib=24)


def rules(margins: Mapping[ComparedMetric, float] = MARGINS, **changes: Any) -> SuiteRules:
    return SuiteRules(
        **{
            "names": ("baseline", "now"),
            "outputs": OutputRules(same_surroundings=True),
            "same_kernels": True,
            "together": 1,
            "margins": margins,
            **changes,
        }
    )


def measured(ttft_ms: Sequence[float], *, ran: RanFacts, session: str) -> MeasuredSide:
    return MeasuredSide(
        cells=SUITE_PROFILE.cells(1, rung=1),
        processes=tuple(
            ProcessSample(round=number, session=session, logs=((math.log(ms), math.log(300.0), math.log(500.0)),))
            for number, ms in enumerate(ttft_ms, start=1)
        ),
        ran=ran,
    )


def judged(before_ms: Sequence[float], now_ms: Sequence[float], rule: SuiteRules, **now: Any) -> CheckedCandidate:
    ran = RanFacts(kernel_decode="sdpa_flash", cache_class="StaticCache", threads=2)
    seen = now.pop("ran", ran)
    before = recorded(measured=measured(before_ms, ran=ran, session="one"))
    return judge_case(CASE, before, recorded(measured=measured(now_ms, ran=seen, session="one"), **now), rule)


def test_times_beyond_the_margin_fail_and_within_it_pass() -> None:
    alike = judged((10.0, 10.1, 9.9, 10.0), (10.1, 10.0, 10.0, 9.9), rules())
    assert alike.verdict is Verdict.PASS
    assert alike.label == CASE.name
    slower = judged((10.0, 10.1, 9.9, 10.0), (15.0, 15.2, 15.1, 14.9), rules())
    assert slower.verdict is Verdict.FAIL
    assert {one.metric: one.verdict for one in slower.metrics}[ComparedMetric.TTFT] is Verdict.FAIL


def test_what_fails_alone_is_not_certain_enough_among_many_cases() -> None:
    before, slower = (10.0, 10.4, 9.6, 10.1), (12.6, 13.0, 12.7, 12.4)
    assert judged(before, slower, rules()).verdict is Verdict.FAIL
    among = judged(before, slower, rules(together=27))
    assert among.verdict is Verdict.INCONCLUSIVE
    assert among.more_rounds


def test_without_margins_times_are_not_judged_and_outputs_are() -> None:
    assert judged((10.0, 10.1), (20.0, 20.1), rules({})).verdict is Verdict.PASS
    other = judged((10.0, 10.1), (10.0, 10.1), rules({}), model="0" * 64)
    assert other.verdict is Verdict.FAIL


def test_another_kernel_fails_where_the_same_can_be_expected() -> None:
    other = RanFacts(kernel_decode="sdpa_math", cache_class="StaticCache", threads=2)
    failed = judged((10.0, 10.1), (10.0, 10.1), rules({}), ran=other)
    assert failed.verdict is Verdict.FAIL
    assert failed.reasons == ("another kernel ran in decode: sdpa_flash → sdpa_math",)
    assert judged((10.0, 10.1), (10.0, 10.1), rules({}, same_kernels=False), ran=other).verdict is Verdict.PASS
    cache = other.model_copy(update={"cache_class": "DynamicCache"})
    assert judged((10.0, 10.1), (10.0, 10.1), rules({}, same_kernels=False), ran=cache).verdict is Verdict.FAIL


def test_a_case_that_no_longer_runs_fails_with_the_engine_s_words() -> None:
    broken = recorded(status=TrialStatus.ERROR, message="cannot import name 'StaticCache'")
    checked = judge_case(CASE, recorded(), broken, rules())
    assert checked.verdict is Verdict.FAIL
    assert checked.reasons == ("it no longer runs (error): cannot import name 'StaticCache'",)
    mended = judge_case(CASE, broken, recorded(), rules())
    assert (mended.verdict, mended.reasons) == (Verdict.PASS, ())
    assert mended.differences == ("it runs now; before (error): cannot import name 'StaticCache'",)


def test_a_case_without_a_record_is_said_and_one_that_was_lost_fails() -> None:
    new = judge_case(CASE, None, recorded(), rules())
    assert (new.verdict, new.differences) == (Verdict.PASS, ("it was not measured before",))
    lost = lost_case(CASE, recorded(), "The engine llama_cpp needs llama_cpp, which is not installed.")
    assert lost.verdict is Verdict.FAIL
    assert "which is not installed" in lost.reasons[0]


@pytest.mark.parametrize(
    "change", [{"device_name": "another"}, {"cpus": 4}, {"memory_gib": 32}, {"driver_version": "2"}]
)
def test_another_machine_is_told_by_device_cpus_memory_and_driver(change: dict[str, Any]) -> None:
    assert same_machine(SIDE, SIDE.model_copy(update={"host": "renamed", "engine_versions": {"torch": "2"}}))
    assert not same_machine(SIDE, SIDE.model_copy(update=change))


def with_variables(variables: dict[str, str | None] | None, number: int | None = LIST) -> SideInfo:
    return SIDE.model_copy(update={"speed_variables": variables, "speed_variables_list": number})


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_CBWR", "ATEN_CPU_CAPABILITY", "GLIBC_TUNABLES", "NCCL_ALGO"])
def test_a_variable_that_may_change_the_last_bits_is_another_surrounding(name: str) -> None:
    two, unset = with_variables({name: "2"}), with_variables({})
    assert same_output_variables(two, two)
    assert not same_output_variables(two, with_variables({name: "1"}))
    assert not same_output_variables(two, unset)
    assert not same_output_variables(unset, two)


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "MALLOC_ARENA_MAX", "PYTORCH_CUDA_ALLOC_CONF"])
def test_a_variable_that_changes_speed_alone_is_none(name: str) -> None:
    assert same_output_variables(with_variables({name: "1"}), with_variables({}))


def test_variables_that_nobody_wrote_down_may_have_been_others() -> None:
    unset, unread, older = with_variables({}), with_variables(None, None), with_variables({}, None)
    without_value = with_variables({"LD_PRELOAD": None})
    assert same_output_variables(unset, unset)
    for one in (unread, older, without_value):
        assert not same_output_variables(one, one)
        assert not same_output_variables(one, unset)
        assert not same_output_variables(unset, one)


def test_kernels_of_gpus_of_other_names_have_other_names() -> None:
    other = SIDE.model_copy(update={"device_name": "another"})
    assert same_kernels(SIDE, other, DeviceType.CPU)
    assert not same_kernels(SIDE, other, DeviceType.CUDA)
