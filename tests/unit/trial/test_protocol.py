from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trial_samples import Scripted, ScriptedAdapter, ScriptedWatch, Stamping, candidate_of, profile_of, spec_of

from kvray.candidate import CacheStrategy, CompileMode, DeviceType
from kvray.engines.base import (
    Compilation,
    ForcedText,
    ForcedToken,
    ModelRequest,
    Observed,
    SubstitutedError,
    UnsupportedError,
)
from kvray.record import Phase, Run
from kvray.testing.fake import FakeAdapter
from kvray.trial.events import Event, PhaseStarted, RunFinished, RungFinished
from kvray.trial.protocol import MAX_WARMUP_CALLS, TrialProtocol, beyond_steady_s
from kvray.trial.quality import QualityError, forced_tokens, summarize
from kvray.trial.reference import quality_cell, reference_path, save_reference
from kvray.trial.spec import ReferenceSpec, TrialSpec
from kvray.workload import Cell, Limits


def protocol_of(
    model: Scripted,
    *,
    spec: TrialSpec | None = None,
    may_continue: Callable[[], bool] = lambda: True,
    watch: ScriptedWatch | None = None,
    device_memory_mib: Callable[[Collection[int]], Sequence[float] | None] = lambda _: None,
) -> tuple[TrialProtocol, list[Event]]:
    events: list[Event] = []
    protocol = TrialProtocol(
        spec or spec_of(),
        ScriptedAdapter(model),
        emit=events.append,
        may_continue=may_continue,
        device_memory_mib=device_memory_mib,
        open_watch=lambda device: watch or ScriptedWatch(),
        clock=model.clock,
    )
    return protocol, events


def runs_of(events: list[Event]) -> list[Run]:
    return [event.run for event in events if isinstance(event, RunFinished)]


def test_each_rung_measures_what_the_design_says() -> None:
    protocol, events = protocol_of(Scripted())
    assert protocol.run() is True
    by_rung = {rung: [run.cell for run in runs_of(events) if run.rung == rung] for rung in (0, 1, 2)}
    assert sorted(by_rung[0]) == [Cell(24, 16, 1), Cell(48, 16, 1)]
    full = [Cell(24, 4, 1), Cell(24, 20, 1), Cell(48, 4, 1), Cell(48, 20, 1)]
    assert sorted(by_rung[1]) == full
    assert sorted(by_rung[2]) == sorted(full * 2), "rung 1 was the first of three repeats"


def test_repeats_of_a_cell_are_numbered_over_both_rungs() -> None:
    protocol, events = protocol_of(Scripted())
    protocol.run()
    repeats = sorted(run.repeat for run in runs_of(events) if run.cell == Cell(24, 4, 1) and run.rung > 0)
    assert repeats == [0, 1, 2]


def test_after_each_rung_but_the_last_the_slot_is_asked() -> None:
    answers = iter([True, False])
    protocol, events = protocol_of(Scripted(), may_continue=lambda: next(answers))
    assert protocol.run() is False
    assert [event.rung for event in events if isinstance(event, RungFinished)] == [0, 1]
    assert not [run for run in runs_of(events) if run.rung == 2]


def test_the_model_is_closed_whatever_happens() -> None:
    model = Scripted(observed=Observed(substitutions=("asked for A, B ran",)))
    protocol, _ = protocol_of(model)
    with pytest.raises(SubstitutedError, match="asked for A, B ran"):
        protocol.run()
    assert model.calls[-1] == "close"


def test_a_substitution_is_found_before_anything_is_measured_and_what_ran_is_kept() -> None:
    observed = Observed(kernel_decode="sdpa_math", substitutions=("asked for flash, math ran",))
    protocol, events = protocol_of(Scripted(observed=observed))
    with pytest.raises(SubstitutedError):
        protocol.run()
    assert runs_of(events) == []
    assert protocol.facts.observed.kernel_decode == "sdpa_math"
    assert protocol.phase is Phase.WARMUP


def test_warm_up_goes_on_until_two_successive_calls_agree() -> None:
    model = Scripted(ttfts=(9.0, 4.0, 1.0, 1.02, 1.0))
    protocol, events = protocol_of(model, may_continue=lambda: False)
    protocol.run()
    before_first_run = model.calls[: model.calls.index("reset_peak")]
    assert [call for call in before_first_run if call.startswith("generate")] == ["generate 8"] * 4
    assert protocol.facts.first_call_s is not None
    assert runs_of(events)[0].ttft_ms == pytest.approx(1000.0)


