"""The file of `kvray batch`: what it may say, and how a mistake is told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kvray.config import TuneConfig
from kvray.errors import InvalidValueError
from kvray.tuning.batch_file import EXAMPLE, AskedSweep, BatchFile, SweepSettings, read_batch_file

OF_THE_BATCH = {
    *("model_id", "profile", "output_dir", "device", "address", "slots", "offline", "wait_quiet_s", "resume", "force"),
    *("retry", "retry_disturbed", "gpu_type", "exclusive"),
}


def read(folder: Path, text: str) -> tuple[AskedSweep, ...]:
    path = folder / "models.yaml"
    path.write_text(text, encoding="utf-8")
    return read_batch_file(path)


def test_each_model_is_a_sweep_for_each_profile_and_its_own_settings_win(tmp_path: Path) -> None:
    sweeps = read(
        tmp_path,
        "defaults: {profiles: [chat-agent, rag], compiles: [off], max_trials: 9}\n"
        "models:\n- a\n- {model: b, profiles: [ci-micro], max_trials: 3, limits: {max_quality_loss: off}}\n",
    )
    assert [(one.model_id, one.profile.name) for one in sweeps] == [
        ("a", "chat-agent"),
        ("a", "rag"),
        ("b", "ci-micro"),
    ]
    assert sweeps[0].settings == {"compiles": ["off"], "max_trials": 9}
    assert sweeps[2].settings["max_trials"] == 3
    assert sweeps[2].profile.limits.max_quality_loss is None


def test_the_example_is_valid(tmp_path: Path) -> None:
    assert len(read(tmp_path, EXAMPLE)) == 2
    everything = EXAMPLE.replace("  # context", "  context").replace("  # limits", "  limits").replace("  # ca", "  ca")
    assert read(tmp_path, everything)[0].settings["caches"] == ["dynamic", "static"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("models: [a]\ndefaults:\n  cachess: [static]\n", r"line 3: there is no key 'cachess'. Did you mean 'caches'"),
        ("models:\n- model: a\n  colour: red\n", r"line 3: there is no key 'colour'"),
        ("models:\n- a\n- model: b\n  caches: [bogus]\n", r"line 4: .*'bogus'"),
        ("models:\n- a\n- model: b\n  max_trials: -1\n", r"line 4: models.1.max_trials: .*greater than"),
        ("models: [a]\ndefaults:\n  dtypes: [float17]\n", r"line 3: .*float17"),
        ("models:\n- model: a\n  profiles: [nope]\n", r"line 3: Unknown profile 'nope'"),
        ("models:\n- model: a\n  limits: {max_speed: 1}\n", r"line 3: .*no limit 'max_speed'.*max_ttft_ms"),
        ("models: [a]\nmodels: [b]\n", r"line 2: models is given twice"),
        ("defaults: {}\n", r"models is missing"),
        ("models: []\n", r"line 1: models"),
        ("models: [a, a]\n", r"asks twice for 'a' with profile 'chat-agent'"),
        ("models: &x [*x]\n", r"too many"),
        (
            "models:\n- model: a\n  engine: a,b\n  models_for: {c: x.gguf}\n",
            r"line 4: models_for names the engine 'c'. Allowed by engine: a, b\.$",
        ),
        ("models: [\n", r"not valid YAML: .*line 2"),
        ("", r"is empty"),
        ("- a\n", r"line 1: "),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InvalidValueError, match=told):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("models: [a]\ndefaults:\n  profiles: ci-micro\n", "line 3: defaults.profiles takes a list: write [ci-micro]"),
        ("models: gpt2\n", "line 1: models takes a list: write [gpt2]"),
        ("models:\n", "line 1: models is empty: write one value a line below it, each after a dash"),
        ("models: []\n", "line 1: models is empty"),
        ("models: [a]\ndefaults:\n", "line 2: defaults is empty: write KEY: VALUE below it, or leave it out"),
        ("models:\n- random: ./tiny\n", "line 2: write random:./tiny without a space after the colon"),
        ("models: [a]\ndefaults: {max_trials: x}\n", "line 2: defaults.max_trials: must be a whole number (got 'x')"),
        ("models: [a]\ndefaults: {timeout_s: x}\n", "line 2: defaults.timeout_s: must be a number (got 'x')"),
        ("models: [a]\ndefaults: {forecast: x}\n", "line 2: defaults.forecast: must be on or off (got 'x')"),
        ("models: [a]\ndefaults: {max_trials: 0}\n", "must be greater than or equal to 1 (got '0')"),
        ("models: [a]\ndefaults: {engine: [x]}\n", "line 2: defaults.engine: must be one text (got"),
        ("models: ['']\n", "line 1: models.0 is empty"),
        ("models: [a]\ndefaults: {limits: 3}\n", "line 2: defaults.limits takes keys of its own"),
        ("- a\n", "line 1: the file has keys: models, and defaults where there are some"),
        (
            "models: [a]\ndefaults: {limits: {max_ttft: 1}}\n",
            "there is no limit 'max_ttft'. Did you mean 'max_ttft_ms'? Allowed: max_ttft_ms",
        ),
    ],
)
def test_a_mistake_is_told_in_plain_words(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InvalidValueError) as raised:
        read(tmp_path, text)
    said = str(raised.value)
    assert told in said
    assert len(re.findall(r"line \d", said)) == 1
    assert not re.search(r"Input|Tuple|String|dictionary", said)


def test_a_wrong_key_of_the_only_model_is_the_only_mistake(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"is not valid: line 3: there is no key 'colour'\.") as raised:
        read(tmp_path, "models:\n- model: a\n  colour: red\n")
    assert str(raised.value).count("line ") == 1


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"line 3: .*bogus.*line 5: .*float17"):
        read(tmp_path, "models:\n- model: a\n  caches: [bogus]\n- model: b\n  dtypes: [float17]\n")


def test_a_file_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"Cannot read batch file .*No such file"):
        read_batch_file(tmp_path / "none.yaml")


def test_a_sweep_can_be_told_all_that_is_not_the_batchs() -> None:
    assert set(TuneConfig.model_fields) - OF_THE_BATCH <= set(SweepSettings.model_fields)


def test_the_schema_is_that_of_the_code() -> None:
    schema = Path(__file__).parents[3] / "docs" / "schema" / "batch.schema.json"
    assert json.loads(schema.read_text(encoding="utf-8")) == BatchFile.model_json_schema()
