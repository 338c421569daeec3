"""The frame of the command line: what is wrong with a line is said in one, and exit codes are kept."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest
import typer

from kvray.cli import app
from kvray.cli.app import COMMANDS, main, run
from kvray.errors import ModelError


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """A command line takes the logger `kvray` over for its process; this process runs other tests too."""
    logger = logging.getLogger("kvray")
    handlers, propagate = logger.handlers, logger.propagate
    yield
    logger.handlers, logger.propagate = handlers, propagate


def test_every_command_of_the_list_exists_and_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        assert run([name, "--help"], verbose=False) == 0
        assert f"kvray {name}" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_into_eighty_columns(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run([command, "--help"], verbose=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if "…" in line.replace("(s3://…)", "")], "a text is cut"


def test_the_help_of_tune_begins_with_what_most_people_need(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run(["tune", "--help"], verbose=False)
    text = capsys.readouterr().out
    panels = re.findall(r"╭─ (.*?) ─", text)
    assert panels[:2] == ["Arguments", "Options"]
    assert panels[-1] == "Rarely needed"
    common = text.partition("╭─ Options ─")[2].partition("╰")[0]
    assert re.findall(r"│ (--[\w-]+)", common) == [
        "--profile",
        "--context",
        "--output-len",
        "--objective",
        "--budget",
        "--output",
        "--resume",
        "--dry-run",
        "--json",
        "--help",
    ]
    assert len(text.splitlines()) < 115


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([], verbose=False) == 2
    assert "Commands:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "given"),
    [
        ("tune org/m --wait-quiet", "tune org/m --wait-quiet=10m"),
        ("tune --wait-quiet org/m", "tune --wait-quiet=10m org/m"),
        ("tune --wait-quiet 01-ai/Yi-6B", "tune --wait-quiet=10m 01-ai/Yi-6B"),
        ("tune --wait-quiet --json m", "tune --wait-quiet=10m --json m"),
        ("tune --wait-quiet 90s m", "tune --wait-quiet 90s m"),
        ("tune --wait-quiet 1.5h m", "tune --wait-quiet 1.5h m"),
        ("tune --wait-quiet 5d m", "tune --wait-quiet 5d m"),
        ("tune --wait-quiet=2m m", "tune --wait-quiet=2m m"),
    ],
)
def test_an_option_that_may_stand_alone_gets_its_value(line: str, given: str) -> None:
    assert app._with_optional_values(line.split()) == given.split()


def test_jobs_alone_says_that_a_command_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["jobs"], verbose=False) == 2
    assert capsys.readouterr().err.endswith("kvray: A command is missing. See kvray jobs --help.\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nope", "kvray: No such command 'nope'. See kvray --help."),
        ("--nope", "kvray: No such option: --nope. See kvray --help."),
        ("apply", "kvray: Missing argument 'plan'. See kvray apply --help."),
        ("apply a b", "kvray: Got unexpected extra argument(s) (b). See kvray apply --help."),
        ("apply a --out", "kvray: Option '--out' requires an argument. See kvray apply --help."),
        ("tune x --slots a", "kvray: Invalid value for '--slots': *'a'*. See kvray tune --help."),
        ("tune x --slots 0", "kvray: Invalid value for '--slots': *1*0*. See kvray tune --help."),
        ("tune x --timeout nan", "kvray: Invalid value for '--timeout': *1*nan*. See kvray tune --help."),
        (
            "compare a b --format pdf",
            "kvray: Invalid value for '--format': 'pdf' is not one of 'table', 'json', 'markdown'. See kvray *.",
        ),
        ("tune x --contxt 5", "kvray: No such option: --contxt. Did you mean '--context'? See kvray tune --help."),
        ("tun x", "kvray: No such command 'tun'. Did you mean 'tune'? See kvray --help."),
        ("jobs lists", "kvray: No such command 'lists'. See kvray jobs --help."),
        ("jobs status", "kvray: Missing argument 'JOB'. See kvray jobs status --help."),
        (
            "submit tune x --profil a",
            "kvray: No such option: --profil. Did you mean '--profile'? See kvray submit tune --help.",
        ),
    ],
)
def test_a_line_that_cannot_be_read_is_answered_with_one(
    line: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line.split(), verbose=False) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    position = 0
    for part in expected.split("*"):
        position = err.find(part, position)
        assert position >= 0, (part, err)


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make `kvray profiles` raise `error`."""
    import kvray.cli.profiles as command

    def fail() -> None:
        raise error

    replacement = typer.Typer(add_completion=False)
    replacement.command()(fail)
    monkeypatch.setattr(command, "app", replacement)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ModelError("No model\n'x'.", hint="Look\nagain."), 4, "kvray: No model 'x'. Look again.\n"),
        (KeyboardInterrupt(), 130, "kvray: Interrupted.\n"),
        (typer.Abort(), 130, "kvray: Interrupted.\n"),
        (typer.Exit(7), 7, ""),
        (
            RuntimeError("some\nthing"),
            70,
            "kvray: internal error: RuntimeError: some Please report it, with --verbose.\n",
        ),
    ],
)
def test_every_end_of_a_command_has_its_exit_code_and_at_most_one_line(
    error: BaseException, code: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, error)
    assert run(["profiles"], verbose=False) == code
    assert capsys.readouterr().err == text


def test_verbose_adds_the_traceback_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, ModelError("No model."))
    for line in (["--verbose", "profiles"], ["profiles", "--verbose"]):
        with pytest.raises(SystemExit) as end:
            main(line)
        assert end.value.code == 4
        err = capsys.readouterr().err
        assert err.startswith("Traceback")
        assert err.endswith("kvray: No model.\n")


def test_warnings_and_what_takes_long_are_shown_as_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profiles"], verbose=False) == 0
    logging.getLogger("kvray.store").warning("Skipped %s:\n torn.", "a file")
    logging.getLogger("kvray.engines").info("reading %s once", "a file")
    logging.getLogger("kvray.store").debug("nothing to see")
    assert capsys.readouterr().err == "kvray: warning: Skipped a file: torn.\nkvray: reading a file once\n"


def test_a_second_command_line_in_one_process_does_not_warn_twice(capsys: pytest.CaptureFixture[str]) -> None:
    app.run(["profiles"], verbose=False)
    app.run(["profiles"], verbose=False)
    logging.getLogger("kvray.store").warning("once")
    assert capsys.readouterr().err == "kvray: warning: once\n"


@pytest.mark.parametrize("command", [["tune"], ["batch"], ["jobs", "logs"]])
def test_the_help_of_an_option_without_a_value_shows_none(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--help"], verbose=False) == 0
    text = capsys.readouterr().out
    assert "--help" in text
    assert "bool" not in text.lower()
