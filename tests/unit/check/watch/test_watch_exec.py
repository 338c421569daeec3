"""Alerts by a command of the user's."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from hook_server import soon

from kvray.check.watch.sinks.deliveries import Deliveries, UndeliveredError
from kvray.check.watch.sinks.exec_command import ExecCommand
from kvray.errors import InvalidValueError

pytestmark = pytest.mark.spawns
ALERT: dict[str, object] = {
    "event_id": "e1",
    "text": "Slower; `touch /tmp/x` $(id)\nnow",
    "state": "confirmed",
    "ratio": 1.25,
    "candidate": None,
    "change": {"value": 0.25, "low": 0.2},
    "disturbed": False,
}


def test_a_command_gets_json_on_its_input_and_plain_values_as_variables(tmp_path: Path) -> None:
    command = ExecCommand(f'sh -c \'cat > {tmp_path}/in; env > {tmp_path}/env; echo "$0" > {tmp_path}/args\' "a b"')
    command.deliver(ALERT)
    assert json.loads((tmp_path / "in").read_text()) == ALERT
    lines = (tmp_path / "env").read_text()
    assert "KVRAY_WATCH_STATE=confirmed\n" in lines
    assert "KVRAY_WATCH_RATIO=1.25\n" in lines
    assert "KVRAY_WATCH_CANDIDATE=\n" in lines
    assert "KVRAY_WATCH_TEXT=Slower; `touch /tmp/x` $(id)\nnow\n" in lines
    assert "KVRAY_WATCH_CHANGE_LOW=0.2\n" in lines
    assert (tmp_path / "args").read_text() == "a b\n"


def test_no_shell_reads_the_line(tmp_path: Path) -> None:
    ExecCommand(f"touch {tmp_path}/a;b {tmp_path}/$HOME").deliver(ALERT)
    assert {path.name for path in tmp_path.iterdir()} == {"a;b", "$HOME"}


def test_a_command_that_fails_is_told_with_its_last_line() -> None:
    with pytest.raises(UndeliveredError, match=r"^it ended with exit code 3: the pager is off$") as caught:
        ExecCommand("sh -c 'echo first; echo the pager is off >&2; exit 3'").deliver(ALERT)
    assert caught.value.is_refusal
    with pytest.raises(UndeliveredError, match=r"^it was killed by SIGTERM$"):
        ExecCommand("sh -c 'kill -TERM $$'").deliver(ALERT)


def test_a_command_that_hangs_is_killed_with_all_it_started(tmp_path: Path) -> None:
    command = ExecCommand(f"sh -c 'sleep 300 & echo $! > {tmp_path}/pid; yes; wait'", limit_s=0.5)
    with pytest.raises(UndeliveredError, match=r"^it was killed after 0\.5 s$"):
        command.deliver(ALERT)
    pid = int((tmp_path / "pid").read_text())
    assert soon(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_what_a_command_leaves_running_is_not_waited_for(tmp_path: Path) -> None:
    ExecCommand(f"sh -c 'sleep 900 & echo $! > {tmp_path}/pid'").deliver(ALERT)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)  # it is there still


def test_a_command_that_runs_when_the_watch_ends_is_killed_and_its_alert_kept(tmp_path: Path) -> None:
    runs = Deliveries(ExecCommand(f"sh -c 'echo $$ > {tmp_path}/pid; sleep 300'"), tmp_path / "waiting.json")
    runs.start()
    runs.add(ALERT)
    assert soon(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    runs.finish(0.1)
    pid = int((tmp_path / "pid").read_text())
    assert soon(lambda: not psutil.pid_exists(pid))
    assert json.loads((tmp_path / "waiting.json").read_text())["waiting"] == [{"message": ALERT, "refusals": 0}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "is empty"),
        ("'", "cannot be split into words"),
        ("no-such-program-of-ours --x", "'no-such-program-of-ours', which is no program"),
        ("/etc/passwd", "'/etc/passwd', which is no program"),
    ],
)
def test_a_line_that_cannot_be_run_is_refused_before_anything_is_measured(line: str, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        ExecCommand(line)


def test_a_program_that_has_gone_meanwhile_is_said(tmp_path: Path) -> None:
    program = tmp_path / "pager"
    program.write_text(f"#!{sys.executable}\n")
    program.chmod(0o755)
    command = ExecCommand(str(program))
    program.unlink()
    with pytest.raises(UndeliveredError, match="cannot be started: No such file") as caught:
        command.deliver(ALERT)
    assert not caught.value.is_refusal
