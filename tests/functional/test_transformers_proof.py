"""What ran is known for every cell: the cache that the model really used, its layout, the kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers_samples import load, make_candidate
from whole_trials import ended, profile_of, spec_of

from kvray.engines.transformers.loaded import TransformersModel
from kvray.record import TrialStatus
from kvray.trial.events import Event, RunFinished
from kvray.workload import Cell

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIGS = Path(__file__).parent.parent / "assets" / "configs"
LONGROPE = f"random:{CONFIGS / 'phi3_longrope'}"
"""Beyond 256 tokens this model computes everything anew, in a cache of its own."""


@pytest.mark.parametrize(
    ("name", "cache", "attention", "layers"),
    [
        ("deepseek_v3", "dynamic", "sdpa", "DynamicLayer×2"),
        ("deepseek_v3", "static", "sdpa", "StaticLayer×2"),
        ("mimo_v2_flash", "dynamic", "eager", "DynamicLayer×1 + DynamicSlidingWindowLayer×1"),
        ("mimo_v2_flash", "static", "eager", "StaticLayer×1 + StaticSlidingWindowLayer×1"),
        ("gemma3n_text", "dynamic", "sdpa", "DynamicSlidingWindowLayer×2 + DynamicLayer×1 + DummyLayer×2"),
        ("gemma3n_text", "static", "sdpa", "StaticSlidingWindowLayer×2 + StaticLayer×1 + DummyLayer×2"),
    ],
)
def test_keys_and_values_of_unlike_size_and_shared_layers_are_measured(
    name: str, cache: str, attention: str, layers: str
) -> None:
    event = ended(spec_of(f"random:{CONFIGS / name}", make_candidate(cache, attention), profile_of(80)))
    assert (event.status, event.message) == (TrialStatus.OK, None)
    assert event.facts is not None
    # Before Transformers 5.23 the cache leaves out layers that read the keys of earlier ones.
    assert event.facts.observed.cache_layers in (layers, layers.removesuffix(" + DummyLayer×2"))


def test_a_baseline_whose_model_makes_a_cache_of_its_own_is_measured() -> None:
    event = ended(spec_of(LONGROPE, make_candidate(), profile_of(100, 400)))
    assert (event.status, event.message) == (TrialStatus.OK, None)
    assert event.facts is not None
    observed = event.facts.observed
    assert (observed.cache_class, observed.cache_layers) == ("DynamicCache", "DynamicLayer×2")
    assert event.facts.kv_cache_mib == 2 * 2 * (400 + 3) * (16 + 16) * 4 / 2**20, "of the cache that was used"


@pytest.mark.parametrize(("contexts", "output", "where"), [((100, 400), 4, "400→4"), ((100, 236), 40, "236→40")])
def test_a_cache_that_the_model_throws_away_at_one_cell_is_not_measured_as_itself(
    contexts: tuple[int, ...], output: int, where: str
) -> None:
    events: list[Event] = []
    event = ended(
        spec_of(LONGROPE, make_candidate("static"), profile_of(*contexts, output_tokens=output)), events.append
    )
    assert (event.status, event.message) == (
        TrialStatus.SUBSTITUTED,
        f"at {where}: asked for StaticCache, DynamicCache was used",
    )
    assert event.facts is not None
    assert event.facts.observed.cache_class == "StaticCache | DynamicCache"
    assert where not in {one.run.cell.label for one in events if isinstance(one, RunFinished)}


def test_the_tokens_of_such_a_model_are_those_of_a_plain_generate() -> None:
    model = load(LONGROPE)
    model.prepare(Cell(400, 6, 1))
    measured = [list(row) for row in model.generate(6).tokens]
    prompt = model._prompt_tensor
    plain = model._model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6)
    assert measured == plain[:, 400:].tolist()


def test_a_bug_of_kvrays_own_is_an_error_with_a_traceback(
    monkeypatch: pytest.MonkeyPatch, tiny_model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(TransformersModel, "_prompt_tensor")
    event = ended(spec_of(tiny_model, make_candidate("static"), profile_of(24)))
    assert event.status is TrialStatus.ERROR
    assert event.message == "AttributeError: 'TransformersModel' object has no attribute '_prompt_tensor'"
    assert "in _generate" in capfd.readouterr().err
