"""The command line as a user meets it: one sweep, and every command that reads what it left."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from busy_machine import other_lines
from kvray_logger import logger_as_before

from kvray.cli.app import COMMANDS, run
from kvray.plan.plan import load_plan_file
from kvray.workload import Limits, get_profile, load_profile, save_profile

Done = subprocess.CompletedProcess[str]
Kvray = Callable[..., Done]
Here = Callable[..., str]

SMALL = ("--engine", "fake", "--device", "cpu", "--context", "16,5000", "--output-len", "4", "--repeats", "1")
PROGRESS = re.compile(
    r"(sweep \S+: |start   |again   |rung \d  |ok      |stopped "
    r"|        \d+ of \d+ candidates tried · (confirming \d+ of \d+ · )?)\S"
)
DISTURBED = " (every run of it disturbed)"
"""What a figure is followed by where this machine was busy with other things."""
DROPPED = (
    "kvray: warning: Prompts of 5000 tokens are left out: with up to 4 new ones they exceed the 4096 that the "
    "model holds."
)


@dataclass(frozen=True)
class Swept:
    """Two sweeps in one folder: the first shown to people, the second, smaller one, as JSON."""

    folder: Path
    shown: Done
    as_json: Done

    @property
    def run_ids(self) -> tuple[str, str]:
        first, second = sorted(path.stem for path in (self.folder / "sweeps").iterdir())
        return first, second

    @property
    def reports(self) -> Path:
        return self.folder / "reports" / self.run_ids[0]

    @property
    def winner(self) -> str:
        """Label in the first line of the first sweep's ranking."""
        first = re.search(r"^1 +(\S+/\S+) ", self.shown.stdout, re.MULTILINE)
        return first[1] if first else "nobody"


@pytest.fixture(scope="module")
def swept(kvray: Kvray, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder = tmp_path_factory.mktemp("swept")
    # Milliseconds of prefill, of which a busy machine does not change the order.
    line = ("tune", "fake:ok", *SMALL, "--context", "2000,5000", "--output", folder)
    narrow = ("--cache", "dynamic", "--dtype", "float32", "--json")
    return Swept(folder=folder, shown=kvray(*line), as_json=kvray(*line, *narrow))


def in_python(code: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, timeout=240
    )
    return done.stdout


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Here]:
    """Run a line in this process, which saves the imports; it must end as asked. Returns its stdout."""
    monkeypatch.setenv("COLUMNS", "120")

    def end(*arguments: str | Path, code: int = 0) -> str:
        assert run([str(argument) for argument in arguments], verbose=False) == code
        out, err = capfd.readouterr()
        assert (err == "") == (code == 0)
        return out

    with logger_as_before():
        yield end


# Without a sweep


def test_help_lists_every_command(kvray: Kvray) -> None:
    done = kvray("--help")
    assert done.returncode == 0
    listed = re.findall(r"^  (\w+) {2,}[A-Z]", done.stdout.partition("Commands:")[2], re.MULTILINE)
    assert listed == list(COMMANDS)
    assert done.stderr == ""


