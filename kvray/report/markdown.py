"""The report as Markdown (GitHub's dialect). Every value is escaped unless a filter here has made it safe."""

from __future__ import annotations

import functools
import re

import jinja2

from kvray.report import formats
from kvray.report.info import ReportInfo

_SIGNIFICANT = re.compile(r"([\\`*_\[\]|~#$])")
_BLOCK = re.compile(r"(\d{0,9})([-+](?=\s|$)|(?<=\d)[.)](?=\s|$)|[-=](?=[-=\s]*$))")
"""At the beginning of a line: what makes it an item of a list, a rule, or the line above it a heading."""
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_PLAIN_CODE = re.compile(r"[\w./:+×=,()\- →]*")
_BACKTICKS = re.compile(r"`+")


class Markup(str):
    """Text that is Markdown already and is not escaped again."""


def render_markdown(info: ReportInfo) -> str:
    """The whole report as Markdown; outside strings show as they are and are never markup."""
    return _environment().get_template("report.md.j2").render(info=info)


def render_template(template: str, *, info: object) -> str:
    """A page of Markdown from `template`, escaped in the same way."""
    return _environment().get_template(template).render(info=info)


def md_escape(value: object) -> str:
    """`value` on one line, its Markdown and HTML characters made literal; `Markup` passes as it is."""
    if isinstance(value, Markup):
        return value
    text = _SIGNIFICANT.sub(r"\\\1", " ".join(str(value).split()).translate(_HTML))
    block = _BLOCK.match(text)
    return Markup(text if block is None else f"{block[1]}\\{text[block.start(2) :]}")


def md_code(value: str) -> str:
    """`value` as code where it is as plain as a label is; otherwise as escaped text, which no table cell can break."""
    return Markup(f"`{value}`") if value.strip() and _PLAIN_CODE.fullmatch(value) else md_escape(value)


def md_fence(value: str, indent: int = 0) -> str:
    """`value` as a code block, indented by `indent` spaces, in a fence longer than any run of backticks within."""
    fence = "`" * max(3, 1 + max((len(run) for run in _BACKTICKS.findall(value)), default=0))
    margin = " " * indent
    return Markup("\n".join(f"{margin}{line}".rstrip() for line in (f"{fence}text", *value.splitlines(), fence)))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kvray.report"),
        autoescape=False,
        finalize=md_escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(formats.FILTERS, code=md_code, fence=md_fence)
    return environment
