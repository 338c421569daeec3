"""What reports say where a sweep has several engines."""

from __future__ import annotations

import io
from typing import Any

import pytest
from engine_sweeps import DEFAULTS, OTHER_FILE, OWN_BEST, OWN_DEFAULT, analysis_of, manifest_of_two, two_engines
from report_sweeps import BASELINE, WINNER, info_of, measured
from rich.console import Console

from kvray.record import Role
from kvray.report.figures import scatter_figure
from kvray.report.html import render_html
from kvray.report.info import ReportInfo, report_info
from kvray.report.markdown import render_markdown
from kvray.report.terminal import render_terminal
from kvray.store.manifest import SweepManifest

UNLIKE = "The engines ran unlike weights: transformers bfloat16, llama_cpp Q4_1; "


def info_of_two(about: SweepManifest | None = None, **values: Any) -> ReportInfo:
    about = about or manifest_of_two()
    results = two_engines(**values)
    return report_info(about, results, analysis_of(results, about))


@pytest.fixture(scope="module")
def two() -> ReportInfo:
    return info_of_two()


def printed(info: ReportInfo) -> str:
    console = Console(width=80, file=io.StringIO())
    with console.capture() as captured:
        console.print(render_terminal(info))
    return captured.get()


def test_the_headline_says_which_engine_won_and_what_the_best_of_the_first_is(two: ReportInfo) -> None:
    assert two.headline.sentence.endswith(
        " compared with the baseline dynamic/sdpa/float32. The engine llama_cpp wins: first token in 419 ms and "
        "76.6 tok/s, where the best of transformers has 969 ms and 33.2 tok/s. That is dynamic/sdpa_flash/bfloat16: "
        "first token 31 % faster, 31 % more tok/s and 33 % less memory compared with its own default "
        "dynamic/sdpa/float32."
    )


def test_where_the_first_engine_wins_the_headline_is_that_of_one_engine() -> None:
    sentence = info_of_two(speed=1.1).headline.sentence
    assert sentence.startswith("dynamic/sdpa_flash/bfloat16 is")
    assert "engine" not in sentence


def test_each_engines_best_stands_against_that_engines_own_default(two: ReportInfo) -> None:
    first, second = two.engines
    assert (first.engine, first.label, first.default) == (
        "transformers",
        WINNER.label,
        BASELINE.label,
    )
    assert (second.engine, second.label, second.default) == ("llama_cpp", OWN_BEST.label, OWN_DEFAULT.label)
    assert (first.is_winner, second.is_winner) == (False, True)
    assert second.ttft_gain.startswith("2.02× ("), "against its own default, not against the baseline"
    assert second.memory == "−49 %"
    assert first.sentence.startswith("dynamic/sdpa_flash/bfloat16: first token 31 % faster (95 %: ")
    assert second.sentence.endswith(" compared with its own default dynamic/eager/float32")


def test_an_engine_that_is_best_with_nothing_set_says_so() -> None:
    results = [*two_engines(), measured(BASELINE, role=Role.BASELINE)]
    about = manifest_of_two(defaults={**DEFAULTS, "llama_cpp": OWN_BEST.candidate_id})
    second = report_info(about, results, analysis_of(results, about)).engines[1]
    assert second.sentence == "static/sdpa/float32, its own default"
    assert second.ttft_gain == "own default"


def test_an_older_sweep_of_several_engines_tells_their_best_without_a_gain() -> None:
    second = info_of_two(manifest_of_two(defaults={})).engines[0]
    assert (second.default, second.ttft_gain, second.sentence) == (None, "–", "static/sdpa/float32")


def test_unlike_weights_are_said_under_the_verdict_with_what_counts_their_cost(two: ReportInfo) -> None:
    assert f"{UNLIKE}their quality (KL) counts what that costs." in two.headline.notes
    unmeasured = info_of_two(kl_mean=None, top1_agreement=None)
    assert f"{UNLIKE}what that costs was not measured." in unmeasured.headline.notes


