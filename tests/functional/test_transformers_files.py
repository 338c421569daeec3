"""Damaged configs, weights and GGUF files, and converting a GGUF file once whatever happens in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from transformers_samples import load, make_candidate, save_tiny_model, write_tiny_gguf

from kvray.candidate import DeviceType
from kvray.engines.base import ModelRequest
from kvray.engines.hugging_face import conversion
from kvray.engines.hugging_face import gguf as gguf_module
from kvray.engines.hugging_face.gguf import converted_gguf, is_converted
from kvray.engines.transformers import TransformersAdapter
from kvray.errors import ModelError
from kvray.models import revision
from kvray.record import Role, TrialStatus
from kvray.trial.child import _run
from kvray.trial.protocol import TrialProtocol
from kvray.trial.spec import TrialSpec
from kvray.workload import Cell, create_custom_profile

PROFILE = create_custom_profile(
    "files", context_lengths=(24,), output_lengths=(4,), weight_ttft=0.4, weight_throughput=0.4, weight_memory=0.2
)
LONGEST_WAIT_S = 240.0


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "model")


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return write_tiny_gguf(tmp_path / "tiny.gguf")


def identify(model_id: object) -> str:
    engine, request = TransformersAdapter(), ModelRequest(model_id=str(model_id))
    return engine.identify_model(request, engine.describe_model(request)).revision


def describe(model_id: object) -> object:
    return TransformersAdapter().describe_model(ModelRequest(model_id=str(model_id)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "cannot be read"),
        ("", "cannot be read"),
        ("[]", "cannot be read"),
        ("3", "cannot be read"),
        ("{}", "cannot be read"),
        ('{"model_type": "of_tomorrow"}', "does not recognize this architecture"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "cannot be read"),
        ('{"model_type": "llama", "num_attention_heads": 0}', "cannot be read"),
        ('{"model_type": "llama", "hidden_size": 65, "num_attention_heads": 4}', "cannot be read"),
        ('{"model_type": "t5"}', "which is an encoder-decoder.* kvray tunes decoder-only models"),
    ],
)
def test_a_broken_config_is_a_model_error(config: str, message: str, folder: Path) -> None:
    (folder / "config.json").write_text(config)
    for model_id in (folder, f"random:{folder}"):
        with pytest.raises(ModelError, match=message):
            describe(model_id)


def test_code_that_a_model_brings_is_not_run(folder: Path) -> None:
    config = {"model_type": "of_its_own", "auto_map": {"AutoConfig": "configuration.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    ran = folder / "ran"
    (folder / "configuration.py").write_text(f"open({str(ran)!r}, 'w').close()\nraise RuntimeError('it ran')\n")

    with pytest.raises(
        ModelError, match=r"brings its own Python code\. If you trust its author, pass --trust-remote-c"
    ):
        describe(folder)
    assert not ran.exists()


def test_what_identifies_a_folder_is_its_weights(folder: Path) -> None:
    first = identify(folder)
    weights = folder / "model.safetensors"
    assert identify(folder) == first
    weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
    assert identify(folder) != first


def test_a_description_reads_no_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revision, "files_sha256", lambda paths: pytest.fail("they were hashed"))
    assert TransformersAdapter().describe_model(ModelRequest(model_id=str(folder))).revision == "unknown"


@pytest.mark.parametrize("form", ["{}", "random:{}"])
def test_a_model_that_changes_while_it_is_measured_is_measured_no_more(form: str, folder: Path) -> None:
    engine, plain = TransformersAdapter(), ModelRequest(model_id=form.format(folder))
    request = replace(plain, revision=identify(plain.model_id))
    engine.fetch_weights(request)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    with pytest.raises(ModelError, match="has changed since the sweep began"):
        engine.fetch_weights(request)
    engine.fetch_weights(plain)


def test_a_folder_that_lacks_weights_is_refused_before_anything_starts(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no pickled ones"):
        describe(folder)


def damage(weights: Path, how: str) -> None:
    content = weights.read_bytes()
    damaged = {
        "empty": b"",
        "garbage": b"\xff" * 4096,
        "cut short": content[: len(content) // 2],
        "header cut short": content[:20],
    }
    weights.write_bytes(damaged[how])


@pytest.mark.parametrize("how", ["empty", "garbage", "cut short", "header cut short"])
def test_damaged_weights_end_a_trial_with_their_name(how: str, folder: Path) -> None:
    damage(folder / "model.safetensors", how)
    spec = TrialSpec(
        run_id="r",
        trial_id="t",
        role=Role.SEARCH,
        request=ModelRequest(model_id=str(folder)),
        candidate=make_candidate(),
        profile=PROFILE,
        device=DeviceType.CPU,
        timeout_s=240.0,
    )
    ended = _run(
        TrialProtocol(
            spec,
            TransformersAdapter(),
            emit=lambda event: None,
            may_continue=lambda: True,
            device_memory_mib=lambda _: None,
        )
    )
    assert getattr(ended, "status", None) is TrialStatus.ERROR
    assert f"ModelError: The weights in {str(folder)!r} cannot be read" in getattr(ended, "message", "")


def test_weights_that_lack_a_tensor_are_refused_instead_of_made_up(folder: Path) -> None:
    rewrite_without_a_tensor(folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"lack 1 tensor of the model, model\.layers\.1\.mlp\.down_proj\.weight"):
        load(folder)


def rewrite_without_a_tensor(weights: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})


@pytest.mark.parametrize("how", ["empty", "garbage", "cut short"])
def test_a_broken_gguf_is_a_model_error(how: str, gguf: Path, cache: Path) -> None:
    damage(gguf, how)
    with pytest.raises(ModelError, match=r"tiny\.gguf' cannot be converted: "):
        describe(gguf)
    assert not (cache / "gguf").exists()


def test_a_killed_conversion_leaves_nothing_that_passes_for_complete(gguf: Path, cache: Path) -> None:
    command = [sys.executable, "-m", "kvray.engines.hugging_face.gguf", str(gguf)]
    process = subprocess.Popen(command, env=dict(os.environ), stderr=subprocess.DEVNULL)
    wait_for_staging(cache / "gguf")
    process.send_signal(signal.SIGKILL)
    process.wait()
    (staging,) = [path for path in (cache / "gguf").iterdir() if path.is_dir()]
    (staging / "config.json").touch()  # as if it had come further
    assert not is_converted(gguf)

    converted = converted_gguf(gguf)

    assert {path.name for path in (cache / "gguf").iterdir()} == {converted.name, f"{converted.name}.lock"}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in converted.iterdir()}


def wait_for_staging(folder: Path) -> None:
    deadline = time.monotonic() + LONGEST_WAIT_S
    while not (folder.is_dir() and any(path.name.startswith(".") for path in folder.iterdir())):
        assert time.monotonic() < deadline, "the conversion did not begin"
        time.sleep(0.005)


def test_a_file_is_converted_once_in_a_process_of_its_own_and_then_found_at_once(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = describe(gguf)
    monkeypatch.setattr(conversion, "_convert_apart", lambda path: pytest.fail("converted again"))
    assert describe(gguf) == first

    elsewhere = gguf.with_name("the same under another name.gguf")
    elsewhere.write_bytes(gguf.read_bytes())
    monkeypatch.setattr(gguf_module, "_convert_gguf", lambda gguf, target: pytest.fail("converted again"))
    assert converted_gguf(elsewhere) == converted_gguf(gguf)


def test_another_content_under_the_same_name_is_another_model(gguf: Path) -> None:
    assert is_converted(gguf) is False
    converted_gguf(gguf)
    assert is_converted(gguf)
    content = bytearray(gguf.read_bytes())
    content[-1] ^= 1
    gguf.write_bytes(content)
    assert not is_converted(gguf)


def test_a_converted_file_generates(gguf: Path) -> None:
    converted_gguf(gguf)
    model = load(gguf)
    model.prepare(Cell(24, 4, 1))
    assert len(model.generate(4).tokens[0]) == 4
    assert model.observe().substitutions == ()


def test_a_cache_that_cannot_be_written_is_a_model_error_with_a_way_out(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "a file"))
    with pytest.raises(ModelError, match=r"cannot be converted into .*Set KVRAY_CACHE"):
        converted_gguf(gguf)
