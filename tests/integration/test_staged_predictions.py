"""A recomputation of a large archive that is broken off is taken up, and gives what it would have given undisturbed."""

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import to_json
from pyspark.sql import DataFrame, SparkSession

from batch_layer import recompute as recomputation
from batch_layer import refusals, staged_predictions, upkeep, withdrawals
from batch_layer.recompute import recompute
from deeplambda.adapters import mysql
from deeplambda.config import Settings
from deeplambda.errors import NotReady, TooManyRefused
from deeplambda.loading import pack_application
from tests.conftest import ROOT
from tests.faults.points import end_all
from tests.faults.s3_gate import Moment, s3_gate
from tests.integration.own_model_service import OwnService, model_of
from tests.integration.test_recompute import archive, batch_view, image
from tests.traffic import digit_event

PER_TASK, TASKS = 5, 2
SPAN = PER_TASK * TASKS
"""Events of a span in these tests."""
COMMAND = f"""
from batch_layer import staged_predictions
from deeplambda.cli import main
staged_predictions.SPAN_EVENTS = {PER_TASK}
main()
"""


def served(stack: Settings, spark: SparkSession, folder: Path) -> OwnService:
    """An application with a champion and four spans of archived events, of which one is broken and one comes twice."""
    service = OwnService(stack, folder)
    values = {f"event-{n}": to_json(digit_event(f"event-{n}", image())) for n in range(4 * SPAN - 1)}
    archive(spark, service, values | {"event-4": b"{not JSON"})
    archive(spark, service, {"event-2": values["event-2"]}, first_offset=4 * SPAN - 1)
    service.promote(service.publish(model_of(1)))
    return service


def staged(spark: SparkSession, service: OwnService) -> int:
    table = f"lake.{service.name}.staged_predictions"
    spark.catalog.refreshTable(table)
    return spark.table(table).count()


def withdraw(spark: SparkSession, service: OwnService, event: str) -> None:
    choice = withdrawals.Choice(where=f"event_id = '{event}'")
    engine = mysql.engine(service.settings, "platform")
    assert withdrawals.withdraw(spark, engine, service.name, choice, who="test", why="test") is not None


def test_a_killed_run_is_taken_up_and_only_the_rest_is_scored(
    stack: Settings, spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = served(stack, spark, tmp_path)
    packed, log = pack_application(service.name, service.settings), tmp_path / "killed.log"
    third_span = Moment(r"^PUT .*/staged_predictions/metadata/00003-")
    with s3_gate(stack.s3_endpoint or "", third_span, lambda: end_all(victim.pid)) as gate, log.open("wb") as output:
        environment = {"DEEPLAMBDA_S3_ENDPOINT": gate, "DEEPLAMBDA_APPLICATIONS_DIR": str(tmp_path)}
        command = [sys.executable, "-c", COMMAND, "batch", "recompute", service.name]
        victim = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=output, stderr=output)
        assert victim.wait(timeout=240) == -signal.SIGKILL, log.read_text()
    killed_at = datetime.now(UTC)
    withdraw(spark, service, "event-3")
    late = {"late": to_json(digit_event("late", image()))}
    archive(spark, service, late, first_offset=4 * SPAN)

    progress = list[tuple[int, int]]()
    monkeypatch.setattr(
        staged_predictions, "SPAN_EVENTS", 2 * PER_TASK
    )  # a run goes on with the spans of the one before
    published = recompute(spark, service.settings, packed, progress=lambda *told: progress.append(told))
    assert (published.scored, published.taken_up, published.refused) == (4 * SPAN - 1, 2 * SPAN, 1)
    assert progress == [(n, 4) for n in range(5)]
    view = batch_view(spark, service)
    assert {offset for (_, offset, _), at in view.items() if at.astimezone() < killed_at} == {*range(2 * SPAN)} - {3, 4}
    assert published.offsets == {0: 4 * SPAN}, "of the archive that the killed run had pinned"
    assert staged(spark, service) == 0

    assert recompute(spark, service.settings, packed).scored == 1, "what came since is added"
    grown = batch_view(spark, service)
    assert grown.keys() - view.keys() == {key for key in grown if key[0] == "late"}
    monkeypatch.undo()
    undisturbed = recompute(spark, service.settings, packed, whole=True)
    assert (undisturbed.scored, undisturbed.taken_up) == (4 * SPAN, 0)
    assert batch_view(spark, service).keys() == grown.keys()


def test_what_a_failed_or_refused_run_has_staged_is_kept_with_its_snapshot(
    stack: Settings, spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = served(stack, spark, tmp_path)
    packed = pack_application(service.name, service.settings)
    monkeypatch.setattr(staged_predictions, "SPAN_EVENTS", PER_TASK)

    def fails(exc: Exception) -> None:
        def failing(*_: Any) -> None:
            raise exc

        with monkeypatch.context() as patched:
            patched.setattr(refusals, "check_share", failing)
            with pytest.raises(type(exc)):
                recompute(spark, service.settings, packed)
        late = {f"late-{exc}": to_json(digit_event(f"late-{exc}", image()))}
        archive(spark, service, late, first_offset=4 * SPAN + len(str(exc)))
        at = f"TIMESTAMP '{datetime.now(UTC) + timedelta(hours=2):%Y-%m-%d %H:%M:%S}'"
        table = f"{service.name}.events"
        spark.sql(f"CALL lake.system.expire_snapshots(table => '{table}', older_than => {at}, retain_last => 1)")
        assert staged(spark, service) == 4 * SPAN

    fails(NotReady("a"))
    fails(TooManyRefused("ab"))
    published = recompute(spark, service.settings, packed)
    assert (published.taken_up, published.offsets) == (4 * SPAN, {0: 4 * SPAN})
    assert staged(spark, service) == 0


@pytest.mark.long
def test_what_nobody_can_take_up_is_removed(
    stack: Settings, spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = served(stack, spark, tmp_path)
    packed, scoring = pack_application(service.name, service.settings), recomputation._scored

    def break_off(spans: int) -> None:
        calls = list[int]()

        def broken_off(*arguments: Any) -> DataFrame:
            calls.append(1)
            if len(calls) > spans:
                raise KeyboardInterrupt
            return scoring(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(staged_predictions, "SPAN_EVENTS", PER_TASK)
            patched.setattr(recomputation, "_scored", broken_off)
            with pytest.raises(KeyboardInterrupt):
                recompute(spark, service.settings, packed)
        assert staged(spark, service) == spans * SPAN

    def tags() -> set[str]:
        return {row.name for row in spark.sql(f"SELECT name FROM lake.{service.name}.events.refs").collect()} - {"main"}

    break_off(2)
    assert "staged predictions" not in upkeep.maintain(spark, service.settings, service.name).objects, "it is of today"
    assert tags() == {f"staged-1-None-{service.settings.event_limit_bytes}"}
    with monkeypatch.context() as patched:
        patched.setattr(upkeep, "now", lambda: datetime.now(UTC) + timedelta(days=8))
        freed = upkeep.maintain(spark, service.settings, service.name, orphans=False)
    assert freed.objects["staged predictions"] == 2 * SPAN
    assert staged(spark, service) == 0
    assert tags() == set()

    break_off(1)
    service.promote(service.publish(model_of(2)))
    published = recompute(spark, service.settings, packed)
    assert (published.version, published.taken_up, published.rows) == (2, 0, 4 * SPAN - 2)
    assert staged(spark, service) == 0
    files = spark.sql(f"SELECT * FROM lake.{service.name}.staged_predictions.all_files").count()
    assert files == 0, "its files are gone as well"
    assert tags() == set()
