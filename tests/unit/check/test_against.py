"""What `--against` takes, and what a file of variables may hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvray.check.against import parse_against, read_variables
from kvray.errors import InvalidValueError


def test_python_and_variables_may_both_be_given(tmp_path: Path) -> None:
    file = tmp_path / "b.env"
    file.write_text("OMP_NUM_THREADS=1\n", encoding="utf-8")
    against = parse_against(["python=envs/new/bin/python", f"env={file}"])
    assert against.python == str(Path.cwd() / "envs/new/bin/python")
    assert against.variables == {"OMP_NUM_THREADS": "1"}
    assert "OMP_NUM_THREADS" not in repr(against)
    assert parse_against([]).python is None


def test_the_folder_of_a_virtual_environment_stands_for_its_python(tmp_path: Path) -> None:
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert parse_against([f"python={tmp_path / 'env'}"]).python == str(python)
    assert parse_against([f"python={python}"]).python == str(python)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (["pyhton=/a"], "--against 'pyhton=/a' is not allowed. Did you mean 'python'?"),
        (["python"], "--against 'python' is not allowed."),
        (["env="], "--against 'env=' is not allowed."),
        (["python=/a", "python=/b"], "--against python= is given twice."),
        (["env=/nowhere/b.env"], "Cannot read variables from '/nowhere/b.env': No such file"),
    ],
)
def test_other_forms_are_refused(values: list[str], told: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        parse_against(values)
    assert str(caught.value).startswith(told)


def test_a_file_of_variables_is_read_as_people_write_it(tmp_path: Path) -> None:
    file = tmp_path / "b.env"
    file.write_text(
        "\ufeff# a comment\r\n\n  A = 1 # one\nexport B='it # is' # quoted\n"
        'C="a \\"quoted\\"\\nline"\nD=\nE=a=b#c\nF = # nothing\nG=$HOME\n',
        encoding="utf-8",
    )
    expected = {"A": "1", "B": "it # is", "C": 'a "quoted"\nline', "D": "", "E": "a=b#c", "F": "", "G": "$HOME"}
    assert read_variables(str(file)) == expected


def test_a_file_without_a_variable_is_said_to_change_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "b.env"
    file.write_text("# A=1\n\n", encoding="utf-8")
    assert parse_against([f"env={file}"]).variables == {}
    assert caplog.messages == [f"'{file}' sets no variable, so both sides have the same environment variables."]
    file.write_text("A=1\n", encoding="utf-8")
    caplog.clear()
    read_variables(str(file))
    assert not caplog.messages


def test_every_line_that_is_refused_is_named_and_none_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "b.env"
    file.write_text('A=1\nhunter2\n1B=hunter2\nC=\'hunter2\nD="hunter2" x\nA=hunter2\nE=a\0hunter2\n', encoding="utf-8")
    with pytest.raises(InvalidValueError) as caught:
        read_variables(str(file))
    for told in (
        "line 2: there is no '='",
        "line 3: what comes before '=' is no variable's name",
        "line 4: a quoted value does not end",
        "line 5: a quoted value does not end, or something follows it",
        "line 6: A is set a second time",
        "line 7: the value of E holds a null character",
    ):
        assert told in caught.value.message
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "b.env"
    file.write_bytes(b"A=\xff\n")
    with pytest.raises(InvalidValueError, match="it is not UTF-8"):
        read_variables(str(file))
