"""The program of a further rank: loads its part of the model, and does what rank 0 does, call by call."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from multiprocessing.connection import Connection

from kvray.engines.transformers.rank import Answer, RankTask
from kvray.engines.transformers.ranks import kind_of
from kvray.errors import sentence_of
from kvray.probes.orphans import die_with_parent


def main() -> None:
    """As a program: the arguments are the connection's descriptor and rank 0's process id."""
    run(Connection(int(sys.argv[1])), int(sys.argv[2]))


def run(connection: Connection, rank_0: int) -> None:
    """Serve rank 0, the process `rank_0`, until it says `None` or is gone; then end this process."""
    die_with_parent()
    if os.getppid() != rank_0:
        os._exit(0)  # it died before the kernel was asked
    # The end of rank 0 closes the connection: nobody listens any more.
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _serve(connection, connection.recv())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # to take the libraries down in order takes seconds


def _serve(connection: Connection, task: RankTask) -> None:
    from kvray.engines.transformers.tensor_parallel import RankModel

    connection.send(Answer())
    model = RankModel(task)
    while (call := connection.recv()) is not None:
        name, arguments = call
        try:
            answer = Answer(value=model.do(name, arguments))
        except Exception as error:  # noqa: BLE001  (the boundary: whatever happens is told to rank 0)
            traceback.print_exc()
            answer = Answer(failure=(kind_of(error), f"{type(error).__name__}: {sentence_of(error)}"))
        connection.send(answer)
