"""No process outlives the one that started it: asks the kernel for a signal when the parent dies, and for the orphans
of one's descendants (Linux)."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
LAST_SECONDS = 6


def die_with_parent() -> None:
    """Have this process killed when the thread that forked it ends. Does nothing where the kernel is not Linux.

    Source: prctl(2), PR_SET_PDEATHSIG. It is cleared by fork, so each generation asks for itself.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)  # a fork server's (`die_soon_after_parent`)
    _ask_for(signal.SIGKILL)


def die_soon_after_parent() -> None:
    """As `die_with_parent`, but after `LAST_SECONDS`, in which `trial_reaper` ends the descendants: while this process
    lives, they are found below it. What it forks calls `die_with_parent`."""
    signal.signal(signal.SIGUSR2, lambda *_: signal.alarm(LAST_SECONDS))
    _ask_for(signal.SIGUSR2)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, so that none gets out of sight by a double fork.

    Source: prctl(2), PR_SET_CHILD_SUBREAPER. Not inherited by fork. Does nothing where the kernel is not Linux.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _ask_for(number: signal.Signals) -> None:
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() == 1:
        # The parent died before the request; nobody is left to measure for.
        os._exit(1)
