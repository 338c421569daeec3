"""Preloaded by the fork server before everything else: imported there, it ties the server's life to its slot's, and
makes it the parent of what trials leave behind."""

import warnings

from kvray.trial.orphans import adopt_orphans, die_with_parent

die_with_parent()
adopt_orphans()
# It reaps what it has adopted, and would warn each time.
warnings.filterwarnings("ignore", message="forkserver: waitpid returned unexpected pid")
