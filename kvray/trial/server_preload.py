"""Preloaded by the fork server: imported there, it ties the server's life to its slot's, makes it the parent of what
trials leave behind, and imports what they need."""

import warnings

from kvray.probes.orphans import adopt_orphans, die_soon_after_parent
from kvray.trial.imports import preload

die_soon_after_parent()
adopt_orphans()
# It reaps what it has adopted, and would warn each time.
warnings.filterwarnings("ignore", message="forkserver: waitpid returned unexpected pid")
preload()
