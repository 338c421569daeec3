from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from trial_samples import Scripted, ScriptedAdapter, ScriptedWatch, spec_of

from kvray.engines.base import ForcedText, ForcedToken, TopLogs, UnsupportedError
from kvray.record import Phase
from kvray.trial.events import Event, PhaseStarted
from kvray.trial.forced_logs import ForcedLogs, logs_of
from kvray.trial.protocol import TrialProtocol
from kvray.trial.spec import CONFIRM_RUNGS, TrialSpec

TEXT = ForcedText(ids=(3, 1, 0, 1), forced=2)
LOGS = np.log(np.array([[0.1, 0.9], [0.7, 0.3]], dtype=np.float32))


def protocol_of(model: Scripted, spec: TrialSpec) -> tuple[TrialProtocol, list[Event]]:
    events: list[Event] = []
    return TrialProtocol(
        spec,
        ScriptedAdapter(model),
        emit=events.append,
        may_continue=lambda: True,
        device_memory_mib=lambda _: None,
        open_watch=lambda device: ScriptedWatch(),
        clock=model.clock,
    ), events


def test_each_token_s_log_probability_is_kept_bit_by_bit_for_every_row() -> None:
    told = logs_of([(0, 0, LOGS), (1, 1, LOGS)], TEXT)
    assert told.rows == ((LOGS[0, 0], LOGS[0, 1]), (LOGS[1, 0], LOGS[1, 1]))
    again = ForcedLogs.from_json(told.to_json())
    assert again == told
    assert again.digest == told.digest
    last_bit = np.nextafter(LOGS[1, 1], np.float32(0))
    assert replace(told, rows=(told.rows[0], (told.rows[1][0], float(last_bit)))).digest != told.digest


def test_an_engine_that_tells_the_most_probable_tokens_tells_the_fed_one_beside() -> None:
    logs = np.log(np.array([[0.6, 0.3]], dtype=np.float32))
    top = TopLogs(ids=np.array([[4, 2]]), logs=logs, token_logs=np.array([-5.0], dtype=np.float32))
    (row,) = logs_of([(0, 2, top), (1, 7, top)], TEXT).rows
    assert row == pytest.approx((math.log(0.3), -5.0))


def test_logs_of_another_text_have_another_digest() -> None:
    stream = [(0, 0, LOGS), (1, 1, LOGS)]
    assert logs_of(stream, TEXT).text == logs_of(stream, replace(TEXT, forced=1)).text
    assert logs_of(stream, TEXT).text != logs_of(stream, replace(TEXT, ids=(3, 1, 0, 2))).text


@pytest.mark.parametrize("text", ["[]", "{}", '{"text": "a", "rows": 1}', '{"text": "a", "rows": [["x"]]}', "{"])
def test_a_damaged_column_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"Expecting|could not convert|no log-probabilities"):
        ForcedLogs.from_json(text)


def test_a_text_is_fed_after_all_runs_where_that_is_asked_for() -> None:
    model = Scripted()
    protocol, events = protocol_of(model, replace(spec_of(), rungs=CONFIRM_RUNGS, told_tokens=8))
    assert protocol.run() is True
    assert protocol.facts.forced is not None
    (row,) = protocol.facts.forced.rows
    assert row == pytest.approx((math.log(0.5),) * 8)
    assert model.calls[-2:] == ["force 8", "close"]
    assert [one.phase for one in events if isinstance(one, PhaseStarted)][-1] is Phase.QUALITY

    plain = Scripted()
    protocol, _ = protocol_of(plain, replace(spec_of(), rungs=CONFIRM_RUNGS))
    protocol.run()
    assert protocol.facts.forced is None
    assert "force 8" not in plain.calls


def test_a_trial_whose_engine_tells_no_log_probabilities_says_so_and_is_measured() -> None:
    class Silent(Scripted):
        def forced_log_probabilities(self, text: ForcedText) -> Iterator[ForcedToken]:
            raise UnsupportedError("this engine tells no log-probabilities")

    protocol, _ = protocol_of(Silent(), replace(spec_of(), rungs=CONFIRM_RUNGS, told_tokens=8))
    assert protocol.run() is True
    assert (protocol.facts.forced, protocol.facts.quality_note) == (None, "this engine tells no log-probabilities")
