"""Text in, text out, as a plan's session uses it; and no warning on the way, for each of them hints at a lie."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers_samples import BOS, EOS, load, make_candidate, save_tiny_model

from kvray.engines.base import UnsupportedError
from kvray.engines.hugging_face.gguf import converted_gguf
from kvray.engines.transformers import TransformersAdapter
from kvray.engines.transformers.loaded import TransformersModel
from kvray.workload import Cell

pytestmark = pytest.mark.usefixtures("one_thread")

QUESTION = "The capital of France is"


@pytest.fixture(scope="module")
def demo_folder(demo_model: Path, cache_folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as variables:
        variables.setenv("KVRAY_CACHE", str(cache_folder))
        return converted_gguf(demo_model)


@pytest.fixture(scope="module")
def demo(demo_folder: Path) -> Iterator[TransformersModel]:
    model = load(demo_folder)
    yield model
    model.close()


@pytest.fixture(scope="module")
def plain(demo_folder: Path) -> Any:
    """The library's own model and tokenizer, with nothing set."""
    return AutoModelForCausalLM.from_pretrained(demo_folder), AutoTokenizer.from_pretrained(demo_folder)


def chat(text: str) -> str:
    """A question as SmolLM2's template puts it: the answer ends with the model's end-of-sequence token."""
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("text", "most", "ends"), [(QUESTION, 12, False), (chat("What is the capital of France?"), 40, True)]
)
def test_a_completion_is_that_of_a_plain_generate(
    text: str, most: int, ends: bool, demo: TransformersModel, plain: Any
) -> None:
    model, tokenizer = plain
    inputs = tokenizer(text, return_tensors="pt")
    (tokens,) = model.generate(**inputs, max_new_tokens=most, do_sample=False)
    new = tokens[inputs["input_ids"].shape[1] :]

    assert demo.complete(text, most) == tokenizer.decode(new, skip_special_tokens=True)
    assert (len(new) < most) is ends
    assert (int(new[-1]) == model.generation_config.eos_token_id) is ends


def test_a_completion_does_not_disturb_a_measurement(demo: TransformersModel) -> None:
    demo.prepare(Cell(24, 4, 1))
    before = demo.generate(4).tokens
    demo.complete(QUESTION, 5)
    assert demo.generate(4).tokens == before


def test_tokens_are_counted_as_a_prompt_has_them(demo: TransformersModel, plain: Any) -> None:
    for text in ("", "a", QUESTION, chat("Hello"), "ß\n\n\tdéjà vu"):
        assert demo.count_tokens(text) == len(plain[1](text)["input_ids"])


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_completion_ends_at_any_of_several_eos_tokens(cache: str, tmp_path: Path) -> None:
    free = load(save_tiny_model(tmp_path / "free"))
    free.prepare(Cell(24, 2, 1))
    prompt = free._text_tokenizer.decode(free._prompt_tensor[0])
    (tokens,) = free.generate(2).tokens

    model = load(save_tiny_model(tmp_path / "ends", eos_token_id=[BOS, EOS, tokens[1]]), make_candidate(cache))
    expected = model._text_tokenizer.decode(tokens, skip_special_tokens=True)
    assert model.complete(prompt, 50) == expected


def test_a_model_without_a_tokenizer_can_be_measured_and_not_talked_to(tiny_model: str) -> None:
    model = load(tiny_model)
    model.prepare(Cell(24, 4, 2))
    assert len(model.generate(4).tokens) == 2
    for talk in (lambda: model.complete("a", 2), lambda: model.count_tokens("a")):
        with pytest.raises(UnsupportedError, match="no tokenizer"):
            talk()


USE = """
import json, sys
from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import ModelRequest
from kvray.engines.transformers import TransformersAdapter
from kvray.workload import Cell, get_profile
adapter, request = TransformersAdapter(), ModelRequest(model_id=sys.argv[1])
adapter.describe_model(request)
adapter.fetch_weights(request)
for candidate in map(Candidate.from_dict, json.loads(sys.argv[2])):
    model = adapter.load(request, candidate, DeviceType.CPU, get_profile("ci-micro"))
    model.prepare(Cell(24, 4, 1))
    model.generate(4)
    model.observe()
    model.complete("Hello", 4)
    model.count_tokens("Hello")
    model.close()
print("done")
"""


@pytest.mark.slow  # loads whole checkpoints
@pytest.mark.parametrize("real", [True, False], ids=["a real checkpoint", "one that samples and has no padding token"])
def test_nothing_is_said_on_the_way(real: bool, demo_folder: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    if real:
        folder = demo_folder
        candidates = [make_candidate("static", "sdpa_math", "bfloat16")]
    else:
        sampling: dict[str, Any] = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "max_length": 64}
        folder = save_tiny_model(tmp_path / "model", **sampling, pad_token_id=None)
        axes = itertools.product(("dynamic", "static"), ("eager", "sdpa", "sdpa_math"), ("bfloat16",))
        candidates = [make_candidate(*values) for values in axes]
    told = json.dumps([candidate.to_dict() for candidate in candidates])
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", USE, str(folder), told],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={
            **environment,
            **TransformersAdapter().process_environment(),
            "KVRAY_CACHE": os.fspath(tmp_path),
            "OMP_NUM_THREADS": "1",
        },
    )
    assert (done.stdout, [line for line in done.stderr.splitlines() if not _is_harmless(line)]) == ("done\n", [])


def _is_harmless(line: str) -> bool:
    """Deprecations that libraries show one another, with the line of code below each; and that Transformers 5.16 leaves
    out a cleaning of decoded text which 5.23 leaves out in silence."""
    return "DeprecationWarning" in line or line.startswith("  ") or "clean_up_tokenization_spaces=True" in line
