"""Whatever a model, a library or an engine calls itself, each file of a check stays what it is."""

from __future__ import annotations

import io
import json
import re
from xml.etree import ElementTree

from checks import check_of, checked
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from kvray.analysis.comparison import Verdict
from kvray.check.outputs.action_benchmark import render_action_benchmark
from kvray.check.outputs.bencher import render_bencher
from kvray.check.outputs.junit import render_junit
from kvray.check.outputs.markdown import render_comment, render_markdown
from kvray.check.outputs.terminal import render_terminal
from kvray.check.result import CheckResult

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")
TAGS = {"h3", "strong", "p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "code"}
PIECES = (
    "<b>",
    "</details>",
    "|",
    "`",
    "\\",
    "&lt;",
    "](x)",
    "![",
    "*",
    "_",
    "~~",
    "#",
    "- ",
    "1. ",
    "\n",
    "\n\n",
    "---",
)
TEXT = st.lists(st.one_of(st.text(max_size=20), st.sampled_from((*PIECES, "@x", "\x1b[2J", "]]>", "\x00"))), min_size=1)


def with_text(text: str) -> CheckResult:
    one = checked(Verdict.FAIL, label=text, reasons=(text,), differences=(text,))
    return check_of(one, checked(label=f"{text} 2"), model_id=text, device_name=text, differences=(text,))


@settings(max_examples=60, deadline=None)
@given(text=TEXT.map("".join))
def test_outside_text_changes_no_format(text: str) -> None:
    result = with_text(text)
    assert {case.get("name") for case in ElementTree.fromstring(render_junit(result)).iter("testcase")} == {
        "what ran",
        "ttft",
        "decode",
        "memory",
    }
    assert len(json.loads(render_action_benchmark(result))) == 6
    json.loads(render_bencher(result))
    for page in (render_markdown(result), render_comment(result)):
        page.encode()
        html = MARKDOWN.render(page)
        assert set(re.findall(r"<[/!]?(\w+)", html)) <= TAGS
        assert html.count("<details>") == html.count("</details>") > 0
        assert html.count("<h3>") == 1
        assert not re.search(r"[@#][^\W_]", re.sub(r"<code>.*?</code>|&#?\w+;", " ", html))
    console = Console(file=io.StringIO(), width=200)
    console.print(render_terminal(result))
    assert isinstance(console.file, io.StringIO)
    assert not set(console.file.getvalue()) & {"\x1b", "\x00", "\r", "\u202e"}
