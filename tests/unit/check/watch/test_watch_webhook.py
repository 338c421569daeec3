"""Alerts by webhook: taken once, kept while the hook is down, and never waited for."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hook_server import HookServer, hook_server, soon

from kvray.check.watch.sinks import deliveries
from kvray.check.watch.sinks.deliveries import MOST_REFUSALS, MOST_WAITING, Deliveries, UndeliveredError
from kvray.check.watch.sinks.webhook import Webhook
from kvray.errors import InvalidValueError

pytestmark = pytest.mark.spawns


def alert(number: int = 1) -> dict[str, object]:
    return {"event_id": f"e{number}", "text": f"Alert {number}", "state": "confirmed"}


def to_hook(url: str, folder: Path, *, pause_s: float = 0.05, silence_s: float = 10.0) -> Deliveries:
    return Deliveries(Webhook(url, silence_s=silence_s), folder / "waiting.json", pause_s=pause_s)


def numbers(server: HookServer) -> list[object]:
    return [one["event_id"] for one in server.taken]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, logger="kvray")
    logging.getLogger("kvray").propagate = True
    return lambda: [record.getMessage() for record in caplog.records]


def test_an_alert_is_posted_as_json_and_nothing_is_left(tmp_path: Path) -> None:
    with hook_server() as server:
        hook = to_hook(f"http://me:pass%20word@127.0.0.1:{server.server_address[1]}/path", tmp_path)
        hook.start()
        hook.add(alert())
        hook.finish(20)
    assert server.taken == [alert()]
    headers = server.headers[0]
    assert headers["Content-Type"] == "application/json"
    assert headers["User-Agent"].startswith("kvray/")
    assert headers["Authorization"] == "Basic bWU6cGFzcyB3b3Jk"
    assert not (tmp_path / "waiting.json").exists()


def test_an_alert_made_while_the_hook_was_down_is_delivered_by_the_next_run(
    tmp_path: Path, log: Callable[[], list[str]]
) -> None:
    with hook_server() as gone:
        url = gone.url
    down = to_hook(url, tmp_path)
    down.start()
    down.add(alert(1))
    down.add(alert(2))
    down.finish(0.2)
    assert [one["message"]["event_id"] for one in json.loads((tmp_path / "waiting.json").read_text())["waiting"]] == [
        "e1",
        "e2",
    ]
    told = log()
    assert any("takes no alert: connection refused" in line.lower() for line in told)
    assert f"2 alerts wait for the webhook {url}/… in {tmp_path / 'waiting.json'}. The next run tries again." in told
    with hook_server() as server:
        back = to_hook(server.url, tmp_path)
        back.start()
        back.finish(20)
        assert numbers(server) == ["e1", "e2"]
    assert not (tmp_path / "waiting.json").exists()


def test_a_hook_that_fails_is_tried_again_and_the_trouble_is_said_once(
    tmp_path: Path, log: Callable[[], list[str]]
) -> None:
    with hook_server("500", "500", "503", "429", "200") as server:
        hook = to_hook(server.url, tmp_path)
        hook.start()
        hook.add(alert())
        hook.finish(20)
        assert (numbers(server), server.asked) == (["e1"], 5)
    told = log()
    assert sum("status 500 (Internal Server Error)" in line for line in told) == 1
    assert told[-1] == f"The webhook {server.url}/… takes alerts again."


def test_a_hook_that_hangs_holds_up_nobody(tmp_path: Path, log: Callable[[], list[str]]) -> None:
    with hook_server("hang") as server:
        hook = to_hook(server.url, tmp_path, silence_s=0.3)
        hook.start()
        began = time.monotonic()
        for number in range(5):
            hook.add(alert(number))
        assert time.monotonic() - began < 5, "measuring goes on"
        assert soon(lambda: any("no answer within 0.3 seconds" in line for line in log()))
        hook.finish(0.1)
    assert len(json.loads((tmp_path / "waiting.json").read_text())["waiting"]) == 5


def test_an_answer_that_trickles_is_cut_off(tmp_path: Path, log: Callable[[], list[str]]) -> None:
    with hook_server("trickle") as server, pytest.raises(UndeliveredError):
        Webhook(server.url, silence_s=10, whole_s=0.3).deliver(alert())


def test_an_answer_that_is_no_http_is_said(tmp_path: Path) -> None:
    with hook_server("nonsense") as server, pytest.raises(UndeliveredError, match="no HTTP or broke off"):
        Webhook(server.url).deliver(alert())


def test_a_redirect_is_followed_on_the_same_host_alone() -> None:
    with hook_server() as other, hook_server(f"307:{other.url}/stolen") as server:
        with pytest.raises(UndeliveredError, match=f"redirects to {other.url}, and an alert is not sent on"):
            Webhook(server.url).deliver(alert())
        assert other.asked == 0
    with hook_server("308:/moved") as server:
        Webhook(server.url).deliver(alert())
        assert server.taken == [alert()]
    with hook_server("302:/moved") as server:
        with pytest.raises(UndeliveredError, match=r"status 302 \(Found\), a redirect that would lose the alert"):
            Webhook(server.url).deliver(alert())
        assert server.asked == 1
    with hook_server("307:/again") as server, pytest.raises(UndeliveredError, match="more than 3 times"):
        Webhook(server.url).deliver(alert())


def test_an_alert_that_is_refused_does_not_hold_up_the_next_and_is_given_up_at_last(
    tmp_path: Path, log: Callable[[], list[str]]
) -> None:
    with hook_server("refuse:e1") as server:
        hook = to_hook(server.url, tmp_path, pause_s=0.001)
        hook.start()
        hook.add(alert(1))
        hook.add(alert(2))
        hook.finish(20)
    assert numbers(server) == ["e2"]
    assert server.asked == MOST_REFUSALS + 1
    assert sum("never gets the alert 'Alert 1': it was refused 10 times" in line for line in log()) == 1


def test_no_more_than_so_many_wait_and_what_is_dropped_is_said(tmp_path: Path, log: Callable[[], list[str]]) -> None:
    with hook_server() as gone:
        url = gone.url
    hook = to_hook(url, tmp_path)
    for number in range(MOST_WAITING + 2):
        hook.add(alert(number))
    assert hook.number_waiting == MOST_WAITING
    assert [line for line in log() if "never gets" in line] == [
        f"The webhook {url}/… never gets the alert 'Alert {number}': more than 100 wait, and it is the oldest."
        for number in (0, 1)
    ]
    kept = json.loads((tmp_path / "waiting.json").read_text())["waiting"]
    assert [kept[0]["message"]["event_id"], kept[-1]["message"]["event_id"]] == ["e2", "e101"]


def test_on_a_full_disk_alerts_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Callable[[], list[str]]
) -> None:
    full = Path("/dev/full/waiting.json")
    with hook_server("500", "500", "200") as server:
        hook = Deliveries(Webhook(server.url), full, pause_s=0.05)
        hook.start()
        hook.add(alert(1))
        hook.add(alert(2))
        hook.finish(20)
        assert numbers(server) == ["e1", "e2"]
    assert sum("Cannot write /dev/full/waiting.json" in line for line in log()) >= 1


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"waiting_version": 2, "waiting": []}', '{"waiting_version": 1, "waiting": [7]}']
)
def test_a_file_that_cannot_be_read_is_set_aside(content: str, tmp_path: Path, log: Callable[[], list[str]]) -> None:
    (tmp_path / "waiting.json").write_text(content)
    with hook_server() as server:
        hook = to_hook(server.url, tmp_path)
        hook.start()
        hook.add(alert())
        hook.finish(20)
        assert numbers(server) == ["e1"]
    assert "waiting.json cannot be used" in log()[0]
    (aside,) = tmp_path.glob("waiting.json.unreadable-*")
    assert aside.read_text() == content


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/x", "begins with ftp://; only http and https"),
        ("file:///etc/passwd", "only http and https"),
        ("hooks.example.com", "has no scheme"),
        ("http://", "has no host"),
        ("http://host/a b", "characters that a URL cannot have"),
        ("http://host/\n", "characters that a URL cannot have"),
        ("http://host:port/", "cannot be read"),
        ("http://[::1/", "cannot be read"),
    ],
)
def test_a_url_that_cannot_be_posted_to_is_refused_before_anything_is_measured(url: str, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        Webhook(url)


def test_no_message_shows_the_secret_parts_of_a_url(tmp_path: Path, log: Callable[[], list[str]]) -> None:
    with hook_server("404") as server:
        port = server.server_address[1]
        hook = to_hook(f"http://user:geheim@127.0.0.1:{port}/T123/verysecret?key=hidden#part", tmp_path)
        hook.start()
        hook.add(alert())
        assert soon(lambda: server.asked > 0)
        hook.finish(0.3)
    told = " ".join(log())
    assert f"http://127.0.0.1:{port}/…" in told
    assert not any(word in told for word in ("geheim", "verysecret", "hidden", "user"))
    assert "geheim" not in (tmp_path / "waiting.json").read_text()


def test_pauses_between_attempts_grow_up_to_a_bound() -> None:
    assert deliveries.FIRST_PAUSE_S < deliveries.LONGEST_PAUSE_S <= 600
