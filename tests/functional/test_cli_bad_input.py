"""Whatever is wrong with a command line or a file: one line that names it, the right exit code, no trace left.

Most lines run in this process, where they cost milliseconds; those that could start a process or print past Python
run in one of their own.
"""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kvray_logger import logger_as_before
from own_ray import cluster_of

from kvray.cli.app import run
from kvray.store.parquet import ResultsStore, records_sha256

Done = subprocess.CompletedProcess[str]
Kvray = Callable[..., Done]
Refused = Callable[..., str]

FAKE = ("tune", "fake:ok", "--engine", "fake", "--device", "cpu", "--context", "16", "--output-len", "4")
TORCH = ("tune", "--device", "cpu", "--context", "16", "--output-len", "4")


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], environment: dict[str, str]
) -> Iterator[Refused]:
    """Run a line that must fail with `code`; returns its one line. Nothing may be written, no Ray started."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("RAY_TMPDIR", str(folder / "ray"))

    def fail(code: int, *arguments: str | Path) -> str:
        before = sorted(folder.rglob("*"))
        assert run([str(argument) for argument in arguments], verbose=False) == code
        assert sorted(folder.rglob("*")) == before
        out, err = capfd.readouterr()
        assert out == ""
        return one_line(err)

    with logger_as_before():
        yield fail


def one_line(err: str) -> str:
    assert err.startswith("kvray: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err.removeprefix("kvray: ").removesuffix("\n")


# Values of options


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (
            ["--profile", "nope"],
            3,
            "Unknown profile 'nope'. Allowed: chat-agent, rag, longform, ci-micro, or the path of a profile's .json "
            "file.",
        ),
        (["--engine", "nope"], 5, "Unknown engine 'nope'. Allowed: llama_cpp, transformers, vllm."),
        (["--dtype", "int4"], 2, "Unknown dtype 'int4'. Allowed: float32, float16, bfloat16."),
        (
            ["--cache", "elastic"],
            2,
            "Unknown cache strategy 'elastic'. Did you mean 'static'? Allowed: dynamic, static, sliding_window, "
            "offloaded, offloaded_static, quantized, paged.",
        ),
        (
            ["--cache", "quantized(nbits)"],
            2,
            "Cache 'quantized(nbits)' has a setting that is not of the form name=value.",
        ),
        (["--compile", "fast"], 2, "Unknown compile mode 'fast'. Allowed: off, default, reduce-overhead, max-autotune"),
        (["--space", "nowhere.yaml"], 2, "Cannot read space file 'nowhere.yaml': No such file or directory."),
        (["--prefill-chunk", "some"], 2, "--prefill-chunk 'some' is not a list of positive integers."),
        (
            ["--attention", "sdpa_flesh"],
            2,
            "Unknown attention backend 'sdpa_flesh'. Did you mean 'sdpa_flash'? Allowed: eager, sdpa, sdpa_flash, "
            "sdpa_efficient, sdpa_math, sdpa_cudnn, flash_attention_2, flash_attention_3, flex_attention, xformers, "
            "flash, a kernel of a hub",
        ),
        (
            ["--objective", "latncy"],
            2,
            "Unknown objective 'latncy'. Did you mean 'latency'? Allowed: latency, throughput",
        ),
        (["--weights", "ttft=1", "--objective", "memory"], 2, "--objective and --weights exclude each other."),
        (["--max-ttft", "fast"], 2, "--max-ttft 'fast' is neither a time nor off. Write it like 400 (which"),
        (["--max-itl", "0"], 2, "--max-itl '0' is neither a time nor off."),
        (["--min-throughput", "-1"], 2, "--min-throughput '-1' is neither a rate nor off."),
        (["--max-vram", "8 kg"], 2, "--max-vram '8 kg' is neither a size nor off. Write it like 8000 (which are MiB)"),
        (["--device", "gpu"], 2, "Unknown device 'gpu'. Did you mean 'cuda'? Allowed: cpu, cuda."),
        (
            ["--context", "abc"],
            2,
            "--context 'abc' is not a list of positive integers. Write it like 512 or 512,1024.",
        ),
        (
            ["--output-len", "0"],
            2,
            "--output-len '0' is not a list of positive integers. Write it like 512 or 512,1024.",
        ),
        (["--resume", "../x"], 2, "Invalid run id '../x'. Use up to 80 letters"),
        (["--resume", "nope"], 10, "holds no sweep 'nope'. It holds none."),
        (["--retry", "oom"], 2, "--retry can only be used with --resume"),
        (["--force"], 2, "--force can only be used with --resume"),
        (["--resume", "nope", "--retry", "ok"], 2, "Unknown status of --retry 'ok'. Allowed: oom, timeout, crashed, "),
        (["--output", "foo://bar"], 2, "Results folder 'foo://bar' cannot be opened: Unrecognized filesystem type"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_what_is(
    arguments: list[str], code: int, text: str, refused: Refused
) -> None:
    if "--output" in arguments:
        arguments = [*arguments, "--resume", "some"]
    assert text in refused(code, *FAKE, *arguments)


def test_an_attention_that_this_device_cannot_have_is_refused_with_the_reason(
    refused: Refused, tiny_model: str
) -> None:
    assert refused(8, *TORCH, tiny_model, "--attention", "sdpa_cudnn,sdpa_efficient") == (
        "No valid candidate is left: sdpa_cudnn: PyTorch has this kernel for CUDA only; sdpa_efficient: PyTorch has "
        "this kernel for CUDA only. Available here: eager, sdpa, sdpa_flash, sdpa_math, flex_attention."
    )


@pytest.mark.parametrize("mode", [[], ["--dry-run"]])
def test_cuda_without_a_gpu_is_refused_at_once(
    mode: list[str], refused: Refused, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert refused(11, "tune", tiny_model, "--device", "cuda", *mode) == (
        "Device 'cuda' was asked for, but this machine has no GPU that NVML can see. Use cpu, or the address of a Ray "
        "cluster with GPUs."
    )


def test_a_workload_that_the_model_cannot_hold_is_refused(refused: Refused) -> None:
    assert refused(3, *FAKE, "--context", "5000", "--dry-run") == (
        "No context length of profile 'chat-agent, changed' fits: the model holds 4096 tokens, and the profile asks "
        "for prompts of 5000 and up to 4 new tokens. Pass shorter ones with --context and --output-len."
    )


# Profiles


GOOD: dict[str, Any] = {
    "name": "mine",
    "context_lengths": [16],
    "output_lengths": [4],
    "weight_ttft": 0.4,
    "weight_throughput": 0.4,
    "weight_memory": 0.2,
}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("not json", "is not valid JSON: Expecting value: line 1 column 1"),
        ("[1]", "Input should be a valid dictionary"),
        (json.dumps({**GOOD, "weight_ttft": 0.5}), "is 1.1, it must be 1"),
        (json.dumps({**GOOD, "context_lengths": [-1]}), "context_lengths.0: Input should be greater than 0 (got -1)"),
        (
            json.dumps({**GOOD, "more": 1}),
            "more: there is no such key. Allowed keys: name, description, context_lengths, ",
        ),
        (json.dumps({"name": "x"}), "weight_memory: Field required"),
    ],
)
def test_a_malformed_profile_file_is_named_with_what_is_wrong(
    content: str, text: str, refused: Refused, tmp_path: Path
) -> None:
    file = tmp_path / "p.json"
    file.write_text(content)
    line = refused(3, *FAKE, "--profile", file)
    assert line.startswith(("Profile file ", "Profile "))
    assert f"{str(file)!r} is not valid" in line
    assert text in line


def test_all_problems_of_a_profile_are_named_at_once(refused: Refused, tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text(json.dumps({**GOOD, "repeats": 0, "output_lengths": [1], "more": 1}))
    line = refused(3, *FAKE, "--profile", file)
    assert all(name in line for name in ("repeats: ", "output_lengths.0: ", "more: "))


def test_a_missing_profile_file_is_named(refused: Refused) -> None:
    assert refused(3, *FAKE, "--profile", "nope.json") == "Cannot read profile 'nope.json': No such file or directory."


# Models (a dry run: nothing is started whatever happens)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("./nope", "Model './nope' is neither a folder nor a .gguf file nor a hub id. Use org/name, a folder with"),
        ("nope.gguf", "GGUF file 'nope.gguf' does not exist."),
        ("random:nope", "Model 'random:nope': 'nope/config.json' does not exist. Give a folder or a config.json."),
        (".", "Folder '.' has no config.json, so it is not a Transformers model."),
    ],
)
def test_a_model_that_is_not_there_is_named(model: str, text: str, refused: Refused) -> None:
    assert text in refused(4, *TORCH, model, "--dry-run")


# Plans


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "No such file or directory. kvray tune writes one as reports/RUN_ID/best_plan.json"),
        ("not json", "is not a plan: it is not JSON (Expecting value"),
        ("[]", "is not a plan: it holds a list, not an object."),
        ("{}", "is not a plan: it has no plan_version."),
        (json.dumps(GOOD), "is not a plan: it is the profile of a workload."),
        ('{"plan_version": 2}', "has plan_version 2; this kvray reads version 1. Upgrade kvray, or tune again."),
        ('{"plan_version": 1}', "winner: Field required"),
    ],
)
def test_a_plan_that_cannot_be_applied_is_named_with_what_is_wrong(
    content: str | None, text: str, refused: Refused, tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    if content is not None:
        file.write_text(content)
    line = refused(6, "apply", file)
    assert repr(str(file)) in line
    assert text in line


# Results


@pytest.mark.parametrize("command", [["rank"], ["rank", "--json"], ["report"], ["compare", "there"]])
def test_a_results_folder_without_a_sweep_is_named(command: list[str], refused: Refused) -> None:
    missing = "There is no results folder 'nope'. Name the one that `kvray tune` wrote."
    if command[0] == "compare":
        Path("there").mkdir()
        assert refused(10, "compare", "nope", "there") == missing
    else:
        assert refused(10, *command, "nope") == missing
    Path("empty").mkdir()
    assert refused(10, *command, "empty").startswith("Results folder ")


def test_a_run_that_is_not_there_is_named_with_those_that_are(refused: Refused) -> None:
    old = Path(__file__).parent.parent / "assets" / "results_v1"
    known = ", ".join(path.stem for path in (old / "sweeps").iterdir())
    for run_id in ("nope", "2026"):
        for line in (
            ["rank", old, "--run", run_id],
            ["report", old, "--run", run_id],
            ["compare", f"{old}#{run_id}", old],
        ):
            assert refused(10, *line).endswith(f"holds no sweep {run_id!r}. It holds: {known}.")


def test_a_comparison_without_a_folder_is_refused(refused: Refused) -> None:
    assert refused(2, "compare", "#x", "y") == "'#x' names no results folder. Write FOLDER or FOLDER#RUN_ID."


@pytest.mark.parametrize("output", ["file", "file/below"])
def test_a_results_folder_with_a_file_in_the_way_is_refused(output: str, refused: Refused) -> None:
    Path("file").touch()
    line = refused(7, *FAKE, "--output", output)
    assert line.startswith(f"Cannot write to results folder {output!r}: ")
    assert "file is a file, not a folder" in line


# What is known only once something runs


def test_a_cluster_that_does_not_answer_is_given_up_at_once_and_without_noise(kvray: Kvray, tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        done = kvray(*FAKE, "--output", tmp_path / "out", "--address", address)
    assert (done.returncode, done.stdout) == (11, "")
    assert one_line(done.stderr).startswith(f"The Ray cluster at {address!r} cannot be reached: ")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray that several command lines share: it answers sooner than each one's own."""
    running = cluster_of(num_cpus=2, num_gpus=0)
    yield str(running.address)
    running.shutdown()


