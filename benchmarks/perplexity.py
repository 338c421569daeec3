"""Quality as `llama-perplexity --kl-divergence` computes it, under its names, and that program's own word on it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PIECE = 512
"""Tokens that are read from an empty cache."""
SCORED = PIECE // 2 - 1
"""So many of a piece's last tokens are compared; the first half is there to be remembered."""
_OPTIONS = ("-c", str(PIECE), "-b", str(PIECE), "-ub", str(PIECE), "-fa", "on")
_SAID = {
    "mean_kld": r"^Mean +KLD: +(\S+)",
    "kld_99_9": r"^99\.9% +KLD: +(\S+)",
    "mean_dp": r"^Mean +Δp: +(\S+)",
    "rms_dp": r"^RMS Δp +: +(\S+)",
    "same_top_p": r"^Same top p: +(\S+)",
}


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """A distribution of the next token against the reference's, over all tokens that are compared.

    Attributes:
        mean_kld, kld_99_9: mean and 99.9 % quantile of KL(reference ‖ candidate), nats.
        same_top_p: share of tokens at which both hold the same one for the most probable, %.
        mean_dp, rms_dp: mean and root of the mean square of how much more probable the candidate holds the right token,
            percentage points.
    """

    mean_kld: float
    kld_99_9: float
    same_top_p: float
    mean_dp: float
    rms_dp: float


def divergence(compared: Iterable[tuple[NDArray[np.float32], NDArray[np.float32], int]]) -> Divergence:
    """Divergence over triples: the reference's log-probabilities, the candidate's, and the token that followed."""
    rows = np.array([_compare(*one) for one in compared])
    kld, same_top, dp = rows.T
    return Divergence(
        mean_kld=float(kld.mean()),
        kld_99_9=float(np.quantile(kld, 0.999)),
        same_top_p=float(same_top.mean() * 100),
        mean_dp=float(dp.mean() * 100),
        rms_dp=float(np.sqrt(np.mean(dp**2)) * 100),
    )


def _compare(reference: NDArray[np.float32], candidate: NDArray[np.float32], token: int) -> tuple[float, float, float]:
    ours, theirs = reference.astype(np.float64), candidate.astype(np.float64)
    kld = float(np.sum(np.exp(ours) * (ours - theirs)))
    return kld, float(ours.argmax() == theirs.argmax()), float(np.exp(theirs[token]) - np.exp(ours[token]))


def pieces(tokens: Sequence[int], *, bos: int | None) -> list[tuple[int, ...]]:
    """`tokens` as the program cuts them: whole pieces, each with `bos`, where given, in place of its first token."""
    cut = [tuple(tokens[at : at + PIECE]) for at in range(0, len(tokens) - PIECE + 1, PIECE)]
    return cut if bos is None else [(bos, *piece[1:]) for piece in cut]


def write_reference(program: str, model: str, text: Path, kept: Path, *, threads: int) -> None:
    """Let `program` (llama-perplexity) keep its log-probabilities with keys and values in f16."""
    _run(program, "-m", model, "-f", str(text), *_OPTIONS, "-t", str(threads), "--kl-divergence-base", str(kept))


def said_by_program(
    program: str, model: str, kept: Path, *, type_k: str, type_v: str, threads: int
) -> dict[str, float]:
    """What it says of these types against what it has `kept`."""
    compare = ("--kl-divergence", "--kl-divergence-base", str(kept), "-ctk", type_k, "-ctv", type_v)
    return read_program(_run(program, "-m", model, *_OPTIONS, "-t", str(threads), *compare))


def read_program(printed: str) -> dict[str, float]:
    """The figures that have names here."""
    found = {name: re.search(pattern, printed, flags=re.MULTILINE) for name, pattern in _SAID.items()}
    return {name: float(match[1]) for name, match in found.items() if match}


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout
