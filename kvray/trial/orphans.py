"""No process outlives the one that started it: asks the kernel for a signal when the parent dies, and for the orphans
of one's descendants (Linux)."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent() -> None:
    """Have this process killed when the thread that forked it ends. Does nothing where the kernel is not Linux.

    Source: prctl(2), PR_SET_PDEATHSIG. It is cleared by fork, so each generation asks for itself.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        # The parent died before the request; nobody is left to measure for.
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, so that none gets out of sight by a double fork.

    Source: prctl(2), PR_SET_CHILD_SUBREAPER. Not inherited by fork. Does nothing where the kernel is not Linux.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)
