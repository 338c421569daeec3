from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from engine_sweeps import analysis_of, manifest_of_two, two_engines
from report_sweeps import BASELINE, WINNER, candidate, ended, info_of, limits_missed, measured

from kvray.record import Role, TrialStatus
from kvray.report.cells import CellValue
from kvray.report.html import breakable, content_security_policy, heat, render_html
from kvray.report.info import ReportInfo, report_info

pytestmark = pytest.mark.spawns

EVIL = "<script>alert(1)</script>"
CHROMIUM = shutil.which("chromium")


def without_scripts(page: str) -> str:
    return re.sub(r"<script(?! type).*?</script>", "", page, flags=re.DOTALL)


def browse(page: str, folder: Path) -> tuple[str, str]:
    """The DOM after the scripts ran, and what Chromium wrote to its console log."""
    assert CHROMIUM is not None
    file = folder / "report.html"
    file.write_text(page, encoding="utf-8", newline="\n")
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    switches += " disable-component-update disable-sync virtual-time-budget=5000 enable-logging=stderr dump-dom"
    done = subprocess.run(
        [CHROMIUM, *(f"--{switch}" for switch in switches.split()), f"--user-data-dir={folder / 'profile'}", str(file)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if ":CONSOLE" in line)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")
def test_a_browser_draws_every_chart_under_the_policy_without_an_error(realistic: ReportInfo, tmp_path: Path) -> None:
    dom, console = browse(render_html(realistic), tmp_path)
    assert console == ""
    for name in ("ttft", "throughput", "memory", "pareto"):
        plot = dom.split(f'id="plot-{name}"')[1][:3000]
        assert 'class="main-svg"' in plot, name
    assert dom.count("Sort by this column") > 10


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")
def test_the_ranking_of_one_engine_can_be_shown_alone(tmp_path: Path) -> None:
    about = manifest_of_two()
    page = render_html(report_info(about, results := two_engines(), analysis_of(results, about)))
    clicked = "<script>document.querySelector('.filter input[value=transformers]').click()</script></body>"
    dom, _ = browse(re.sub("<meta http-equiv.*?>", "", page).replace("</body>", clicked), tmp_path)
    rows = re.findall(r'<tr class="[^"]*" data-engine="(\w+)"( hidden="")?>', dom)
    assert sorted(rows) == [("llama_cpp", ' hidden=""')] * 2 + [("transformers", "")] * 2


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")
def test_a_browser_runs_nothing_that_comes_from_outside(tmp_path: Path) -> None:
    evil = candidate("static", cache_params=(("x", f"</script>{EVIL}"),))
    failed = ended(WINNER, TrialStatus.ERROR, f"<img src=x onerror=alert(1)>{EVIL}", log_tail=f"</pre>{EVIL}")
    info = info_of([measured(BASELINE, role=Role.BASELINE), measured(evil), failed], model_id=EVIL, device_name=EVIL)
    dom, console = browse(render_html(info), tmp_path)
    assert console == ""
    assert 'class="main-svg"' in dom
    assert "<script>alert" not in dom
    assert "<img" not in without_scripts(dom)


def test_a_model_called_script_shows_as_text() -> None:
    page = render_html(info_of([measured(BASELINE, role=Role.BASELINE)], model_id=EVIL))
    assert "<title>KV cache of &lt;script&gt;alert(1)&lt;/script&gt;</title>" in page
    assert EVIL not in page


def test_chart_data_cannot_end_its_script_element() -> None:
    evil = candidate("static", cache_params=(("x", "</script>"),))
    page = render_html(info_of([measured(evil, speed=1.5), measured(WINNER)]))
    data = page.split('<script type="application/json" id="plots">')[1].split("</script>")[0]
    assert "<" not in data
    assert json.loads(data)["ttft"]["layout"]["annotations"][0]["text"].startswith("1. static(x=&lt;/script&gt;)")


def test_nothing_is_fetched_from_anywhere(realistic: ReportInfo) -> None:
    page = without_scripts(render_html(realistic))
    assert not re.search(r"""(?:src|href)\s*=|url\(|@import""", page)


def test_the_policy_allows_scripts_by_hash_only(realistic: ReportInfo) -> None:
    page = render_html(realistic)
    policy = content_security_policy(re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL))
    assert f'content="{policy.replace(chr(39), "&#39;")}"' in page
    assert "default-src 'none'; script-src 'sha256-" in policy
    assert "unsafe-eval" not in policy
    assert page.index("Content-Security-Policy") < page.index("<style>") < page.index("<script")


def test_every_figure_is_in_the_tables_so_the_page_reads_without_scripts(realistic: ReportInfo) -> None:
    page = re.sub(r"<wbr>", "", without_scripts(render_html(realistic)))
    for row in realistic.rows:
        assert row.label in page
    assert "The charts need JavaScript" in page
    assert "alloc_cpu.cpp:127" in page


def test_plotly_is_inside_once_and_only_with_charts(realistic: ReportInfo) -> None:
    assert render_html(realistic).count("plotly.js v") == 1
    empty = render_html(info_of([]))
    assert "plotly.js v" not in empty
    assert "Nothing was measured: no candidate was launched." in empty


def test_names_may_break_where_a_reader_would_break_them() -> None:
    assert breakable("static/sdpa_math+compile:x<") == "static/<wbr>sdpa_<wbr>math<wbr>+compile:<wbr>x&lt;"
    assert (
        breakable("12 % at 1,200: 1/2.9, +3 % tok/s")
        == "12\N{NO-BREAK SPACE}% at 1,200: 1/2.9, +3\N{NO-BREAK SPACE}% tok/s"
    )


def test_a_tint_grows_with_the_difference_in_either_direction() -> None:
    tints = [heat(CellValue(value=1, times_as_good=ratio)) for ratio in (0.25, 0.5, 1.0, 1.1, 2.0, 8.0)]
    assert tints == ["0.55", "0.55", "0.00", "0.08", "0.55", "0.55"]


def test_what_a_candidate_must_earn_back_and_whether_it_became_steady_are_shown() -> None:
    slow_start = measured(WINNER, speed=1.5, cold_s=30.0, warmed_up=False, energy_j_per_tok=0.5)
    powered = replace(slow_start, runs=tuple(replace(run, energy_j=50.0) for run in slow_start.runs))
    info = info_of([measured(BASELINE, role=Role.BASELINE, cold_s=1.0), powered])
    page = without_scripts(render_html(info))
    assert f">{info.rows[0].break_even}</td>" in page
    assert "<small>never steady</small>" in page
    assert ">Energy<small>J / token</small></th>" in page


def test_energy_has_no_column_where_nobody_measured_it(realistic: ReportInfo) -> None:
    assert "J / token" not in render_html(realistic)


def test_what_misses_a_limit_is_a_table(realistic: ReportInfo) -> None:
    missed = limits_missed([measured(BASELINE, role=Role.BASELINE), measured(WINNER, speed=1.9)])
    page = without_scripts(render_html(missed)).replace("\N{NO-BREAK SPACE}", " ")
    table = page.partition('id="missed"')[2].partition("</table>")[0]
    assert table.count("<tr>") == 3
    assert ">TTFT 1,446 ms at 2048→32, 45 % over the limit of 1,000 ms; " in table
    assert table.count(">✗<") == 4
    assert 'id="missed"' not in render_html(realistic)
