from __future__ import annotations

import re

import pytest
from checks import ALL, EVIL, HOSTILE, PASSED, SEVERAL, SLOWER, UNDECIDED, check_of, checked
from markdown_it import MarkdownIt

from kvray.analysis.comparison import Verdict
from kvray.check.outputs.markdown import (
    MOST_BYTES,
    MOST_COMMENT_BYTES,
    comment_marker,
    render_comment,
    render_markdown,
)

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")
TAGS = {"h3", "strong", "p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "code"}
HUGE = check_of(*(checked(Verdict.FAIL, label=f"{EVIL * 3}{n}", reasons=(EVIL * 60,) * 9) for n in range(200)))


@pytest.mark.parametrize("name", ALL)
def test_every_verdict_becomes_a_page_and_a_comment_with_whole_tables(name: str) -> None:
    for text in (render_markdown(ALL[name]), render_comment(ALL[name])):
        assert f"kvray check: {ALL[name].verdict.upper()}\n" in text
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) <= 1
        assert "None" not in text
        assert "nan" not in text


def test_the_page_shows_each_metric_with_interval_margin_and_verdict() -> None:
    (row,) = (line for line in render_markdown(SLOWER).splitlines() if "| 118 |" in line)
    assert row.replace("\N{NO-BREAK SPACE}", " ").endswith(
        "| 118 | 133 | +12.3 % | +10.3 % to +14.3 % | 5 % | ❌ FAIL |"
    )
    assert "About 14 more rounds" in render_markdown(UNDECIDED)


def test_rounds_that_do_not_count_are_said() -> None:
    one = checked(measured_rounds=4, disturbed_rounds=1, rounds=3)
    said = "4 rounds, 1 of them set aside because other programs disturbed it"
    assert render_markdown(check_of(one)).count(said) == 1
    assert f"- {said}." in render_markdown(check_of(one, checked(measured_rounds=6)))
    assert said in render_comment(check_of(one))


def test_the_comment_folds_what_passes() -> None:
    shown, _, folded = render_comment(SEVERAL).partition("<details>")
    assert "dynamic/sdpa_flash/bfloat16" in shown
    assert "static/sdpa_flash/bfloat16" not in shown
    assert folded.startswith("<summary>3 cases passed</summary>\n\n| candidate |")
    assert "|" not in render_comment(PASSED).partition("<details>")[0]


def test_the_comment_begins_with_a_hidden_line_that_stays_the_same_from_check_to_check() -> None:
    again = SLOWER.model_copy(update={"seconds": 99.0, "verdict": Verdict.PASS})
    first = render_comment(SLOWER).splitlines()[0]
    assert first == comment_marker(SLOWER) == comment_marker(again)
    assert re.fullmatch(r"<!-- kvray-check [0-9a-f]{12} -->", first)
    assert comment_marker(SLOWER.model_copy(update={"model_id": "--> another"})) != first


def test_outside_text_shows_as_text_in_html() -> None:
    for text in (render_markdown(HOSTILE), render_comment(HOSTILE)):
        html = MARKDOWN.render(text)
        assert "<img" not in html
        assert "<a " not in html
        assert set(re.findall(r"</?(\w+)", html)) <= TAGS
        assert "&lt;img src=x" in html


def test_outside_text_mentions_nobody_and_becomes_no_link_of_its_own() -> None:
    text = render_comment(HOSTILE)
    assert "@team" not in text
    assert not re.search(r"#\d", text.replace("onerror", ""))
    assert "http://evil" not in text


def test_a_page_and_a_comment_keep_within_githubs_limits_and_say_what_is_left_out() -> None:
    for text, most in ((render_markdown(HUGE), MOST_BYTES), (render_comment(HUGE), MOST_COMMENT_BYTES)):
        assert most / 20 < len(text.encode()) <= most
        assert "200 of 200 candidates fail." in text
        assert "which check.json has." in text
        assert text.count("<details>") == text.count("</details>")
    assert len(render_markdown(HUGE, most_bytes=5000).encode()) <= 5000
