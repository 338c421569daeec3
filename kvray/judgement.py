"""How measurements are judged: the weights of the score, and the limits that a candidate must keep.

Neither is part of a measurement: the same records can be judged anew by others.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from kvray.errors import InvalidValueError

MAX_QUALITY_LOSS = 0.1
"""Default of `Limits.max_quality_loss`, nats per token. Measured by `benchmarks/quality.py` (docs/quality.md): exact
paths 1e-10, bfloat16 0.001 (SmolLM2-135M and Gemma-3-270M); caches of 8 bit up to 0.01, of 4 bit 0.02, of 2 bit 2; one
that has lost the sink 0.6 to 1.4, one with keys beside their values 7. So it is five times the worst that is meant to
pass and a sixth of the mildest that is not."""


DECODE_LENIENCE = 10
"""How many times the limit of quality the loss over the tokens that were decoded one by one may be. The limit holds for
a mean over many tokens; of a handful the mean may be several times larger by chance, and that of a wrong path is tens
of times larger (docs/quality.md)."""


class Weights(NamedTuple):
    """What each metric counts in the score; they sum to 1."""

    ttft: float
    throughput: float
    memory: float


class Objective(enum.StrEnum):
    """What a user wants most: a name for three weights."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    MEMORY = "memory"
    BALANCED = "balanced"

    @property
    def weights(self) -> Weights:
        """The weights that it stands for."""
        return OBJECTIVE_WEIGHTS[self]

    @classmethod
    def parse(cls, name: str) -> Objective:
        """The objective called `name`, in any case.

        Raises:
            InvalidValueError: there is none.
        """
        try:
            return cls(name.strip().lower())
        except ValueError:
            raise InvalidValueError.not_one_of("objective", name, list(cls)) from None


OBJECTIVE_WEIGHTS: Mapping[Objective, Weights] = MappingProxyType(
    {
        Objective.LATENCY: Weights(ttft=0.70, throughput=0.20, memory=0.10),
        Objective.THROUGHPUT: Weights(ttft=0.20, throughput=0.70, memory=0.10),
        Objective.MEMORY: Weights(ttft=0.15, throughput=0.15, memory=0.70),
        Objective.BALANCED: Weights(ttft=1 / 3, throughput=1 / 3, memory=1 / 3),
    }
)
"""No weight is 0: what is ahead by a hair in the metric that counts most must not win at any price in the others."""


class Limits(BaseModel):
    """What a candidate must keep, in every cell of the profile, to be ranked; `None` asks nothing (docs/limits.md).

    Attributes:
        max_ttft_ms: most time to the first token: of the slowest cell, each by the median of its runs.
        max_itl_ms: most time between two tokens: the 95th percentile, of the slowest cell.
        min_decode_tok_s: least throughput of all sequences together: of the slowest cell.
        max_peak_mib: most memory that must be free: the highest peak of any cell, and on a GPU what the process holds
            beside its allocator. On several GPUs: most that must be free on any one of them.
        max_quality_loss: mean KL of the reference from the candidate, nats per token; a trial beyond it ends there. One
            whose engine tells bounds of it only ends there if the lower bound is beyond.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_ttft_ms: Annotated[float, Field(gt=0)] | None = None
    max_itl_ms: Annotated[float, Field(gt=0)] | None = None
    min_decode_tok_s: Annotated[float, Field(gt=0)] | None = None
    max_peak_mib: Annotated[float, Field(gt=0)] | None = None
    max_quality_loss: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = MAX_QUALITY_LOSS

    @property
    def bound_cells(self) -> bool:
        """Whether there is a limit that every cell has to keep."""
        limits = (self.max_ttft_ms, self.max_itl_ms, self.min_decode_tok_s, self.max_peak_mib)
        return any(one is not None for one in limits)

    def allow_loss(self, kl_mean: float | None, kl_decode: float | None) -> bool:
        """Whether a loss of quality keeps the limit, over all tokens and over those decoded one by one (nats per
        token); one that was not measured does. Asked with the lower bounds of a loss that is known within bounds: what
        may keep the limit is not refused."""
        most = self.max_quality_loss
        if most is None:
            return True
        return (kl_mean is None or kl_mean <= most) and (kl_decode is None or kl_decode <= DECODE_LENIENCE * most)


@dataclass(frozen=True, kw_only=True)
class Judging:
    """Weights and limits that replace a profile's own.

    Attributes:
        weights: `None` keeps the profile's.
        limits: by their names in `Limits`; one that is `None` is lifted, one that is not named stays.
    """

    weights: Weights | None = None
    limits: Mapping[str, float | None] = field(default_factory=dict)
