"""The report as one HTML file that opens offline: style, script, data and plotly.js are inside, nothing is fetched.

A Content-Security-Policy allows exactly the two scripts written here, by hash: text from outside can never run.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import re
from collections.abc import Sequence
from importlib import resources

import jinja2
import markupsafe
from plotly.offline import get_plotlyjs

from kvray.report import formats
from kvray.report.cells import CellValue
from kvray.report.figures import Figure, bar_figures, scatter_figure
from kvray.report.info import ReportInfo

_BREAK_AT = re.compile(r"(?<=[/_:])(?<!tok/)(?<!\d/)(?=[^\W_])|(?<=[,(])(?=[a-z])|(?=\+[a-z])")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d \d\d:(?:<wbr>)?\d\d UTC")
_UNIT = re.compile(r"(?<=\d) (?=%|ms\b|MiB\b|tok/s)")


def render_html(info: ReportInfo) -> str:
    """The whole page, about 5 MB with charts (plotly.js); write it as UTF-8."""
    bars, scatter = bar_figures(info), scatter_figure(info)
    figures = [*bars, *([scatter] if scatter else [])]
    scripts = [_plotly_js(), _own_js()] if figures else [_own_js()]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            info=info,
            bars=bars,
            scatter=scatter,
            plots={figure.name: figure.plot for figure in figures},
            policy=content_security_policy(scripts),
            style=markupsafe.Markup(_source("report.css")),
            scripts=[markupsafe.Markup(script) for script in scripts],
        )
    )


def render_page(template: str, *, info: object, figures: Sequence[Figure] = ()) -> str:
    """Another page in the same look, from `template`; plotly.js is inside where there are `figures`."""
    scripts = [_plotly_js(), _own_js()] if figures else [_own_js()]
    return (
        _environment()
        .get_template(template)
        .render(
            info=info,
            figures=figures,
            plots={figure.name: figure.plot for figure in figures},
            policy=content_security_policy(scripts),
            style=markupsafe.Markup(_source("report.css")),
            scripts=[markupsafe.Markup(script) for script in scripts],
        )
    )


def content_security_policy(scripts: list[str]) -> str:
    """A policy under which only `scripts` run, styles are inline (plotly sets them) and nothing is fetched."""
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def breakable(text: str) -> markupsafe.Markup:
    """`text` escaped, that may break within a long name in a narrow column, but not between a number and its unit."""
    return markupsafe.Markup("<wbr>").join(_BREAK_AT.split(_UNIT.sub("\N{NO-BREAK SPACE}", text)))


def dated(text: str) -> markupsafe.Markup:
    """As `breakable`, and no time breaks within its date."""
    return markupsafe.Markup(_MOMENT.sub(r'<span class="when">\g<0></span>', str(breakable(text))))


def heat(cell: CellValue) -> str:
    """Strength of a cell's tint, 0 to 0.55: half or twice the reference is the most."""
    return f"{min(1.0, abs(math.log2(cell.times_as_good))) * 0.55:.2f}"


@functools.cache
def _plotly_js() -> str:
    return str(get_plotlyjs())


def _own_js() -> str:
    return _source("report.js")


def _source(name: str) -> str:
    return (resources.files("kvray.report") / "templates" / name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kvray.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(formats.FILTERS, breakable=breakable, dated=dated, heat=heat)
    return environment