def test_the_first_tokens_of_the_smallest_cell_are_kept_as_they_are_at_full_length() -> None:
    protocol, _ = protocol_of(Scripted(), may_continue=lambda: False)
    protocol.run()
    assert protocol.facts.sample is not None
    assert protocol.facts.sample.cell == Cell(24, 16, 1), "rung 0 is all that was reached"
    protocol, _ = protocol_of(Scripted(), spec=spec_of(batch_size=3))
    protocol.run()
    assert protocol.facts.sample is not None
    assert protocol.facts.sample.cell == Cell(24, 4, 3)
    assert [len(row) for row in protocol.facts.sample.tokens] == [4, 4], "the first and the last of three sequences"


def test_warm_up_is_bounded_when_calls_never_agree() -> None:
    model = Scripted(ttfts=[2.0**n for n in range(40)])
    protocol, _ = protocol_of(
        model, spec=spec_of(profile=profile_of(context_lengths=(24,))), may_continue=lambda: False
    )
    protocol.run()
    before_first_run = model.calls[: model.calls.index("reset_peak")]
    assert sum(call.startswith("generate") for call in before_first_run) == MAX_WARMUP_CALLS


TWO_OUTPUTS = profile_of(context_lengths=(24,), output_lengths=(4, 20))


def test_what_is_steady_at_a_context_needs_one_call_at_the_next_cell() -> None:
    model = Scripted()
    protocol, _ = protocol_of(model, spec=spec_of(profile=TWO_OUTPUTS))
    protocol.run()
    second_cell = model.calls[model.calls.index("prepare 24→4") :]
    assert second_cell[1:4] == ["observe 4", "generate 4", "reset_peak"]


def test_an_observed_generation_is_one_of_the_warm_up_calls() -> None:
    model = Stamping()
    protocol, _ = protocol_of(model, spec=spec_of(profile=TWO_OUTPUTS))
    protocol.run()
    first_cell = model.calls[: model.calls.index("reset_peak")]
    assert first_cell == ["prepare 24→16", "generate 8", "observe 8"]
    second_cell = model.calls[model.calls.index("prepare 24→4") :]
    assert second_cell[1:3] == ["observe 4", "reset_peak"]
    assert protocol.facts.proof_s == pytest.approx(3 * 1000.0, rel=0.01), "at each cell what came beside the generation"


def test_what_is_compiled_anew_for_a_cell_is_not_observed_while_it_compiles() -> None:
    model = Stamping()
    spec = spec_of(profile=TWO_OUTPUTS, cache=CacheStrategy.STATIC, compile=CompileMode.DEFAULT)
    protocol_of(model, spec=spec)[0].run()
    second_cell = model.calls[model.calls.index("prepare 24→4") :]
    assert second_cell[1:4] == ["generate 4", "observe 4", "reset_peak"]


def test_a_cell_is_prepared_once_when_the_next_rung_starts_with_it() -> None:
    profile = profile_of(context_lengths=(24,), output_lengths=(20,))
    model = Scripted()
    protocol, _ = protocol_of(model, spec=spec_of(profile=profile))
    protocol.run()
    assert [call for call in model.calls if call.startswith("prepare")] == ["prepare 24→16", "prepare 24→20"]


def test_what_runs_is_observed_once_at_every_cell() -> None:
    model = Scripted()
    protocol, _ = protocol_of(model)
    protocol.run()
    cells = {call for call in model.calls if call.startswith("prepare")}
    assert len(cells) == 6, "two short cells and four long ones"
    assert sum(call.startswith("observe") for call in model.calls) == len(cells)


class Changing(Scripted):
    """Its prompts of 48 tokens go through another cache and kernel."""

    def __init__(self, *substitutions: str) -> None:
        super().__init__()
        self._substitutions = substitutions

    def observe(self, output_tokens: int = 2) -> Observed:
        super().observe(output_tokens)
        return Observed(kernel_prefill="math" if self._is_long else "flash")

    def last_used(self) -> Observed:
        if self._is_long:
            return Observed(cache_class="Other", substitutions=self._substitutions)
        return Observed(cache_class="Scripted")

    @property
    def _is_long(self) -> bool:
        return self.cell.context_tokens == 48


