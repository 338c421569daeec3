"""Preloaded by the fork server before everything else: imported there, it ties the server's life to its slot's."""

from kvray.trial.orphans import die_with_parent

die_with_parent()
