"""Which types of GPU a sweep measures on."""

from __future__ import annotations

import pytest

from kvray.errors import SweepError
from kvray.sweep.gpu_types import gpus_of_type, measured_types

A100, H100 = ({"CPU": 8.0, "GPU": 4.0, f"accelerator_type:{name}": 1.0} for name in ("A100", "H100"))
UNKNOWN, NO_GPU = {"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "accelerator_type:L4": 1.0}


@pytest.mark.parametrize(
    ("nodes", "asked", "types"),
    [
        ([A100, H100, H100], None, ("H100", "A100")),
        ([A100, H100], None, ("A100", "H100")),
        ([A100, NO_GPU], None, ("A100",)),
        ([UNKNOWN, UNKNOWN], None, (None,)),
        ([A100, H100], "h100", ("H100",)),
    ],
)
def test_all_that_are_there_or_the_one_that_is_asked_for(
    nodes: list[dict[str, float]], asked: str | None, types: tuple[str | None, ...]
) -> None:
    assert measured_types(nodes, asked) == types


def test_gpus_of_which_ray_knows_no_type_are_left_out_beside_others_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert measured_types([UNKNOWN, A100], None) == ("A100",)
    assert "does not know the type of 2 GPUs" in caplog.text


def test_a_type_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(SweepError, match=r"no GPUs of type 'L4'\. It has A100, H100\."):
        measured_types([A100, H100, NO_GPU], "L4")


def test_gpus_of_a_type_are_counted_over_all_nodes() -> None:
    assert gpus_of_type([A100, H100, H100, UNKNOWN], "H100") == 8