def test_a_cache_that_changes_at_a_longer_prompt_ends_the_trial_there() -> None:
    protocol, events = protocol_of(Changing("asked for Scripted, Other was used"))
    with pytest.raises(SubstitutedError, match=r"^at 48→16: asked for Scripted, Other was used$"):
        protocol.run()
    assert {run.cell for run in runs_of(events)} == {Cell(24, 16, 1)}


def test_a_record_names_what_ran_at_all_cells() -> None:
    protocol, _ = protocol_of(Changing())
    protocol.run()
    assert protocol.facts.observed.cache_class == "Scripted | Other"
    assert protocol.facts.observed.kernel_prefill == "flash | math"


def test_cold_costs_are_kept_apart_from_each_other() -> None:
    protocol, _ = protocol_of(Scripted())
    protocol.run()
    facts = protocol.facts
    assert facts.load_s is not None
    assert facts.first_call_s is not None
    assert facts.first_call_s <= facts.warmup_s
    assert facts.compile_s is None, "nothing was compiled"
    assert facts.kv_cache_mib == 2.0


ONE_CONTEXT = profile_of(context_lengths=(24,), output_lengths=(20,), repeats=1)


def test_warm_up_seconds_are_those_of_its_calls_and_of_nothing_else() -> None:
    protocol, _ = protocol_of(Scripted(ttfts=(9.0, 4.0, 1.0)), spec=spec_of(profile=ONE_CONTEXT))
    protocol.run()
    assert protocol.facts.first_call_s == 9.0
    assert protocol.facts.warmup_s == 9.0 + 4.0 + 1.0 + 1.0 + 1.0, "four calls at rung 0, one at the full length"


def test_cold_seconds_are_loading_and_what_calls_took_beyond_a_steady_one() -> None:
    protocol, _ = protocol_of(Scripted(ttfts=(9.0, 4.0, 1.0)), spec=spec_of(profile=ONE_CONTEXT))
    protocol.run()
    assert protocol.facts.load_s == 1000.0
    assert protocol.facts.cold_s == 1000.0 + 8.0 + 3.0
    assert protocol.facts.warmed_up is True


def test_a_steady_call_that_is_slower_than_one_before_makes_no_cold_cost_negative() -> None:
    assert beyond_steady_s([5.0, 0.9, 1.0], is_steady=True) == 4.0


def test_where_no_call_was_steady_the_shortest_stands_for_one() -> None:
    assert beyond_steady_s([4.0, 2.0, 8.0], is_steady=False) == 2.0 + 6.0


def test_one_cell_that_never_becomes_steady_is_told() -> None:
    unsteady = [2.0**n for n in range(MAX_WARMUP_CALLS)]
    protocol, _ = protocol_of(Scripted(ttfts=[*unsteady, 1.0]))
    protocol.run()
    assert protocol.facts.warmed_up is False


def test_before_the_first_warm_up_nothing_is_known_of_it() -> None:
    protocol, _ = protocol_of(Scripted())
    assert (protocol.facts.warmed_up, protocol.facts.cold_s) == (None, None)


LONG = profile_of(context_lengths=(24,), output_lengths=(20,), repeats=3)
BUSY = "other programs used 0.9 of 2 CPUs"


def runs_at(events: list[Event], rung: int) -> list[tuple[int, bool]]:
    return [(run.repeat, run.disturbed) for run in runs_of(events) if run.rung == rung]


def test_a_disturbed_run_is_repeated_at_once_and_kept() -> None:
    protocol, events = protocol_of(
        Scripted(), spec=spec_of(profile=LONG), watch=ScriptedWatch(None, BUSY, None, None, BUSY)
    )
    protocol.run()
    assert runs_at(events, 0) == [(0, False)]
    assert runs_at(events, 1) == [(0, True), (1, False)]
    assert runs_at(events, 2) == [(2, False), (3, True), (4, False)]


def test_a_cell_is_repeated_twice_per_rung_at_most() -> None:
    protocol, events = protocol_of(Scripted(), spec=spec_of(profile=LONG), watch=ScriptedWatch(*[BUSY] * 99))
    protocol.run()
    assert [repeat for repeat, _ in runs_at(events, 0)] == [0, 1, 2]
    assert [repeat for repeat, _ in runs_at(events, 1)] == [0, 1, 2]
    assert [repeat for repeat, _ in runs_at(events, 2)] == [3, 4, 5, 6]


