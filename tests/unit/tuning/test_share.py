"""By what a sweep's attempts are compared, where trials share machines and where they do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvray.candidate import DeviceType
from kvray.config import TuneConfig
from kvray.sweep.slot_plan import plan_slots
from kvray.tuning.search import TuningSearch
from kvray.tuning.share import Share


@pytest.mark.parametrize(("exclusive", "slots"), [(True, [1, 1, 1]), (False, [1, 1, 2])])
def test_how_many_machines_have_a_trial_each_changes_no_measurement(
    tmp_path: Path, exclusive: bool, slots: list[int]
) -> None:
    config = TuneConfig(
        model_id="fake:ok", profile="ci-micro", device=DeviceType.CPU, engine="fake", output_dir=str(tmp_path)
    )
    preview = TuningSearch(config=config).preview()

    def compared(machines: int, asked: int | None) -> int:
        plan = plan_slots([{"CPU": 4.0}] * machines, device=DeviceType.CPU, slots=asked, exclusive=exclusive)
        return Share(preview=preview, parts=(), slots=plan).conditions.slots

    assert [compared(1, None), compared(2, None), compared(2, 2)] == slots
