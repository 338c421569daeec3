"""Models, plans and spaces that bring code: it never runs unless the user said so. Real files, real libraries."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers_samples import make_candidate, save_tiny_model

from kvray.candidate import DeviceType
from kvray.engines.base import ModelRequest, UnsupportedError
from kvray.engines.transformers import TransformersAdapter
from kvray.engines.transformers.loaded import TransformersModel
from kvray.errors import InvalidValueError, KvrayError, ModelError, PlanError
from kvray.plan.session import load_plan
from kvray.workload import Cell

ADAPTER = TransformersAdapter()


class Malice:
    """Unpickling it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._marker),)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "foreign-code-ran"


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """A model whose weights are a pickle, as `torch.save` writes them."""
    folder = save_tiny_model(tmp_path / "model")
    model = TransformersModel(ModelRequest(model_id=str(folder)), make_candidate(), DeviceType.CPU)
    torch.save(model._model.state_dict(), folder / "pytorch_model.bin")
    model.close()
    (folder / "model.safetensors").unlink()
    return folder


def malicious_bytes(marker: Path) -> bytes:
    return pickle.dumps({"model.embed_tokens.weight": Malice(marker)})


def write_archive(path: Path, marker: Path) -> None:
    """As `torch.save` does since 1.6: a zip file with a pickle in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", malicious_bytes(marker))
        archive.writestr("archive/version", "3\n")


def use(folder: Path, *, allow_pickle: bool = False) -> tuple[tuple[int, ...], ...]:
    """Describe, fetch, load and run the model as a trial does."""
    request = ModelRequest(model_id=str(folder), allow_pickle=allow_pickle)
    ADAPTER.describe_model(request)
    ADAPTER.fetch_weights(request)
    return load_and_run(request)


def load_and_run(request: ModelRequest) -> tuple[tuple[int, ...], ...]:
    model = TransformersModel(request, make_candidate(), DeviceType.CPU)
    try:
        model.prepare(Cell(24, 4, 1))
        return model.generate(4).tokens
    finally:
        model.close()


def test_the_malicious_file_is_malicious(marker: Path) -> None:
    pickle.loads(malicious_bytes(marker))
    assert marker.exists()


def test_pickled_weights_are_refused_with_the_option_that_allows_them(pickled: Path) -> None:
    with pytest.raises(ModelError, match=r"safetensors weights only, no pickled ones\..*pass --allow-pickle"):
        use(pickled)


def test_pickled_weights_load_where_they_are_allowed_and_give_the_same_tokens(pickled: Path, tmp_path: Path) -> None:
    assert use(pickled, allow_pickle=True) == use(save_tiny_model(tmp_path / "same"))


def test_pickled_weights_in_shards_load_where_they_are_allowed(pickled: Path, tmp_path: Path) -> None:
    weights = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    (pickled / "pytorch_model.bin").unlink()
    names = sorted(weights)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for shard, held in shards.items():
        torch.save({name: weights[name] for name in held}, pickled / shard)
    index = {"metadata": {}, "weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (pickled / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="pass --allow-pickle"):
        use(pickled)
    assert use(pickled, allow_pickle=True) == use(save_tiny_model(tmp_path / "same"))


def test_safetensors_win_over_a_pickle_beside_them_even_where_it_is_allowed(tmp_path: Path, marker: Path) -> None:
    folder = save_tiny_model(tmp_path / "both")
    write_archive(folder / "pytorch_model.bin", marker)
    assert use(folder, allow_pickle=True) == use(folder)
    assert not marker.exists()


@pytest.mark.parametrize("form", ["archive", "bare"])
@pytest.mark.parametrize("allow_pickle", [False, True])
def test_a_malicious_pickle_never_runs(pickled: Path, marker: Path, form: str, allow_pickle: bool) -> None:
    weights = pickled / "pytorch_model.bin"
    weights.unlink()
    if form == "archive":
        write_archive(weights, marker)
    else:
        weights.write_bytes(malicious_bytes(marker))
    with pytest.raises(ModelError, match="cannot be read" if allow_pickle else "--allow-pickle"):
        use(pickled, allow_pickle=allow_pickle)
    assert not marker.exists()


def test_an_index_of_safetensors_cannot_name_a_pickle(pickled: Path, marker: Path) -> None:
    write_archive(pickled / "evil.bin", marker)
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "evil.bin"}}
    (pickled / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"names 'evil\.bin', which is no \.safetensors file beside it"):
        use(pickled)
    with pytest.raises(ModelError, match=r"names 'evil\.bin'"):
        load_and_run(ModelRequest(model_id=str(pickled)))
    assert not marker.exists()


def test_an_index_names_no_file_outside_the_folder(pickled: Path) -> None:
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "../../other.safetensors"}}
    (pickled / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"which is no \.safetensors file beside it"):
        use(pickled)


def test_a_config_cannot_name_a_pickle_past_the_check(tmp_path: Path, marker: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    write_archive(folder / "adapter_model.bin", marker)
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "adapter_model.bin"}))
    with pytest.raises(ModelError, match=r"names 'adapter_model\.bin', which is no \.safetensors file beside it"):
        use(folder)
    assert not marker.exists()


def code_of_its_own(folder: Path, marker: Path) -> Path:
    """A model whose folder brings a configuration class, which leaves a mark when it is imported."""
    save_tiny_model(folder)
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "of_its_own", "auto_map": {"AutoConfig": "configuration.Config"}}
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    (folder / "configuration.py").write_text(
        f"import os\nos.mkdir({str(marker)!r})\nfrom transformers import LlamaConfig\n"
        "class Config(LlamaConfig):\n    model_type = 'of_its_own'\n"
    )
    return folder


def test_a_models_own_code_does_not_run_unasked(tmp_path: Path, marker: Path) -> None:
    folder = code_of_its_own(tmp_path / "model", marker)
    with pytest.raises(ModelError, match="brings its own Python code"):
        ADAPTER.describe_model(ModelRequest(model_id=str(folder)))
    assert not marker.exists()


def test_a_folder_here_does_not_pass_for_a_trusted_repository_of_the_hub(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code_of_its_own(tmp_path / "org" / "model", marker)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"'org/model' is a folder in the working folder.*\./org/model"):
        ADAPTER.describe_model(ModelRequest(model_id="org/model", trust_remote_code=True))
    assert not marker.exists()
    with pytest.raises(ModelError, match="its own code brings AutoConfig"):
        ADAPTER.describe_model(ModelRequest(model_id="./org/model", trust_remote_code=True))
    assert marker.exists()


def test_a_folder_here_does_not_pass_for_the_repository_that_has_a_trusted_models_code(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code_of_its_own(tmp_path / "org" / "code", marker)
    model = code_of_its_own(tmp_path / "trusted", tmp_path / "unused")
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text.replace("configuration.Config", "org/code--configuration.Config"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="takes its code from the hub's 'org/code', and a folder of that name"):
        ADAPTER.describe_model(ModelRequest(model_id=str(model), trust_remote_code=True))
    assert not marker.exists()


def test_a_kernel_by_anybody_is_not_loaded_unless_trusted(tmp_path: Path) -> None:
    kernel = make_candidate(attention="hub_kernel", hub_kernel="someone/attention")
    with pytest.raises(UnsupportedError, match="kernel someone/attention is code by others"):
        TransformersModel(ModelRequest(model_id=str(save_tiny_model(tmp_path / "m"))), kernel, DeviceType.CPU)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::kvray.plan.session.FingerprintWarning")
def test_a_plan_that_asks_for_foreign_code_does_not_run_it(
    tmp_path: Path, marker: Path, kvray: Callable[..., Any]
) -> None:
    output = tmp_path / "results"
    line = ("tune", "fake:ok", "--engine", "fake", "--device", "cpu", "--context", "16", "--output-len", "4")
    done = kvray(*line, "--repeats", "1", "--cache", "dynamic", "--search", "grid", "--confirm", "0", "-o", output)
    assert done.returncode == 0, done.stderr
    (path,) = output.glob("reports/*/best_plan.json")
    plan = json.loads(path.read_text())
    folder = code_of_its_own(tmp_path / "model", marker)
    path.write_text(json.dumps({**plan, "model_id": str(folder), "engine": "transformers", "trust_remote_code": True}))
    with pytest.raises(PlanError, match=r"load\(trust_remote_code=True\)"):
        load_plan(path).load()
    path.write_text(json.dumps({**plan, "model_id": str(folder), "engine": "transformers"}))
    with pytest.raises(KvrayError, match="brings its own Python code"):
        load_plan(path).load().generate("Hello", max_new_tokens=1)
    assert not marker.exists()
    path.write_text(json.dumps({**plan, "trust_remote_code": True}))
    shown = kvray("apply", path)
    assert shown.returncode == 0
    assert "kvray: warning: The code runs Python code that the model brings" in shown.stderr


def test_a_space_file_makes_no_objects(tmp_path: Path, marker: Path) -> None:
    from kvray.space.search_space import SpaceBlock
    from kvray.space.space_file import load_space

    (tmp_path / "space.yaml").write_text(f"!!python/object/apply:os.mkdir ['{marker}']\n")
    with pytest.raises(InvalidValueError):
        load_space(tmp_path / "space.yaml", axes=(), otherwise=SpaceBlock(caches=(), attentions=(), dtypes=()))
    assert not marker.exists()
