"""What a report says of trials that ran at the same time, and of rounds that did not stay on one device."""

from __future__ import annotations

import datetime as dt

import pytest
from report_sweeps import BASELINE, STARTED, WINNER, manifest, measured

from kvray.record import Role, TrialRecord
from kvray.report.searching import confirm_fact
from kvray.report.side_by_side import side_by_side_fact, trials_beside_others


def spans(*seconds: tuple[float, float], host: str = "one") -> list[TrialRecord]:
    record = measured(BASELINE).record
    times = [[STARTED + dt.timedelta(seconds=one) for one in span] for span in seconds]
    return [record.with_(host=host, started_at=start, ended_at=end) for start, end in times]


@pytest.mark.parametrize(
    ("records", "beside"),
    [
        ([], 0),
        (spans((0, 5), (5, 9), (9, 12)), 0),
        (spans((0, 5), (4, 9), (9, 12)), 2),
        (spans((0, 20), (1, 2), (3, 4), (21, 22)), 3),
        (spans((9, 12), (4, 9), (0, 10)), 3),
        (spans((0, 5)) + spans((1, 4), host="other"), 0),
        ([measured(BASELINE).record.with_(host=None, started_at=None, ended_at=None)] * 2, 0),
    ],
    ids=["none", "in-turn", "two", "one-long", "unsorted", "two-hosts", "unknown"],
)
def test_trials_that_overlap_on_a_machine_are_counted(records: list[TrialRecord], beside: int) -> None:
    assert trials_beside_others(records) == beside


def test_it_is_told_how_many_ran_side_by_side_and_how_to_avoid_it() -> None:
    of = manifest()
    assert side_by_side_fact(of, spans((0, 5), (4, 9), (9, 12))) == (
        "2 of 3 trials ran beside another one of this sweep on the same machine. --exclusive avoids that."
    )
    alone = spans((0, 5), (5, 9))
    assert side_by_side_fact(of, alone) == ""
    exclusive = manifest(exclusive=True)
    assert side_by_side_fact(exclusive, alone) == (
        "No trial ran beside another one of this sweep on the same machine: with --exclusive each had its machine to "
        "itself."
    )
    assert side_by_side_fact(exclusive, spans((0, 5), (4, 9))).endswith("Others were measured with --exclusive.")


def test_the_device_of_confirming_rounds_is_told_where_records_name_it() -> None:
    of = manifest()

    def told(*devices: str | None) -> str:
        members = [
            measured(what, role=Role.CONFIRM, process=number, confirm_round=1 + number // 2, device_uuid=device)
            for number, (what, device) in enumerate(zip((WINNER, BASELINE) * 2, devices, strict=True))
        ]
        return confirm_fact(of, members)

    assert "ran one after the other, and each process" in told(None, None, None, None)
    assert "ran one after the other on the same device, and" in told("a", "a", "b", "b")
    assert "on the same device (some had to go on on another: 1 time), and" in told("a", "b", "b", "b")
