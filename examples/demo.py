"""The whole loop in one run: `make demo`.

Handwritten digits go from files to S3, to a trained and promoted model, to live predictions of 10,000 events, to SQL
over recent and archived results. Each step is a command that you can run by hand; the demo prints it before it does.
"""

import os
import secrets
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from pydantic_core import to_json
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from scipy.stats import binomtest
from sqlalchemy import Engine, text
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed

from deeplambda.adapters import hive, mysql
from deeplambda.adapters.kafka import Publisher, consumer
from deeplambda.clock import now
from deeplambda.config import Settings, find_data_dir, is_loopback, load_settings, port_of
from deeplambda.errors import DeepLambdaError
from deeplambda.idx import read_idx
from deeplambda.records import topics
from examples.mnist import mnist_folder

APPLICATION = "digits"
console = Console()


@dataclass
class Report:
    """What the run has seen: stage by stage, its rows and seconds."""

    rows: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        console.rule(f"[bold]{name}")
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started


def deeplambda(*arguments: str) -> None:
    """Run one of the platform's commands, as a person would."""
    console.print(f"[dim]$ deeplambda {' '.join(arguments)}")
    subprocess.run([sys.executable, "-m", "deeplambda", *arguments], check=True)


def count(engine: Engine, statement: str, **values: Any) -> int:
    """The one number that a query gives."""
    with engine.connect() as connection:
        return int(connection.execute(text(statement), values).scalar_one())


def wait_for(what: str, engine: Engine, statement: str, wanted: int, patience_s: float = 180, **values: Any) -> int:
    """Poll a count until it is `wanted` or patience ends; returns the last one."""

    @retry(
        retry=retry_if_result(lambda found: found < wanted),
        stop=stop_after_delay(patience_s),
        wait=wait_fixed(0.5),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else 0,
    )
    def poll() -> int:
        found = count(engine, statement, **values)
        status.update(f"{what}: {found:,} of {wanted:,}")
        return found

    with console.status(what) as status:
        return poll()


def produce(settings: Settings, images: Any, labels: Any, run: str, rate: int) -> None:
    """Send each image as an event at `rate` events/s, and its label; returns when the broker has stored all."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Publisher(settings) as publisher, Progress(*columns, console=console) as progress:
        started = time.monotonic()
        for n, image in enumerate(progress.track(images, description=f"events at {rate}/s")):
            event_id = f"{run}-{n:05}"
            event = {"event_id": event_id, "occurred_at": now(), "image": b64encode(image.tobytes()).decode()}
            publisher.send_bytes(topics.events(APPLICATION), event_id, to_json(event))
            publisher.send(topics.labels(APPLICATION), event_id, {"event_id": event_id, "label": str(labels[n])})
            ahead_s = started + (n + 1) / rate - time.monotonic()
            if ahead_s > 0:
                time.sleep(ahead_s)  # the pace of the load, not a wait for something
            if n % 1000 == 999:
                publisher.flush()


class UnionWatch:
    """Counts the run's rows in `all_predictions` again and again while the horizon moves."""

    def __init__(self, engine: Engine, run: str) -> None:
        self.seen: list[tuple[int, int]] = []
        self.failure: Exception | None = None
        self._engine, self._run, self._stop = engine, run, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "UnionWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self.failure:
            raise self.failure

    def _watch(self) -> None:
        try:
            while not self._stop.wait(1):
                self.seen.append(union_rows(self._engine, self._run))
        except Exception as exc:  # handed to the thread that asked
            self.failure = exc


def union_rows(engine: Engine, run: str) -> tuple[int, int]:
    """(rows, different events) of the run in the union of both views."""
    statement = (
        f"SELECT count(*), count(DISTINCT event_id) FROM {APPLICATION}.all_predictions WHERE event_id LIKE '{run}-%'"
    )
    with engine.connect() as connection:
        rows, events = connection.execute(text(statement)).one()
    return int(rows), int(events)


