"""The contract of an engine: what the driver asks before a sweep, and what a measurement process does with it.

`EngineAdapter` lives in the driver and travels to each trial; it holds no model and imports its library only inside
methods. `LoadedModel` lives in one measurement process: load, prepare a cell, generate with time stamps, say what ran.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from kvray.candidate import AttentionBackend, AttentionChoice, CacheChoice, Candidate, DeviceType, DType
from kvray.errors import KvrayError
from kvray.extras import Extra
from kvray.forecast.cost_model import CostModel
from kvray.forecast.hardware import Hardware
from kvray.forecast.shape import ModelShape
from kvray.models.request import ModelRequest as ModelRequest  # part of the contract: engines take it from here
from kvray.probes.own_processes import this_process
from kvray.record import short_model_name
from kvray.space.axis import Axis
from kvray.space.constraints import Constraint
from kvray.space.menu import MenuLine, menu_of
from kvray.space.search_space import SpaceBlock
from kvray.workload import Cell, WorkloadProfile

_SDPA = AttentionChoice(AttentionBackend.SDPA)
StartMethod = Literal["forkserver", "spawn"]


@dataclass(frozen=True, kw_only=True)
class ForcedText:
    """Token ids that all candidates of a model are fed alike, whatever engine they have.

    Attributes:
        ids: the whole text, as long as the cell at which quality is measured (context + output tokens).
        forced: so many of its last tokens may be told.
    """

    ids: tuple[int, ...]
    forced: int


@dataclass(frozen=True, kw_only=True)
class TopLogs:
    """The most probable tokens of a distribution with their log-probabilities (nats), for an engine that does not tell
    the whole vocabulary. Every other token is at most as probable as the last of them.

    Attributes:
        ids, logs: rows × k, best first; of equally probable ones the lowest id first.
        token_logs: log-probability of the fed token, one per row, where the engine tells that whether or not it is
            among the most probable; `None`: it does not.
    """

    ids: NDArray[np.int64]
    logs: NDArray[np.float32]
    token_logs: NDArray[np.float32] | None = None


ForcedToken = tuple[int, int, NDArray[np.float32] | TopLogs]
"""The place of a token among those that are forced, counted from 0, its id, and the log-probabilities (nats) just
before it was fed: rows × vocabulary, or the most probable tokens of each row."""

OBSERVED_TOKENS = 2
"""One token of prefill and one of decode: what a profiler must see of a generation."""
DECODED_TOKENS = 4
"""So many of the forced tokens are decoded one by one as in an answer; each costs as much as thirty tokens at once."""


UNKNOWN_REVISION = "unknown"


class UnsupportedError(KvrayError):
    """The engine refuses a configuration; the message carries the engine's own words."""


class SubstitutedError(KvrayError):
    """The engine ran something other than what the candidate asks for."""


