"""All sinks of one watch together, and the alert that they send."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from hook_server import hook_server
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from watch_histories import IDENTITY, event, observation

from kvray.analysis.comparison import ComparedMetric
from kvray.check.watch.events import EventKind
from kvray.check.watch.sinks import AskedSinks, open_sinks
from kvray.check.watch.sinks.alert import alert_message
from kvray.check.watch.sinks.deliveries import Deliveries
from kvray.check.watch.sinks.endpoint import Endpoint
from kvray.check.watch.sinks.exec_command import PREFIX, ExecCommand, variables
from kvray.check.watch.sinks.prometheus import WatchMetric
from kvray.check.watch.sinks.webhook import Webhook
from kvray.errors import InvalidValueError

pytestmark = pytest.mark.spawns
ROOT = Path(__file__).parents[4]
SCHEMA = json.loads((ROOT / "docs" / "schema" / "watch_event.schema.json").read_text())


def problems(message: Any) -> list[str]:
    return [error.message for error in Draft202012Validator(SCHEMA).iter_errors(json.loads(json.dumps(dict(message))))]


def test_alerts_of_all_kinds_meet_the_schema_and_nothing_unknown_does() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    for kind in EventKind:
        metric = None if kind is EventKind.MACHINE else ComparedMetric.DECODE
        message = alert_message(event(1, kind, metric, observation=observation(1)))
        assert problems(message) == []
    assert problems(alert_message(event(1, EventKind.ERROR, None, change=0, change_point=None))) == []
    assert problems({**message, "more": 1}) != []
    assert set(SCHEMA["properties"]) == set(SCHEMA["required"]) == set(message)


def test_the_page_for_users_shows_an_alert_that_meets_the_schema_and_every_metric() -> None:
    page = (ROOT / "docs" / "watch.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    assert problems(json.loads(shown)) == []
    assert [one.exported_name for one in WatchMetric if one.exported_name not in page] == []
    named = {name.removeprefix(PREFIX) for name in re.findall(r"KVRAY_WATCH_[A-Z_]+", page)} - {"WEBHOOK"}
    assert named <= {name.removeprefix(PREFIX) for name in variables(json.loads(shown))}


def test_an_alert_says_what_became_worse_and_on_what() -> None:
    message = alert_message(event(1, EventKind.CONFIRMED, observation=observation(1)))
    assert message["text"] == "time to first token changed by +12%."
    assert (message["kind"], message["metric"], message["unit"]) == ("confirmed", "ttft", "ms")
    assert message["change"]["value"] == 0.12
    assert message["observation"]["engine_versions"]["transformers"] == "5.22.0"


def test_no_secret_leaves_in_an_alert(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "geheimes-wort")
    monkeypatch.setenv("KVRAY_WATCH_WEBHOOK", "https://hooks.example.com/T0/verborgen")
    told = event(
        1,
        EventKind.CONFIRMED,
        text="https://me:pass@host/x?key=hidden: geheimes-wort https://hooks.example.com/T0/verborgen \x1b[31mred",
        observation=observation(1, kernels="hf_abcdefghijklmnopqrst", engine_versions={"x": "geheimes-wort"}),
    )
    text = json.dumps(dict(alert_message(told)))
    assert not any(word in text for word in ("geheimes", "verborgen", "pass@", "hidden", "hf_abc", "\\u001b"))


def test_every_sink_is_told_and_only_alerts_are_sent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="kvray")
    logging.getLogger("kvray").propagate = True
    one = observation(0)
    folder, prom = tmp_path / "watch", tmp_path / "kvray.prom"
    folder.mkdir()
    with hook_server() as server:
        asked = AskedSinks(webhook=server.url, command=f"sh -c 'cat >> {tmp_path}/told'", prometheus_file=str(prom))
        sinks = open_sinks(asked, folder=folder, history=lambda: [one], identity=IDENTITY, once=True)
        for kind in (EventKind.OBSERVATION, EventKind.SUSPECTED, EventKind.CONFIRMED):
            for sink in sinks:
                sink.tell(event(0, kind, text=f"It is {kind.value}.", observation=one))
        for sink in sinks:
            sink.close()
    assert [taken["text"] for taken in server.taken] == ["It is confirmed."]
    assert json.loads((tmp_path / "told").read_text())["text"] == "It is confirmed."
    assert [path.name for path in folder.iterdir()] == ["watch.html"]
    assert "kvray_watch_state" in prom.read_text()
    lines = {record.getMessage(): record.levelname for record in caplog.records}
    told = {text: level for text, level in lines.items() if text.startswith("It is")}
    assert told == {"It is observation.": "INFO", "It is suspected.": "INFO", "It is confirmed.": "WARNING"}


def test_an_alert_that_is_told_again_while_it_waits_is_sent_once(tmp_path: Path) -> None:
    with hook_server() as gone:
        url = gone.url
    down = Deliveries(Webhook(url), tmp_path / "waiting.json", patience_s=0.1)
    down.start()
    down.tell(event(0, EventKind.CONFIRMED))
    down.tell(event(0, EventKind.CONFIRMED))
    down.close()
    with hook_server() as server:
        hook = Deliveries(Webhook(server.url), tmp_path / "waiting.json")
        hook.start()
        hook.close()
        assert len(server.taken) == 1


def test_options_that_cannot_be_used_are_refused_before_anything_opens(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="with --once it ends at once"):
        open_sinks(AskedSinks(listen="127.0.0.1:0"), folder=tmp_path, history=list, identity=IDENTITY, once=True)
    with pytest.raises(InvalidValueError, match="--exec"):
        open_sinks(AskedSinks(webhook="http://h/", command="'"), folder=tmp_path, history=list, identity=IDENTITY)
    asked = AskedSinks(prometheus_file="s3://key:secret@team/kvray.prom")
    with pytest.raises(InvalidValueError, match=r"'s3://team/kvray\.prom': node exporter reads files of its machine"):
        open_sinks(asked, folder=tmp_path, history=list, identity=IDENTITY)
    assert list(tmp_path.iterdir()) == []


ODD_TEXT = st.text() | st.from_regex(r"(https?|ftp)://[\w@:/?#\[\].%-]*", fullmatch=True)
ODD_TEXT |= st.from_regex(r"[\w\[\]:.]*:[0-9]{0,6}", fullmatch=True) | st.from_regex(r"[a-z'\" $;\\]*", fullmatch=True)


@given(text=ODD_TEXT)
def test_whatever_is_typed_is_used_or_refused(text: str) -> None:
    for made in (Webhook, Endpoint, ExecCommand):
        with contextlib.suppress(InvalidValueError):
            made(text)