def dead_letters(settings: Settings, run: str) -> int:
    """How many of the run's events were refused."""
    topic, found = topics.dead_letters(APPLICATION), 0
    with closing(consumer(settings, topic)) as reader:
        ends = reader.end_offsets(reader.assignment())
        while any(reader.position(partition) < end for partition, end in ends.items()):  # the oldest may have expired
            for records in reader.poll(timeout_ms=500).values():
                found += sum(f'"event_id":"{run}-'.encode() in record.value for record in records)
    return found


def main(
    events: Annotated[int, typer.Option(help="how many test images to send as events")] = 10_000,
    rate: Annotated[int, typer.Option(help="events per second")] = 500,
    epochs: Annotated[int | None, typer.Option(help="passes over the training set; default: the application's")] = None,
) -> None:
    """Run the whole loop on the digits and print what came of it."""
    os.environ.setdefault("DEEPLAMBDA_DATA_DIR", str(find_data_dir()))
    report, run = Report(), f"demo-{secrets.token_hex(4)}"
    folder, origin = mnist_folder(find_data_dir() / "downloads")
    console.print(f"[bold]digits[/]: {origin}")

    settings = load_settings()
    if is_loopback(settings.kafka_bootstrap):
        with report.stage("start the stack"):
            deeplambda("up")
        load_settings.cache_clear()  # `up` may have chosen ports and made secrets
        settings = load_settings()
    recent, archive = mysql.engine(settings, "analyst"), hive.engine(settings)
    with report.stage("put raw files on S3"):
        deeplambda("data", "put", APPLICATION, str(folder))
    with report.stage("ingest, prepare, train, publish, promote"):
        deeplambda("batch", "run", APPLICATION, *(["--set", f"epochs={epochs}"] if epochs else []))

    images_NHW, labels_N = (
        read_idx((folder / name).read_bytes(), name)[:events]
        for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
    )
    sent = len(images_NHW)
    own = {"run": f"{run}-%"}
    in_mysql = "SELECT count(*) FROM realtime_predictions WHERE application = 'digits' AND event_id LIKE :run"
    with report.stage(f"score {sent:,} events as they arrive"):
        produce(settings, images_NHW, labels_N, run, rate)
        live = wait_for("predictions in MySQL", recent, in_mysql, sent, **own)
    latency_s = latencies(recent, run)
    with report.stage("archive the events"):
        like = f"event_id LIKE '{run}-%'"
        archived = wait_for(
            "events in the lake", archive, f"SELECT count(*) FROM lake.digits.events WHERE {like}", sent
        )
        labelled = wait_for(
            "labels in the lake", archive, f"SELECT count(*) FROM lake.digits.labels WHERE {like}", sent
        )
    with report.stage("recompute the batch view"), UnionWatch(archive, run) as watch:
        deeplambda("batch", "recompute", APPLICATION)
        batched = wait_for(
            "rows of the batch view in the union",
            archive,
            f"SELECT count(*) FROM digits.all_predictions WHERE view = 'batch' AND {like}",
            sent,
        )
    rows, distinct = union_rows(archive, run)
    report.rows = {
        "examples in the lake": count(archive, "SELECT count(*) FROM lake.digits.examples"),
        "examples quarantined": count(archive, "SELECT count(*) FROM lake.digits.quarantine"),
        "events sent and acknowledged": sent,
        "predictions in MySQL (real-time view)": live,
        "events archived": archived,
        "labels archived": labelled,
        "predictions in the batch view": batched,
        "union of both views": rows,
    }
    steady = all(seen == (sent, sent) for seen in watch.seen)
    correct = count(
        archive,
        "SELECT count(*) FROM digits.all_predictions p JOIN lake.digits.labels l ON p.event_id = l.event_id "
        f"WHERE p.{like} AND p.prediction = l.label",
    )
    dead = dead_letters(settings, run)
    show(report, settings, sent, correct, latency_s, lost=sent - distinct - dead, duplicated=rows - distinct, dead=dead)
    console.print(
        f"the union held {sent:,} rows in each of {len(watch.seen)} counts while the horizon moved"
        if steady
        else f"[red]the union wavered while the horizon moved: {sorted(set(watch.seen))}"
    )
    if not steady or distinct != sent or rows != distinct:
        raise typer.Exit(1)