def test_a_winner_of_another_engine_whose_output_was_not_compared_is_marked(two: ReportInfo) -> None:
    unlike: dict[str, Any] = {
        "kl_mean": None,
        "top1_agreement": None,
        "quality_note": "its tokenizer has another vocabulary",
    }
    why = "its tokenizer has another vocabulary"
    told = f"The output of {OWN_BEST.label} was not compared with that of transformers: {why}."
    assert told in info_of_two(**unlike).headline.notes
    assert not any("not compared" in one for one in two.headline.notes)


def test_weights_of_the_same_dtype_in_another_file_are_told_by_the_files() -> None:
    plain = OTHER_FILE.model_copy(update={"weights": "bfloat16"})
    notes = info_of_two(manifest_of_two(other_engines={"llama_cpp": plain})).headline.notes
    assert (
        "The engines ran weights of different files: transformers HuggingFaceTB/SmolLM2-135M, llama_cpp "
        "SmolLM2-Q4_1.gguf; their quality (KL) shows how far these differ."
    ) in notes


def test_weights_that_another_engine_unpacks_from_the_same_file_are_no_unlike_weights() -> None:
    about = manifest_of_two(model_id=OTHER_FILE.model_id, weights="float32")
    assert not any("unlike" in one for one in info_of_two(about).headline.notes)


def test_the_ranking_shows_the_engine_in_every_format(two: ReportInfo) -> None:
    markdown, page, text = render_markdown(two), render_html(two), printed(two)
    assert r"| 1 | llama\_cpp | `llama_cpp:static/sdpa/float32` **winner** |" in markdown
    assert "| 4 | transformers | `dynamic/sdpa/float32` *baseline* |" in markdown
    assert "1 llama_cpp    static/sdpa/float32 " in text
    assert "3 transformers dynamic/sdpa_flash/bfloat16 " in text
    assert page.count('data-engine="llama_cpp"') == 2
    assert 'name="engine" value="transformers"' in page
    assert "## Best of each engine\n\nThe best candidate of each engine, compared with what the same engine" in markdown
    assert "  transformers: dynamic/sdpa_flash/bfloat16: first token 31 % faster" in text


def test_one_engine_has_no_column_of_engines_and_no_filter() -> None:
    info = info_of([measured(BASELINE, role=Role.BASELINE), measured(WINNER, speed=1.3)])
    assert (info.engines, info.ranked_engines) == ((), ())
    assert 'name="engine"' not in render_html(info)
    assert "| # | candidate |" in render_markdown(info)
    assert "engine" not in printed(info)


def test_the_chart_tells_engines_apart_by_shape_and_has_a_legend(two: ReportInfo) -> None:
    figure = scatter_figure(two)
    assert figure is not None
    drawn = {trace["name"]: trace for trace in figure.plot["data"]}
    assert drawn["winner"]["marker"]["symbol"] == ["circle"]
    assert drawn["baseline"]["marker"]["symbol"] == ["diamond"]
    assert [name for name, trace in drawn.items() if trace.get("showlegend", True)] == ["llama_cpp", "transformers"]
    assert figure.plot["layout"]["showlegend"] is True
    assert "The shape of a point is its engine." in figure.caption


def test_what_differs_by_nature_and_by_tokenizer_is_told_of_how_it_was_measured() -> None:
    notes = {"transformers": "By generate().", "llama_cpp": "Through the C API."}
    facts = {one.name: one.text for one in info_of_two(manifest_of_two(measured_notes=notes)).method}
    assert facts["Engines"] == "transformers: By generate(). llama_cpp: Through the C API."
    assert facts["Quality"].endswith(" llama_cpp was fed the same tokens as transformers.")
    other = info_of_two(quality_note="its tokenizer is another").method
    (quality,) = (one.text for one in other if one.name == "Quality")
    assert quality.endswith(" llama_cpp: its tokenizer is another.")
