"""The files of `ci/`: valid for GitHub and GitLab, closed to script injection, run here by bash as a runner does."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from kvray.analysis.comparison import Verdict
from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.check.result import CheckedCandidate, CheckedModel, CheckMode, CheckResult, SideInfo
from kvray.cli.app import app
from kvray.testing.fake import KERNEL_VARIABLE, SLOWER_VARIABLE
from kvray.workload import get_profile

ROOT = Path(__file__).parents[2]
CI = ROOT / "ci"
SCHEMAS = {
    "action.yml": "vendor.github-actions",
    "github-workflow.yml": "vendor.github-workflows",
    "gitlab-ci.yml": "vendor.gitlab-ci",
}
EVIL = '"; touch hacked; echo "$(touch hacked)`touch hacked`'
STAND_IN = """#!/usr/bin/env bash
# Stands in for kvray: keeps its arguments, writes what it is told to, ends as it is told to.
printf '%s\\n' "$@" > "$ARGUMENTS"
for argument in "$@"; do
  case $argument in
    --json=*) if [ -n "$VERDICT" ]; then echo "{\\"verdict\\": \\"$VERDICT\\"}" > "${argument#--json=}"; fi ;;
    --comment=*) printf '<!-- kvray-check 0123456789ab -->\\n\\ntext\\n' > "${argument#--comment=}" ;;
  esac