def test_repeats_may_cost_a_share_of_what_the_trial_costs_anyway() -> None:
    slow = Scripted(ttfts=(1.0, 1.0, 900.0))  # beside 3,002 busy seconds and the first run's 900, one more fits
    protocol, events = protocol_of(
        slow, spec=spec_of(profile=LONG), may_continue=lambda: False, watch=ScriptedWatch(*[BUSY] * 99)
    )
    protocol.run()
    assert [repeat for repeat, _ in runs_at(events, 0)] == [0, 1]


def test_the_watch_is_opened_before_the_model_is_loaded() -> None:
    model = Scripted(ttfts=(1.0,))
    opened: list[float] = []

    def open_watch(device: DeviceType) -> ScriptedWatch:
        opened.append(model.clock.now_s)
        return ScriptedWatch()

    TrialProtocol(
        spec_of(),
        ScriptedAdapter(model),
        emit=lambda event: None,
        may_continue=lambda: False,
        device_memory_mib=lambda _: None,
        open_watch=open_watch,
        clock=model.clock,
    ).run()
    assert opened == [0.0]


def test_compile_time_is_noted_where_something_was_compiled() -> None:
    protocol, _ = protocol_of(Scripted(compilation=Compilation(graph_breaks=0, recompiles=2, is_cold=True)))
    protocol.run()
    assert protocol.facts.compile_s is not None


def test_every_phase_is_announced_before_it_begins() -> None:
    protocol, events = protocol_of(Scripted(), may_continue=lambda: False)
    protocol.run()
    phases = [event.phase for event in events if isinstance(event, PhaseStarted)]
    assert phases[:4] == [Phase.PREPARE, Phase.LOAD, Phase.WARMUP, Phase.MEASURE]


class Mute(Scripted):
    def forced_log_probabilities(self, text: ForcedText) -> Iterator[ForcedToken]:
        raise UnsupportedError("this cache takes one token at a time")


@pytest.fixture
def compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrialSpec]:
    """A specification whose reference, an even choice between two tokens, lies in the cache folder."""
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path))

    def make(*, limit: float | None = 0.1, **changes: Any) -> TrialSpec:
        reference = ReferenceSpec(candidate=candidate_of(), model_revision="1", **changes)
        spec = replace(spec_of(profile=profile_of(limits=Limits(max_quality_loss=limit))), reference=reference)
        model = Scripted()
        model.prepare(quality_cell(spec))
        text = model.forced_text(forced_tokens(quality_cell(spec)))
        even = summarize(model.forced_log_probabilities(text), text)
        save_reference(even, reference_path(spec, reference))
        return spec

    return make


def test_quality_is_measured_once_after_the_first_rung_while_its_longest_cell_is_prepared(
    compared: Callable[..., TrialSpec],
) -> None:
    model = Scripted()
    protocol, events = protocol_of(model, spec=compared())
    assert protocol.run() is True
    before = model.calls[: model.calls.index("force 32")]
    assert [call for call in before if call.startswith("prepare")][-1] == "prepare 48→16"
    assert model.calls.count("force 32") == 1
    first = next(event for event in events if isinstance(event, RungFinished))
    assert first.facts.quality is not None
    assert first.facts.quality.kl_mean == 0.0
    assert first.facts.quality_s is not None
    phases = [event.phase for event in events if isinstance(event, PhaseStarted)]
    assert phases.count(Phase.QUALITY) == 1
    assert Phase.REFERENCE not in phases, "it was there already"


def test_a_loss_over_the_limit_ends_the_trial_and_its_runs_and_numbers_are_kept(
    compared: Callable[..., TrialSpec],
) -> None:
    model = Scripted()
    model.probability = 0.1
    protocol, events = protocol_of(model, spec=compared())
    with pytest.raises(QualityError, match=r"KL 0\.51 nats per token is over the limit of 0\.1"):
        protocol.run()
    assert [run.rung for run in runs_of(events)] == [0, 0]
    assert protocol.phase is Phase.QUALITY
    assert protocol.facts.quality is not None
    assert protocol.facts.quality.kl_mean == pytest.approx(0.51, abs=0.01)
    assert model.calls[-1] == "close"


