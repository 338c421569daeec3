"""The extras of the package, as pyproject.toml has them, and what is said to a user who lacks one."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from kvray.cli.app import run
from kvray.errors import EngineError
from kvray.extras import Extra, install_command, missing_extra

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def packages(requirements: list[str]) -> set[str]:
    """Their names as imports would write them, kvray's own extras left out."""
    names = {re.split(r"[^\w-]", one)[0].lower().replace("-", "_") for one in requirements}
    return names - {"kvray"}


def without_extras(monkeypatch: pytest.MonkeyPatch, *absent: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else real(name))


@pytest.mark.parametrize("extra", Extra)
def test_an_extra_brings_the_modules_that_it_is_asked_for(extra: Extra) -> None:
    homes = packages_distributions()
    if extra is Extra.VLLM and "vllm" not in homes:
        pytest.skip("it has an environment of its own")
    assert packages([homes[module][0] for module in extra.modules]) == packages(EXTRAS[extra])


def test_every_extra_is_known_and_full_has_them_all() -> None:
    assert set(EXTRAS) == {*Extra, "full", "dev"}
    assert "kvray[full]" in EXTRAS["dev"]
    assert not packages(EXTRAS["full"])
    (inside,) = EXTRAS["full"]
    assert set(re.findall(r"[\w-]+", inside)) == {"kvray", *Extra} - {"tune", "vllm"}  # comes with others; pins torch


def test_what_an_engine_needs_is_no_part_of_the_core() -> None:
    assert packages(PROJECT["dependencies"]).isdisjoint(set[str]().union(*(packages(EXTRAS[one]) for one in Extra)))


def test_an_extra_that_is_there_is_no_obstacle() -> None:
    Extra.TUNE.require("Measuring")


@pytest.mark.parametrize(
    ("absent", "message"),
    [
        (("ray",), r"^Measuring needs ray, which is not installed\. Install it: .* -m pip install .*\[tune\]'?$"),
        (("ray", "scipy"), r"^Measuring needs ray, scipy, which are not installed\. Install them: .* -m pip install"),
    ],
)
def test_an_extra_that_is_not_there_is_named(
    absent: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_extras(monkeypatch, *absent)
    with pytest.raises(EngineError, match=message):
        Extra.TUNE.require("Measuring")


@pytest.mark.parametrize(
    ("module", "extra"), [("torch", "transformers"), ("torch.nn", "transformers"), ("optimum.quanto", "quantized")]
)
def test_an_import_that_fails_names_the_extra(module: str, extra: str) -> None:
    told = missing_extra(ModuleNotFoundError(f"No module named {module!r}", name=module))
    assert told is not None
    assert str(told).endswith(f"Install it: {Extra(extra).install_command}")


@pytest.mark.parametrize("name", [None, "torchlike", "kvray.gone"])
def test_an_import_that_no_extra_cures_stays_what_it_is(name: str | None) -> None:
    assert missing_extra(ModuleNotFoundError("No module", name=name)) is None


HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "'kvray[llama-cpp]==1.2'"),
        ("no JSON", "'kvray[llama-cpp]==1.2'"),
        ({"url": f"file://{HERE}", "dir_info": {"editable": True}}, f"-e '{HERE}[llama-cpp]'"),
        ({"url": f"file://{HERE}", "dir_info": {}}, f"'{HERE}[llama-cpp]'"),
        ({"url": f"file://{__file__}", "archive_info": {}}, f"'{__file__}[llama-cpp]'"),
        ({"url": "file:///gone/kvray-1.2-py3-none-any.whl", "archive_info": {}}, "'kvray[llama-cpp]==1.2'"),
        (
            {"url": "https://example.org/kvray.git", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}},
            "'kvray[llama-cpp] @ git+https://example.org/kvray.git@c0ffee'",
        ),
        ({"url": "https://example.org/kvray.whl"}, "'kvray[llama-cpp] @ https://example.org/kvray.whl'"),
        ({"url": "https://me:secret@example.org/kvray.whl"}, "'kvray[llama-cpp]==1.2'"),
    ],
)
def test_the_command_installs_kvray_from_where_it_came(
    origin: object, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "kvray-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: kvray\nVersion: 1.2\n")
    if origin is not None:
        (metadata / "direct_url.json").write_text(origin if isinstance(origin, str) else json.dumps(origin))
    monkeypatch.syspath_prepend(tmp_path)
    assert (
        install_command(Extra.LLAMA_CPP, python="/envs/b/bin/python") == f"/envs/b/bin/python -m pip install {command}"
    )
    assert Extra.LLAMA_CPP.install_command == f"{sys.executable} -m pip install {command}"


@pytest.mark.parametrize(
    "origin",
    [
        None,
        {"url": "file:///gone/kvray-1.2-py3-none-any.whl", "archive_info": {}},
        {"url": "https://me:secret@example.org/kvray.whl"},
    ],
)
def test_without_a_source_the_command_names_the_packages_that_are_absent(
    origin: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "kvray-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: kvray\nVersion: 1.2\nRequires-Dist: absent-core>=1\n"
        "Requires-Dist: numpy>=1; extra == 'watch'\n"
        "Requires-Dist: absent-one[all]<3,>=2; extra == 'watch'\n"
        "Requires-Dist: absent-two>=1; sys_platform == 'linux' and extra == \"watch\"\n"
        "Requires-Dist: absent-three; extra == 'optuna'\n"
    )
    if origin is not None:
        (metadata / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.syspath_prepend(tmp_path)
    here = f"{sys.executable} -m pip install"
    assert Extra.WATCH.install_command == f"{here} 'absent-one[all]<3,>=2' 'absent-two>=1'"
    assert Extra.LLAMA_CPP.install_command == f"{here} 'kvray[llama-cpp]==1.2'", "nothing is known to be absent"
    assert install_command(Extra.WATCH, python="/b/python") == "/b/python -m pip install 'kvray[watch]==1.2'"


def test_a_command_that_meets_an_absent_module_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(text: str | None) -> None:
        raise ModuleNotFoundError("No module named 'ray'", name="ray")

    monkeypatch.setattr("kvray.tuning.local_device.DeviceType.parse", fail)
    assert run(["info", "--device", "cpu"], verbose=False) == EngineError.exit_code
    assert capsys.readouterr().err == (
        f"kvray: This needs ray, which is not installed. Install it: {Extra.TUNE.install_command}\n"
    )