done
exit "$EXIT"
"""
GH = """#!/usr/bin/env bash
# Stands in for GitHub's command line: keeps its arguments, and knows the comments that it is told of.
printf '%s\\n' "$*" >> "$CALLS"
case $* in *--paginate*) printf '%s' "$COMMENTS" ;; *) exit "${REFUSED:-0}" ;; esac
"""


def load(name: str) -> dict[str, Any]:
    content = yaml.safe_load((CI / name).read_text())
    assert isinstance(content, dict)
    return content


ACTION = load("action.yml")
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}


def scripts() -> Iterator[tuple[str, str]]:
    """Each shell script in the files, with a name for it."""
    for step in ACTION["runs"]["steps"]:
        yield from ([(f"action: {step['name']}", step["run"])] if "run" in step else [])
    for job, content in load("github-workflow.yml")["jobs"].items():
        for number, step in enumerate(content["steps"]):
            yield from ([(f"{job}: step {number}", step["run"])] if "run" in step else [])
    job = load("gitlab-ci.yml")[".kvray-check"]
    yield "gitlab", "\n".join((*job["before_script"], *job["script"]))


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_file_meets_its_schema(name: str) -> None:
    from check_jsonschema.builtin_schemas import get_builtin_schema
    from jsonschema import validators

    schema = get_builtin_schema(SCHEMAS[name])
    content: dict[Any, Any] = dict(load(name))
    content = {"on" if key is True else key: value for key, value in content.items()}  # YAML 1.1 takes `on` for true
    validators.validator_for(schema)(schema).validate(content)


def test_no_script_holds_an_expression_into_which_a_runner_would_paste_text() -> None:
    found = dict(scripts())
    assert len(found) == 11
    assert [name for name, script in found.items() if "${{" in script] == []


def test_shellcheck_accepts_every_script(tmp_path: Path) -> None:
    program = Path(sysconfig.get_path("scripts")) / "shellcheck"
    if not program.exists():
        pytest.skip("shellcheck is not installed (the extra dev brings it where there is a wheel for the machine)")
    files = []
    for number, (name, script) in enumerate(scripts()):
        files.append(tmp_path / f"{number}.sh")
        files[-1].write_text(f"#!/bin/{'sh' if name == 'gitlab' else 'bash'}\n# {name}\n{script}\n")
    done = subprocess.run([program, *files], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout


def test_the_workflow_gives_the_action_only_inputs_that_it_has_and_rights_that_it_needs() -> None:
    workflow = load("github-workflow.yml")
    assert workflow["permissions"] == {"contents": "read"}
    uses = [
        (job, step)
        for job in workflow["jobs"].values()
        for step in job["steps"]
        if step.get("uses", "").startswith("OWNER/kvray/ci@")
    ]
    assert len(uses) == 3
    for job, step in uses:
        assert "baseline" in step["with"]
        assert set(step["with"]) <= set(ACTION["inputs"])
        assert (step["with"].get("comment") == "true") == (job["permissions"].get("pull-requests") == "write")


@dataclass(frozen=True, kw_only=True)
class Runner:
    """A folder in which steps of the action run as GitHub's runner runs them, with stand-ins on the PATH."""

    folder: Path
    variables: Mapping[str, str]

    def run(self, step: Mapping[str, Any], values: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run `step` with `values` for its expressions, e.g. `{"inputs.baseline": "plan.json"}`."""
        given = {
            name: re.sub(r"\$\{\{ (.+?) \}\}", lambda found: values.get(found[1], ""), text)
            for name, text in step["env"].items()
        }
        script = self.folder / "step.sh"
        script.write_text(step["run"])
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=self.folder,
            env={**self.variables, **given},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    @property
    def outputs(self) -> dict[str, str]:
        lines = (self.folder / "outputs").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("kvray", STAND_IN), ("gh", GH)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    variables = {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "GITHUB_OUTPUT": str(tmp_path / "outputs"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        "GITHUB_REPOSITORY": "owner/project",
        "ARGUMENTS": str(tmp_path / "arguments"),
        "CALLS": str(tmp_path / "calls"),
        "EXIT": "0",
        "VERDICT": "pass",
        "COMMENTS": "",
    }
    (tmp_path / "work").mkdir()
    return Runner(folder=tmp_path, variables=variables)


def with_variables(runner: Runner, **more: str) -> Runner:
    return Runner(folder=runner.folder, variables={**runner.variables, **more})


DEFAULTS = {f"inputs.{name}": str(one.get("default", "")) for name, one in ACTION["inputs"].items()}


@pytest.mark.parametrize(
    ("code", "verdict", "said"),
    [
        ("0", "pass", "pass"),
        ("1", "fail", "fail"),
        ("14", "inconclusive", "inconclusive"),
        ("0", "inconclusive", "inconclusive"),
        ("10", "", "error"),
        ("2", "pass\\nother=1", "error"),
    ],
)
def test_the_action_says_verdict_and_exit_code_and_ends_with_it(
    runner: Runner, code: str, verdict: str, said: str
) -> None:
    done = with_variables(runner, EXIT=code, VERDICT=verdict).run(
        STEPS["Check"], {**DEFAULTS, "inputs.baseline": "plan.json"}
    )
    assert done.returncode == 0, done.stderr
    assert runner.outputs == {"verdict": said, "exit-code": code}
    end = runner.run(STEPS["Verdict"], {"steps.check.outputs.exit-code": code})
    assert end.returncode == int(code)


def test_a_verdict_of_an_earlier_check_is_not_read_again(runner: Runner) -> None:
    old = runner.folder / "kvray-check" / "check.json"
    old.parent.mkdir()
    old.write_text('{"verdict": "pass"}')
    with_variables(runner, EXIT="10", VERDICT="").run(STEPS["Check"], {**DEFAULTS, "inputs.baseline": "plan.json"})
    assert runner.outputs == {"verdict": "error", "exit-code": "10"}


def test_inputs_are_arguments_and_never_code(runner: Runner) -> None:
    values = {name: f"{EVIL} {name}" for name in DEFAULTS} | {
        "inputs.output": "out; touch hacked",
        "inputs.against": f"python=/a b/python\nenv={EVIL}",
        "inputs.arguments": f"--seed=1\n{EVIL}\n",
    }
    done = runner.run(STEPS["Check"], values)
    assert done.returncode == 0, done.stderr
    arguments = (runner.folder / "arguments").read_text().splitlines()
    assert arguments[0] == "check"
    assert arguments[-9:] == [
        "--against=python=/a b/python",
        f"--against=env={EVIL}",
        f"--margin={EVIL} inputs.margin",
        f"--budget={EVIL} inputs.budget",
        f"--on-inconclusive={EVIL} inputs.on-inconclusive",
        "--seed=1",
        EVIL,
        "--",
        f"{EVIL} inputs.baseline",
    ]
    assert not list(runner.folder.rglob("hacked"))


def test_nothing_is_asked_for_that_was_not_given(runner: Runner) -> None:
    runner.run(STEPS["Check"], {**DEFAULTS, "inputs.baseline": "plan.json"})
    arguments = (runner.folder / "arguments").read_text().splitlines()
    assert [one.partition("=")[0] for one in arguments] == [
        "check",
        "--output",
        "--json",
        "--comment",
        "--junit",
        "--github-action-benchmark",
        "--bencher",
        "--",
        "plan.json",
    ]


def test_kvray_check_knows_every_option_that_the_files_give() -> None:
    check = typer.main.get_command(app).get_command(None, "check")  # type: ignore[attr-defined]
    known = {name for parameter in check.params for name in parameter.opts}
    given = {found for _, script in scripts() for found in re.findall(r"(--[a-z-]+)=\"\$", script)}
    assert len(given) == 11
    assert given <= known


def test_the_pages_show_commands_that_exist() -> None:
    group: Any = typer.main.get_command(app)
    shown = []
    for page in (ROOT / "docs" / "ci.md", CI / "github-workflow.yml"):
        for line in re.findall(r"(?:^\$ |: )(kvray (?:check|tune) .*)$", page.read_text(), re.MULTILINE):
            _, name, *arguments = shlex.split(line, comments=True)
            shown.append(group.get_command(None, name).make_context(name, arguments))
    assert len(shown) >= 5


def test_the_install_command_runs_as_it_is_written_and_its_failure_ends_the_step(runner: Runner) -> None:
    command = 'echo "$GITHUB_ACTION_PATH" | tee installed'
    runner = with_variables(runner, GITHUB_ACTION_PATH="/actions/kvray/ci")
    assert runner.run(STEPS["Install kvray"], {"inputs.install": command}).returncode == 0
    assert (runner.folder / "installed").read_text() == "/actions/kvray/ci\n"
    assert runner.run(STEPS["Install kvray"], {"inputs.install": "false | true"}).returncode != 0


def baseline_of_the_fake_engine() -> str:
    """A `check.json` that says what to measure."""
    candidate = Candidate(
        engine="fake", cache=CacheStrategy.DYNAMIC, attention=AttentionBackend.SDPA, dtype=DType.FLOAT32
    )
    moment = dt.datetime(2026, 11, 27, tzinfo=dt.UTC)
    return CheckResult(
        kvray_version="0.1.0",
        started_at=moment,
        ended_at=moment,
        seconds=0.0,
        mode=CheckMode.A_B,
        model_id="fake:ok",
        models={"fake": CheckedModel(model_id="fake:ok")},
        device=DeviceType.CPU,
        device_name="another machine",
        profile=get_profile("ci-micro"),
        sides=(SideInfo(name="A"), SideInfo(name="B")),
        candidates=(CheckedCandidate(label=candidate.label, candidate=candidate, verdict=Verdict.PASS),),
        verdict=Verdict.PASS,
    ).to_json()


@pytest.mark.slow
def test_the_action_fails_a_real_check_whose_other_side_runs_another_kernel(
    runner: Runner, environment: dict[str, str]
) -> None:
    (runner.folder / "bin" / "kvray").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kvray "$@"\n')
    (runner.folder / "baseline.json").write_text(baseline_of_the_fake_engine())
    (runner.folder / "slow.env").write_text(f"{KERNEL_VARIABLE}=math\n{SLOWER_VARIABLE}=2\n")
    values = {
        **DEFAULTS,
        "inputs.baseline": "baseline.json",
        "inputs.against": "env=slow.env",
        "inputs.margin": "ttft=20%,decode=20%,memory=2%",
        "inputs.budget": "20s",
        "inputs.output": "a folder",
    }
    runner = Runner(folder=runner.folder, variables={**environment, **runner.variables})
    done = runner.run(STEPS["Check"], values)
    assert done.returncode == 0, done.stderr
    assert runner.outputs == {"verdict": "fail", "exit-code": "1"}
    left = {path.name for path in (runner.folder / "a folder").iterdir()}
    assert left >= {"check.json", "comment.md", "junit.xml", "github-action-benchmark.json", "bencher.json"}
    summary = (runner.folder / "summary.md").read_text()
    assert summary.startswith("### ❌ kvray check: FAIL\n\n**Another kernel ran in decode: sdpa → math.")
    assert (runner.folder / "a folder" / "comment.md").read_text().startswith("<!-- kvray-check ")
    assert done.stdout.startswith("FAIL: another kernel ran")
    assert json.loads((runner.folder / "a folder" / "bencher.json").read_text())


def comment(runner: Runner, **variables: str) -> tuple[list[str], str]:
    """What the comment's step asks GitHub for, and what it prints."""
    (runner.folder / "kvray-check").mkdir()
    (runner.folder / "kvray-check" / "comment.md").write_text("<!-- kvray-check 0123456789ab -->\n\ntext\n")
    values = {**DEFAULTS, "github.event.pull_request.number": "7"}
    done = with_variables(runner, **variables).run(STEPS["Comment on the pull request"], values)
    assert done.returncode == 0, done.stderr
    return (runner.folder / "calls").read_text().splitlines(), done.stdout


def test_the_first_comment_is_new_and_the_next_check_replaces_it(runner: Runner) -> None:
    calls, printed = comment(runner)
    assert calls[0].startswith("api --paginate repos/owner/project/issues/7/comments --jq ")
    assert calls[1].startswith("api --silent --method POST repos/owner/project/issues/7/comments --field body=@")
    assert printed == ""
    shutil.rmtree(runner.folder / "kvray-check")
    calls, _ = comment(runner, COMMENTS="41\n42")
    assert calls[3].startswith("api --silent --method PATCH repos/owner/project/issues/comments/41 --field body=@")


def test_a_comment_that_github_refuses_is_a_warning(runner: Runner) -> None:
    _, printed = comment(runner, REFUSED="1")
    assert printed.startswith("::warning::The check could not comment.")


def test_gitlabs_job_passes_its_variables_on_and_ends_as_the_check_does(runner: Runner) -> None:
    job = load("gitlab-ci.yml")[".kvray-check"]
    variables = {**job["variables"], "KVRAY_INSTALL": "true", "KVRAY_MARGIN": EVIL, "KVRAY_AGAINST": "python=/a b"}
    script = "\n".join(("set -eo pipefail", *job["before_script"], *job["script"]))
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=runner.folder,
        env={**runner.variables, "EXIT": "14", **variables},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 14, done.stderr
    arguments = (runner.folder / "arguments").read_text().splitlines()
    assert arguments[-5:] == ["--against=python=/a b", f"--margin={EVIL}", "--budget=10m", "--", "baseline/check.json"]
    assert job["artifacts"]["reports"]["junit"] == "$KVRAY_OUTPUT/junit.xml"
    assert "--junit=kvray-check/junit.xml" in arguments
    assert not list(runner.folder.rglob("hacked"))
    assert json.loads((runner.folder / "kvray-check" / "check.json").read_text()) == {"verdict": "pass"}