@pytest.mark.parametrize("lenient", [{"limit": None}, {"enforced": False}])
@pytest.mark.parametrize("probability", [0.1, 0.0])
def test_without_a_limit_or_with_random_weights_a_loss_is_recorded_only(
    compared: Callable[..., TrialSpec], lenient: dict[str, Any], probability: float
) -> None:
    model = Scripted()
    model.probability = probability
    protocol, _ = protocol_of(model, spec=compared(**lenient))
    assert protocol.run() is True
    if probability:
        assert protocol.facts.quality is not None
    else:
        assert protocol.facts.quality is None
        assert protocol.facts.quality_note == "log-probabilities are not finite at 32 of 32 tokens"


def test_a_cache_that_cannot_be_asked_leaves_quality_unmeasured_and_says_why(
    compared: Callable[..., TrialSpec],
) -> None:
    protocol, _ = protocol_of(Mute(), spec=compared())
    assert protocol.run() is True
    assert protocol.facts.quality is None
    assert protocol.facts.quality_note == "this cache takes one token at a time"


def test_without_a_reference_asked_for_nothing_is_forced() -> None:
    model = Scripted()
    protocol, _ = protocol_of(model)
    protocol.run()
    assert not [call for call in model.calls if call.startswith("force")]


class Served(Scripted):
    """It lives in this process and the one that started it."""

    def processes(self) -> tuple[int, ...]:
        return os.getpid(), os.getppid()


@pytest.mark.parametrize("device", list(DeviceType))
def test_memory_is_that_of_all_processes_that_the_engine_names(
    monkeypatch: pytest.MonkeyPatch, device: DeviceType
) -> None:
    monkeypatch.setattr("kvray.probes.own_processes.descendants", lambda pid: [990_001] if pid == os.getppid() else [])
    monkeypatch.setattr("kvray.probes.gpu.visible_gpus", lambda _: ())
    asked: list[Collection[int]] = []

    def device_memory_mib(pids: Collection[int]) -> Sequence[float]:
        asked.append(pids)
        return [1.0, len(pids) - 1.0]

    spec = replace(spec_of(), device=device)
    protocol, events = protocol_of(Served(), spec=spec, device_memory_mib=device_memory_mib)
    assert protocol.run() is True
    assert set(asked) == {(os.getpid(), os.getppid(), 990_001)}
    assert protocol.facts.device_peak_mib == 3.0
    libraries = protocol.facts.library_mib
    assert libraries is not None and libraries > 1 if device is DeviceType.CPU else libraries is None
    assert protocol.facts.device_peak_gpu_mib == 2.0
    peaks = [run.peak_mib for run in runs_of(events) if run.peak_mib is not None]
    assert all(peak > 64 for peak in peaks) if device is DeviceType.CPU else set(peaks) == {64.0}


def test_a_candidate_is_fed_the_ids_that_the_reference_holds_and_nothing_that_it_would_have_written(
    compared: Callable[..., TrialSpec],
) -> None:
    fed: list[ForcedText] = []

    class Listening(Scripted):
        def forced_text(self, forced: int) -> ForcedText:
            raise AssertionError("candidates write no text")

        def forced_log_probabilities(self, text: ForcedText) -> Iterator[ForcedToken]:
            fed.append(text)
            return super().forced_log_probabilities(text)

    protocol_of(Listening(), spec=compared())[0].run()
    assert fed == [ForcedText(ids=(0,) * 64, forced=32)]


@pytest.mark.parametrize(("how", "is_refused"), [("topk", False), ("topk,=lossy", True)])
def test_an_engine_that_tells_the_most_probable_tokens_only_is_refused_by_the_lower_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, is_refused: bool
) -> None:
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path))
    reference = ReferenceSpec(candidate=candidate_of(), model_revision="1", request=ModelRequest(model_id="fake:ok"))
    spec = replace(spec_of(f"fake:={how}"), reference=reference)
    made_by = FakeAdapter().load(reference.requested(spec), candidate_of(), spec.device, spec.profile)
    made_by.prepare(cell := quality_cell(spec))
    text = made_by.forced_text(forced_tokens(cell))
    save_reference(summarize(made_by.forced_log_probabilities(text), text), reference_path(spec, reference))
    protocol = TrialProtocol(
        spec, FakeAdapter(), emit=lambda _: None, may_continue=lambda: False, device_memory_mib=lambda _: None
    )
    if is_refused:
        with pytest.raises(QualityError, match="KL at least"):
            protocol.run()
    else:
        protocol.run()
    loss = protocol.facts.quality
    assert loss is not None
    assert loss.kl_upper is not None
    assert loss.kl_mean < loss.kl_upper
    assert loss.nll_delta_upper is None, "the fake engine tells what is fed"
