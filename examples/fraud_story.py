"""The closed loop over weeks of card payments, on the real stack: `make story-fraud`.

A model learns the first week. The payments of later weeks are streamed in their order; a week's labels arrive seven
days late, and with them a generation begins, trains, is judged and promoted or rejected by itself. At the end stands
each day's average precision beside that of the first model, had nobody ever trained anew. The payments are those of a
share of the terminals, so that each terminal's past is whole. Nobody waits for the clock: a week is over once it is
scored.
"""

import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import typer
from numpy.typing import NDArray
from pyarrow import parquet
from pydantic_core import from_json, to_json
from rich.bar import Bar
from rich.table import Table
from scipy.stats import ttest_rel
from sklearn.metrics import average_precision_score
from sqlalchemy import Integer, func, select, type_coerce

from batch_layer.recompute import answered
from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.model_service import ModelClient
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import payload_schema
from deeplambda.config import Settings, find_data_dir
from deeplambda.errors import ConfigurationError, DeepLambdaError
from deeplambda.records import topics
from deeplambda.state import registry
from deeplambda.state.generation_store import listed
from deeplambda.state.tables import DRIFT_WINDOWS, REALTIME_PREDICTIONS
from deeplambda.state.versions import fetch_model, load_code
from examples.chronicle import Lifecycle, Story, fresh_stack
from examples.data import data_folder
from examples.demo import console, deeplambda

APPLICATION = "fraud"
TEST_DAYS = 2
"""The first week's last ones are the test split: fewer have too few frauds to judge a model by."""
MARGIN = 0.05
"""Of average precision: on the few frauds of two days, equal runs with other seeds differ by so much."""
_PUBLISHED_SPLITS = 'train=("2018-07-25", "2018-08-01"), test=("2018-08-08", "2018-08-15")'
_DAY_S, _AT_ONCE = 86_400, 5_000


@dataclass(frozen=True, kw_only=True)
class Payments:
    """Rows in the order of time, from midnight of the day `begin`. days_N: since then."""

    rows: pa.Table
    days_N: NDArray[np.int64]
    begin: datetime

    @classmethod
    def read(cls, folder: Path, share: float, weeks: int) -> "Payments":
        """The first weeks at a share of the terminals, drawn with a seed. Raises: ConfigurationError."""
        found = parquet.read_table(folder / "transactions.parquet").sort_by("TX_DATETIME")
        terminals = np.unique(found["TERMINAL_ID"].to_numpy())
        chosen = np.random.default_rng(0).permutation(terminals)[: max(1, round(len(terminals) * share))]
        found = found.filter(pc.is_in(found["TERMINAL_ID"], pa.array(chosen)))
        days_N = found["TX_DATETIME"].to_numpy().astype("datetime64[D]").astype(np.int64)
        first, kept_N = int(days_N[0]), days_N - days_N[0] < 7 * weeks
        if days_N[-1] - first + 1 < 7 * weeks:
            raise ConfigurationError(
                f"the story takes {weeks} weeks, and {folder} has {days_N[-1] - first + 1} days",
                "set DEEPLAMBDA_TRANSACTIONS_DIR to a folder with the whole file, or take fewer --weeks",
            )
        begin = datetime.fromtimestamp(first * _DAY_S, UTC)
        return cls(rows=found.filter(pa.array(kept_N)), days_N=days_N[kept_N] - first, begin=begin)

    def week(self, number: int) -> "Payments":
        """Those of one week, from 0."""
        of_week_N = self.days_N // 7 == number
        return Payments(rows=self.rows.filter(pa.array(of_week_N)), days_N=self.days_N[of_week_N], begin=self.begin)

    @property
    def ids(self) -> list[str]:
        """The events' ids."""
        return [str(number) for number in self.rows["TRANSACTION_ID"].to_pylist()]

    @property
    def payload(self) -> pa.Table:
        """As the application's event has it."""
        names = {"TX_DATETIME": "paid_at", "CUSTOMER_ID": "customer", "TERMINAL_ID": "terminal", "TX_AMOUNT": "amount"}
        return self.rows.select(list(names)).rename_columns(list(names.values()))

    @property
    def frauds(self) -> NDArray[np.int64]:
        """1 for each that was one."""
        return self.rows["TX_FRAUD"].to_numpy().astype(np.int64)


def write_application(folder: Path, begin: datetime) -> None:
    """The example's code, whose examples are the first week."""
    code, week = (Path(__file__).parent / APPLICATION / "application.py").read_text(), begin + timedelta(days=7)
    test, name = week - timedelta(days=TEST_DAYS), '    name = "fraud"'
    splits = f'train=("{begin:%Y-%m-%d}", "{test:%Y-%m-%d}"), test=("{test:%Y-%m-%d}", "{week:%Y-%m-%d}")'
    (folder / APPLICATION).mkdir(parents=True, exist_ok=True)
    (folder / APPLICATION / "application.py").write_text(
        code.replace(_PUBLISHED_SPLITS, splits).replace(name, f"{name}\n    margin = {MARGIN}")
    )


