"""`Session`: one vLLM engine, asked for exact numbers of tokens through its own step loop.

vLLM computes in processes of its own; this one submits requests and reads tokens, as `vllm.LLM` does.
"""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from kvray.engines.base import Generation, SubstitutedError, UnsupportedError
from kvray.engines.vllm.words import EngineWords
from kvray.probes.own_processes import descendants

WORKER_EXTENSION = "kvray.engines.vllm.worker.KvrayWorker"


@dataclass
class Row:
    """One sequence as its tokens come in.

    Attributes:
        cached: tokens of its prompt that were found in the prefix cache.
    """

    stamps: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    cached: int = 0
    is_done: bool = False


class Session:
    """One engine from `EngineArgs` on, until `close`.

    Args:
        arguments: of `vllm.EngineArgs`.
        words: what the engine logs.

    Raises:
        UnsupportedError, OutOfMemoryError, CrashedError: the engine does not start; its own words inside.
    """

    def __init__(self, arguments: dict[str, Any], words: EngineWords) -> None:
        from vllm import EngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.llm_engine import LLMEngine

        self._words = words
        self._names = itertools.count()
        before = set(multiprocessing.active_children())
        with self._starting():
            asked = EngineArgs(
                **arguments, skip_tokenizer_init=True, worker_extension_cls=WORKER_EXTENSION, max_logprobs=-1
            )
            # The server's defaults, which `vllm.LLM` does not share, are those that a user deploys.
            self._engine = LLMEngine.from_engine_args(asked, usage_context=UsageContext.OPENAI_API_SERVER)
        cores = [one.pid for one in set(multiprocessing.active_children()) - before if one.pid is not None]
        self._pids = tuple(pid for core in cores for pid in (core, *descendants(core)))

    @property
    def config(self) -> Any:
        """vLLM's configuration as it resolved it."""
        return self._engine.vllm_config

    @property
    def pids(self) -> tuple[int, ...]:
        """The engine's processes: the core and its workers."""
        return self._pids

    def ask_workers(self, method: str, *arguments: Any) -> list[Any]:
        """What each worker says to `method` of `worker.KvrayWorker`."""
        with self._running():
            answers: list[Any] = self._engine.engine_core.collective_rpc(method, None, arguments)
        return answers

    def generate(self, prompts: Sequence[Sequence[int]], params: Any) -> Generation:
        """Submit all `prompts` at once and wait for their tokens.

        Raises:
            SubstitutedError: a part of a prompt came out of the prefix cache.
            CrashedError
        """
        with self._running():
            started = time.perf_counter()
            rows = self._submitted(prompts, params)
            while not all(row.is_done for row in rows.values()):
                outputs = self._engine.step()
                now = time.perf_counter()
                for output in outputs:
                    _note(rows[output.request_id], output, now)
        if cached := sum(row.cached for row in rows.values()):
            raise SubstitutedError(f"{cached} tokens of the prompts came out of the prefix cache")
        return Generation.of_sequences(
            started_s=started,
            sequence_s=[row.stamps for row in rows.values()],
            tokens=tuple(tuple(row.tokens) for row in rows.values()),
        )

    def preemptions(self) -> int:
        """How often the scheduler has taken a sequence's blocks away so far, to begin it anew later."""
        counters = [one for one in self._engine.get_metrics() if one.name == "vllm:num_preemptions"]
        return sum(int(getattr(one, "value", 0)) for one in counters)

    def raw_outputs(self, prompts: Sequence[Sequence[int]], params: Sequence[Any]) -> list[list[Any]]:
        """What the engine's core sends for each of `prompts`, one list of its outputs each: log-probabilities as the
        arrays that they are. vLLM itself makes an object of each, millions of them."""
        core, taken = self._engine.engine_core, list[Any]()
        with self._running():
            names = [name for one, row in zip(params, prompts, strict=True) for name in self._submitted([row], one)]
            left = set(names)
            while left:
                outputs = core.get_output()
                taken += [_taken(output) for output in outputs.outputs]
                done = self._engine.output_processor.process_outputs(outputs.outputs)
                left -= {output.request_id for output in done.request_outputs if output.finished}
        return [[one for one in taken if one.name == name] for name in names]

    def close(self) -> None:
        """End the engine's processes."""
        self._engine.engine_core.shutdown()

    def _submitted(self, prompts: Sequence[Sequence[int]], params: Any) -> dict[str, Row]:
        """Each under a salt of its own, so that nothing in the prefix cache can be taken for its beginning."""
        rows: dict[str, Row] = {}
        for prompt in prompts:
            name = f"kvray{next(self._names)}"
            rows[name] = Row()
            self._engine.add_request(name, {"prompt_token_ids": list(prompt), "cache_salt": name}, params)
        return rows

    @contextmanager
    def _starting(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise self._words.cause_of(error) from error

    @contextmanager
    def _running(self) -> Iterator[None]:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            yield
        except EngineDeadError as error:
            raise self._words.death(str(error)) from error
        except (ValueError, NotImplementedError) as error:
            raise UnsupportedError(f"vLLM: {error}") from error


def _note(row: Row, output: Any, now: float) -> None:
    tokens = output.outputs[0].token_ids
    row.tokens += tokens
    row.stamps += [now] * len(tokens)
    row.cached = max(row.cached, output.num_cached_tokens or 0)
    row.is_done = output.finished


@dataclass(frozen=True)
class RawOutput:
    """What the engine's core sent at one step for one request: rows of token ids with their log-probabilities, of the
    prompt and of what was generated."""

    name: str
    prompt: tuple[Any, Any] | None
    generated: tuple[Any, Any] | None


def _taken(output: Any) -> RawOutput:
    """The arrays of `output`, which are taken out of it."""
    prompt, generated = output.new_prompt_logprobs_tensors, output.new_logprobs
    output.new_prompt_logprobs_tensors = output.new_logprobs = None
    return RawOutput(
        # vLLM appends something of its own to the name of a request.
        name=output.request_id.partition("-")[0],
        prompt=None if prompt is None else (prompt.logprob_token_ids.numpy(), prompt.logprobs.numpy()),
        generated=None if generated is None else (generated.logprob_token_ids, generated.logprobs),
    )
