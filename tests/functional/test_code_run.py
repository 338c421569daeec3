"""The winner's code is run once before it is handed over, and whatever comes of that costs no result."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from measured_here import kept, measured_here
from transformers_samples import change_config, give_own_code, make_candidate, pickle_weights, save_tiny_model

from kvray.candidate import Candidate
from kvray.engines.base import ModelRequest
from kvray.engines.transformers import TransformersAdapter
from kvray.errors import ModelError
from kvray.record import TrialResult
from kvray.store.manifest import CodeCheck, CodeOutcome
from kvray.testing.fake import FakeAdapter
from kvray.tuning import code_run
from kvray.tuning.code_run import CodeRunner
from kvray.tuning.result import TuneResult

pytestmark = pytest.mark.usefixtures("one_thread")


class UnwellAdapter(TransformersAdapter):
    snippet_runner = "unwell_runner"


class WeightlessAdapter(TransformersAdapter):
    def fetch_weights(self, request: ModelRequest) -> None:
        raise ModelError("They are not here.")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What makes code fail most easily, in one: own code, pickled weights, a tokenizer that gives too much."""
    folder = pickle_weights(give_own_code(save_tiny_model(tmp_path_factory.mktemp("model"))))
    given = ["input_ids", "token_type_ids", "attention_mask"]
    return change_config(folder, name="tokenizer_config.json", model_input_names=given)


@pytest.fixture(scope="module")
def request_(model: Path) -> ModelRequest:
    return ModelRequest(model_id=str(model), trust_remote_code=True, allow_pickle=True)


@pytest.fixture(scope="module")
def trial(request_: ModelRequest) -> TrialResult:
    return measured_here(TransformersAdapter(), request_, make_candidate("static", "eager", batch_size=2))


@pytest.fixture
def changed(tmp_path: Path, request_: ModelRequest, trial: TrialResult) -> Callable[..., TuneResult]:
    """The sweep of that trial with other values in its record."""

    def change(**values: object) -> TuneResult:
        result = replace(trial, record=trial.record.with_(**values))
        return kept(tmp_path / "results", TransformersAdapter(), request_, result)

    return change


def check(result: TuneResult, runner: CodeRunner | None = None) -> tuple[CodeOutcome, str]:
    found = (runner or CodeRunner(TransformersAdapter())).check(result)
    assert isinstance(found, CodeCheck)
    assert found.candidate_id == result.analysis.ranking.winner.record.candidate_id
    return found.outcome, found.text


def test_code_that_does_what_was_measured_is_checked(changed: Callable[..., TuneResult]) -> None:
    started: list[str] = []
    runner = CodeRunner(TransformersAdapter(), before=lambda: started.append("now"))
    result = changed()
    told = "The winner's code was run once in a separate process: the same tokens, StaticCache, eager, as measured."
    assert check(result, runner) == (CodeOutcome.CHECKED, told)
    assert check(result, runner) == (CodeOutcome.CHECKED, told)
    assert started == ["now"], "what is known is not tried again"


def test_code_is_run_in_the_python_of_the_trials(changed: Callable[..., TuneResult]) -> None:
    result = changed()
    elsewhere = result.manifest.model_copy(update={"engine_pythons": {"transformers": "/bin/false"}})
    told = "The winner's code does not run: it ended with exit code 1 and without a word."
    assert check(replace(result, manifest=elsewhere)) == (CodeOutcome.FAILED, told)


def test_code_that_does_something_else_is_told_as_such(changed: Callable[..., TuneResult], trial: TrialResult) -> None:
    rows = json.loads(trial.record.sample_tokens or "")
    rows[1][3] += 1
    outcome, text = check(
        changed(cache_class="DynamicCache", kernel_decode="sdpa_flash | sdpa_math", sample_tokens=json.dumps(rows))
    )
    assert outcome is CodeOutcome.DIFFERS
    assert text == (
        "The winner's code does not do what was measured: cache StaticCache where DynamicCache was measured; "
        "decode eager where sdpa_flash | sdpa_math was measured; "
        "it generates other tokens: 3 of 8 are the same until they differ."
    )


