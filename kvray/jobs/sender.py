"""Runs on the cluster as a job of its own: prints the files of one results folder to the job's log, a part at a time.

It is a script of the standard library alone, so that it needs no kvray there. `jobs.fetching` reads what it prints:
one line of JSON with every file's size and SHA-256, then the bytes from `start` on in base64, a line at a time.
"""

import base64
import hashlib
import json
import os
import sys
from pathlib import Path

_LINE = 12288
"""Bytes a line."""


def files_of(root: Path, run_id: str) -> "list[str]":
    """Names of the files below `root`, of one sweep or batch; nothing hidden, nothing half-written."""
    names = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    run_ids = [run_id, *sweeps_of_batch(root, run_id)]
    folders = tuple(f"{kind}{one}/" for one in run_ids for kind in ("trials/run_id=", "runs/run_id=", "reports/"))
    files = {f"sweeps/{one}.json" for one in run_ids} | {f"batches/{run_id}.json"}
    return [name for name in names if name in files or name.startswith((*folders, f"batches/{run_id}/"))]


def sweeps_of_batch(root: Path, batch_id: str) -> "list[str]":
    """The run ids of a batch; none where this is the id of no batch."""
    manifest = root / "batches" / f"{batch_id}.json"
    if not manifest.is_file():
        return []
    return [str(one["run_id"]) for one in json.loads(manifest.read_text(encoding="utf-8"))["sweeps"]]


def listing(root: Path, names: "list[str]") -> "list[dict[str, object]]":
    """Name, size and SHA-256 of each file."""
    return [{"name": one, "bytes": (root / one).stat().st_size, "sha256": sha256_of(root / one)} for one in names]


def sha256_of(path: Path) -> str:
    """The digest of what the file at `path` holds."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def stream(root: Path, files: "list[dict[str, object]]", start: int, most: int) -> bytes:
    """Bytes `start` to `start + most` of all files, one after another."""
    found = bytearray()
    for one in files:
        size = int(str(one["bytes"]))
        if start < size and len(found) < most:
            with (root / str(one["name"])).open("rb") as file:
                file.seek(start)
                found += file.read(min(size - start, most - len(found)))
        start = max(0, start - size)
    return bytes(found)


def main() -> None:
    """Answer the `request.json` beside this script."""
    here = Path(os.path.abspath(__file__)).parent
    request = json.loads((here / "request.json").read_text(encoding="utf-8"))
    root = Path(request["folder"])
    files = listing(root, files_of(root, request["run_id"])) if root.is_dir() else []
    print(json.dumps({"files": files}), flush=True)
    data = stream(root, files, request["start"], request["most"])
    for begin in range(0, len(data), _LINE):
        sys.stdout.write(base64.b64encode(data[begin : begin + _LINE]).decode() + "\n")
    print("end", flush=True)


if __name__ == "__main__":
    main()
