from __future__ import annotations

from pathlib import Path

import pytest

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate
from kvray.engines.base import Observed
from kvray.testing.engine_contract import EngineContract

TINY = Path(__file__).parent.parent / "assets" / "tiny_llama"
CLASSES = {
    CacheStrategy.DYNAMIC: ("DynamicCache", "DynamicLayer×2"),
    CacheStrategy.STATIC: ("StaticCache", "StaticLayer×2"),
    CacheStrategy.SLIDING_WINDOW: ("SlidingWindowCache", "SinkWindowLayer×2"),
    CacheStrategy.QUANTIZED: ("QuantizedCache", "Fp8QuantizedLayer×2"),
}


class TestTransformersEngine(EngineContract):
    engine = "transformers"
    missing_model = "random:nowhere"

    @pytest.fixture
    def model_id(self) -> str:
        return f"random:{TINY}"

    def check_observed(self, candidate: Candidate, observed: object) -> None:
        assert isinstance(observed, Observed)
        assert (observed.cache_class, observed.cache_layers) == CLASSES[candidate.cache]
        quantized = candidate.cache is CacheStrategy.QUANTIZED
        assert observed.kv_dtype == ("float8_e4m3fn" if quantized else candidate.dtype.value)
        # Plain SDPA on a CPU is PyTorch's flash kernel unless it is told otherwise.
        ran = "sdpa_flash" if candidate.attention is AttentionBackend.SDPA else candidate.attention.value
        assert (observed.kernel_prefill, observed.kernel_decode) == (ran, ran)
