from __future__ import annotations

import os
from pathlib import Path

from kvray.trial.leftovers import remove_folder, remove_stale_locks


def test_a_folder_without_permissions_is_removed_and_links_are_not_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir(mode=0o500)
    folder = tmp_path / "folder"
    (folder / "closed" / "inner").mkdir(parents=True)
    (folder / "closed" / "inner" / "file").touch()
    (folder / "link").symlink_to(kept, target_is_directory=True)
    (folder / "closed").chmod(0)
    remove_folder(folder)
    assert not folder.exists()
    assert kept.stat().st_mode & 0o777 == 0o500


def test_a_folder_that_was_never_made_is_no_problem(tmp_path: Path) -> None:
    remove_folder(tmp_path / "nothing")


def test_only_locks_that_nobody_has_open_are_stale(tmp_path: Path) -> None:
    held, stale = tmp_path / "held", tmp_path / "stale"
    stale.touch()
    descriptor = os.open(held, os.O_CREAT | os.O_EXCL)
    remove_stale_locks([held, stale, tmp_path / "none"])
    assert (held.exists(), stale.exists()) == (True, False)
    os.close(descriptor)
    remove_stale_locks([held])
    assert not held.exists()
