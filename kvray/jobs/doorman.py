"""Runs first in a submitted job, as a script on the cluster: refuses what does not match, else becomes `kvray`.

It comes in the job's own package, beside the `job.json` that `jobs.package` wrote, and needs the standard library only.
"""

import json
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from urllib.parse import urlsplit

MARK = "\x1e"
"""Begins a line that is meant for the program that follows the log (`kvray.cli.job_events`)."""
REFUSED = 11
"""Exit code."""
JOB = "KVRAY_JOB"
"""Environment variable, set in a submitted job."""
SENT_MODELS = "KVRAY_JOB_MODELS"
"""Environment variable: JSON that tells of each model of the job's package how the user named it."""


def mismatch(job: "dict[str, str]") -> "str | None":
    """Why this Python cannot run the job, as one sentence with the next step."""
    python = "{}.{}".format(*sys.version_info[:2])
    if python != job["python"]:
        return (
            f"The cluster has Python {python} ({sys.executable}), and the job comes from Python {job['python']}. "
            f"Submit it from Python {python}."
        )
    ray = _version("ray")
    if ray != job["ray"]:
        found = "no Ray" if ray is None else f"Ray {ray}"
        return (
            f"The python that is first in the cluster's PATH, {sys.executable}, has {found}, and the job comes from "
            f"Ray {job['ray']}. Start Ray there with the PATH of the environment that it is installed in."
        )
    kvray = _version("kvray")
    if kvray is None:
        return "The cluster has no kvray. Install it on every node, or let the job bring it: kvray submit --pip."
    if kvray != job["kvray"]:
        return (
            f"The cluster has kvray {kvray}, and the job comes from kvray {job['kvray']}. Install the same version on "
            "both sides, or let the job bring its own: kvray submit --pip."
        )
    return None


def command_line(arguments: "list[dict[str, str]]", here: str) -> "list[str]":
    """The arguments as they are on this machine: files of the job's package and of the home folder by their paths."""
    bases = {"file": here, "home": os.path.expanduser("~")}
    return [
        one.get("text", "") + "".join(os.path.join(base, one[kind]) for kind, base in bases.items() if kind in one)
        for one in arguments
    ]


def driver_environment(job: "dict[str, str]", here: str) -> "dict[str, str]":
    """The environment without what Ray has put there: its number of threads is no wish of the user's, and the job's
    package holds no code to import."""
    environment = dict(os.environ)
    environment.pop("OMP_NUM_THREADS", None)
    if job.get("threads"):
        environment["OMP_NUM_THREADS"] = job["threads"]
    paths = environment.pop("PYTHONPATH", "").split(os.pathsep)
    kept = [path for path in paths if path and os.path.realpath(path) != os.path.realpath(here)]
    if kept:
        environment["PYTHONPATH"] = os.pathsep.join(kept)
    environment[SENT_MODELS] = json.dumps(
        {command_line([one], here)[0]: one["typed"] for one in json.loads(job.get("models", "[]"))}
    )
    return {**environment, "COLUMNS": job["columns"], JOB: "1"}


def without_secrets(output: str) -> str:
    """A results folder for the job's log, which others may read: of a URI no credentials and no options."""
    if "://" not in output:
        return output
    parts = urlsplit(output)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _version(package: str) -> "str | None":
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> None:
    """Check, say that the job is accepted, and become the command."""
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, "job.json"), encoding="utf-8") as file:
        job = json.load(file)
    problem = mismatch(job)
    if problem is not None:
        print(f"kvray: {problem}", flush=True)
        sys.exit(REFUSED)
    arguments = command_line(job["arguments"], here)
    (output,) = command_line([job["output"]], here)
    print(MARK + json.dumps({"event": "accepted", "output": without_secrets(output), "lines": 0}), flush=True)
    address = f"--address={os.environ['RAY_ADDRESS']}"
    # What a batch file names by relative paths lies in the job's package, on every node.
    os.chdir(here if arguments[0] == "batch" else os.path.expanduser("~"))
    command = [sys.executable, "-P", "-m", "kvray", arguments[0], f"--output={output}", address, *arguments[1:]]
    os.execve(command[0], command, driver_environment(job, here))


if __name__ == "__main__":
    main()
