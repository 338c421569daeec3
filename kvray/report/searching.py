"""How the space was searched and how sure that is, as sentences: strategy, bounds, launches, confirming, forecast."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from kvray.analysis.evidence import confirm_round, rounds_by_device
from kvray.analysis.sampler import ENUMERATED, MISS_CHANCE
from kvray.config import SearchStrategy
from kvray.ratios import multiple
from kvray.record import Role, TrialRecord, TrialResult, TrialStatus
from kvray.report import formats
from kvray.store.manifest import SweepManifest

_STRATEGIES = {
    SearchStrategy.MODEL: (
        "model: a statistical model, fitted to what is measured, picks the next candidate; the search ends when the "
        "chance is below 2 % that a candidate not launched yet is more than 2 % better than the best"
    ),
    SearchStrategy.GRID: "grid: every candidate is launched and measured completely",
    SearchStrategy.ASHA: "asha: every candidate is launched; successive halving stops poor ones",
    SearchStrategy.OPTUNA: "optuna: Optuna's sampler picks the next candidate; successive halving stops poor ones",
}
_FEW = f"model: up to {ENUMERATED} candidates are all launched, the most promising first"


def strategy_text(search: str, candidates: int, *, max_trials: int | None, budget_s: float | None) -> str:
    """How a space of so many `candidates` is searched, and within which bounds, in one sentence."""
    how = next((text for strategy, text in _STRATEGIES.items() if strategy == search), formats.clean_line(search))
    if search == SearchStrategy.MODEL and candidates <= ENUMERATED:
        how = _FEW
    launches = "" if max_trials is None else f"; at most {formats.plural(max_trials, 'launch', 'launches')}"
    time = "" if budget_s is None else f"; at most {formats.duration(budget_s)}, confirming included"
    return f"{how}{launches}{time}."


def confirming_text(rounds: int) -> str:
    """How often the best are measured again, in one sentence."""
    if not rounds:
        return "none."
    return (
        f"up to {formats.plural(rounds, 'round')}, fewer where that is enough; in each round the winner so far, its "
        "rivals and the baseline run once more, each in a fresh process, one after the other."
    )


def search_fact(manifest: SweepManifest, results: Sequence[TrialResult]) -> str:
    """Strategy, bounds and how many candidates it launched; empty for sweeps older than that."""
    if manifest.search is None:
        return ""
    launched = len({one.record.candidate_id for one in results if _was_searched(one.record)})
    # A sweep that was broken off has no records yet of what it did not launch.
    chosen_from = manifest.attempts[-1].candidates if manifest.attempts else None
    known = launched + sum(one.record.status is TrialStatus.SKIPPED for one in results)
    candidates = max(known, chosen_from or 0)
    strategy = strategy_text(manifest.search, candidates, max_trials=manifest.max_trials, budget_s=manifest.budget_s)
    return f"{strategy} Launched: {formats.count(launched)} of {formats.plural(candidates, 'candidate')}."


def confirm_fact(manifest: SweepManifest, results: Sequence[TrialResult]) -> str:
    """What was measured again, and how."""
    records = [one.record for one in results if one.record.role is Role.CONFIRM]
    if not records:
        return "None: no candidate was measured again in a second process."
    processes = formats.plural(len(records), "confirming process", "confirming processes")
    rounds = len({number for record in records if (number := confirm_round(record)) is not None})
    held = (
        f" in {formats.plural(rounds, 'round')} of at most {formats.count(manifest.confirm_rounds)}" if rounds else ""
    )
    return (
        f"{processes}{held}: the winner, its rivals and the baseline ran one after the other"
        f"{_where(records)}, and each process measured every cell once."
    )


def _where(records: Sequence[TrialRecord]) -> str:
    """Whether the processes of a round ran on the same device; empty where older records do not say it."""
    if all(record.device_uuid is None for record in records):
        return ""
    rounds = [confirm_round(record) or 0 for record in records]
    parts = len(set(rounds_by_device(rounds, [record.device_uuid for record in records])))
    moved = parts - len(set(rounds))
    told = "" if not moved else f" (some had to go on on another: {formats.plural(moved, 'time')})"
    return f" on the same device{told}"


def repeats_fact(manifest: SweepManifest) -> str:
    """Says that only the baseline has all repeats in one process; empty where that is not so."""
    if manifest.search != SearchStrategy.MODEL or not manifest.confirm_rounds:
        return ""
    return " Only the baseline runs rung 2; others that may win are measured again in further processes instead."


def forecast_fact(results: Sequence[TrialResult], winner_id: str | None) -> str:
    """How close the forecasts were; empty where nothing was forecast."""
    records = [one.record for one in results if _was_searched(one.record)]
    ratios = {
        name: _ratios(records, f"forecast_{column}", column)
        for name, column in (("first token", "ttft_ms"), ("tok/s", "decode_tok_s"), ("peak memory", "peak_mib"))
    }
    told = [f"{name} {multiple(statistics.median(known))}" for name, known in ratios.items() if known]
    if not told:
        return ""
    candidates = formats.plural(max(map(len, ratios.values())), "candidate")
    share = next((one.roofline_share for one in records if one.candidate_id == winner_id and one.roofline_share), None)
    reached = "" if share is None else f" The winner decodes at {formats.share(share)} of what copy bandwidth allows."
    return (
        "Made before launch, from the model's configuration and the measured rates of this device. Predicted divided "
        f"by measured, median of {candidates}: {formats.listed(told)}.{reached}"
    )


def open_question(manifest: SweepManifest, results: Sequence[TrialResult]) -> str | None:
    """Says which candidate may be better than the best measured one, if the search was cut short; else `None`."""
    if manifest.max_trials is None and manifest.budget_s is None:
        return None
    skipped = [one.record for one in results if one.record.status is TrialStatus.SKIPPED]
    likely = max(skipped, key=lambda record: record.win_chance or 0.0, default=None)
    if likely is None or (likely.win_chance or 0.0) < MISS_CHANCE:
        return None
    bounds = {"--budget": manifest.budget_s, "--max-trials": manifest.max_trials}
    larger = " or ".join(name for name, bound in bounds.items() if bound is not None)
    return (
        f"The search ended early. {formats.clean_line(likely.candidate.label)} was not launched; the chance that it is "
        f"more than 2 % better than the best measured one is {formats.share(likely.win_chance)}. A larger {larger} "
        "would find out."
    )


def _was_searched(record: TrialRecord) -> bool:
    return record.status.was_launched and record.role is not Role.CONFIRM


def _ratios(records: Iterable[TrialRecord], predicted: str, measured: str) -> list[float]:
    pairs = ((getattr(record, predicted), getattr(record, measured)) for record in records)
    return [ahead / behind for ahead, behind in pairs if ahead and behind]
