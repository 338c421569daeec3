"""`SideRequest`: one trial that a side is asked for, and how it travels as JSON from one kvray to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Self

from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import ModelRequest
from kvray.engines.registry import get_engine
from kvray.errors import InvalidValueError
from kvray.record import Role
from kvray.trial.spec import CONFIRM_RUNGS, ReferenceSpec, TrialSpec
from kvray.workload import WorkloadProfile

PROTOCOL = 1
"""Version of what a side is asked and answers. It changes when an older side would misunderstand a question."""


@dataclass(frozen=True, kw_only=True)
class SideRequest:
    """One trial in one fresh process.

    Attributes:
        round_number: the round of the check that it belongs to, from 1.
        timeout_s: seconds that any one phase may take.
        reference: what quality is compared with; `None` leaves it unmeasured.
        with_quality: whether this trial measures quality. One process is enough: it is the same in each of them.
        told_tokens: see `TrialSpec.told_tokens`.
    """

    run_id: str
    trial_id: str
    round_number: int
    candidate: Candidate
    model: ModelRequest
    profile: WorkloadProfile
    device: DeviceType
    timeout_s: float = 600.0
    rungs: tuple[int, ...] = CONFIRM_RUNGS
    reference: ReferenceSpec | None = None
    with_quality: bool = False
    told_tokens: int | None = None

    @property
    def spec(self) -> TrialSpec:
        """What the measurement process is told."""
        measures_quality = self.with_quality and self.reference is not None
        return TrialSpec(
            run_id=self.run_id,
            trial_id=self.trial_id,
            role=Role.CHECK,
            confirm_round=self.round_number,
            request=self.model,
            candidate=self.candidate,
            profile=self.profile,
            device=self.device,
            timeout_s=self.timeout_s,
            rungs=tuple(sorted({0, *self.rungs})) if measures_quality else self.rungs,  # quality comes after rung 0
            reference=self.reference if measures_quality else None,
            told_tokens=self.told_tokens,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready. What has its default is left out, so that an older kvray, which does not know the field, is only
        asked what it cannot answer where it matters."""
        return {
            "run_id": self.run_id,
            "trial_id": self.trial_id,
            "round_number": self.round_number,
            "candidate": self.candidate.to_dict(),
            "model": _without_defaults(self.model),
            "profile": self.profile.model_dump(mode="json", exclude_defaults=True),
            "device": self.device.value,
            "timeout_s": self.timeout_s,
            "rungs": list(self.rungs),
            **({"told_tokens": self.told_tokens} if self.told_tokens is not None else {}),
            **({"reference": _reference_dict(self.reference)} if self.with_quality and self.reference else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            KvrayError, ValueError, TypeError, KeyError: it asks for something that this kvray does not know.
        """
        if unknown := data.keys() - {field.name for field in fields(cls)}:
            raise InvalidValueError(f"This kvray does not know {', '.join(sorted(unknown))} of a check's trial.")
        reference = data.get("reference")
        return cls(
            **{
                **data,
                "candidate": Candidate.from_dict(data["candidate"]),
                "model": ModelRequest(**data["model"]),
                "profile": WorkloadProfile.model_validate(data["profile"]),
                "device": DeviceType(data["device"]),
                "rungs": tuple(data["rungs"]),
                "reference": None if reference is None else _reference_from(reference),
                "with_quality": reference is not None,
            }
        )


def _without_defaults(request: ModelRequest) -> dict[str, Any]:
    defaults = {field.name: field.default for field in fields(request)}
    return {
        name: value for name, value in asdict(request).items() if defaults[name] is MISSING or value != defaults[name]
    }


def _reference_dict(reference: ReferenceSpec) -> dict[str, Any]:
    """The engine goes by the candidate's name for it."""
    return {
        "candidate": reference.candidate.to_dict(),
        "model_revision": reference.model_revision,
        "enforced": reference.enforced,
        "request": None if reference.request is None else _without_defaults(reference.request),
        "python": reference.python,
        "engine_versions": [list(pair) for pair in reference.engine_versions],
    }


def _reference_from(data: Mapping[str, Any]) -> ReferenceSpec:
    candidate = Candidate.from_dict(data["candidate"])
    return ReferenceSpec(
        candidate=candidate,
        model_revision=data["model_revision"],
        enforced=data["enforced"],
        adapter=get_engine(candidate.engine),
        request=None if data["request"] is None else ModelRequest(**data["request"]),
        python=data["python"],
        engine_versions=tuple((name, version) for name, version in data["engine_versions"]),
    )