class OutOfMemoryError(KvrayError):
    """The engine ran out of device or host memory; `allocate less` is the only cure."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What is known of a model before its weights are touched.

    Attributes:
        model_id: what names the model wherever the trial runs: a hub id, or an absolute path.
        revision: what identifies these very weights (a commit, a file's hash); `UNKNOWN_REVISION` where
            nothing does, or where it takes reading them all: `EngineAdapter.identify_model`.
        architecture: class or family name, for people.
        loader: what of the engine's library loads the model, where there is a choice.
        max_context: positions the model holds (prompt and output together), `None` if unbounded or unknown.
        native_dtype: the dtype that the checkpoint asks for.
        random_weights: whether speed and memory are real and quality is not.
        layer_kinds: what each layer keeps of past tokens, in the engine's words; empty: unknown.
        missing_attentions: those that the engine has no code for in this architecture.
        default_attention: what the engine runs when none is asked for.
        shape: what bytes and FLOPs depend on, for the engine's `cost_model`; `None`: unknown.
        shape_unknown: why nothing can be forecast, as the end of a sentence about the model.
        packing: what the checkpoint's weights are packed with, such as GPTQ; `None`: they are plain numbers of a dtype.
        notes: what a reader of the figures must know of this model, one sentence each; shown by dry run, forecast,
            sweep, report and plan.
    """

    model_id: str
    revision: str
    architecture: str
    max_context: int | None
    native_dtype: DType
    loader: str | None = None
    random_weights: bool = False
    layer_kinds: tuple[str, ...] = ()
    missing_attentions: tuple[AttentionBackend, ...] = ()
    default_attention: AttentionChoice = _SDPA
    shape: ModelShape | None = None
    shape_unknown: str | None = None
    packing: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For titles: a path's last part, e.g. `model.gguf` or `random:llama`; a hub id as it is."""
        return short_model_name(self.model_id)


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """The device a sweep runs on, as far as the driver knows it without initialising it.

    Attributes:
        compute_capability: of the oldest visible GPU, `None` on a CPU.
    """

    device: DeviceType
    device_name: str
    gpu_count: int = 0
    compute_capability: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One generation with the instants at which its tokens were on the host.

    Attributes:
        started_s: `time.perf_counter()` at the moment the prompt was submitted.
        token_s: the same clock when the n-th token of every sequence was on the host; its length is the number of
            tokens that each sequence got.
        tokens: generated token ids, one tuple per sequence.
        sequence_s: the same clock for each sequence by itself, in the order of `tokens`; empty where all sequences get
            their tokens in lockstep, at the instants `token_s`.
    """

    started_s: float
    token_s: tuple[float, ...]
    tokens: tuple[tuple[int, ...], ...]
    sequence_s: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def of_sequences(
        cls, *, started_s: float, sequence_s: Sequence[Sequence[float]], tokens: tuple[tuple[int, ...], ...]
    ) -> Generation:
        """A generation whose sequences get their tokens at times of their own, as those of continuous batching do."""
        rows = tuple(tuple(row) for row in sequence_s)
        latest = tuple(max(stamps) for stamps in zip(*rows, strict=False))
        return cls(started_s=started_s, token_s=latest, tokens=tokens, sequence_s=rows)

    @property
    def stamp_rows(self) -> tuple[tuple[float, ...], ...]:
        """The instants of each sequence's tokens; a single row where all are in lockstep."""
        return self.sequence_s or (self.token_s,)


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What really ran, seen from inside the process. `None`: the engine cannot tell.

    Attributes:
        kernel_prefill, kernel_decode: names of the attention operators.
        cache_class, cache_layers: class of the cache object, and the classes of its layers.
        threads: intra-op threads that the engine computes with.
        substitutions: differences from what the candidate asked for, one sentence each.
        processors: names of the model's own settings that change the scores of every token.
        processor_share: share of a token's time that this takes.
        generation: the generation that was observed, if it can stand for an unobserved one: its clock leaves out what
            starting and stopping the profiler took.
    """

    cache_class: str | None = None
    cache_layers: str | None = None
    kernel_prefill: str | None = None
    kernel_decode: str | None = None
    kv_dtype: str | None = None
    threads: int | None = None
    substitutions: tuple[str, ...] = ()
    processors: str | None = None
    processor_share: float | None = None
    generation: Generation | None = None

    def joined(self, other: Observed) -> Observed:
        """What was seen here and in `other`. Where they differ, both are named: `sdpa_flash | sdpa_math`."""
        return Observed(
            cache_class=_either(self.cache_class, other.cache_class),
            cache_layers=_either(self.cache_layers, other.cache_layers),
            kernel_prefill=_either(self.kernel_prefill, other.kernel_prefill),
            kernel_decode=_either(self.kernel_decode, other.kernel_decode),
            kv_dtype=_either(self.kv_dtype, other.kv_dtype),
            threads=other.threads if self.threads is None else self.threads,
            substitutions=tuple(dict.fromkeys((*self.substitutions, *other.substitutions))),
            processors=_either(self.processors, other.processors),
            processor_share=_higher(self.processor_share, other.processor_share),
        )


def _higher(known: float | None, new: float | None) -> float | None:
    return max((one for one in (known, new) if one is not None), default=None)


def _either(known: str | None, new: str | None) -> str | None:
    told = [*(known.split(" | ") if known else ()), *(new.split(" | ") if new else ())]
    return " | ".join(dict.fromkeys(told)) or None


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """What the compiler has done so far in this process.

    Attributes:
        graph_breaks: places where it gave the code back to Python.
        recompiles: graphs beyond the first, e.g. one for each further size of a static cache.
        is_cold: whether it had to compile, `False` if all came from its cache on disk; `None` if it does not tell.
    """

    graph_breaks: int
    recompiles: int
    is_cold: bool | None


class LoadedModel(ABC):
    """A model with one candidate applied, in the process that measures it. Used by one thread, in this order:
    `prepare` a cell, then `generate` as often as wanted, then the next cell; `observe` after a `prepare`; `close` once.
    """

    @abstractmethod
    def prepare(self, cell: Cell) -> None:
        """Make prompts of exactly `cell.context_tokens` tokens and the cache that the cell needs; drop the last cell's.

        Raises:
            UnsupportedError, OutOfMemoryError
        """

    @abstractmethod
    def generate(self, output_tokens: int) -> Generation:
        """Generate exactly `output_tokens` (at least 1, at most the cell's) per sequence for the prepared cell.

        Every call starts from an empty cache: nothing is reused from an earlier call but memory and compiled code.

        Raises:
            UnsupportedError, SubstitutedError, OutOfMemoryError
        """

    @abstractmethod
    def observe(self, output_tokens: int = OBSERVED_TOKENS) -> Observed:
        """Generate `output_tokens` (at least 2) under a profiler for the prepared cell and say what ran. Never recorded
        as a run."""

    def last_used(self) -> Observed | None:
        """What the last `generate` or `observe` used, as far as that shows without a profiler, such as the class and
        size of its cache. Asked after every generation, so it must be cheap. `None`: the engine cannot tell."""
        return None

    def forced_text(self, forced: int) -> ForcedText:  # noqa: ARG002  (an engine may not)
        """A text for `forced_log_probabilities`, as long as the prepared cell, whose last `forced` tokens may be told.

        Only the engine that makes a model's reference is asked. The text depends on the tokenizer, the cell's length
        and `forced` alone.

        Raises:
            UnsupportedError: this engine writes no text.
        """
        raise UnsupportedError("this engine writes no text to measure quality on")

    def forced_log_probabilities(self, text: ForcedText) -> Iterator[ForcedToken]:  # noqa: ARG002  (an engine may not)
        """Feed `text`, which is as long as the prepared cell, and say, for the last of its tokens, what the model
        thought of each given all tokens before it.

        At most `text.forced` tokens are told, the last of the text without a gap; fewer where the candidate's own path
        needs a longer beginning (a prompt that is read in pieces must be longer than a piece), or where each token is
        costly. What comes before them is read as a prompt, in the very way that `generate` measures. So are the first
        `DECODED_TOKENS` of them decoded; the others may be fed together.

        Every sequence of the batch is fed the same; rows are the first and the last of them (one where there is but
        one). The log-probabilities are the model's own, before any processing of the choice. An engine that cannot tell
        the whole vocabulary tells the most probable tokens; the loss is then known within bounds. Never timed; the cell
        stays prepared.

        Raises:
            UnsupportedError: the engine or the candidate's cache cannot be asked this, or the text's ids are not the
                model's.
            OutOfMemoryError
        """
        raise UnsupportedError("this engine tells no log-probabilities")

    def compilation(self) -> Compilation | None:
        """What was compiled so far; `None` where the candidate compiles nothing."""
        return None

    @abstractmethod
    def kv_cache_bytes(self) -> int | None:
        """Bytes that the prepared cell's cache holds after the last `generate`; `None` if the engine cannot tell."""

    def processes(self) -> Sequence[int]:
        """Ids of the processes in which the model lives, e.g. this one and a server that it has started.

        All that they start belongs to the trial as well: its CPU time is no other program's, its GPU memory is the
        trial's, and it ends with the trial. On a CPU kvray adds the resident sets of the processes named here, and of
        no others, to `peak_memory_mib`. Asked before and after every run, so it must be cheap.

        Nobody else watches whether they live: if one dies, the call that needs it must raise an error.
        """
        return this_process()

    @abstractmethod
    def reset_peak_memory(self) -> None:
        """Start a new window for `peak_memory_mib`."""

    @abstractmethod
    def peak_memory_mib(self) -> float | None:
        """Highest memory since `reset_peak_memory`: the device allocators' on CUDA, the resident set of this process on
        a CPU, to which kvray adds that of the other `processes`."""

    def reserved_memory_mib(self) -> float | None:
        """Highest memory that the device allocator held from the driver since `reset_peak_memory`, used or cached;
        `None` on a CPU and where the engine cannot tell."""
        return None

    @abstractmethod
    def count_tokens(self, text: str) -> int:
        """Tokens of `text` as a prompt."""

    @abstractmethod
    def complete(self, text: str, max_new_tokens: int) -> str:
        """The continuation of `text` with the candidate applied, ending at the model's end-of-sequence token.

        For use after a measurement, by a plan's session; needs no `prepare`.

        Raises:
            UnsupportedError, OutOfMemoryError
        """

    @abstractmethod
    def close(self) -> None:
        """Free the model and its caches."""


class EngineAdapter(ABC):
    """What an engine brings. Subclasses are stateless, picklable by reference, and cheap to construct and import."""

    name: ClassVar[str]
    start_method: ClassVar[StartMethod] = "forkserver"
    preload: ClassVar[tuple[str, ...]] = ()
    """Modules that the fork server imports once for all trials; they must not touch the GPU when imported."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Names of the installed packages in which it computes: their versions are recorded, and compared."""
    is_parallel: ClassVar[bool] = False
    """Whether it spreads one copy of a model over as many GPUs as the candidate's `parallelism` says."""
    snippet_runner: ClassVar[str | None] = None
    """Module that runs a snippet to see what it does (see `engines.snippet_case`); `None`: there is nothing to run."""
    measures_hardware: ClassVar[bool] = False
    """Whether `measure_hardware` can be asked."""
    extra: ClassVar[Extra | None] = None
    """The extra of kvray that brings the engine's library; `None` where the engine's own package depends on it."""

    def check_installed(self) -> None:
        """Refuse to go on where the engine's library is absent. Asked before anything that needs it: what only reads
        records or prints a plan's code does without.

        Raises:
            EngineError: names what is missing and how to get it.
        """
        if self.extra is not None:
            self.extra.require(f"The engine {self.name}")

    def check_model(self, request: ModelRequest) -> None:  # noqa: B027  (a hook: an engine may have nothing to check)
        """Refuse a model that is not there, or whose files cannot be loaded, as far as that shows at once: no library
        imported, no network, no weights read.

        Raises:
            ModelError
        """

    @abstractmethod
    def describe_model(self, request: ModelRequest) -> ModelInfo:
        """Read the model's configuration: no weights, no GPU.

        Raises:
            ModelError: missing, gated, unreadable, or offline and not cached.
        """

    def adapt_to_device(self, request: ModelRequest, info: ModelInfo, device: DeviceFacts | None) -> ModelInfo:
        """`info`, which `describe_model` gave for `request`, with what is to be noted of the model on `device`.

        Args:
            device: of this machine; `None`: trials run on others.

        Raises:
            ModelError: the model cannot be loaded on it.
        """
        del request, device
        return info

    def identify_model(self, request: ModelRequest, info: ModelInfo) -> ModelInfo:
        """`info`, which `describe_model` gave for `request`, with a revision that identifies the very weights, however
        long that takes. The engine logs what takes long.

        Raises:
            ModelError: the weights cannot be read.
        """
        del request
        return info

    def measure_hardware(self, device: DeviceType, threads: int | None) -> Hardware | None:
        """Measure how fast this machine's first `device` copies and multiplies, in a process of its own: a few seconds.

        Args:
            threads: to compute with on a CPU; `None` leaves the choice to the engine's library.

        Returns:
            `None` if it could not be done.
        """
        del device, threads
        return None

    def cost_model(self, model: ModelInfo) -> CostModel | None:
        """What candidates cost in this engine with `model`, as `describe_model` gave it: forecasts are made from it.

        Returns:
            `None` where nothing is to be forecast of the model.
        """
        del model
        return None

    @abstractmethod
    def fetch_weights(self, request: ModelRequest) -> None:
        """Make the weights available on this machine's disk, ready for a fast load (download, convert once).

        Raises:
            ModelError: they cannot be had, or are not of the revision that `request` names.
        """

    def check_weights(self, request: ModelRequest, *, quick: bool = False) -> None:  # noqa: B027  (a hook)
        """Refuse weights that are on this machine and would end every trial alike; none are read, and none downloaded.

        Args:
            quick: leave out what takes more than about a second.

        Raises:
            ModelError
        """

    @abstractmethod
    def baseline(self, model: ModelInfo, device: DeviceFacts, *, batch_size: int) -> Candidate:
        """The candidate a user has today: what the engine does with nothing set."""

    @abstractmethod
    def axes(self, device: DeviceFacts) -> tuple[Axis, ...]:
        """What can be chosen, with every value that this engine knows and what stands in the way of it on this machine:
        its values of the axes that all engines share (`shared_axis`), then axes of its own."""

    def menu(self, device: DeviceFacts) -> tuple[MenuLine, ...]:
        """Every value of `axes`."""
        return menu_of(self.axes(device))

    @abstractmethod
    def default_space(self, model: ModelInfo, device: DeviceFacts, profile: WorkloadProfile) -> tuple[SpaceBlock, ...]:
        """The space to measure when nothing is asked for, as blocks whose union it is.

        Where a user narrows an axis, the others take the values of the first block.
        """

    @abstractmethod
    def full_space(self, model: ModelInfo, device: DeviceFacts, profile: WorkloadProfile) -> tuple[SpaceBlock, ...]:
        """All that can be had on `device`, as blocks."""

    def resolve_cache(
        self, choice: CacheChoice, device: DeviceFacts, profile: WorkloadProfile
    ) -> tuple[CacheChoice, ...]:
        """The caches that a user means by `choice`: with open settings filled in, or every variant of a family."""
        del device, profile
        return (choice,)

    def process_environment(self) -> Mapping[str, str]:
        """Environment variables for the measurement processes, set before any library is imported; a user's own win."""
        return {}

    def build_locks(self) -> Sequence[Path]:
        """Lock files that lie there now and that its libraries make while they build native code: one whose maker was
        killed lets every later trial wait. Imports no library."""
        return ()

    def rules(self, request: ModelRequest, model: ModelInfo, profile: WorkloadProfile) -> Sequence[Constraint]:
        """Rules beyond those that hold for every engine."""
        del request, model, profile
        return ()

    @abstractmethod
    def load(
        self, request: ModelRequest, candidate: Candidate, device: DeviceType, profile: WorkloadProfile
    ) -> LoadedModel:
        """Load the model with `candidate` applied. Called once, in the measurement process.

        Raises:
            UnsupportedError, OutOfMemoryError, ModelError
        """

    @abstractmethod
    def render_snippet(
        self,
        request: ModelRequest,
        *,
        loader: str | None,
        candidate: Candidate,
        device: DeviceType,
        cells: Sequence[Cell],
    ) -> str:
        """Python source that applies `candidate` to the very weights of `request` with the engine's library alone.

        Args:
            loader: `ModelInfo.loader`.
            device: what was measured on.
            cells: what was measured, with the candidate's batch size; caches of fixed size are made for these.
        """

    @abstractmethod
    def memory_note(self, device: DeviceType) -> str:
        """One sentence: what `peak_memory_mib` means on `device`."""
