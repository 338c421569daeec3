"""What `kvray compare` shows: two measured places, what differs between them, and candidate by candidate the change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvray.analysis.comparison import Comparison, Margins, Verdict, compare
from kvray.candidate import Candidate
from kvray.check.baseline import Baseline, of_sweep, read_baseline
from kvray.check.judge import judged, side_differences
from kvray.check.measured import samples_of
from kvray.check.result import SideInfo
from kvray.errors import InvalidValueError, ResultsError
from kvray.files.remote import has_suffix, is_uri
from kvray.report.compare import Comparison as SweepComparison
from kvray.report.compare import compare_info
from kvray.report.info import ReportInfo
from kvray.store.parquet import ResultsStore
from kvray.tuning.result import chosen_run, info_of, read_measured

_PLAN, _CHECK = "best_plan.json", "check.json"
_NOTHING_SHARED = "A and B have no single measurements of a candidate that they share."


@dataclass(frozen=True, kw_only=True)
class MeasuredPlace:
    """One of the two that are compared.

    Attributes:
        baseline: `None` for a sweep that ranks nothing.
        sweep: what a report shows of it; `None` for a plan or a check.
    """

    name: str
    baseline: Baseline | None
    sweep: ReportInfo | None = None


@dataclass(frozen=True, kw_only=True)
class ComparedCandidate:
    """A candidate of A with what B has in its place.

    Attributes:
        label_a, label_b: the same where both measured the same candidate.
        comparison: B against A.
        reasons: why it fails or stays open whatever the numbers, one sentence each.
        differences: what ran otherwise, e.g. `threads: 2 → 1`.
        verdict: `None` where nothing judges it.
    """

    label_a: str
    label_b: str
    comparison: Comparison
    reasons: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()
    verdict: Verdict | None = None


@dataclass(frozen=True, kw_only=True)
class ComparedPlaces:
    """A against B.

    Attributes:
        machine: how the machines differ, because of which figures do not compare.
        differences: what else differs for every candidate: versions, driver, profile. Where `sweeps` is there, what
            it does not say.
        remarks: why there is nothing to see, one sentence each: A and B are the same run, or share no measurement.
        candidates: the winner of A first. Where B has another winner, the two winners come next.
        sweeps: all candidates that both rank, where both are sweeps.
        margins: empty where nothing is judged.
        verdict: `None` where nothing is judged.
    """

    name_a: str
    name_b: str
    machine: tuple[str, ...]
    differences: tuple[str, ...]
    candidates: tuple[ComparedCandidate, ...]
    sweeps: SweepComparison | None
    margins: Margins
    verdict: Verdict | None
    remarks: tuple[str, ...] = ()


def read_place(place: str) -> MeasuredPlace:
    """The plan, results folder (`FOLDER` or `FOLDER#RUN_ID`), folder of a run's reports or `check.json` at `place`.

    Raises:
        InvalidValueError: it names nothing.
        ResultsError, PlanError: it cannot be read, or nothing of it was measured.
    """
    folder, _, run = place.partition("#")
    if not folder:
        raise InvalidValueError(f"{place!r} names no results folder.", hint="Write FOLDER or FOLDER#RUN_ID.")
    document = None if run else _document_in(folder)
    if document is not None:
        baseline = read_baseline(document)
        return MeasuredPlace(name=_name_of(baseline), baseline=baseline)
    store = ResultsStore(folder)
    result = read_measured(store, chosen_run(store, run or None))
    ranks = bool(result.analysis.ranking.entries)
    info = info_of(result)
    return MeasuredPlace(
        name=f"{info.run_id} ({info.title}, {info.subtitle})",
        baseline=of_sweep(result, shown=place) if ranks else None,
        sweep=info,
    )


def _document_in(place: str) -> str | None:
    """The plan or check that `place` is, or that lies in it, where it is no results folder."""
    if is_uri(place):
        return place if has_suffix(place, ".json") else None
    if Path(place).is_file() or (place.endswith(".json") and not Path(place).is_dir()):
        return place
    is_results = (Path(place) / "sweeps").is_dir()
    found = (Path(place) / name for name in (_PLAN, _CHECK))
    return None if is_results else next((str(one) for one in found if one.is_file()), None)


def _name_of(baseline: Baseline) -> str:
    side = baseline.side
    told = (side.run_id, f"{baseline.profile.shown_name} on {side.device_name}" if side.device_name else None)
    return f"{baseline.shown} ({', '.join(one for one in told if one)})"


def compare_places(a: MeasuredPlace, b: MeasuredPlace, *, margins: Margins, force: bool) -> ComparedPlaces:
    """What changed from `a` to `b`. With `margins` it is judged.

    Args:
        force: also where the machines are not alike.

    Raises:
        ResultsError: the machines are not alike, or there is nothing to judge.
    """
    sides = None if a.baseline is None or b.baseline is None else (a.baseline, b.baseline)
    machine = () if sides is None else tuple(_machine_differences(sides[0].side, sides[1].side))
    if machine and not force:
        raise ResultsError(
            f"A and B were measured on unlike machines ({'; '.join(machine)}), so their figures do not compare.",
            hint="Compare them anyway with --force, or measure both on one machine.",
        )
    wants_all = sides is not None and all(one.is_check for one in sides)
    are_sweeps = a.sweep is not None and b.sweep is not None
    candidates = () if sides is None else tuple(_compared(*sides, margins, wants_all=wants_all))
    verdicts = [one.verdict for one in candidates if one.verdict is not None]
    if margins and not verdicts:
        raise ResultsError(f"There is nothing to judge: {_NOTHING_SHARED}", hint=_why_nothing(a, b))
    return ComparedPlaces(
        name_a=a.name,
        name_b=b.name,
        machine=machine,
        differences=() if sides is None else tuple(_differences(*sides, are_sweeps=are_sweeps)),
        candidates=candidates,
        sweeps=compare_info(a.sweep, b.sweep) if a.sweep is not None and b.sweep is not None else None,
        margins=margins,
        verdict=_overall(verdicts) if margins else None,
        remarks=tuple(_remarks(a, b, is_empty=not candidates)),
    )


def _remarks(a: MeasuredPlace, b: MeasuredPlace, *, is_empty: bool) -> Iterator[str]:
    if (run := _run_of(a)) is not None and run == _run_of(b):
        yield f"A and B are the same run, {run}, so nothing can differ."
    if is_empty:
        yield f"There is nothing to compare: {_NOTHING_SHARED}"
        yield _why_nothing(a, b)


def _run_of(place: MeasuredPlace) -> str | None:
    if place.sweep is not None:
        return place.sweep.run_id
    return None if place.baseline is None else place.baseline.side.run_id


def _why_nothing(a: MeasuredPlace, b: MeasuredPlace) -> str:
    missing = (one.baseline.why_unrecorded for one in (a, b) if one.baseline is not None)
    return next((one for one in missing if one), "Compare two sweeps or checks of the same candidate.")


def _machine_differences(a: SideInfo, b: SideInfo) -> Iterator[str]:
    pairs = {
        "device": (a.device_name, b.device_name),
        "usable CPUs": (a.cpus, b.cpus),
        "GiB of memory": (a.memory_gib, b.memory_gib),
    }
    for name, (one, two) in pairs.items():
        if None not in (one, two) and one != two:
            yield f"{name}: {one} → {two}"


def _differences(a: Baseline, b: Baseline, *, are_sweeps: bool) -> Iterator[str]:
    """How the sides differ. Of two sweeps the report says most of it itself; only they know their variables."""
    if are_sweeps:
        both = a.known_variables & b.known_variables
        before, now = ({name: side.variables[name] for name in side.variables if name in both} for side in (a, b))
        sides = SideInfo(name="A"), SideInfo(name="B")
        yield from side_differences(*sides, before_variables=before, now_variables=now)
        return
    pairs = {
        "model": (a.model_id, b.model_id),
        "profile": (a.profile.shown_name, b.profile.shown_name),
        "host": (a.side.host, b.side.host),
        **{f"revision for {name}": (_revision(a, name), _revision(b, name)) for name in a.models if name in b.models},
    }
    for name, (one, two) in pairs.items():
        if None not in (one, two) and one != two:
            yield f"{name}: {one} → {two}"
    machine = set(_machine_differences(a.side, b.side))
    yield from (one for one in side_differences(a.side, b.side) if one not in machine)


def _revision(baseline: Baseline, engine: str) -> str | None:
    return baseline.models[engine].model_revision


def _compared(a: Baseline, b: Baseline, margins: Margins, *, wants_all: bool) -> Iterator[ComparedCandidate]:
    """What A chose is judged on both sides, and of two checks all that both measured. Where B did not measure that, the
    two winners are."""
    shared = [one for one in a.ranked if {one.candidate_id} <= a.recorded.keys() & b.recorded.keys()]
    wanted = shared if wants_all else [one for one in shared if one == a.ranked[0]]
    for candidate in wanted:
        yield _same_candidate(candidate, a, b, margins, together=len(wanted))
    winners = a.ranked[0], b.ranked[0]
    measured = winners[0].candidate_id in a.recorded and winners[1].candidate_id in b.recorded
    if winners[0] != winners[1] and measured and not wants_all:
        yield _two_candidates(*winners, a, b, margins=margins, is_judged=not wanted)


def _same_candidate(
    candidate: Candidate, a: Baseline, b: Baseline, margins: Margins, *, together: int
) -> ComparedCandidate:
    before, now = a.recorded[candidate.candidate_id], b.recorded[candidate.candidate_id]
    found = judged(candidate, before, now, ("A", "B"), margins, together=together)
    return ComparedCandidate(
        label_a=candidate.label,
        label_b=candidate.label,
        comparison=compare(samples_of(before), samples_of(now), margins=margins, together=together),
        reasons=found.reasons,
        differences=tuple(dict.fromkeys(found.differences)),
        verdict=found.verdict if margins else None,
    )


def _two_candidates(
    one: Candidate, two: Candidate, a: Baseline, b: Baseline, *, margins: Margins, is_judged: bool
) -> ComparedCandidate:
    before, now = (samples_of(side.recorded[key.candidate_id]) for side, key in ((a, one), (b, two)))
    found = compare(before, now, margins=margins)
    return ComparedCandidate(
        label_a=one.label,
        label_b=two.label,
        comparison=found,
        reasons=found.problems,
        verdict=found.verdict if margins and is_judged else None,
    )


def _overall(verdicts: list[Verdict]) -> Verdict:
    if Verdict.FAIL in verdicts:
        return Verdict.FAIL
    return Verdict.PASS if set(verdicts) == {Verdict.PASS} else Verdict.INCONCLUSIVE