def error_of(err: str, cluster: str) -> str:
    """The one line beside warnings. One says that the Ray at `cluster` listens on a network, where it does; on a busy
    machine another says that a node is waited for."""
    warnings = [line for line in err.splitlines() if line.startswith("kvray: warning: ")]
    listens = f"kvray: warning: Ray at {cluster} listens on a network: whoever reaches its ports can run "
    assert cluster.startswith("127.") or warnings[0].startswith(listens)
    return one_line("".join(line for line in err.splitlines(keepends=True) if line.rstrip("\n") not in warnings))


def test_more_slots_than_there_are_cpus_are_refused(kvray: Kvray, cluster: str, tmp_path: Path) -> None:
    done = kvray(*FAKE, "--output", tmp_path / "out", "--address", cluster, "--slots", "99")
    assert (done.returncode, done.stdout) == (11, "")
    assert error_of(done.stderr, cluster) == "99 slots do not fit: Ray offers 2 CPUs and 0 GPUs. At most 2."
    assert not (tmp_path / "out" / "sweeps").exists()


def test_a_cluster_without_a_gpu_is_refused_for_a_sweep_on_gpus(kvray: Kvray, cluster: str, tmp_path: Path) -> None:
    done = kvray(*FAKE, "--device", "cuda", "--output", tmp_path / "out", "--address", cluster, CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stdout) == (11, "")
    assert error_of(done.stderr, cluster) == (
        "The sweep needs 1 GPU, Ray offers 0. Pass --device cpu to tune on the CPU."
    )


