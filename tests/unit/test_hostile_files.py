"""Whatever lies in a file or follows an option: it is read, or refused with the error of its kind, within moments."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_values import DOCUMENTS, edited, json_values
from hypothesis import given, settings
from hypothesis import strategies as st

from kvray.candidate import AttentionChoice, CacheChoice, DeviceType, DType
from kvray.cli import parsing
from kvray.engines.base import DeviceFacts
from kvray.engines.transformers import TransformersAdapter
from kvray.errors import InvalidValueError, KvrayError, ModelError, PlanError, ProfileError, ResultsError
from kvray.files.documents import read_document
from kvray.forecast.hardware import Hardware
from kvray.models.source import parse_model_id
from kvray.plan.plan import load_plan_file
from kvray.space.search_space import MOST_CANDIDATES, SpaceBlock, build_space
from kvray.space.space_file import load_space
from kvray.store.parquet import SWEEP_MANIFEST, ResultsStore
from kvray.trial.quality import IncomparableError, Reference
from kvray.trial.reference import load_reference, save_reference
from kvray.workload import MOST_LENGTHS, get_profile, load_profile

bounded = settings(max_examples=100, deadline=None)
AXES = TransformersAdapter().axes(DeviceFacts(device=DeviceType.CPU, device_name="a CPU"))
NO_AXES = SpaceBlock(caches=(), attentions=(), dtypes=())
PROFILE = get_profile("chat-agent").model_dump(mode="json")
SPACE = [{"cache": ["static", "quantized(backend=hqq,nbits=4)"], "batch_size": ["1"], "compile": ["off"]}]
HARDWARE = Hardware(
    device=DeviceType.CPU,
    copy_bytes_s=1e10,
    matmul_flops_s={DType.FLOAT32: 1e11},
    stream_bytes_s={DType.FLOAT32: 1e10},
    layer_s=1e-4,
    step_s=1e-3,
)
MANIFEST = json.loads(next((Path(__file__).parents[1] / "assets/results_v1/sweeps").iterdir()).read_bytes())


def plan() -> dict[str, Any]:
    candidate = {"engine": "fake", "cache": "static", "attention": "sdpa", "dtype": "float32"}
    metrics = dict.fromkeys(("ttft_ms", "itl_p50_ms", "itl_p95_ms", "itl_p99_ms", "decode_tok_s"), 1.0)
    measured = {"candidate": candidate, "metrics": {**metrics, "peak_mib": 1.0, "highest_peak_mib": None}}
    names = ("device_name", "driver_version", "torch_version", "transformers_version", "kvray_version")
    return {
        "plan_version": 1,
        "kvray_version": "1",
        "created_at": "2026-01-01T00:00:00Z",
        "measured_at": "2026-01-01T00:00:00Z",
        "run_id": "r",
        "model_id": "m",
        "architecture": "a",
        "engine": "fake",
        "device": "cpu",
        "profile": PROFILE,
        "winner": {**measured, "score": 1.0, "gain": None, "confidence": None, "break_even_tokens": None},
        "baseline": None,
        "candidates": {"0" * 12: measured},
        "rules": [{"when": {}, "use": "0" * 12, "evidence": "e"}],
        "fingerprint": dict.fromkeys(names),
        "records_sha256": "s",
    }


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile") / "file.json"


def refused_as(kind: type[KvrayError], read: Callable[[Path], object], file: Path, content: bytes) -> None:
    """`read` may accept; otherwise it raises `kind`, and the message can be shown on any terminal as one line."""
    file.write_bytes(content)
    with contextlib.suppress(kind):
        read(file)


@pytest.mark.parametrize("content", DOCUMENTS, ids=range(len(DOCUMENTS)))
@pytest.mark.parametrize(
    ("kind", "read"),
    [
        (PlanError, load_plan_file),
        (ProfileError, load_profile),
        (InvalidValueError, lambda path: load_space(path, axes=AXES, otherwise=NO_AXES)),
        (ResultsError, lambda path: SWEEP_MANIFEST.parse(path.read_bytes(), "run")),
    ],
    ids=["plan", "profile", "space", "manifest"],
)
def test_a_document_of_nonsense_is_refused_by_whoever_reads_it(
    kind: type[KvrayError], read: Callable[[Path], object], content: bytes, file: Path
) -> None:
    file.write_bytes(content)
    with pytest.raises(kind):
        read(file)


@bounded
@given(content=edited(plan()))
def test_an_edited_plan_is_read_or_refused(content: bytes, file: Path) -> None:
    refused_as(PlanError, load_plan_file, file, content)


@bounded
@given(content=edited(PROFILE))
def test_an_edited_profile_is_read_or_refused(content: bytes, file: Path) -> None:
    refused_as(ProfileError, load_profile, file, content)


@bounded
@given(content=edited(SPACE))
def test_an_edited_space_is_read_or_refused(content: bytes, file: Path) -> None:
    refused_as(InvalidValueError, lambda path: load_space(path, axes=AXES, otherwise=NO_AXES), file, content)


@bounded
@given(content=edited(MANIFEST))
def test_an_edited_manifest_is_read_or_refused(content: bytes, file: Path) -> None:
    refused_as(ResultsError, lambda path: SWEEP_MANIFEST.parse(path.read_bytes(), MANIFEST["run_id"]), file, content)


@bounded
@given(content=edited(json.loads(HARDWARE.to_json())))
def test_edited_rates_of_a_device_are_read_or_are_no_rates(content: bytes) -> None:
    with contextlib.suppress(ValueError):
        read = Hardware.from_json(content.decode())
        assert all(0 < rate < float("inf") for rate in (read.copy_bytes_s, *read.matmul_flops_s.values()))


@bounded
@given(name=st.sampled_from([field.name for field in dataclasses.fields(Reference)]), value=json_values)
def test_an_edited_reference_is_read_whole_or_not_at_all(name: str, value: object, file: Path) -> None:
    rows, tokens = np.full((3, 4), -1.0, dtype=np.float32), np.arange(3)
    ids = np.zeros((3, 4), dtype=np.int64)
    whole = Reference(
        text=tokens, places=tokens, tokens=tokens, top_ids=ids, top_logs=rows, nll=rows[:, 0], nll_upper=rows[:, 0]
    )
    path = file.with_suffix(".npz")
    with contextlib.suppress(ValueError, OverflowError):  # lists of different lengths are no array
        save_reference(dataclasses.replace(whole, **{name: np.array(value)}), path)
        with contextlib.suppress(IncomparableError):
            read = load_reference(path)
            assert read.top_logs.shape == read.top_ids.shape
            assert read.tokens.shape == read.nll.shape


@bounded
@given(text=st.text(max_size=40) | st.text("0123456789.,-eE+ _gGmMiIbBsh()=", max_size=30) | st.just("9" * 5000))
def test_the_value_of_any_option_is_parsed_or_refused(text: str) -> None:
    for parse in (
        lambda: parsing.parse_integers(text, option="--context"),
        lambda: parsing.parse_optional_integers(text, option="--prefill-chunk"),
        lambda: parsing.parse_number_limit(text, option="--max-quality-loss"),
        lambda: parsing.parse_time_limit(text, option="--max-ttft"),
        lambda: parsing.parse_rate_limit(text, option="--min-throughput"),
        lambda: parsing.parse_weights(text),
        lambda: parsing.parse_memory_limit(text, option="--max-vram"),
        lambda: parsing.parse_duration(text, option="--budget"),
        lambda: parsing.parse_choices(text, DType),
        lambda: parsing.parse_caches(text),
        lambda: parsing.parse_attentions(text),
        lambda: CacheChoice.parse(text),
        lambda: AttentionChoice.parse(text),
    ):
        with contextlib.suppress(InvalidValueError):
            parse()


@bounded
@given(
    text=st.text(max_size=60)
    | st.sampled_from(["\0", "a\0.gguf", "\ud800", "x" * 5000, "/" + "y" * 300 + ".gguf", "~nobody0/x", "random:\0"])
    | st.lists(st.sampled_from(["random:", "..", "/", "~", ".gguf", "config.json", "a"]), max_size=6).map("".join)
)
def test_any_model_id_is_understood_or_refused(text: str) -> None:
    with contextlib.suppress(ModelError):
        parse_model_id(text)


@bounded
@given(folder=st.text(max_size=20), run=st.text(max_size=20))
def test_no_run_id_leads_out_of_the_results_folder(folder: str, run: str) -> None:
    with contextlib.suppress(InvalidValueError):
        paths = ResultsStore(Path("results") / folder.replace("\0", "").replace("/", "")).paths(run)
        assert paths.manifest.parent.parent == paths.root
        assert paths.best_plan.parent.parent.parent == paths.root


@pytest.mark.parametrize("folder", ["~nobody0/results", "results\udcff", "results\0"])
def test_a_results_folder_that_cannot_be_a_path_is_refused(folder: str) -> None:
    with pytest.raises(InvalidValueError, match="cannot be opened"):
        ResultsStore(folder).run_ids()


def test_a_device_without_end_is_read_no_further_than_a_document_goes() -> None:
    with pytest.raises(OSError, match="more than 1,000 bytes"):
        read_document("/dev/zero", most_bytes=1_000)
    with pytest.raises(PlanError, match=r"Cannot read plan '/dev/zero': it has more than"):
        load_plan_file("/dev/zero")


def test_a_profile_with_more_lengths_than_can_be_measured_is_refused(file: Path) -> None:
    file.write_text(json.dumps({**PROFILE, "context_lengths": list(range(1, MOST_LENGTHS + 2))}))
    with pytest.raises(ProfileError, match="context_lengths: Tuple should have at most 100 items"):
        load_profile(file)


def test_a_space_of_more_points_than_can_be_listed_is_refused_before_it_is_listed(file: Path) -> None:
    sizes = [str(size) for size in range(1, 200)]
    file.write_text(json.dumps([{"cache": ["static"], "batch_size": sizes, "prefill_chunk": sizes}] * 20))
    blocks = load_space(file, axes=AXES, otherwise=dataclasses.replace(NO_AXES, dtypes=(DType.FLOAT32,)))
    blocks = tuple(dataclasses.replace(one, attentions=(AttentionChoice.parse("sdpa"),)) for one in blocks)
    with pytest.raises(InvalidValueError, match=f"792,020 configurations, at most {MOST_CANDIDATES:,} can be listed"):
        build_space(blocks, baseline=None, facts=None)  # type: ignore[arg-type]
