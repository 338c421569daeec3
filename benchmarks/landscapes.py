"""Landscapes for replaying searches: made-up ones with known truth, and recorded exhaustive sweeps."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from kvray.analysis.aggregate import Metrics
from kvray.candidate import AttentionBackend, CacheChoice, Candidate, CompileMode, DType
from kvray.trial.spec import LAST_RUNG
from kvray.workload import WorkloadProfile, create_custom_profile

Array = npt.NDArray[np.float64]
REPEATS = 3
_SIGNS = np.array([-1.0, 1.0, -1.0])
"""Signs of ln TTFT, ln tok/s and ln peak with which larger is better."""


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """What every candidate of a space would measure.

    Attributes:
        truth: n × 3 logarithms of TTFT (ms), tok/s and peak (MiB) at full length.
        forecast: the same as predicted.
        first_rung: 3 differences of rung 0 from full length.
        between, within: standard deviation of those logarithms between processes, and of one run.
        start_s: n seconds until the first timed run.
        rung_s: n × 3 seconds of the rungs.
        works: whether each candidate can be measured at all.
    """

    name: str
    candidates: tuple[Candidate, ...]
    profile: WorkloadProfile
    truth: Array
    forecast: Array
    first_rung: Array
    between: Array
    within: Array
    start_s: Array
    rung_s: Array
    works: npt.NDArray[np.bool_]

    @property
    def utilities(self) -> Array:
        """True utility of each candidate, `-inf` of one that fails."""
        weights = np.array([self.profile.weight_ttft, self.profile.weight_throughput, self.profile.weight_memory])
        return np.asarray(np.where(self.works, self.truth @ (weights * _SIGNS), -np.inf))

    @property
    def exhaustive_s(self) -> float:
        """Seconds of measuring every candidate completely, once."""
        return float((self.start_s + np.where(self.works[:, None], self.rung_s, 0).sum(axis=1)).sum())

    def forecasts(self) -> dict[str, Metrics]:
        """By candidate id."""
        return {one.candidate_id: as_metrics(row) for one, row in zip(self.candidates, self.forecast, strict=True)}


def as_metrics(logs: Array) -> Metrics:
    """From 3 logarithms."""
    ttft, speed, peak = np.exp(logs).tolist()
    itl = 1000 / speed
    return Metrics(ttft_ms=ttft, itl_p50_ms=itl, itl_p95_ms=itl, itl_p99_ms=itl, decode_tok_s=speed, peak_mib=peak)


class Process:
    """A fresh process of one candidate: its runs share a draw of the noise between processes."""

    def __init__(self, landscape: Landscape, index: int, generator: np.random.Generator) -> None:
        self._landscape, self._index, self._generator = landscape, index, generator
        self._level = landscape.truth[index] + landscape.between * _noise(generator, 3)
        self.seconds = float(landscape.start_s[index])

    def repeats(self, rung: int) -> range:
        """Numbers of the runs of `rung`; the seconds of the rung are added."""
        self.seconds += float(self._landscape.rung_s[self._index, rung])
        return range(1, REPEATS) if rung == LAST_RUNG else range(1)

    def run(self, rung: int) -> Metrics:
        """One run."""
        noise = self._landscape.within * _noise(self._generator, 3)
        return as_metrics(self._level + noise + (self._landscape.first_rung if rung == 0 else 0.0))


RECORDED = Path(__file__).parent / "recorded"


def recorded_landscapes() -> list[Landscape]:
    """The exhaustive sweeps in `recorded/` (written by `record_landscape.py`), one process of each candidate.

    What that process measured counts as the truth. The noise between processes is that of FACTS (6 % TTFT, 1.5 %
    tok/s), the noise of a run what the sweep's calm runs show.
    """
    return [_recorded(path) for path in sorted(RECORDED.glob("*.parquet"))]


def _recorded(path: Path) -> Landscape:
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b"landscape"])
    columns = {name: np.array(table.column(name).to_pylist(), dtype=float) for name in _NUMBERS}

    def logs(prefix: str) -> Array:
        names = ("ttft_ms", "decode_tok_s", "peak_mib")
        return np.asarray(np.log(np.stack([columns[f"{prefix}{name}"] for name in names], axis=1)))

    truth, first = logs(""), logs("first_")
    works = np.array([status == "ok" for status in table.column("status").to_pylist()])
    return Landscape(
        name=path.stem,
        candidates=tuple(Candidate.from_dict(json.loads(text)) for text in table.column("candidate").to_pylist()),
        profile=single_cell_profile(about["weights"]),
        truth=np.nan_to_num(truth),
        forecast=logs("forecast_"),
        first_rung=np.nanmedian(first - truth, axis=0),
        between=_BETWEEN,
        within=np.array(about["within"]),
        start_s=columns["start_s"],
        rung_s=np.nan_to_num(np.stack([columns[f"rung{rung}_s"] for rung in range(3)], axis=1)),
        works=works,
    )


_NUMBERS = (
    *(f"{kind}{name}" for kind in ("", "first_", "forecast_") for name in ("ttft_ms", "decode_tok_s", "peak_mib")),
    *("start_s", "rung0_s", "rung1_s", "rung2_s"),
)


def single_cell_profile(weights: Sequence[float]) -> WorkloadProfile:
    """A landscape holds means over cells, so its replays measure one cell; (TTFT, throughput, memory) as they were."""
    ttft, throughput, memory = weights
    return create_custom_profile(
        "landscape",
        context_lengths=(512,),
        output_lengths=(32,),
        weight_ttft=ttft,
        weight_throughput=throughput,
        weight_memory=memory,
    )


def _noise(generator: np.random.Generator, shape: int | tuple[int, ...]) -> Array:
    """Student's t with 6 degrees of freedom, scaled to variance 1: now and then a process or a run is far off."""
    return np.asarray(generator.standard_t(6, size=shape) / np.sqrt(1.5))


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A recipe of landscapes: spreads as differences of logarithms, relative to each metric's own size."""

    name: str
    size: int = 100
    main: float = 1.0
    pair: float = 0.4
    triple: float = 0.0
    residual: float = 0.15
    forecast_correlation: float = 0.75
    noise: float = 1.0
    failing: float = 0.0