def test_the_frame_of_the_command_line_imports_nothing_heavy(environment: dict[str, str]) -> None:
    code = (
        "import sys, kvray.cli.app as app; app.run(['--help'], verbose=False);"
        "print('loaded', sorted({'torch', 'ray', 'pydantic', 'pyarrow', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert in_python(code, environment).endswith("loaded []\n")


def test_commands_that_only_read_import_neither_torch_nor_ray(environment: dict[str, str]) -> None:
    code = (
        "import sys, kvray.cli.app as app\n"
        "for line in (['profiles'], ['info'], ['apply', '--help'], ['forecast', '--help']):\n"
        " assert app.run(line, verbose=False) == 0\n"
        "print('loaded', sorted({'torch', 'ray', 'pyarrow', 'transformers'} & set(sys.modules)))"
    )
    assert in_python(code, environment).endswith("loaded []\n")


def test_a_model_whose_files_are_broken_is_refused_before_anything_heavy_is_imported(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    line = ["tune", str(tmp_path), "--device", "cpu", "--output", str(tmp_path / "results")]
    code = (
        "import sys, kvray.cli.app as app\n"
        f"assert app.run({line!r}, verbose=False) == 4\n"
        "print('loaded', sorted({'torch', 'ray', 'transformers', 'scipy', 'pandas'} & set(sys.modules)))"
    )
    assert in_python(code, environment).endswith("loaded []\n")
    assert not (tmp_path / "results").exists()


def test_records_are_judged_anew_without_the_libraries_that_measured_and_searched(
    environment: dict[str, str], tmp_path: Path
) -> None:
    results = shutil.copytree(Path(__file__).parents[1] / "assets" / "results_v2", tmp_path / "results")
    code = (
        "import sys, kvray.cli.app as app\n"
        f"assert app.run(['rank', {str(results)!r}], verbose=False) == 0\n"
        f"assert app.run(['report', {str(results)!r}], verbose=False) == 0\n"
        "print('loaded', sorted({'torch', 'ray', 'transformers', 'scipy'} & set(sys.modules)))"
    )
    assert in_python(code, environment).endswith("loaded []\n")


def test_version_is_that_of_the_package(kvray: Kvray) -> None:
    from importlib.metadata import version

    assert kvray("--version").stdout == f"kvray {version('kvray')}\n"


def test_profiles_are_listed_whole_on_eighty_columns(kvray: Kvray) -> None:
    done = kvray("profiles", COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    for name, contexts in (("chat-agent", "2048/4096/8192"), ("rag", "8192/16384/32768"), ("ci-micro", "512")):
        assert re.search(rf"^{name} +{contexts} ", done.stdout, re.MULTILINE)
    assert max(len(line) for line in done.stdout.splitlines()) <= 80


def test_a_profile_is_printed_as_json_that_tune_accepts_back(kvray: Kvray, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(kvray("profiles", "ci-micro").stdout.replace('"ci-micro"', '"mine"'))
    assert load_profile(file).model_copy(update={"name": "ci-micro"}) == get_profile("ci-micro")
    done = kvray("tune", "fake:ok", "--engine", "fake", "--profile", file, "--dry-run", "--json")
    assert json.loads(done.stdout)["profile"]["name"] == "mine"


def test_info_says_of_every_value_whether_it_can_be_had_and_why_not(kvray: Kvray) -> None:
    done = kvray("info", "--device", "cpu")
    assert (done.returncode, done.stderr) == (0, "")
    table = done.stdout.partition("Engine transformers")[2].splitlines()
    rows = {tuple(line.split()[:2]): " ".join(line.split()[2:]) for line in table}
    assert rows["attention", "sdpa"] == "yes"
    assert rows["attention", "sdpa_cudnn"] == "no: PyTorch has this kernel for CUDA only"
    assert rows["dtype", "float16"].startswith("yes, on request: emulated on a CPU")


def test_info_on_cuda_without_a_gpu_does_not_pretend_to_have_one(kvray: Kvray) -> None:
    done = kvray("info", "--device", "cuda", CUDA_VISIBLE_DEVICES="")
    assert re.search(r"^device +no GPU here", done.stdout, re.MULTILINE)


# A dry run


@pytest.fixture
def dry(kvray: Kvray, tmp_path: Path) -> Callable[..., Done]:
    """A dry run that must leave no trace: neither results nor a Ray session."""

    def run(*arguments: str) -> Done:
        done = kvray("tune", "fake:ok", *SMALL, "--dry-run", *arguments, cwd=tmp_path, RAY_TMPDIR=str(tmp_path / "ray"))
        assert done.returncode == 0
        assert list(tmp_path.iterdir()) == []
        return done

    return run


def test_a_dry_run_shows_the_space_and_leaves_no_trace(dry: Callable[..., Done]) -> None:
    done = dry("--attention", "sdpa,sdpa_cudnn")
    assert done.stderr == DROPPED + "\n"
    lines = done.stdout.splitlines()
    assert lines[1:4] == [
        "profile chat-agent, changed, 1 run of each cell: 16→4",
        "score by first token (0.5), throughput (0.35) and memory (0.15)",
        "limits: quality loss at most 0.100 nats per token",
    ]
    assert "Candidates (4)" in lines
    assert sum(line.endswith("dynamic/sdpa/float32  baseline") for line in lines) == 1
    rejected = lines.index("Rejected (4)")
    assert lines[rejected + 1] == "  PyTorch has no cudnn attention kernel for the CPU (kernel-on-device)"
    left_out = lines.index("Not in this space")
    assert " ".join(" ".join(lines[rejected + 2 : left_out]).split()) == ", ".join(
        f"{cache}/sdpa_cudnn/{dtype}" for dtype in ("float32", "bfloat16") for cache in ("dynamic", "static")
    )
    assert any(re.fullmatch(r"\s*attention eager\s+not asked for", line) for line in lines[left_out:])
    assert lines[-1] == "Nothing was started."


def test_a_dry_run_shows_the_limits_and_the_objective_that_were_given(dry: Callable[..., Done]) -> None:
    limits = ("--max-ttft", "400", "--max-itl", "50", "--min-throughput", "2.5", "--max-vram", "8GiB")
    given = (*limits, "--max-quality-loss", "off", "--objective", "latency")
    assert (
        "score by first token (0.7), throughput (0.2) and memory (0.1), the objective latency limits: first token at "
        "most 400 ms; between tokens (p95) at most 50.0 ms; at least 2.50 tok/s; peak memory at most 8,192 MiB "
    ) in " ".join(dry(*given).stdout.split())
    profile = json.loads(dry(*given, "--json").stdout)["profile"]
    assert profile["limits"] == {
        "max_ttft_ms": 400.0,
        "max_itl_ms": 50.0,
        "min_decode_tok_s": 2.5,
        "max_peak_mib": 8192.0,
        "max_quality_loss": None,
    }
    assert profile["weight_ttft"] == 0.7


def test_a_limit_of_the_profile_is_lifted(dry: Callable[..., Done], tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("profile") / "mine.json"
    save_profile(get_profile("ci-micro").model_copy(update={"limits": Limits(max_ttft_ms=5, max_peak_mib=9)}), file)
    lines = dry("--profile", str(file), "--max-ttft", "off").stdout.splitlines()
    assert "limits: peak memory at most 9.00 MiB; quality loss at most 0.100 nats per token" in lines


def test_a_dry_run_as_json_is_one_object(dry: Callable[..., Done]) -> None:
    done = dry("--json", "--cache", "static")
    assert done.stderr == DROPPED + "\n"
    shown = json.loads(done.stdout)
    assert set(shown) == {
        "model",
        "device",
        "profile",
        "dropped_contexts",
        "expected_s",
        "unreachable_limits",
        "cells",
        "search",
        "baseline",
        "candidates",
        "rejected",
        "not_in_space",
    }
    assert shown["dropped_contexts"] == [5000]
    assert shown["cells"] == [[16, 4, 1]]
    assert [one["label"] for one in shown["candidates"]][:2] == ["dynamic/sdpa/float32", "static/eager/float32"]
    assert shown["baseline"] == shown["candidates"][0]["candidate_id"]


# tune


def test_tune_shows_ranking_and_files_on_stdout(swept: Swept) -> None:
    assert swept.shown.returncode == 0
    out = swept.shown.stdout
    assert swept.winner in {"static/sdpa/bfloat16", "dynamic/sdpa/bfloat16", "static/sdpa_math/bfloat16"}
    assert re.search(r"dynamic/sdpa/float32 baseline", out)
    for name, file in (("plan", "best_plan.json"), ("snippet", "optimized_config.py"), ("report", "report.html")):
        assert re.search(rf"^{name}: +{re.escape(str(swept.reports / file))}$", out, re.MULTILINE)
        assert (swept.reports / file).is_file()


def test_progress_goes_to_stderr_and_nothing_else_does(swept: Swept) -> None:
    for done in (swept.shown, swept.as_json):
        first, *lines = other_lines(done.stderr)
        assert first == DROPPED
        assert [line for line in lines if not PROGRESS.match(line)] == []
        assert lines[0].startswith("sweep ")
        assert sum(line.startswith("start ") for line in lines) in (12, 3)


def test_the_winner_and_the_baseline_are_confirmed_in_further_processes(swept: Swept) -> None:
    again = [line.split()[1] for line in swept.shown.stderr.splitlines() if line.startswith("again ")]
    assert {swept.winner, "dynamic/sdpa/float32"} <= set(again)
    assert f" · confirming {len(again)} of " in other_lines(swept.shown.stderr)[-1]


def test_stdout_of_json_is_exactly_one_object_with_the_documented_keys(swept: Swept) -> None:
    assert swept.as_json.returncode == 0
    shown = json.loads(swept.as_json.stdout, parse_constant=pytest.fail)
    assert set(shown) == {
        "run_id",
        "model_id",
        "profile",
        "device",
        "wall_s",
        "busy_s",
        "trials",
        "winner",
        "weights",
        "limits",
        "nearest_misses",
        "notes",
        "baseline",
        "confidence",
        "code_check",
        "is_complete",
        "trials_set_aside",
        "records_sha256",
        "files",
    }
    assert (shown["is_complete"], shown["trials_set_aside"]) == (True, 0)
    assert shown["code_check"]["outcome"] == "not_run", "the fake engine has no code that does something"
    assert set(shown["winner"]) >= {
        "candidate_id",
        "label",
        "score",
        "ttft_ms",
        "itl_p50_ms",
        "itl_p95_ms",
        "itl_p99_ms",
        "decode_tok_s",
        "peak_mib",
        "gain",
        "break_even_tokens",
    }
    assert set(shown["winner"]["gain"]) == {
        *(f"{speed}_speedup{end}" for speed in ("ttft", "decode") for end in ("", "_low", "_high")),
        "peak_ratio",
        "pairs",
    }
    assert set(shown["confidence"]) == {
        "winner_share",
        "processes",
        "runs",
        "ties",
        "is_disturbed",
        "reason",
        "confirm_rounds",
    }
    assert shown["run_id"] == swept.run_ids[1]
    assert sum(shown["trials"].values()) >= 3, "and confirming ones where runs were disturbed"
    assert shown["wall_s"] > shown["busy_s"] > 0
    assert all(Path(path).is_file() for path in shown["files"].values())


# Limits


@dataclass(frozen=True)
class Missed:
    """A sweep of three candidates none of which keeps its limits."""

    folder: Path
    done: Done

    def report(self, name: str) -> str:
        (path,) = (self.folder / "reports").glob(f"*/{name}")
        return path.read_text()


@pytest.fixture(scope="module")
def missed(kvray: Kvray, tmp_path_factory: pytest.TempPathFactory) -> Missed:
    folder = tmp_path_factory.mktemp("missed")
    limits = ("--max-ttft", "0.001ms", "--min-throughput", "1e6")
    narrow = ("--cache", "dynamic", "--dtype", "float32", "--attention", "eager,sdpa,sdpa_math")
    return Missed(
        folder=folder, done=kvray("tune", "fake:ok", *SMALL, *narrow, *limits, "--confirm", "0", "--output", folder)
    )


def test_where_nothing_keeps_the_limits_the_code_is_12_and_the_nearest_misses_are_told(missed: Missed) -> None:
    assert missed.done.returncode == 12
    error = missed.done.stderr.splitlines()[-1]
    assert error.startswith(
        "kvray: No candidate keeps the limits of profile 'chat-agent, changed'. Nearest: 1. dynamic/"
    )
    assert re.search(
        r"1\. dynamic/\w+/float32: TTFT [\d.,]+ ms at 16→4, [\d,]+× the limit of 0\.001 ms; decode throughput "
        r"[\d,.]+ tok/s at 16→4, 1/[\d,]+ of the limit of 1,000,000 tok/s\. ",
        error.replace(DISTURBED, ""),
    )
    assert "Loosen a limit" in error
    table = missed.done.stdout.partition("Measured, misses a limit")[2]
    assert re.search(r"^dynamic/sdpa/float32 baseline +\S+ ✗ +\S+ ✗ ", table, re.MULTILINE)
    assert "report.html" in table
    assert "plan:" not in table


def test_what_misses_a_limit_is_measured_to_its_end_and_never_the_best(missed: Missed) -> None:
    ended = [line.split()[0] for line in missed.done.stderr.splitlines() if line.startswith(("ok ", "stopped "))]
    assert ended[0] == "ok"
    assert len(ended) == 3
    assert missed.done.stderr.count("best so far: none yet") == 3


def test_reports_of_missed_limits_say_so_and_there_is_no_plan(missed: Missed) -> None:
    assert "No candidate keeps the limits. dynamic/" in missed.report("report.md").replace("\\", "")
    assert "Measured, misses a limit" in missed.report("report.md")
    assert "Measured, misses a limit" in missed.report("report.html")
    assert list((missed.folder / "reports").glob("*/best_plan.json")) == []


def test_rank_ends_as_tune_did_and_shows_all_that_was_measured(missed: Missed, here: Here) -> None:
    shown = here("rank", missed.folder, code=12)
    assert "No candidate keeps the limits. dynamic/" in shown
    assert "Measured, misses a limit" in shown
    ranked = json.loads(here("rank", missed.folder, "--json", code=12))
    assert ranked["winner"] is None
    nearest = ranked["nearest_misses"]
    assert set(nearest[0]) == {"candidate_id", "label", "misses", "text"}
    assert [miss["limit"] for miss in nearest[0]["misses"]] == [0.001, 1e6]
    assert [miss["limit_name"] for miss in nearest[0]["misses"]] == ["max_ttft_ms", "min_decode_tok_s"]


def test_the_same_records_are_ranked_by_other_limits_and_reported_by_them(
    missed: Missed, here: Here, tmp_path: Path
) -> None:
    folder = shutil.copytree(missed.folder, tmp_path / "copy")
    lifted = ("--max-ttft", "off", "--min-throughput", "1tok/s", "--weights", "throughput=1")
    ranked = json.loads(here("rank", folder, *lifted, "--json"))
    assert ranked["winner"]["label"] == "dynamic/sdpa/float32"
    assert ranked["weights"] == {"ttft": 0.0, "throughput": 1.0, "memory": 0.0}
    assert ranked["limits"]["min_decode_tok_s"] == 1.0
    assert (
        "Judged by other weights or limits than the sweep was run with: limits.max_ttft_ms: 0.001 → none"
        in " ".join(here("rank", folder, *lifted).split())
    )
    reports = next((folder / "reports").iterdir())
    assert "best_plan.json" in here("report", folder, *lifted)
    assert load_plan_file(reports / "best_plan.json").profile.weights.throughput == 1.0
    here("report", folder, code=12)
    assert not (reports / "best_plan.json").exists(), "a plan of other limits than the report beside it"


# What reads a sweep


def test_rank_shows_what_tune_showed(kvray: Kvray, swept: Swept) -> None:
    done = kvray("rank", swept.folder, "--run", swept.run_ids[0])
    assert (done.returncode, done.stderr) == (0, "")
    launched = sum(line.startswith(("start ", "again ")) for line in swept.shown.stderr.splitlines())
    assert f"\n{launched} trials launched" in done.stdout
    assert swept.shown.stdout.startswith(done.stdout)


def test_rank_takes_the_newest_sweep(here: Here, swept: Swept) -> None:
    launched = sum(json.loads(swept.as_json.stdout)["trials"].values())
    assert f"\n{launched} trials launched" in here("rank", swept.folder)
    assert here("rank", swept.folder) == here("rank", swept.folder, "--run", swept.run_ids[1])


def test_rank_as_json_says_what_tune_said(here: Here, swept: Swept) -> None:
    ranked, tuned = json.loads(here("rank", swept.folder, "--json")), json.loads(swept.as_json.stdout)
    assert ranked.pop("wall_s") is None
    tuned.pop("wall_s")
    assert ranked == tuned


def test_report_writes_again_what_was_deleted(kvray: Kvray, swept: Swept, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(swept.folder, copy)
    reports = copy / "reports" / swept.run_ids[0]
    before = {path.name: path.read_bytes() for path in reports.iterdir()}
    shutil.rmtree(copy / "reports")
    done = kvray("report", copy, "--run", swept.run_ids[0])
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in reports.iterdir()} == set(before)
    assert (reports / "optimized_config.py").read_bytes() == before["optimized_config.py"]
    assert pq.read_table(reports / "ranking.parquet").num_rows == 12, "a row for each candidate of the space"
    same = {"created_at": None}
    plan, again = json.loads(before["best_plan.json"]), json.loads((reports / "best_plan.json").read_text())
    assert {**again, **same} == {**plan, **same}


def test_compare_shows_two_sweeps_of_one_folder(kvray: Kvray, swept: Swept) -> None:
    a, b = swept.run_ids
    done = kvray("compare", f"{swept.folder}#{a}", f"{swept.folder}#{b}")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(rf"^A  {a} .*\n(.*\n)?B  {b} ", done.stdout)
    assert "dynamic/sdpa/float32" in done.stdout


def test_compare_takes_the_newest_sweep_of_a_folder(here: Here, swept: Swept) -> None:
    told = here("compare", swept.folder, f"{swept.folder}#")
    assert all(f"{side}  {swept.run_ids[1]} " in told for side in "AB")


def test_apply_says_what_the_plan_decides(kvray: Kvray, swept: Swept) -> None:
    done = kvray("apply", swept.reports / "best_plan.json")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:2] == ["model    fake:ok", f"use      {swept.winner}"]
    assert lines[-2].startswith(f"rule     otherwise: {swept.winner}. Winner of ")
    assert lines[-1] == "Add --print-snippet or --out FILE for the code."


def test_apply_prints_and_writes_the_same_code(kvray: Kvray, swept: Swept, tmp_path: Path) -> None:
    plan, file = swept.reports / "best_plan.json", tmp_path / "config.py"
    printed = kvray("apply", plan, "--print-snippet")
    assert (printed.returncode, printed.stderr) == (0, "")
    written = kvray("apply", plan, "--out", file)
    assert f"snippet  {file}" in written.stdout
    assert printed.stdout == file.read_text() == (swept.reports / "optimized_config.py").read_text()
    winner = load_plan_file(plan).winner.candidate.label
    ran = subprocess.run([sys.executable, file], capture_output=True, text=True, check=True, timeout=240)
    assert winner in ran.stdout


def test_code_is_not_written_where_there_is_no_folder(kvray: Kvray, swept: Swept, tmp_path: Path) -> None:
    done = kvray("apply", swept.reports / "best_plan.json", "--out", "nope/x.py", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (7, "")
    assert done.stderr == (
        "kvray: Cannot write 'nope/x.py': No such file or directory. Name a file in a folder that exists.\n"
    )


def test_a_reader_that_leaves_early_is_no_error(swept: Swept, environment: dict[str, str]) -> None:
    command = f"{sys.executable} -m kvray rank {swept.folder} --json | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, env=environment, timeout=240
    )
    assert (done.stdout, done.stderr) == ("{", "")
