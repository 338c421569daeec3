"""Axes that an engine declares: options, space files, narrowing, menu and messages follow from the declaration."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rich.console import Console

from kvray.analysis.choice import complexity
from kvray.candidate import Candidate, DeviceType, DType
from kvray.cli.info import print_menu
from kvray.cli.preview import print_preview
from kvray.config import TuneConfig
from kvray.engines.base import DeviceFacts
from kvray.errors import InvalidValueError, NoCandidatesError
from kvray.space.axis import Axis
from kvray.space.menu import SHARED_AXES
from kvray.testing.fake import FakeAdapter
from kvray.testing.fake_axes import speed_factor
from kvray.tuning.engines import SweepEngines, preview_engines
from kvray.tuning.preview import Preview, Refusal, preview_sweep
from kvray.tuning.resolved import check_request, resolve
from kvray.workload import create_custom_profile

CPU = DeviceFacts(device=DeviceType.CPU, device_name="the CPU of a test")


def config(**values: Any) -> TuneConfig:
    profile = create_custom_profile(
        "small",
        context_lengths=(64, 100),
        output_lengths=(4, 8),
        weight_ttft=0.4,
        weight_throughput=0.4,
        weight_memory=0.2,
    )
    given: dict[str, Any] = {"model_id": "fake:ok", "profile": profile, "device": DeviceType.CPU, "engine": "fake"}
    return TuneConfig(**{**given, **values})


def one_point(**settings: tuple[Any, ...]) -> TuneConfig:
    return config(caches=("static",), attentions=("sdpa",), dtypes=("float32",), settings=settings)


def preview(request: TuneConfig) -> Preview:
    return preview_sweep(resolve(check_request(request, FakeAdapter())))


def labels(request: TuneConfig) -> list[str]:
    return [one.label for one in preview(request).space.candidates]


def test_nothing_of_an_engines_own_is_in_the_default_space() -> None:
    assert {one.settings for one in preview(config()).space.candidates} == {()}


def test_values_of_own_axes_are_measured_in_every_combination() -> None:
    request = one_point(tile=(16, "64"), fused=("true", False), layout=("columns",))
    assert labels(request) == [
        "dynamic/sdpa/float32",
        "static/sdpa/float32+fused:true+layout:columns+tile:16",
        "static/sdpa/float32+layout:columns+tile:16",
        "static/sdpa/float32+fused:true+layout:columns+tile:64",
        "static/sdpa/float32+layout:columns+tile:64",
    ]


def test_an_own_axis_is_measured_with_all_that_the_space_has_besides() -> None:
    assert len(labels(config(settings={"tile": (16,)}))) == 1 + 12
    assert len(labels(config(settings={"tile": (None, 16)}))) == 12 + 12


@pytest.mark.parametrize(
    ("settings", "labels_"),
    [
        ({"tile": (108, 500, 4000)}, {"+tile:108"}),
        ({"tile": ("auto", "none", None)}, {""}),
        ({"fused": (False,)}, {""}),
        ({"layout": ("rows", "columns")}, {"", "+layout:columns"}),
    ],
)
def test_requests_that_come_to_one_configuration_are_one_candidate(
    settings: dict[str, tuple[Any, ...]], labels_: set[str]
) -> None:
    asked = preview(one_point(**settings))
    assert asked.space.asked_for == len(labels_)
    assert set(labels(one_point(**settings))) == {
        "dynamic/sdpa/float32",
        *(f"static/sdpa/float32{one}" for one in labels_),
    }


def test_what_a_value_comes_to_may_depend_on_the_rest_of_the_candidate() -> None:
    request = config(
        caches=("dynamic", "static"), attentions=("sdpa",), dtypes=("float32",), settings={"layout": ("columns",)}
    )
    assert labels(request) == ["dynamic/sdpa/float32", "static/sdpa/float32+layout:columns"]


def test_a_space_file_names_own_axes_like_the_others(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        "- cache: [static]\n  attention: [sdpa]\n  dtype: [float32]\n  tile: [none, 16, auto]\n  fused: [true]\n"
    )
    assert labels(config(space=str(path))) == [
        "dynamic/sdpa/float32",
        "static/sdpa/float32+fused:true",
        "static/sdpa/float32+fused:true+tile:16",
    ]


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ("tiles: [16]", r"there is no axis 'tiles'\. There are cache, .*, tile, fused, layout.*Did you mean 'tile'\?"),
        ("tile: [big]", r"tile size 'big' is neither a whole number from 1 to 65536 nor auto nor none"),
        ("layout: [colums]", r"Unknown memory layout 'colums'\. Did you mean 'columns'\?"),
        ("prefill_chunk: [16]", "there is no axis 'prefill_chunk'"),
    ],
)
def test_a_space_file_with_an_axis_or_value_that_does_not_exist_is_refused(
    block: str, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(f"- {block}\n")
    with pytest.raises(InvalidValueError, match=complaint):
        check_request(config(space=str(path)), FakeAdapter())


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"tiel": (16,)}, r"Engine fake has no axis 'tiel'\. Did you mean 'tile'\? It has fused, layout, tile\."),
        ({"dtype": ("float32",)}, r"Axis 'dtype' has an option of its own\. Use --dtype\."),
        ({"batch_size": (2,)}, r"Use --batch-sizes"),
        ({"tile": (0,)}, r"tile size '0' is neither a whole number from 1 to 65536"),
        ({"fused": ("maybe",)}, r"Unknown fused kernel 'maybe'\. Allowed: true, false, none"),
        ({"layout": ("rows", "colums")}, r"Did you mean 'columns'\?"),
    ],
)
def test_an_unknown_axis_or_value_is_refused_before_anything_starts(
    settings: dict[str, tuple[Any, ...]], complaint: str
) -> None:
    with pytest.raises(InvalidValueError, match=complaint):
        check_request(config(settings=settings), FakeAdapter())


class PlainAdapter(FakeAdapter):
    """A second engine, without axes of its own."""

    name: ClassVar[str] = "plain"

    def axes(self, device: DeviceFacts) -> tuple[Axis, ...]:
        return tuple(axis for axis in super().axes(device) if axis.name in SHARED_AXES)


def test_of_several_engines_an_axis_narrows_those_that_have_it() -> None:
    request = config(
        engine="fake,plain", caches=("static",), attentions=("sdpa",), dtypes=("float32",), settings={"tile": (16,)}
    )
    engines = SweepEngines([FakeAdapter(), PlainAdapter()])
    space = preview_engines(engines, engines.resolve(engines.check(request))).space
    assert {(one.engine, one.settings) for one in space.candidates if one.cache.value == "static"} == {
        ("fake", (("tile", 16),)),
        ("plain", ()),
    }
    unknown = config(engine="fake,plain", settings={"tiel": (16,)})
    with pytest.raises(InvalidValueError, match=r"Engine fake,plain has no axis 'tiel'\. Did you mean 'tile'\?"):
        SweepEngines([FakeAdapter(), PlainAdapter()]).check(unknown)


def test_an_axis_of_an_engine_that_is_left_out_is_told_with_why() -> None:
    engines = SweepEngines([PlainAdapter()])
    engines.refused = (Refusal(engine="fake", reason="It is not installed."),)
    told = (
        r"^Engine plain has no axis 'tile'\. It has none of its own\. Engine fake is left out: It is not installed\.$"
    )
    with pytest.raises(InvalidValueError, match=told):
        engines.check(config(engine="fake,plain", settings={"tile": (16,)}))
    with pytest.raises(InvalidValueError, match=r"kvray info lists the axes of every engine\.$"):
        check_request(config(settings={"tiel": (16,)}), FakeAdapter())


def test_an_own_value_that_cannot_be_had_here_is_told_with_its_obstacle() -> None:
    with pytest.raises(NoCandidatesError, match=r"layout blocks: needs a GPU\. Available here: rows, columns\."):
        check_request(one_point(layout=("blocks",)), FakeAdapter())
    some = preview(one_point(layout=("blocks", "columns")))
    assert [(one.candidate.label, one.reason) for one in some.space.rejected] == [
        ("static/sdpa/float32+layout:blocks", "layout blocks: needs a GPU (available-here)")
    ]


def test_the_dry_run_says_what_of_own_axes_is_not_in_the_space(capsys: pytest.CaptureFixture[str]) -> None:
    left_out = preview(config()).left_out
    assert ("tile", "tokens", "fastest at 64") in left_out
    assert ("fused", "true", "made up") in left_out
    assert ("layout", "blocks", "needs a GPU") in left_out
    assert not {("fused", "false"), ("layout", "rows")} & {one[:2] for one in left_out}, "they are what is measured"
    assert "tile" not in {one[0] for one in preview(config(settings={"tile": (16,)})).left_out}
    request = one_point(tile=(16,))
    print_preview(preview(request), request, as_json=True)
    assert '"settings": {\n        "tile": 16' in capsys.readouterr().out


def test_a_value_that_comes_to_another_one_is_told() -> None:
    told = "comes to another value, or to the default, for this workload"
    asked = preview(config(settings={"tile": (16, 60000), "fused": (True, False)}))
    assert [one for one in asked.left_out if one[2] == told] == [("tile", "60000", told)]


def test_info_lists_own_axes_and_says_how_they_are_set() -> None:
    text = io.StringIO()
    print_menu(Console(file=text, width=120), FakeAdapter(), CPU)
    shown = text.getvalue()
    assert "layout     blocks          no: needs a GPU" in shown
    assert "--set tile=…  tile size: a whole number from 1 to 65536, auto or none" in shown
    assert "--set fused=…  fused kernel: true, false or none" in shown


def test_info_does_not_name_set_for_an_axis_that_has_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    with_option = tuple(
        replace(axis, option="--fused") if axis.name == "fused" else axis for axis in FakeAdapter().axes(CPU)
    )
    monkeypatch.setattr(FakeAdapter, "axes", lambda *_: with_option)
    text = io.StringIO()
    print_menu(Console(file=text, width=120), FakeAdapter(), CPU)
    assert "--set tile=" in text.getvalue()
    assert "--set fused=" not in text.getvalue()


def test_a_candidate_with_more_settings_is_less_simple() -> None:
    plain = preview(config()).space.baseline
    one, two = (with_(plain, tile=16), with_(plain, tile=16, fused=True))
    assert complexity(plain, plain) < complexity(one, plain) < complexity(two, plain)
    assert complexity(with_(plain, tile=64), one)[0] == 1


def with_(candidate: Candidate, **settings: Any) -> Candidate:
    return Candidate.from_dict({**candidate.to_dict(), "settings": settings})


def test_the_fake_is_fastest_at_its_best_tile() -> None:
    plain = preview(config()).space.baseline
    factors = [speed_factor(with_(plain, tile=tile)) for tile in (16, 32, 64, 128, 256)]
    assert min(factors) == factors[2] < speed_factor(plain)
    assert factors[0] == pytest.approx(factors[4])
    assert speed_factor(with_(plain, tile=64, fused=True)) < factors[2]
    assert plain.dtype is DType.FLOAT32
