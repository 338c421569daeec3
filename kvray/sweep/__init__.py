"""Trials under Ray Tune. The only package that imports ray."""

from pathlib import Path

from kvray.errors import SweepError

try:
    Path.home()
except RuntimeError as error:
    # Ray looks for it while it is imported.
    raise SweepError(
        "Ray needs a home folder: HOME is not set, and this user has no entry in the system's list of users.",
        hint="Set HOME to a folder that can be written.",
    ) from error
