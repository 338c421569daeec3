"""Whether the installed llama.cpp leaves out instructions of this CPU, asked in a process of its own, which a library
that was compiled for another CPU may end. `python -m kvray.engines.llama_cpp.portable` prints the sentence."""

from __future__ import annotations

import functools
import subprocess
import sys

from kvray.engines.llama_cpp.binding import describe_build
from kvray.search_paths import child_environment, python_command

_TIMEOUT_S = 60.0


@functools.cache
def build_note() -> str | None:
    """What to say of the build; `None`: it leaves nothing out, or the library cannot be loaded, which trials tell."""
    command = python_command("-m", __name__)
    try:
        done = subprocess.run(
            command, env=child_environment(), capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
        )
    except (subprocess.SubprocessError, OSError):
        return None
    return done.stdout.strip() or None


if __name__ == "__main__":
    sys.stdout.write(describe_build().note or "")
