"""What one deploys: the command line of `vllm serve`, and a program with `vllm.LLM`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import ModelRequest
from kvray.engines.hugging_face.model_folder import config_path
from kvray.engines.vllm.arguments import engine_arguments, environment
from kvray.engines.vllm.description import layer_kinds, read_config
from kvray.errors import ModelError
from kvray.models.revision import is_commit
from kvray.models.source import SourceKind, parse_model_id
from kvray.record import RANDOM_PREFIX
from kvray.workload import Cell

_ENV = "env"
"""The program that sets variables for another one."""


def serving_command(
    request: ModelRequest, candidate: Candidate, device: DeviceType, cells: Sequence[Cell]
) -> tuple[str, ...]:
    """The words of the command, program first. What was measured had the server's own defaults, so those are left."""
    arguments = _arguments(request, candidate, device, cells)
    model = str(arguments.pop("model"))
    variables = [f"{name}={value}" for name, value in environment(candidate).items()]
    return (*([_ENV, *variables] if variables else []), "vllm", "serve", model, *_options(arguments))


def render(request: ModelRequest, candidate: Candidate, device: DeviceType, cells: Sequence[Cell]) -> str:
    """A program with `load()` and `generate(…)`. `vllm.LLM` has other defaults than the server, so it is given the
    server's."""
    arguments = _arguments(request, candidate, device, cells)
    lines = [f"        {name}={value!r}," for name, value in arguments.items()]
    defaults = f"EngineArgs.get_batch_defaults({candidate.parallelism})"
    for place, name in enumerate(("max_num_batched_tokens", "max_num_seqs")):
        if name not in arguments:
            lines.append(f"        {name}={defaults}[{place}][UsageContext.OPENAI_API_SERVER],")
    variables = [f"os.environ[{name!r}] = {value!r}\n" for name, value in environment(candidate).items()]
    return _PROGRAM.format(
        imports="import os\n\n" if variables else "", variables="".join(variables), arguments="\n".join(lines)
    )


_PROGRAM = '''"""The configuration that kvray measured as best, for vLLM alone."""

{imports}from vllm import LLM, EngineArgs, SamplingParams
from vllm.usage.usage_lib import UsageContext

{variables}
def load():
    """The model, with what `vllm serve` does where nothing is said."""
    return LLM(
{arguments}
    )


def generate(llm, texts, max_new_tokens=32):
    """The most probable continuation of each text."""
    settings = SamplingParams(temperature=0.0, max_tokens=max_new_tokens)
    return [result.outputs[0].text for result in llm.generate(texts, settings)]


if __name__ == "__main__":
    print(*generate(load(), ["It was the best of times, it was"]), sep="\\n")
'''


def _arguments(
    request: ModelRequest, candidate: Candidate, device: DeviceType, cells: Sequence[Cell]
) -> dict[str, Any]:
    arguments = engine_arguments(_model(request), candidate, device, cells, kinds=_kinds(request))
    if request.model_id.startswith(RANDOM_PREFIX):
        arguments["load_format"] = "dummy"
    if request.trust_remote_code:
        arguments["trust_remote_code"] = True
    if is_commit(request.revision):
        arguments["revision"] = request.revision
    return arguments


def _model(request: ModelRequest) -> str:
    """What vLLM finds the model by: a GGUF file by the folder that it was converted into."""
    with suppress(ModelError):
        if parse_model_id(request.model_id).kind is SourceKind.HUB:
            return request.model_id
        return str(config_path(request))
    return request.model_id


def _kinds(request: ModelRequest) -> tuple[str, ...]:
    """The layers' kinds; none where the model is not on this machine, as if all were alike."""
    with suppress(ModelError):
        return layer_kinds(read_config(config_path(request)))
    return ()


def _options(arguments: Mapping[str, Any]) -> Iterator[str]:
    for name, value in arguments.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{option}" if value else f"--no-{option}"
        elif isinstance(value, dict):
            yield from (f"--{option}", json.dumps(value))
        else:
            yield from (f"--{option}", str(value))
