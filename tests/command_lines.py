"""What living processes were started with. Others may end between being found and being asked."""

from __future__ import annotations

import psutil


def command_line(process: psutil.Process) -> list[str]:
    """The words of its command; none once it has ended, whether or not its parent has taken note."""
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:  # a zombie's error is one of these
        return []
