"""Why a cluster does not let this machine in, told by the settings that Ray reads its token from."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
import ray

from kvray.errors import SweepError
from kvray.sweep.joining import cannot_join, prepare_to_join, token_problem, version_problem
from kvray.sweep.loopback import recall_auth_mode

COPY = "Copy ~/.ray/auth_token from the cluster's head to the same place here, or set RAY_AUTH_TOKEN to what it holds."


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def problem() -> str:
    return str(token_problem("It cannot be joined"))


def test_no_token() -> None:
    assert problem() == f"It cannot be joined: it asks for a token, and there is none here. {COPY}"


def test_a_wrong_token_in_the_usual_place(home: Path) -> None:
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("old")
    assert problem() == f"It cannot be joined: it does not accept the token in {home}/.ray/auth_token. {COPY}"


def test_a_wrong_token_in_the_environment_which_goes_before_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "old")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere")
    assert problem() == f"It cannot be joined: it does not accept the token in RAY_AUTH_TOKEN. {COPY}"


@pytest.mark.parametrize("held", [None, "", " \n"])
def test_a_file_that_holds_no_token(held: str | None, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home / "token"
    if held is not None:
        path.write_text(held)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    assert problem() == (
        f"It cannot be joined: RAY_AUTH_TOKEN_PATH names '{path}', which cannot be read or is empty. "
        "Unset it, or let it name a file that holds a token."
    )


def test_tokens_that_are_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert (
        problem() == "It cannot be joined: it asks for a token, and RAY_AUTH_MODE is 'disabled'. Unset RAY_AUTH_MODE."
    )


def test_of_a_cluster_that_was_found_the_address_is_told_and_how_to_name_another() -> None:
    assert str(cannot_join("auto", "10.0.0.1:6379")) == (
        "The Ray cluster at '10.0.0.1:6379', which --address auto has found, cannot be joined: it asks for a token, "
        f"and there is none here. {COPY} For another cluster give its address: --address HOST:PORT."
    )
    assert str(cannot_join("h:1", "10.0.0.1:1")).startswith("The Ray cluster at 'h:1' cannot be joined: it asks for")


HERE = {"ray_version": ray.__version__, "python_version": platform.python_version()}


@pytest.mark.parametrize(
    ("other", "said"),
    [({"ray_version": "2.9.9"}, "it has Ray 2.9.9 and"), ({"python_version": "3.9.1"}, "and Python 3.9.1, and this")],
)
def test_a_cluster_of_another_version_is_told_with_both_versions(other: dict[str, str], said: str) -> None:
    problem = version_problem("h:1", {**HERE, **other})
    assert problem is not None
    assert said in str(problem)
    assert f"this machine has Ray {ray.__version__} and Python {platform.python_version()}. Use the" in str(problem)
    assert version_problem("h:1", HERE) is None


def test_rays_own_variable_says_that_the_minor_version_of_python_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    minor = ".".join(platform.python_version().split(".")[:2])
    other = {**HERE, "python_version": f"{minor}.99"}
    assert version_problem("h:1", other) is not None
    monkeypatch.setenv("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "minor")
    assert version_problem("h:1", other) is None


@pytest.mark.parametrize(
    ("address", "instead"),
    [
        ("http://head:8265", "head:6379"),
        ("https://10.0.0.1:8265/", "10.0.0.1:6379"),
        ("http://[::1]:8265", "[::1]:6379"),
    ],
)
def test_a_dashboards_address_is_told_from_a_clusters(address: str, instead: str) -> None:
    with pytest.raises(SweepError) as raised:
        prepare_to_join(address)
    assert str(raised.value) == (
        f"The Ray cluster at {address!r} cannot be reached: that is a dashboard's address. "
        f"Give --address {instead} here, or send the command to it: kvray submit --address {address} …"
    )


def test_tokens_that_ray_switched_on_for_one_cluster_are_off_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a program that joins another cluster by itself sends a token there, and that cluster's slots die."""
    asked_for = ray._raylet.get_authentication_mode
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    ray._raylet.Config.initialize("")
    assert asked_for() == ray._raylet.AuthenticationMode.TOKEN
    recall_auth_mode(None)
    assert asked_for() == ray._raylet.AuthenticationMode.DISABLED
    assert os.environ["RAY_AUTH_MODE"] == "token", "who calls it sets the environment"