@pytest.fixture(scope="module")
def all_failed(kvray: Kvray, cluster: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    folder = tmp_path_factory.mktemp("all-failed")
    arguments = ("--cache", "dynamic", "--dtype", "float32", "--json", "--address", cluster, "--output", folder)
    return folder, kvray("tune", "fake:/=oom", *FAKE[2:], *arguments)


def test_when_every_trial_fails_the_last_line_says_why(all_failed: tuple[Path, Done]) -> None:
    _, done = all_failed
    assert (done.returncode, json.loads(done.stdout)["trials"]) == (9, {"oom": 3})
    *progress, last = done.stderr.splitlines()
    assert last.startswith("kvray: No candidate was measured completely: oom (3): told to run out of memory. See ")
    assert sum(line.startswith("oom     ") for line in progress) == 3
    report = last.partition("See ")[2].partition(" for each")[0]
    assert "told to run out of memory" in Path(report).read_text()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["fake:/=oom", "--output-len", "5"], "profile.output_lengths: 4 → 5"),
        (["fake:ok"], "model: fake:/=oom → fake:ok"),
    ],
)
def test_a_sweep_is_not_resumed_with_other_arguments(
    arguments: list[str], what: str, kvray: Kvray, cluster: str, all_failed: tuple[Path, Done]
) -> None:
    folder, _ = all_failed
    (run_id,) = ResultsStore(folder).run_ids()
    before = records_sha256(ResultsStore(folder).read(run_id))
    model, *rest = arguments
    done = kvray("tune", model, *FAKE[2:], *rest, "--address", cluster, "--output", folder, "--resume", run_id)
    assert (done.returncode, done.stdout) == (10, "")
    assert error_of(done.stderr, cluster) == (
        f"Sweep {run_id!r} cannot be resumed, because new measurements could not be compared with its own. Different "
        f"now: {what}. Undo that, start a new sweep without --resume, or pass --force to kvray tune: it measures "
        "all anew beside it."
    )
    assert records_sha256(ResultsStore(folder).read(run_id)) == before


def test_verbose_shows_where_an_error_came_from(kvray: Kvray) -> None:
    done = kvray("apply", "nope.json", "--verbose")
    assert done.returncode == 6
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert done.stderr.splitlines()[-1].startswith("kvray: Cannot read plan 'nope.json'")


def test_a_device_is_not_measured_for_a_model_that_cannot_be_tuned(
    kvray: Kvray, tiny_model: str, tmp_path: Path
) -> None:
    fresh = {"KVRAY_CACHE": str(tmp_path / "cache")}
    done = kvray("tune", tiny_model, "--device", "cpu", "--context", "5000", "--output", tmp_path / "out", **fresh)
    assert done.returncode == 3
    assert "No context length of profile" in done.stderr
    assert "measuring how fast" not in done.stderr
