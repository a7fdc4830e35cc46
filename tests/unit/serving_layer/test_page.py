"""What the page shows in a browser, of answers that the service gives."""

import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Response
from werkzeug.serving import make_server

from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import NotReady
from serving_layer.query_service import app as service
from serving_layer.query_service.messages import (
    Answer,
    Column,
    LabelledSlice,
    LabelledVersion,
    Live,
    Models,
    Query,
    Statistics,
)

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no browser")
SHOWN_FOR_MS = 10_000
"""By the browser's own clock, which passes over what nothing happens in."""

Look = Callable[..., str]


def figures(version: int, correct: int) -> dict[str, Any]:
    return {
        "model_version": version,
        "rows": 100,
        "correct": correct,
        "accuracy": correct / 100,
        "interval_95": (0.1, 0.9),
    }


def found(champion: int | None, **others: Any) -> Statistics:
    live = Live(rows=1_234, rate_per_s=5.5, event_to_row_p50_ms=80, event_to_row_p99_ms=200, versions=[])
    known = {"horizon": {}, "horizon_moved_at": None, "labelled": [], "waiting_by_partition": {}}
    known |= {"waiting": {"stream": None, "views": 0, "archive": 0}, "live": live}
    return Statistics(application="digits", at=now(), champion=champion, **known | others)


@pytest.fixture
def look(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Look]:
    """The page as it is after some seconds: `look(statistics, script)`. statistics: gives or raises what its requests
    are answered with; script: run in the page once it is there."""
    monkeypatch.setattr(service, "STATISTICS_KEPT_S", 0)
    app = service.create_app(settings)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def shown(statistics: Callable[[], Statistics], script: str = "") -> str:
        monkeypatch.setattr(service, "statistics", lambda *_: statistics())

        @app.after_request
        def acting(response: Response) -> Response:
            if nonce := re.search("script-src 'nonce-([^']+)'", response.headers.get("Content-Security-Policy", "")):
                page = response.get_data(as_text=True)
                response.set_data(page.replace("</body>", f'<script nonce="{nonce[1]}">{script}</script></body>'))
            return response

        address = f"http://127.0.0.1:{server.server_port}/"
        command = [
            BROWSER,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'browser'}",
        ]
        command += [f"--virtual-time-budget={SHOWN_FOR_MS}", "--dump-dom", address]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout

    yield shown
    server.shutdown()
    thread.join()


def card(page: str, name: str) -> str:
    (text,) = re.findall(rf'data-statistic="{name}"[^>]*>([^<]*)<', page)
    return str(text)


@pytest.mark.slow
def test_the_accuracy_is_of_the_champions_version_and_says_of_which(look: Look) -> None:
    labelled = [LabelledVersion(**figures(8, 50)), LabelledVersion(**figures(7, 90))]
    slices = [LabelledSlice(**figures(8, 40), slice="shop=a"), LabelledSlice(**figures(7, 80), slice="shop=b")]
    page = look(lambda: found(7, labelled=labelled, labelled_slices=slices))
    assert (card(page, "champion"), card(page, "accuracy")) == ("digits/7", "90.00%")
    assert "accuracy of version 7," in card(page, "interval")
    assert "shop=b" in page
    assert "shop=a" not in page
    assert card(page, "waiting") == "–"


@pytest.mark.slow
def test_the_accuracy_is_the_newest_versions_where_the_champions_is_not_known(look: Look) -> None:
    page = look(lambda: found(9, labelled=[LabelledVersion(**figures(8, 50))]))
    assert (card(page, "accuracy"), card(page, "champion")) == ("50.00%", "digits/9")
    assert "accuracy of version 8," in card(page, "interval")


@pytest.mark.slow
def test_figures_that_cannot_be_asked_for_any_more_are_shown_as_of_their_time_and_why(look: Look) -> None:
    given = iter([found(7, labelled=[LabelledVersion(**figures(7, 90))])])

    def once() -> Statistics:
        for each in given:
            return each
        raise NotReady("MySQL does not answer", "start it")

    page = look(once)
    assert re.fullmatch(r"as of .+: MySQL does not answer; start it", card(page, "state"))
    assert 'data-application="digits" data-at' in page
    assert re.search(r'<section[^>]*class="stale"', page)
    assert card(page, "rows") == "1,234"


@pytest.mark.slow
def test_labels_that_are_no_more_leave_no_accuracy(look: Look) -> None:
    given = iter([found(7, labelled=[LabelledVersion(**figures(7, 90))])])
    page = look(lambda: next(given, found(7)))
    assert (card(page, "accuracy"), card(page, "state")) == ("–", "")


ASK = "document.querySelector('form').requestSubmit()"


def cells(page: str) -> list[str]:
    return re.findall("<td>([^<]*)</td>", page[page.index('<table id="answer">') : page.index("Where everything is")])


@pytest.mark.slow
def test_whole_numbers_of_an_answer_are_shown_to_the_last_digit(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    row = [9_007_199_254_740_993, -(2**63), 2**53 - 1, 1e300, "9007199254740993.0", None]
    columns = [Column(name=f"c{n}", type="BIGINT") for n in range(len(row))]
    answer = Answer(columns=columns, rows=[row], row_count=1, truncated=False, elapsed_ms=1, store="mysql")
    monkeypatch.setattr(service.mysql_queries, "answer", lambda *_: answer)
    shown = cells(look(lambda: found(7), ASK))
    assert shown == ["9007199254740993", str(-(2**63)), "9007199254740991", "1e+300", "9007199254740993.0", "NULL"]


@pytest.mark.slow
def test_a_query_that_somebody_cancels_is_said_to_be(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    query = Query(id="q", status="cancelled", store="hive", sql="SELECT 1", submitted_at=now(), finished_at=now())
    monkeypatch.setattr(service.mysql_queries, "answer", lambda *_: query)
    assert '<p id="note" role="status">the query was cancelled</p>' in look(lambda: found(7), ASK)


@pytest.mark.slow
def test_a_link_is_asked_with_the_token_and_answered_in_the_page(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_with = []

    def models(*_: Any) -> Models:
        asked_with.append(service.request.headers.get("Authorization"))
        return Models(models=[])

    monkeypatch.setattr(service.catalogue, "models", models)
    page = look(lambda: found(7), "tokenInput.value = 'ada'; document.querySelector('nav a[href*=models]').click()")
    assert asked_with == ["Bearer ada"]
    assert re.search(r'<pre id="shown"[^>]*>{\s+"models": \[\]\s+}</pre>', page)
