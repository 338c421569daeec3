"""A list of candidates in a JSON file, in place of a space: what is measured is what is listed, and the baseline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kvray.candidate import Candidate
from kvray.errors import InvalidValueError, did_you_mean
from kvray.files.documents import read_document
from kvray.plan.plan import load_plan_file
from kvray.space.search_space import MOST_CANDIDATES

_MOST_BYTES = 16 << 20
_FORMS = "Name a plan, or a JSON list of candidates as a plan has them, or one of candidate ids of the results folder."


def listed_candidates(path: str, *, results: str) -> tuple[Candidate, ...]:
    """The candidates in the file at `path`, each once.

    Args:
        results: folder of the records in which ids are looked up.

    Raises:
        InvalidValueError: the file cannot be read, is none of the forms, or names an id that the results folder lacks.
        PlanError: it is a plan that is not valid.
    """
    data = _read(path)
    if isinstance(data, dict):
        if "plan_version" not in data:
            raise InvalidValueError(f"{path!r} lists no candidates.", hint=_FORMS)
        plan = load_plan_file(path)
        return tuple(dict.fromkeys((plan.winner.candidate, *(one.candidate for one in plan.candidates.values()))))
    if not isinstance(data, list) or not data or len(data) > MOST_CANDIDATES:
        raise InvalidValueError(f"{path!r} is no list of 1 to {MOST_CANDIDATES:,} candidates.", hint=_FORMS)
    recorded = _recorded(results) if any(isinstance(one, str) for one in data) else {}
    return tuple(
        dict.fromkeys(_candidate(one, recorded, f"Item {number} of {path!r}") for number, one in enumerate(data, 1))
    )


def _read(path: str) -> Any:
    try:
        return json.loads(read_document(path, most_bytes=_MOST_BYTES))
    except OSError as error:
        raise InvalidValueError(f"Cannot read candidates {path!r}: {error.strerror}.", hint=_FORMS) from error
    except (ValueError, RecursionError) as error:
        raise InvalidValueError(f"{path!r} lists no candidates: it is not JSON ({error}).", hint=_FORMS) from error


def _recorded(results: str) -> dict[str, Candidate]:
    """Every candidate in the records of the results folder, by its id."""
    # Importing PyArrow takes a second, which a forecast does without.
    from kvray.store.parquet import ResultsStore

    store = ResultsStore(results)
    records = (one.record for run_id in store.run_ids() for one in store.read(run_id))
    return {record.candidate_id: record.candidate for record in records}


def _candidate(item: object, recorded: Mapping[str, Candidate], where: str) -> Candidate:
    if isinstance(item, str):
        if item not in recorded:
            raise InvalidValueError(
                f"{where}: the results folder has no record of candidate {item!r}.",
                hint=f"{did_you_mean(item, list(recorded))}Name the folder of the records with --output.",
            )
        return recorded[item]
    if not isinstance(item, dict):
        raise InvalidValueError(f"{where} is neither a candidate nor the id of one.", hint=_FORMS)
    try:
        return Candidate.from_dict(item)
    except InvalidValueError as error:
        raise InvalidValueError(f"{where}: {error.message}", hint=_FORMS) from error
