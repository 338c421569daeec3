from __future__ import annotations

from dataclasses import replace

from markdown_it import MarkdownIt
from report_sweeps import BASELINE, WINNER, candidate, ended, info_of, limits_missed, measured

from kvray.record import Role, TrialStatus
from kvray.report.info import ReportInfo
from kvray.report.markdown import md_code, md_escape, md_fence, render_markdown

EVIL = "<script>alert(1)</script>"


def tables(markdown: str) -> list[list[str]]:
    """Runs of lines that start with a pipe."""
    found: list[list[str]] = [[]]
    for line in markdown.splitlines():
        if line.startswith("|"):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def cells(line: str) -> int:
    return line.replace("\\|", "").count("|") - 1


def test_the_report_has_every_section(realistic: ReportInfo) -> None:
    headings = [line for line in render_markdown(realistic).splitlines() if line.startswith("#")]
    assert headings == [
        "# KV cache of HuggingFaceTB/SmolLM2-135M",
        "## Ranking",
        "## First token, cell by cell",
        "## Throughput, cell by cell",
        "## When memory is short",
        "## Not ranked",
        "### Out of memory (1)",
        "### Timed out (1)",
        "### Crashed (1)",
        "### Substituted (1)",
        "### Stopped early (2)",
        "### Rejected before launch (8)",
        "### Not launched (1)",
        "## Not tried",
        "## Cold costs",
        "## What really ran",
        "## Quality",
        "## How it was measured",
        "## Environment",
    ]


def test_every_table_is_rectangular(realistic: ReportInfo) -> None:
    found = tables(render_markdown(realistic))
    assert len(found) == 8
    for table in found:
        assert len({cells(line) for line in table}) == 1


def test_there_are_no_runs_of_blank_lines(realistic: ReportInfo) -> None:
    assert "\n\n\n" not in render_markdown(realistic)


def test_a_model_called_script_shows_as_text() -> None:
    markdown = render_markdown(info_of([measured(BASELINE, role=Role.BASELINE)], model_id=EVIL))
    assert "# KV cache of &lt;script&gt;alert(1)&lt;/script&gt;" in markdown
    assert "<script" not in markdown


def test_outside_strings_cannot_break_a_table_or_start_markup() -> None:
    evil = candidate("static", cache_params=(("x", "a|b`c"),))
    failed = ended(WINNER, TrialStatus.ERROR, "# not | a heading\n\n| [link](http://x) *bold* <img>")
    markdown = render_markdown(info_of([measured(evil), failed]))
    assert "static(x=a\\|b\\`c)/sdpa/float32" in markdown
    assert r"\# not \| a heading \| \[link\](http://x) \*bold\* &lt;img&gt;" in markdown
    for table in tables(markdown):
        assert len({cells(line) for line in table}) == 1


def test_escaping_makes_markdown_and_html_literal() -> None:
    assert md_escape("a_b *c* `d` <e> & [f] $x$ ~g~") == (r"a\_b \*c\* \`d\` &lt;e&gt; &amp; \[f\] \$x\$ \~g\~")
    assert md_escape(md_escape("a_b")) == r"a\_b"


def test_only_plain_labels_become_code() -> None:
    assert md_code("static/sdpa_math/bfloat16+compile:default×4") == "`static/sdpa_math/bfloat16+compile:default×4`"
    assert md_code("a`b|c") == r"a\`b\|c"


def test_a_log_with_backticks_stays_inside_its_fence() -> None:
    assert md_fence("x\n````\ny") == "`````text\nx\n````\ny\n`````"
    assert md_fence("x", indent=2) == "  ```text\n  x\n  ```"


def test_an_empty_sweep_renders() -> None:
    markdown = render_markdown(info_of([]))
    assert "**Nothing was measured: no candidate was launched.**" in markdown
    assert "## Ranking" not in markdown


def test_energy_and_a_missing_steady_state_show_where_they_are_known(realistic: ReportInfo) -> None:
    assert "J / token" not in render_markdown(realistic)
    result = measured(BASELINE, role=Role.BASELINE, warmed_up=False)
    powered = replace(result, runs=tuple(replace(run, energy_j=50.0) for run in result.runs))
    markdown = render_markdown(info_of([powered, measured(WINNER, speed=1.2)]))
    assert "J / token" in markdown
    assert "(never steady)" in markdown
    for table in tables(markdown):
        assert len({cells(line) for line in table}) == 1


def test_what_misses_a_limit_is_a_table_with_each_miss_marked_and_told() -> None:
    page = render_markdown(limits_missed([measured(BASELINE, role=Role.BASELINE), measured(WINNER, speed=1.9)]))
    table = tables(page.partition("## Measured, misses a limit")[2])[0]
    assert [cells(line) for line in table] == [6] * 4
    assert table[2].startswith(f"| `{WINNER.label}` | ")
    assert "| TTFT 1,446 ms at 2048→32, 45 % over the limit of 1,000 ms; " in table[2]
    assert table[2].count(" ✗ |") == 2


def test_outside_text_begins_no_list_and_makes_no_heading_of_the_line_above() -> None:
    for text in ("0.", "12) x", "- a", "+ b", "---", "==="):
        assert MarkdownIt().render(f"line\n{md_escape(text)}") == f"<p>line\n{text}</p>\n"
    assert [md_escape(text) for text in ("-5", "1.5", "+12 %", "2026-11-27")] == ["-5", "1.5", "+12 %", "2026-11-27"]