def main(
    share: Annotated[float, typer.Option(help="of the terminals", min=0.01, max=1)] = 0.25,
    weeks: Annotated[int, typer.Option(help="the first one among them", min=4, max=7)] = 7,
) -> None:
    """Tell the story; exit code 1 when a promise is not kept."""
    started_s, place = time.monotonic(), find_data_dir() / "story-fraud"
    folder, said = data_folder(APPLICATION)
    payments = Payments.read(folder, share, weeks)
    console.print(f"[bold]payments[/]: {said}; {len(payments.days_N):,} at {share:.0%} of the terminals")
    applications = find_data_dir() / "story-fraud-code"
    write_application(applications, payments.begin)
    environment = {
        "DEEPLAMBDA_APPLICATIONS": to_json([APPLICATION]).decode(),
        "DEEPLAMBDA_APPLICATIONS_DIR": str(applications),
        "DEEPLAMBDA_GENERATIONS": "true",
        "DEEPLAMBDA_GENERATION_LABELS": str(np.bincount(payments.days_N // 7).min() * 9 // 10),
        "DEEPLAMBDA_GENERATION_DRIFT_LABELS": str(len(payments.days_N)),  # so that no drift starts one before
        "DEEPLAMBDA_GENERATION_EVERY_S": "0",
        "DEEPLAMBDA_GENERATION_PAUSE_S": "0",
    }
    parts = ("archive", "generations", "model", "stream", "views")
    with fresh_stack(place, *parts, **environment) as settings, Lifecycle(settings) as lifecycle:
        story = Story(settings)
        first = _told(story, lifecycle, payments, weeks)
        _shown(story, payments, first)
    console.print(f"told in {(time.monotonic() - started_s) / 60:.1f} minutes")
    if not all(story.held.values()):
        raise typer.Exit(1)


def _told(story: Story, lifecycle: Lifecycle, payments: Payments, weeks: int) -> int:
    """Week after week; the first version."""
    settings, raw = story.settings, story.settings.data_dir / "raw"
    console.rule("[bold]the first week is learned")
    raw.mkdir(parents=True, exist_ok=True)
    parquet.write_table(payments.week(0).rows, raw / "transactions.parquet")
    deeplambda("data", "put", APPLICATION, str(raw))
    deeplambda("batch", "run", APPLICATION)
    first = _champion(settings)
    for week in range(1, weeks):
        console.rule(f"[bold]week {week + 1}, by version {_served(story)}")
        _send(settings, payments.week(week))
        sent = int((payments.days_N // 7 <= week).sum() - (payments.days_N < 7).sum())
        scored = story.until(lambda: _scored(settings), sent)
        console.print(f"{sent:,} payments sent so far, {scored:,} scored")
        if week in (1, weeks - 1):
            continue  # no label of the stream is known before its payments are seven days old; the last week is the end
        since = lifecycle.position
        _label(settings, payments.week(week - 1))
        ended = lifecycle.wait("GenerationEnded", patience_s=1_800, since=since)
        story.tell(f"generation {ended['number']} {ended['state']}: {ended['verdict']}")
    with mysql.engine(settings, "platform").connect() as connection:
        causes = [each.cause for each in listed(connection, APPLICATION)]
    story.promise("the labels of each week start a generation by themselves", causes == ["labels"] * (weeks - 3))
    return first


def _send(settings: Settings, payments: Payments) -> None:
    with Publisher(settings) as publisher:
        for n, (event_id, row) in enumerate(zip(payments.ids, payments.payload.to_pylist(), strict=True), 1):
            paid_at = row["paid_at"].replace(tzinfo=UTC)
            event = row | {"event_id": event_id, "occurred_at": paid_at, "paid_at": paid_at}
            publisher.send(topics.events(APPLICATION), event_id, event)
            if n % _AT_ONCE == 0:
                publisher.flush()


def _label(settings: Settings, payments: Payments) -> None:
    with Publisher(settings) as publisher:
        for event_id, fraud in zip(payments.ids, payments.frauds.tolist(), strict=True):
            publisher.send(topics.labels(APPLICATION), event_id, {"event_id": event_id, "label": str(fraud)})


def _champion(settings: Settings) -> int:
    with mysql.engine(settings, "platform").connect() as connection:
        card = registry.champion(connection, APPLICATION)
    return card.version if card else 0


def _served(story: Story) -> int:
    """The champion, once the model service serves it."""
    client, champion = ModelClient(story.settings, APPLICATION), _champion(story.settings)
    if not story.until(lambda: client.serving() == champion, True, patience_s=120):
        raise TimeoutError(f"{APPLICATION}/{champion} is the champion, and is not served")
    return champion


def _scored(settings: Settings) -> int:
    with mysql.engine(settings, "platform").connect() as connection:
        return int(connection.scalar(select(func.count()).select_from(REALTIME_PREDICTIONS)) or 0)


def _live(settings: Settings) -> Mapping[str, tuple[float, int]]:
    """By event, the probability of a fraud that the stream gave, and the version."""
    table = REALTIME_PREDICTIONS.c
    with mysql.engine(settings, "platform").connect() as connection:
        rows = connection.execute(select(table.event_id, table.scores, table.model_version)).all()
    return {row.event_id: (from_json(row.scores)["1"], row.model_version) for row in rows}


def _by(settings: Settings, version: int, payments: Payments) -> NDArray[np.float64]:
    """The probabilities that a version gives."""
    with mysql.engine(settings, "platform").connect() as connection:
        card = registry.published_card(connection, APPLICATION, version)
    store = ObjectStore(settings)
    code = load_code(store, settings, card)
    model = fetch_model(store, code.application, card)
    payload = payments.payload.cast(payload_schema(code.application.event), safe=False).combine_chunks()
    torch.set_num_threads(1)
    found = (
        answered(model, code.application.objective, code.featurizer.features(batch))
        for batch in payload.to_batches(_AT_ONCE)
    )
    return np.array([scores["1"] for each in found for scores in each.scores_N if scores], float)


def _shown(story: Story, payments: Payments, first: int) -> None:
    """The table, the plot and the promises."""
    settings, live = story.settings, _live(story.settings)
    streamed_N = payments.days_N >= 7
    streamed = Payments(
        rows=payments.rows.filter(pa.array(streamed_N)), days_N=payments.days_N[streamed_N], begin=payments.begin
    )
    story.promise("each payment is scored once", live.keys() == set(streamed.ids))
    said = np.array([live.get(each, (0.0, 0))[0] for each in streamed.ids])
    versions = np.array([live.get(each, (0.0, 0))[1] for each in streamed.ids])
    unchanged, frauds_N = _by(settings, first, streamed), streamed.frauds
    table = Table("day", "payments", "frauds", "version", "average precision", f"of version {first}")
    plot = Table(title="average precision by day: as it was, and never retrained", box=None, show_header=False)
    by_week: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for day in np.unique(streamed.days_N):
        of_day_N = streamed.days_N == day
        if not frauds_N[of_day_N].any():
            continue
        both = tuple(average_precision_score(frauds_N[of_day_N], each[of_day_N]) for each in (said, unchanged))
        by_week[int(day) // 7].append((float(both[0]), float(both[1])))
        date = f"{payments.begin + timedelta(days=int(day)):%Y-%m-%d}"
        served = ", ".join(map(str, np.unique(versions[of_day_N])))
        table.add_row(date, f"{of_day_N.sum():,}", str(frauds_N[of_day_N].sum()), served, *(f"{n:.3f}" for n in both))
        for name, figure in zip((date, ""), both, strict=True):
            plot.add_row(name, Bar(1, 0, figure, width=50), f"{figure:.3f}")
    console.print(table)
    console.print(plot)
    for week, days in by_week.items():
        ours, theirs = np.mean(days, axis=0)
        story.tell(f"week {week + 1}: {ours:.3f} on the mean day; never retrained, {theirs:.3f}")
    later = np.array([each for week, days in by_week.items() if week > 2 for each in days])
    p = ttest_rel(later[:, 0], later[:, 1]).pvalue
    story.tell(
        f"from the first generation on, {later[:, 0].mean():.3f} beside {later[:, 1].mean():.3f}; better on "
        f"{(later[:, 0] > later[:, 1]).sum()} of {len(later)} days, paired t-test p = {p:.1e}"
    )
    story.promise(
        "the weeks after the first generation are better than without", later[:, 0].mean() > later[:, 1].mean()
    )
    windows = DRIFT_WINDOWS.c
    with mysql.engine(settings, "platform").connect() as connection:
        counted = select(
            windows.what, func.count().label("all"), func.sum(type_coerce(windows.drifted, Integer)).label("alarms")
        )
        for row in connection.execute(counted.group_by(windows.what)):
            story.tell(f"drift of {row.what}: an alarm stood in {row.alarms} of {row.all} windows")


if __name__ == "__main__":
    try:
        typer.run(main)
    except (DeepLambdaError, TimeoutError) as exc:
        console.print(f"[red]{exc}")
        sys.exit(1)
    except subprocess.CalledProcessError as exc:
        sys.exit(exc.returncode)  # the command has said why
