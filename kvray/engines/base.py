"""The contract of an engine: what the driver asks before a sweep, and what a measurement process does with it.

`EngineAdapter` lives in the driver and travels to each trial; it holds no model and imports its library only inside
methods. `LoadedModel` lives in one measurement process: load, prepare a cell, generate with time stamps, say what ran.
What they take and give back is defined in modules beside this one; engines import all of it from here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from kvray.candidate import CacheChoice, Candidate, DeviceType
from kvray.engines.failures import CrashedError, OutOfMemoryError, SubstitutedError, UnsupportedError
from kvray.engines.forced_text import DECODED_TOKENS, ForcedText, ForcedToken, TopLogs
from kvray.engines.generation import OBSERVED_TOKENS, Compilation, Generation, Observed
from kvray.engines.model_info import UNKNOWN_REVISION, DeviceFacts, ModelInfo
from kvray.extras import Extra
from kvray.forecast.cost_model import CostModel
from kvray.forecast.hardware import Hardware
from kvray.models.request import ModelRequest
from kvray.probes.own_processes import this_process
from kvray.space.axis import Axis
from kvray.space.constraints import Constraint
from kvray.space.menu import MenuLine, menu_of
from kvray.space.search_space import SpaceBlock
from kvray.workload import Cell, WorkloadProfile

__all__ = [
    "DECODED_TOKENS",
    "OBSERVED_TOKENS",
    "UNKNOWN_REVISION",
    "Compilation",
    "CrashedError",
    "DeviceFacts",
    "EngineAdapter",
    "ForcedText",
    "ForcedToken",
    "Generation",
    "LoadedModel",
    "ModelInfo",
    "ModelRequest",
    "Observed",
    "OutOfMemoryError",
    "StartMethod",
    "SubstitutedError",
    "TopLogs",
    "UnsupportedError",
]

StartMethod = Literal["forkserver", "spawn"]


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

        The engine that makes a model's reference is asked for the text that all are fed. Others are asked so that one
        sees whether their tokenizers write the same. The text depends on the tokenizer, the cell's length and `forced`
        alone, and begins as the prompts of the cell do.

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

        Nobody else watches whether they live: if one dies, the call that needs it must raise `CrashedError`, or, where
        it hangs, another thread must call `failures.give_up`.
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
    """Whether it spreads one copy of a model over as many GPUs as the candidate's `parallelism` says. An engine with
    several ways to do so declares the axis `candidate.SPLIT`."""
    cpu_processes: ClassVar[int] = 1
    """Processes of one trial over which it can spread a model on a CPU, where that is asked for."""
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

    def with_measured_threads(self, candidate: Candidate, threads: int) -> Candidate:
        """`candidate` as code and commands are to apply it anywhere: with the `threads` that its trials computed with,
        where the engine has an axis for them that is not set."""
        del threads
        return candidate

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

    def serving_command(
        self, request: ModelRequest, *, candidate: Candidate, device: DeviceType, cells: Sequence[Cell]
    ) -> Sequence[str] | None:
        """The command line, program first, that serves the very weights of `request` with `candidate` applied. Every
        default is pinned that the server and the library do not share.

        Args:
            device: what was measured on.
            cells: what was measured, with the candidate's batch size; the server must hold each of them.

        Returns:
            `None` where the engine has no server.
        """
        del request, candidate, device, cells
        return None

    def measured_note(self, device: DeviceType) -> str | None:
        """What a reader must know of how this engine is measured on `device` and others are not, in a sentence or two:
        by which call, what a token's time stamp stands for, and what a user cannot avoid."""
        del device
        return None

    @abstractmethod
    def memory_note(self, device: DeviceType) -> str:
        """One sentence: what `peak_memory_mib` means on `device`."""