def latencies(engine: Engine, run: str) -> tuple[float, float]:
    """p50 and p99, in seconds, from the event's time to its prediction being stored in MySQL."""
    statement = (
        "SELECT TIMESTAMPDIFF(MICROSECOND, occurred_at, stored_at) FROM realtime_predictions "
        "WHERE application = 'digits' AND event_id LIKE :run ORDER BY 1"
    )
    with engine.connect() as connection:
        sorted_s = [row[0] / 1e6 for row in connection.execute(text(statement), {"run": f"{run}-%"})]
    return sorted_s[len(sorted_s) // 2], sorted_s[int(len(sorted_s) * 0.99)]


def show(
    report: Report,
    settings: Settings,
    sent: int,
    correct: int,
    latency_s: tuple[float, float],
    *,
    lost: int,
    duplicated: int,
    dead: int,
) -> None:
    """The one table, and where to look next."""
    with mysql.engine(settings, "analyst").connect() as connection:
        version, metrics = connection.execute(
            text(
                "SELECT v.version, v.metrics FROM model_versions v JOIN promotions p USING (application, version) "
                "WHERE v.application = 'digits' ORDER BY p.id DESC LIMIT 1"
            )
        ).one()
    interval = binomtest(correct, sent).proportion_ci(method="wilson")
    table = Table(title=f"digits/{version}", show_header=False, title_style="bold")
    for name, rows in report.rows.items():
        table.add_row(name, f"{rows:,}")
    table.add_section()
    table.add_row("test accuracy", f"{accuracy_of(metrics):.2%}")
    table.add_row(
        "live accuracy (95 % interval, Wilson)", f"{correct / sent:.2%} ({interval.low:.2%} to {interval.high:.2%})"
    )
    table.add_row("event to prediction in MySQL", f"p50 {latency_s[0] * 1e3:,.0f} ms, p99 {latency_s[1] * 1e3:,.0f} ms")
    table.add_row("events lost", f"{lost:,}")
    table.add_row("events duplicated", f"{duplicated:,}")
    table.add_row("events dead-lettered", f"{dead:,}")
    table.add_section()
    for name, seconds in report.seconds.items():
        table.add_row(name, f"{seconds:,.1f} s")
    console.print(table)
    ours, status, down = "deeplambda", "deeplambda status", "deeplambda down"
    if settings.listen_host:
        ours, status, down = f"docker compose run --rm operator {ours}", "docker compose ps", "docker compose down"
    console.print(
        f"""
The stack is up; see for yourself:
  {status}
  {ours} sql "SELECT prediction, count(*) FROM realtime_predictions GROUP BY prediction"
  {ours} sql "SELECT view, count(*) FROM digits.all_predictions GROUP BY view"
  {ours} sql "SELECT label, predict_digits(image) AS says FROM lake.digits.examples WHERE split = 'test' LIMIT 5"
  {ours} model list digits
  curl http://127.0.0.1:{port_of(settings.model_url)}/v2/models/digits
  http://127.0.0.1:{port_of(settings.query_url)} in a browser
  {down}
""",
        soft_wrap=True,
    )


def accuracy_of(metrics: Any) -> float:
    """The test accuracy on a version's card. metrics: JSON text, as MariaDB gives it, or a dict."""
    from pydantic_core import from_json

    return float((from_json(metrics) if isinstance(metrics, str) else metrics)["accuracy"])


if __name__ == "__main__":
    try:
        typer.run(main)
    except DeepLambdaError as exc:
        console.print(f"[red]{exc}")
        sys.exit(1)
    except subprocess.CalledProcessError as exc:
        sys.exit(exc.returncode)  # the command has said why
