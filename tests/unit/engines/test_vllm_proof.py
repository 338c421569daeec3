"""What vLLM does otherwise than it was asked, and what of its log says why it ended."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError, field_validator

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, CompileMode, DType
from kvray.engines.base import CrashedError, ForcedText, OutOfMemoryError, TopLogs, UnsupportedError
from kvray.engines.vllm.forced import Forcing, rows_of
from kvray.engines.vllm.proof import Seen, kv_types, substitutions
from kvray.engines.vllm.words import EngineWords, error_of
from kvray.errors import KvrayError
from kvray.space.axis import with_settings

ONE = Candidate(
    engine="vllm",
    cache=CacheStrategy.PAGED,
    attention=AttentionBackend.FLASH,
    dtype=DType.BFLOAT16,
    compile=CompileMode.OFF,
)
CAME_TO = {
    "attention_backend": "CPU_ATTN",
    "compilation": "NONE",
    "cudagraph_mode": "NONE",
    "dtype": "bfloat16",
    "kv_cache_dtype": "auto",
    "max_num_seqs": 128,
}


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[EngineWords]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("VLLM_LOGGING_CONFIG_PATH", "VLLM_RPC_BASE_PATH"):
        monkeypatch.setenv(name, "")
    made = EngineWords()
    yield made
    made.close()


def test_what_runs_as_asked_is_no_substitution() -> None:
    arguments = {"model": "m", "dtype": "bfloat16", "enforce_eager": True, "max_num_seqs": 128}
    assert substitutions(ONE, arguments, CAME_TO) == ()
    fp8 = {**CAME_TO, "kv_cache_dtype": "fp8_e4m3"}
    assert substitutions(ONE, {**arguments, "kv_cache_dtype": "fp8"}, fp8) == (), "two names for one type"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"attention_backend": "FLASHINFER"}, "attention_backend CPU_ATTN runs, FLASHINFER was asked for"),
        ({"max_num_seqs": 256}, "max_num_seqs 128 runs, 256 was asked for"),
        ({"compilation_config": {"cudagraph_mode": "FULL"}}, "cudagraph_mode NONE runs, FULL was asked for"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype auto runs, fp8 was asked for"),
    ],
)
def test_what_vllm_changes_by_itself_is_told(arguments: dict[str, Any], told: str) -> None:
    assert substitutions(ONE, arguments, CAME_TO) == (told,)


def test_what_is_compiled_against_the_request_is_told() -> None:
    compiled = {**CAME_TO, "compilation": "VLLM_COMPILE"}
    asked = replace(ONE, compile=CompileMode.DEFAULT)
    assert "which was not asked for" in substitutions(ONE, {}, compiled)[0]
    assert "not compiled" in substitutions(asked, {}, CAME_TO)[0]
    assert substitutions(with_settings(asked, {"optimization_level": 0}), {}, CAME_TO) == ()


def test_the_workers_are_told_of_together() -> None:
    answer = {
        "backends": ["CPU_ATTN"] * 2,
        "kv_dtypes": ["uint8"] * 2,
        "kv_cache_dtypes": ["fp8"] * 2,
        "kv_bytes": 100,
        "blocks": 5,
        "block_size": 32,
        "threads": 2,
        "cudagraph_mode": "NONE",
    }
    seen = Seen.of([answer, answer])
    assert (seen.kv_bytes, seen.blocks) == (200, 5)
    assert kv_types(seen) == "fp8"
    assert kv_types(replace(seen, kv_cache_dtypes=("auto",), kv_dtypes=("bfloat16",))) == "bfloat16"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", OutOfMemoryError),
        ("ValueError: Available memory on node 0 is less than requested memory for kv", OutOfMemoryError),
        ("ValueError: Model architectures ['Nope'] are not supported for now", UnsupportedError),
    ],
)
def test_what_vllm_says_becomes_the_contracts_error(text: str, kind: type[KvrayError]) -> None:
    assert type(error_of(text)) is kind
    assert text in str(error_of(text))


def test_the_first_process_that_failed_says_why(words: EngineWords) -> None:
    log = logging.getLogger("vllm")
    failed = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
    assert isinstance(words.cause_of(failed), CrashedError), "it was killed without a word"
    log.error("Traceback\n  File x\nValueError: Unsupported head size 16")
    log.error("Exception: WorkerProc initialization failed due to an exception in a background process.")
    cause = words.cause_of(failed)
    assert isinstance(cause, UnsupportedError)
    assert str(cause) == "vLLM: ValueError: Unsupported head size 16"
    assert str(words.death("it died")) == "vLLM: ValueError: Unsupported head size 16"
    assert str(words.cause_of(ValueError("no such dtype"))) == "vLLM: no such dtype"


def test_of_a_checked_configuration_the_finding_is_told(words: EngineWords) -> None:
    class Checked(BaseModel):
        size: int

        @field_validator("size")
        @classmethod
        def check(cls, size: int) -> int:
            raise ValueError(f"Model architectures {size} are not supported for now.\nSupported: …")

    with pytest.raises(ValidationError) as caught:
        Checked(size=3)
    assert str(words.cause_of(caught.value)) == "vLLM: Model architectures 3 are not supported for now."


def test_a_death_for_want_of_memory_is_no_crash(words: EngineWords) -> None:
    assert type(words.death("EngineCore encountered an issue.")) is CrashedError
    logging.getLogger("vllm").error("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
    assert type(words.death("EngineCore encountered an issue.")) is OutOfMemoryError


def test_a_worker_that_was_killed_is_named(words: EngineWords) -> None:
    log = logging.getLogger("vllm.v1.executor")
    words_of_vllm = "Worker proc VllmWorker-0 died unexpectedly (exit code: -9), shutting down executor."
    log.error("ERROR vllm.v1.executor: %s", words_of_vllm)
    log.error("RuntimeError: cancelled")
    assert str(words.death("EngineCore encountered an issue.")) == f"vLLM: {words_of_vllm}"


def test_the_engines_processes_log_into_the_same_file(words: EngineWords) -> None:
    config = json.loads(Path(os.environ["VLLM_LOGGING_CONFIG_PATH"]).read_text(encoding="utf-8"))
    logging.getLogger("vllm").error("told here")
    assert "told here" in Path(config["handlers"]["file"]["filename"]).read_text(encoding="utf-8")


def test_a_path_too_long_for_sockets_is_not_where_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for long, where in ((False, None), (True, "/tmp")):
        folder = tmp_path / ("x" * 100 if long else "s")
        folder.mkdir()
        monkeypatch.delenv("VLLM_RPC_BASE_PATH", raising=False)
        monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", "")
        monkeypatch.setattr("tempfile.tempdir", str(folder) if long else "/tmp")
        EngineWords().close()
        assert os.environ.get("VLLM_RPC_BASE_PATH") == where


def test_the_whole_vocabulary_is_a_row_and_a_part_is_a_list_with_the_fed_token() -> None:
    # vLLM puts the fed token first and then the most probable, itself among them or not.
    ids, logs = np.array([2, 1, 2, 0]), np.log(np.array([0.3, 0.5, 0.3, 0.2], dtype=np.float32))
    whole = rows_of([(ids, logs)], vocabulary=3)
    assert isinstance(whole, np.ndarray)
    assert np.exp(whole) == pytest.approx(np.array([[0.2, 0.5, 0.3]]))
    part = rows_of([(ids[:2], logs[:2])], vocabulary=3)
    assert isinstance(part, TopLogs)
    assert part.ids.tolist() == [[1]]
    assert np.exp(part.logs) == pytest.approx(np.array([[0.5]]))
    assert part.token_logs is not None
    assert np.exp(part.token_logs) == pytest.approx(np.array([0.3]))


def test_of_a_long_text_not_the_whole_vocabulary_is_asked_for() -> None:
    short, long = (Forcing(text=ForcedText(ids=(1,) * n, forced=8), rows=3, vocabulary=1 << 17) for n in (100, 4096))
    assert (short.told_each, long.told_each) == (1 << 17, 8192)
    assert short.asked_rows == (0, 2)
