"""What a side is asked travels as JSON, and an older kvray refuses what it does not know."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.check.side_request import SideRequest
from kvray.engines.base import ModelRequest
from kvray.errors import InvalidValueError
from kvray.record import Role
from kvray.testing.fake import FakeAdapter
from kvray.trial.spec import ReferenceSpec
from kvray.workload import get_profile, override_profile

CANDIDATE = Candidate(
    engine="fake",
    cache=CacheStrategy.STATIC,
    attention=AttentionBackend.SDPA,
    dtype=DType.BFLOAT16,
    settings=(("tile", 64),),
)
REQUEST = SideRequest(
    run_id="check-1",
    trial_id="a-1",
    round_number=3,
    candidate=CANDIDATE,
    model=ModelRequest(model_id="fake:ok", offline=True, revision="abc"),
    profile=override_profile(get_profile("rag"), context_lengths=(16,), repeats=1),
    device=DeviceType.CPU,
)
REFERENCE = ReferenceSpec(
    candidate=CANDIDATE,
    model_revision="abc",
    enforced=False,
    request=ModelRequest(model_id="fake:other"),
    engine_versions=(("numpy", "2"),),
)


def test_a_request_comes_back_equal_from_its_line() -> None:
    assert SideRequest.from_dict(json.loads(json.dumps(REQUEST.to_dict()))) == REQUEST


def test_a_reference_travels_where_quality_is_asked_for() -> None:
    asked = replace(REQUEST, reference=REFERENCE, with_quality=True)
    got = SideRequest.from_dict(json.loads(json.dumps(asked.to_dict())))
    assert got.reference is not None
    assert isinstance(got.reference.adapter, FakeAdapter)
    assert replace(got, reference=replace(got.reference, adapter=None)) == asked
    assert "reference" not in replace(asked, with_quality=False).to_dict()


def test_a_trial_of_a_check_says_what_it_is() -> None:
    spec = REQUEST.spec
    assert (spec.role, spec.confirm_round, spec.rungs, spec.reference) == (Role.CHECK, 3, (1,), None)
    assert replace(REQUEST, reference=REFERENCE, with_quality=True).spec.rungs == (0, 1)


def test_a_field_that_this_kvray_does_not_know_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="does not know power_limit_w"):
        SideRequest.from_dict({**REQUEST.to_dict(), "power_limit_w": 300})
