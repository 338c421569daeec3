"""`TuneConfig`: one place where a sweep's settings are checked."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from kvray.candidate import AttentionBackend, AttentionChoice, CacheChoice, CacheStrategy, DeviceType, DType
from kvray.config import TuneConfig, cache_dir, warn_of_closed_cache
from kvray.errors import InvalidValueError, ProfileError
from kvray.record import TrialStatus
from kvray.workload import get_profile


def config(**values: Any) -> TuneConfig:
    return TuneConfig(**{"model_id": "org/model", "profile": get_profile("ci-micro"), **values})


def test_an_unknown_field_is_refused_by_name() -> None:
    with pytest.raises(InvalidValueError, match=r"The configuration is not valid: chaches: there is no such key"):
        config(chaches=())


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InvalidValueError, match="profile: Field required"):
        TuneConfig(model_id="org/model")


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(InvalidValueError) as caught:
        config(model_id="", device="tpu", slots=0, timeout_s=-1, dtypes=("int4",))
    text = str(caught.value)
    assert all(name in text for name in ("model_id: ", "device: ", "slots: ", "timeout_s: ", "dtypes.0: "))
    assert "(got 'tpu')" in text
    assert "'cpu' or 'cuda'" in text
    assert caught.value.exit_code == 2
    assert "\n" not in text


def test_a_profile_may_be_given_by_name() -> None:
    assert config(profile="rag").profile == get_profile("rag")


def test_an_unknown_profile_name_lists_the_known_ones() -> None:
    with pytest.raises(ProfileError, match=r"Unknown profile 'nope'\. Allowed: chat-agent, rag, longform, ci-micro"):
        config(profile="nope")


def test_an_engine_may_have_a_file_of_its_own_of_the_model() -> None:
    asked = config(engine="transformers,llama_cpp", models_for={"llama_cpp": "model.gguf"})
    assert [asked.model_for(name) for name in asked.engines] == ["org/model", "model.gguf"]


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        ("transformers", "--model-for names the engine 'llama_cp'. Allowed by --engine: transformers."),
        ("transformers,llama_cpp", "Did you mean 'llama_cpp'? Allowed by --engine: transformers, llama_cpp."),
    ],
)
def test_a_file_for_an_engine_that_takes_no_part_is_refused_in_one_line(engine: str, told: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        config(engine=engine, models_for={"llama_cp": "model.gguf"})
    assert str(caught.value).endswith(told)
    assert "\n" not in str(caught.value)


def test_a_results_folder_may_be_a_path(tmp_path: Path) -> None:
    assert config(output_dir=tmp_path).output_dir == str(tmp_path)


def test_axes_may_be_given_as_text_and_as_members() -> None:
    given = config(caches=("static",), attentions=(AttentionBackend.SDPA,), dtypes=["bfloat16"], device="cuda")
    assert given.caches == (CacheChoice(CacheStrategy.STATIC),)
    assert given.attentions == (AttentionChoice(AttentionBackend.SDPA),)
    assert given.dtypes == (DType.BFLOAT16,)
    assert given.device is DeviceType.CUDA


def test_a_space_file_and_a_narrowed_axis_exclude_each_other() -> None:
    with pytest.raises(InvalidValueError, match="a space file and options that narrow an axis exclude each other"):
        config(space="space.yaml", dtypes=("bfloat16",))
    assert config(space="full", dtypes=("bfloat16",)).narrows
    assert config(space="space.yaml").has_space_file


@pytest.mark.parametrize("values", [{"retry": ("oom",)}, {"retry_disturbed": True}, {"force": True}])
def test_what_only_a_resumed_sweep_can_use_is_refused_without_one(values: dict[str, Any]) -> None:
    with pytest.raises(
        InvalidValueError, match=f"--{next(iter(values)).partition('_')[0]} can only be used with --resume"
    ):
        config(**values)
    assert config(resume="a-run", **values).resume == "a-run"


def test_only_failures_can_be_retried() -> None:
    assert config(resume="a-run", retry=("oom", "crashed")).retry == (TrialStatus.OOM, TrialStatus.CRASHED)
    with pytest.raises(InvalidValueError, match="ok, skipped is not a failure; allowed: oom, timeout, crashed, unsupp"):
        config(resume="a-run", retry=("ok", "oom", "skipped"))


def test_nothing_of_a_configuration_can_be_changed() -> None:
    given = config()
    with pytest.raises(ValueError, match="frozen"):
        given.seed = 1  # type: ignore[misc]


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KVRAY_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "kvray"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "kvray"
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    assert not cache_dir().exists()


def test_without_any_home_the_cache_folder_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "KVRAY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)  # of which the user database knows nothing
    with pytest.raises(InvalidValueError, match=r"no home folder\. Set KVRAY_CACHE to a folder that can be written"):
        cache_dir()


def test_a_cache_folder_that_cannot_be_written_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("kvray"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="kvray.config")
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "not" / "there"))
    warn_of_closed_cache()
    assert caplog.messages == []
    (tmp_path / "file").touch()
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "file"))
    warn_of_closed_cache()
    (said,) = caplog.messages
    assert said.startswith(f"The cache folder {tmp_path / 'file'} cannot be written, so quality is measured only")


def test_waiting_for_a_quiet_machine_is_for_the_machine_at_hand() -> None:
    assert config(wait_quiet_s=600.0).wait_quiet_s == 600.0
    with pytest.raises(InvalidValueError, match="--wait-quiet watches this machine, and cannot be used with --address"):
        config(wait_quiet_s=600.0, address="auto")
