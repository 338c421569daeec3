"""Runs no snippet: does what the environment variable UNWELL says. For tests of what comes of that."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from kvray.engines.snippet_case import SnippetCase, SnippetRun, read_case, serve


def run(case: SnippetCase) -> SnippetRun:
    match os.environ["UNWELL"]:
        case "hang":
            Path(os.environ["UNWELL_PID"]).write_text(str(os.getpid()))
            time.sleep(600)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "silent":
            sys.exit(7)
    raise ValueError(f"model_kwargs are not used\nby the model, in {Path.cwd().name}")


if __name__ == "__main__":
    assert read_case(Path(sys.argv[1])).snippet.is_file()
    serve(run)