@pytest.fixture
def unwell(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], CodeRunner]:
    def make(how: str) -> CodeRunner:
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
        monkeypatch.setenv("UNWELL", how)
        return CodeRunner(UnwellAdapter())

    return make


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("raise", "ValueError: model_kwargs are not used"),
        ("killed", "it was killed by SIGKILL"),
        ("silent", "it ended with exit code 7 and without a word"),
    ],
)
def test_code_that_fails_is_told_with_the_reason(
    how: str, why: str, unwell: Callable[[str], CodeRunner], changed: Callable[..., TuneResult]
) -> None:
    assert check(changed(), unwell(how)) == (CodeOutcome.FAILED, f"The winner's code does not run: {why}.")


@pytest.fixture
def pid_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("UNWELL_PID", str(tmp_path / "pid"))
    yield tmp_path / "pid"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_code_that_hangs_is_ended_after_a_while(
    pid_file: Path,
    unwell: Callable[[str], CodeRunner],
    changed: Callable[..., TuneResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(code_run, "LEAST_LIMIT_S", 3)
    monkeypatch.setattr(code_run, "LIMIT_FACTOR", 0)
    told = "The winner's code was not run to its end: 3 s were not enough."
    assert check(changed(), unwell("hang")) == (CodeOutcome.NOT_RUN, told)


def test_ctrl_c_ends_the_check_and_nothing_else(
    pid_file: Path,
    unwell: Callable[[str], CodeRunner],
    changed: Callable[..., TuneResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(code_run, "LEAST_LIMIT_S", 3600)  # not what ends it

    def press_once_it_runs() -> None:
        while not pid_file.exists():
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    result = changed()
    presser = threading.Thread(target=press_once_it_runs)
    presser.start()
    told = "The winner's code was not run to its end: interrupted."
    assert check(result, unwell("hang")) == (CodeOutcome.NOT_RUN, told)
    presser.join()


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"host": "gpu-3"}, "it was measured on gpu-3, not here"),
        ({"sample_tokens": None}, "its trials recorded no tokens to compare with"),
    ],
)
def test_code_that_cannot_be_run_here_is_left_with_the_reason(
    values: dict[str, object], why: str, changed: Callable[..., TuneResult]
) -> None:
    assert check(changed(**values)) == (CodeOutcome.NOT_RUN, f"The winner's code was not run: {why}.")


def test_code_of_a_cluster_whose_weights_are_on_its_nodes_alone_is_not_run(changed: Callable[..., TuneResult]) -> None:
    found = check(changed(hardware="aaaa0000"), CodeRunner(WeightlessAdapter()))
    assert found == (CodeOutcome.NOT_RUN, "The winner's code was not run: They are not here.")


def test_an_engine_without_code_is_left_in_peace(changed: Callable[..., TuneResult]) -> None:
    told = "The winner's code was not run: the engine fake has no code that could be run apart."
    assert check(changed(), CodeRunner(FakeAdapter())) == (CodeOutcome.NOT_RUN, told)
    told = "The winner's code was not run: --no-check-snippet was given."
    assert check(changed(), CodeRunner(TransformersAdapter(), excuse="--no-check-snippet was given")) == (
        CodeOutcome.NOT_RUN,
        told,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "candidate",
    [
        make_candidate("paged"),
        make_candidate("static", compile="default"),
        make_candidate("quantized(backend=hqq,nbits=4,q_group_size=16)", "sdpa_math", "bfloat16"),
        make_candidate("sliding_window(window=24,sinks=4)", batch_size=2),
    ],
    ids=lambda candidate: candidate.label,
)
def test_code_of_every_kind_is_checked(candidate: Candidate, tmp_path: Path) -> None:
    request, adapter = ModelRequest(model_id=str(save_tiny_model(tmp_path / "model"))), TransformersAdapter()
    trial = measured_here(adapter, request, candidate)
    outcome, text = check(kept(tmp_path / "results", adapter, request, trial))
    assert (outcome, "the same tokens" in text) == (CodeOutcome.CHECKED, True)
