"""Candidates that are spread over several GPUs, before anything is launched."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

import kvray.tuning.resolved
from kvray.candidate import DeviceType, DType
from kvray.config import TuneConfig
from kvray.engines.base import DeviceFacts, EngineAdapter
from kvray.errors import InvalidValueError, NoCandidatesError
from kvray.testing.fake import FakeAdapter
from kvray.tuning.preview import Preview, preview_sweep, without_unplaceable
from kvray.tuning.resolved import check_request, resolve
from kvray.workload import get_profile


class OneGpuAdapter(FakeAdapter):
    """An engine that leaves all GPUs but the first idle."""

    is_parallel: ClassVar[bool] = False


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text("- {cache: [static], attention: [sdpa], dtype: [float32], parallelism: [1, 2, 4]}\n")
    return path


def on_gpus(space: Path, monkeypatch: pytest.MonkeyPatch, **values: object) -> TuneConfig:
    facts = DeviceFacts(device=DeviceType.CUDA, device_name="Made up", gpu_count=2)
    monkeypatch.setattr(kvray.tuning.resolved, "detect_device", lambda asked, **_: facts)
    given = {"model_id": "fake:ok", "profile": get_profile("ci-micro"), "engine": "fake", "space": str(space)}
    return TuneConfig(**{**given, **values})


def previewed(config: TuneConfig, adapter: EngineAdapter) -> Preview:
    return preview_sweep(resolve(check_request(config, adapter)))


def labels(preview: Preview) -> list[str]:
    return [candidate.label for candidate in preview.space.candidates]


def reasons(preview: Preview) -> dict[str, str]:
    return {one.candidate.label: one.reason for one in preview.space.rejected}


def test_a_space_file_spreads_candidates_over_the_gpus_that_are_there(
    space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preview = previewed(on_gpus(space, monkeypatch), FakeAdapter())
    assert labels(preview) == ["dynamic/sdpa/float32", "static/sdpa/float32", "static/sdpa/float32+gpus:2"]
    assert reasons(preview) == {"static/sdpa/float32+gpus:4": "needs 4 GPUs, 2 visible (parallelism)"}


def test_an_option_spreads_the_whole_space(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = {"caches": ("static",), "attentions": ("sdpa",), "dtypes": (DType.FLOAT32,)}
    config = on_gpus(Path("default"), monkeypatch, **narrow, parallelism=("single", "2", "4"))
    preview = previewed(config, FakeAdapter())
    assert labels(preview) == ["dynamic/sdpa/float32", "static/sdpa/float32", "static/sdpa/float32+gpus:2"]
    assert reasons(preview) == {"static/sdpa/float32+gpus:4": "needs 4 GPUs, 2 visible (parallelism)"}


def test_a_way_to_spread_that_the_engine_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = on_gpus(Path("default"), monkeypatch, parallelism=("tp=2",))
    with pytest.raises(InvalidValueError, match="parallelism of engine fake 'tp=2'") as caught:
        previewed(config, FakeAdapter())
    assert caught.value.hint == "Allowed: single, 2."


def test_the_axis_of_the_way_has_an_option_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    config = on_gpus(Path("default"), monkeypatch, settings={"parallelism": (2,)})
    with pytest.raises(InvalidValueError, match="Axis 'parallelism' has an option of its own") as caught:
        previewed(config, FakeAdapter())
    assert caught.value.hint == "Use --parallelism."


def test_an_engine_that_does_not_spread_a_model_is_given_one_gpu(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preview = previewed(on_gpus(space, monkeypatch), OneGpuAdapter())
    assert labels(preview) == ["dynamic/sdpa/float32", "static/sdpa/float32"]
    assert reasons(preview)["static/sdpa/float32+gpus:2"] == "fake does not spread a model over 2 GPUs (one-gpu)"


def test_where_no_spread_candidate_is_left_another_parallelism_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoCandidatesError, match="needs 4 GPUs, 2 visible") as caught:
        previewed(on_gpus(Path("default"), monkeypatch, parallelism=("4",)), FakeAdapter())
    assert caught.value.hint == "Give another --parallelism: single needs one GPU."


def test_a_clusters_gpus_are_counted_once_it_is_joined(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preview = previewed(on_gpus(space, monkeypatch, address="head:6379"), FakeAdapter())
    assert reasons(preview) == {}
    joined = without_unplaceable(preview, 2)
    assert labels(joined) == ["dynamic/sdpa/float32", "static/sdpa/float32", "static/sdpa/float32+gpus:2"]
    assert reasons(joined) == {"static/sdpa/float32+gpus:4": "needs 4 GPUs, no machine has more than 2 (parallelism)"}


def test_a_space_that_no_machine_can_hold_is_refused(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space.write_text("- {parallelism: [4]}\n")
    preview = previewed(on_gpus(space, monkeypatch, address="head:6379"), FakeAdapter())
    with pytest.raises(NoCandidatesError, match="needs 4 GPUs, no machine has more than 2"):
        without_unplaceable(preview, 2)


def test_on_a_cpu_one_process_is_all(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = on_gpus(space, monkeypatch, address="head:6379")
    monkeypatch.undo()
    preview = previewed(config.model_copy(update={"device": DeviceType.CPU}), FakeAdapter())
    assert labels(preview) == ["dynamic/sdpa/float32", "static/sdpa/float32"]
    assert without_unplaceable(preview, 0) is preview