ORDINARY = Kind(name="ordinary")
QUIET = Kind(name="quiet machine", noise=0.4)
HARD = (
    replace(ORDINARY, name="three-way", triple=0.6, residual=0.3),
    replace(ORDINARY, name="no forecast", forecast_correlation=0.0),
    replace(ORDINARY, name="heavy noise", noise=2.0),
    replace(ORDINARY, name="all three", triple=0.6, residual=0.3, forecast_correlation=0.0, noise=2.0),
)
_SIZES = np.array([0.40, 0.13, 0.12])
"""Spread of the main effects on TTFT, tok/s and peak. Together with pairs and residuals the logarithms then spread by
0.5, 0.17 and 0.16, which is what two recorded sweeps of 70 and 54 candidates show (0.53, 0.15, 0.16 and 0.52, 0.21,
0.18)."""
_BETWEEN = np.array([0.06, 0.015, 0.003])
_WITHIN = np.array([0.04, 0.03, 0.003])
_CACHES = ("dynamic", "static", "quantized(backend=hqq,nbits=4)", "quantized(backend=hqq,nbits=8)", "sliding_window")
_ATTENTIONS = ("sdpa", "eager", "sdpa_flash", "sdpa_math", "flash_attention_2")
_SHAPES = {24: (3, 4, 2, 1, 1), 50: (5, 5, 2, 1, 1), 100: (5, 5, 2, 2, 1), 200: (5, 5, 2, 2, 2), 400: (5, 5, 2, 2, 4)}


def make_landscape(kind: Kind, seed: int) -> Landscape:
    """One landscape of a kind."""
    generator = np.random.default_rng([seed, kind.size])
    shape = _SHAPES[kind.size]
    points = np.array(list(itertools.product(*(range(length) for length in shape))))
    effects = np.stack([_effects(kind, points, generator) for _ in range(3)], axis=1)
    return landscape_of(kind, [_candidate(point) for point in points.tolist()], points, effects, generator)


def landscape_of(
    kind: Kind,
    candidates: Sequence[Candidate],
    points: npt.NDArray[np.int64],
    effects: Array,
    generator: np.random.Generator,
) -> Landscape:
    """The `candidates` with made-up seconds and forecasts.

    Args:
        points: n × axes, which value each has on every axis.
        effects: n × 3, on TTFT, tok/s and peak; main effects have a spread of 1.
    """
    effects = effects * _SIZES
    truth = np.array([np.log(500.0), np.log(20.0), np.log(1000.0)]) + effects
    spread = effects.std(axis=0)
    correlation = kind.forecast_correlation
    forecast = truth.mean(axis=0) + correlation * effects
    forecast = forecast + np.sqrt(1 - correlation**2) * spread * generator.standard_normal(effects.shape)
    unit_s = np.exp(generator.normal(0, 0.2, len(points)))
    failing = generator.integers(5, size=2)
    return Landscape(
        name=kind.name,
        candidates=tuple(candidates),
        profile=single_cell_profile((0.4, 0.4, 0.2)),
        truth=truth,
        forecast=forecast,
        first_rung=np.array([0.0, -0.03, -0.02]),
        between=kind.noise * _BETWEEN,
        within=kind.noise * _WITHIN,
        start_s=generator.uniform(1.0, 2.5, len(points)),
        rung_s=unit_s[:, None] * np.array([0.6, 2.4, 6.0]),
        works=~((generator.random() < kind.failing) & (points[:, :2] == failing).all(axis=1)),
    )


def _effects(kind: Kind, points: npt.NDArray[np.int64], generator: np.random.Generator) -> Array:
    """n effects with a spread of 1 for the main ones."""
    axes = range(points.shape[1])
    total = kind.residual * generator.standard_normal(len(points))
    for order, scale in ((1, kind.main), (2, kind.pair), (3, kind.triple)):
        groups = [group for group in itertools.combinations(axes, order) if np.ptp(points[:, group], axis=0).all()]
        for group in groups if scale else ():
            codes = np.unique(points[:, group], axis=0, return_inverse=True)[1]
            strength = scale * generator.gamma(2.0, 0.5) / np.sqrt(len(groups))
            total = total + strength * generator.standard_normal(codes.max() + 1)[codes]
    return total


def _candidate(point: list[int]) -> Candidate:
    cache = CacheChoice.parse(_CACHES[point[0]])
    return Candidate(
        engine="transformers",
        cache=cache.strategy,
        cache_params=cache.params,
        attention=AttentionBackend(_ATTENTIONS[point[1]]),
        dtype=(DType.FLOAT32, DType.BFLOAT16)[point[2]],
        compile=(CompileMode.OFF, CompileMode.DEFAULT)[point[3]],
        prefill_chunk=(None, 64, 128, 256)[point[4]],
    )
