"""How good the examples are, in one process and without a stack: `python -m examples.measure`, or of one alone
`python -m examples.measure digits --seeds 3`, which trains each of its four architectures.

It reads the application's sources as ingest does, with the same event ids and so the same splits, learns what `fit`
learns, and trains with the platform's own trainer, once for each seed. The figures of docs/applications.md are from it.
"""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import typer
from numpy.typing import NDArray
from pyarrow import parquet
from pydantic_core import from_json
from scipy.stats import t as student

from batch_layer.compute import best_compute
from batch_layer.rows import Rows, Window
from batch_layer.trainer import Trainer, all_hyperparameters
from deeplambda.application import Application, Choice, payload_schema
from deeplambda.config import load_settings
from deeplambda.errors import BadInput
from deeplambda.learned import decode_state, encode_state
from deeplambda.loading import pack_application
from deeplambda.objective import statistics_of
from deeplambda.records.featurizer import Featurizer
from deeplambda.sources import ByHash, BySource, Lines, Parquet, content_id
from examples.data import data_folder
from examples.published import PUBLISHED

EXAMPLES = ("digits", "sentiment", "turbofan", "fraud")
_BATCH_ROWS = 2000
_DAY_US = 24 * 60 * 60 * 1_000_000
Split = tuple[pa.Table, NDArray[Any]]
"""Payloads of N rows with the columns `label` and `event_id`, and their labels as the objective takes them."""


def read(application: Application, folder: Path) -> dict[str, Split]:
    """The rows of each split. Of the platform's readers it knows Lines and Parquet, and raw sources."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for source in application.sources:
        for row, by in _rows(application, source, folder):
            split = getattr(source, "split", None) or application.splits.split_of(row["event_id"], by)
            if split is not None:
                rows.setdefault(split, []).append(row)
    columns = [*payload_schema(application.event), ("label", pa.string()), ("event_id", pa.string())]
    return {
        split: (
            pa.Table.from_pylist([row | {"label": str(row["label"])} for row in found], schema=pa.schema(columns)),
            application.objective.label_array([row["label"] for row in found]),
        )
        for split, found in rows.items()
    }


def _rows(application: Application, source: Any, folder: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    """Each row, and what its split is made by where that is a column of the source."""
    if isinstance(source, Lines):
        for line in (folder / source.path).read_text(encoding="utf-8").split("\n"):
            if line.strip():
                payload = {source.column: line}
                yield payload | {"label": source.label, "event_id": content_id(payload, source.label)}, None
    elif isinstance(source, Parquet):
        import pandas as pd

        table = pd.read_parquet(folder / source.path)
        times = table[application.splits.column]
        fields = {name: table[source.columns.get(name, name)] for name in payload_schema(application.event).names}
        fields = {name: of.dt.tz_localize("UTC") if of.dtype.kind == "M" else of for name, of in fields.items()}
        fields |= {"label": table[source.label].astype(str), "event_id": table[source.event_id].astype(str)}
        columns = [of.tolist() for of in fields.values()]
        for time_of_row, *values in zip(times.tolist(), *columns, strict=True):
            yield dict(zip(fields, values, strict=True)), time_of_row
    else:
        raw = {name: (folder / name).read_bytes() for name in source.objects}
        assert isinstance(application.splits, BySource)
        for row in application.examples(source, raw):
            yield row, None


def featurized(application: Application, splits: dict[str, Split]) -> dict[str, Rows]:
    """Features and labels of each split. What `fit` learned goes through the form that it is stored in."""
    state = None
    if type(application).fit is not Application.fit:
        batches = iter(splits["train"][0].drop_columns("event_id").to_batches(_BATCH_ROWS))
        state = decode_state(application.fit, encode_state(application.fit(batches)))
    featurizer = Featurizer(application, code_version="measured", state=state)
    names = payload_schema(application.event).names
    found = {}
    for split, (table, labels) in splits.items():
        batches = table.select(names).combine_chunks().to_batches(_BATCH_ROWS)
        pieces = [featurizer.features(batch) for batch in batches]
        found[split] = Rows.of({name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}, labels)
    return found


def folded(splits: dict[str, Split], folds: int) -> Iterator[dict[str, Split]]:
    """All rows together, divided `folds` times into test, each row once, and train: how Kim (2014) judges."""
    table, labels = pa.concat_tables(of for of, _ in splits.values()), np.concatenate([of for _, of in splits.values()])
    fold_N = np.random.default_rng(0).permutation(len(labels)) % folds
    for fold in range(folds):
        chosen = {"train": fold_N != fold, "test": fold_N == fold}
        yield {split: (table.filter(pa.array(rows_N)), labels[rows_N]) for split, rows_N in chosen.items()}


def trained(application: Application, rows: dict[str, Rows], overrides: dict[str, Any]) -> Trainer:
    """A model after the last epoch."""
    hyperparameters = all_hyperparameters(application, overrides)
    trainer = Trainer(application, hyperparameters, best_compute())
    trainer.know_labels(statistics_of(application.objective, rows["train"].labels_N.numpy()))
    for epoch in range(1, hyperparameters["epochs"] + 1):
        trainer.train_epoch(epoch, [Window.whole(rows["train"])], lambda: len(rows["train"]))
    return trainer


def card_precision(test: pa.Table, outputs_NC: NDArray[np.float32], top: int = 100) -> float:
    """Of the `top` customers whose payments look worst on a day, the share with a fraud that day; the days' mean.

    A customer whose fraud was found is not looked at on later days. Source: the Fraud Detection Handbook, chapter 4.
    """
    table = test.select(["customer"]).to_pandas()
    table["fraud"] = [label == "1" for label in test["label"].to_pylist()]
    table["score"] = outputs_NC[:, 1] - outputs_NC[:, 0]
    found: set[int] = set()
    shares = []
    for _, day in table.groupby(_days(test)):
        worst = day[~day.customer.isin(found)].groupby("customer")[["score", "fraud"]].max().nlargest(top, "score")
        shares.append(worst.fraud.sum() / top)
        found |= set(worst.index[worst.fraud])
    return float(np.mean(shares))


def _days(test: pa.Table) -> NDArray[np.int64]:
    return test["paid_at"].cast(pa.int64()).to_numpy() // _DAY_US


def not_yet_known(test: pa.Table, folder: Path) -> NDArray[np.bool_]:
    """Which of N test payments the Handbook judges by: not those of customers whose fraud has come to light.

    A fraud comes to light after a week. Source: the Fraud Detection Handbook, `get_train_test_set`.
    """
    payments = parquet.read_table(folder / "transactions.parquet", columns=["TX_DATETIME", "CUSTOMER_ID", "TX_FRAUD"])
    frauds = payments.filter(pc.field("TX_FRAUD") == 1).to_pandas()
    frauds["day"] = frauds.TX_DATETIME.astype("datetime64[us]").astype("int64") // _DAY_US
    tested, days = test.select(["customer"]).to_pandas(), _days(test)
    learned_from = days.min() - 14
    kept_N = np.ones(len(tested), dtype=bool)
    for day in np.unique(days):
        in_light = frauds.day.between(learned_from, day - 8)
        kept_N &= ~((days == day) & tested.customer.isin(frauds.CUSTOMER_ID[in_light]).to_numpy())
    return kept_N


def _as_the_handbook(trainer: Trainer, rows: Rows, test: pa.Table, folder: Path) -> dict[str, dict[str, float]]:
    """Card precision on all rows, and all metrics on those that the Handbook judges by."""
    (features,) = rows.features.values()
    with torch.inference_mode():
        outputs_NC = trainer.model(features).numpy()
    kept_N = not_yet_known(test, folder)
    metrics = trainer.evaluate([rows.chosen(torch.tensor(np.flatnonzero(kept_N)))])
    metrics["card_precision_100"] = card_precision(test.filter(pa.array(kept_N)), outputs_NC[kept_N])
    return {"fraud": {"card_precision_100": card_precision(test, outputs_NC)}, "fraud (Handbook)": metrics}


@dataclass(frozen=True)
class Line:
    """A line of the table. label: the application, with its architecture or rows where it has several."""

    label: str
    parameters: int
    metric: str
    figures: tuple[float, ...]


def measured(name: str, seeds: int, overrides: Mapping[str, Any], split: str, folds: int = 0) -> Iterator[Line]:
    """An example's figures on `split`, one for each seed or fold. It prints each training's as they come."""
    application = pack_application(name, load_settings()).load()
    folder, origin = data_folder(name)
    print(f"{name}: {origin}")
    splits = read(application, folder)
    if split not in splits:
        raise BadInput(f"{name} has no split {split!r}", f"choose from {', '.join(splits)}")
    if folds and split != "test":
        raise BadInput(f"--split {split} with --folds", "leave one out: each fold is the test rows once")
    if folds and not isinstance(application.splits, ByHash):
        raise BadInput(f"{name} cannot be judged by folds", "leave --folds out: its splits are not drawn by chance")
    print(", ".join(f"{split} {len(labels)} rows" for split, (_, labels) in splits.items()), flush=True)
    whole = None if folds else featurized(application, splits)
    choice = application.search_space.get("architecture")
    several = choice.values if isinstance(choice, Choice) and "architecture" not in overrides else (None,)
    for architecture in several:
        chosen = dict(overrides) | ({"architecture": architecture} if architecture else {})
        named = chosen.get("architecture")
        label = f"{name} {named}" if named else name
        figures: dict[tuple[str, str], list[float]] = {}
        for seed, division in enumerate(folded(splits, folds) if folds else [splits] * seeds):
            rows = whole or featurized(application, division)
            started, cpu_started = time.monotonic(), time.process_time()
            trainer = trained(application, rows, chosen | {"seed": seed})
            found = {label: trainer.evaluate([rows[split]])}
            took = f"{time.monotonic() - started:.0f} s, {time.process_time() - cpu_started:.0f} s of CPU"
            if name == "fraud":
                for rows_of, metrics in _as_the_handbook(trainer, rows[split], splits[split][0], folder).items():
                    found[rows_of] = found.get(rows_of, {}) | metrics
            for of, metrics in found.items():
                text = ", ".join(f"{metric} {value:.4f}" for metric, value in metrics.items())
                print(f"{of}, seed {seed}: {text} ({took})", flush=True)
                for metric, value in metrics.items():
                    figures.setdefault((of, metric), []).append(value)
        parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
        for (of, metric), values in figures.items():
            yield Line(of, parameters, metric, tuple(values))


def interval(figures: Sequence[float]) -> str:
    """Mean and 95 % interval of the mean over seeds (Student's t)."""
    mean = statistics.mean(figures)
    if len(figures) < 2:
        return f"{mean:.4f}"
    half = student.ppf(0.975, len(figures) - 1) * statistics.stdev(figures) / len(figures) ** 0.5
    return f"{mean:.4f} ± {half:.4f}"


def table(lines: Sequence[Line], over: str = "seeds") -> str:
    """The lines beside the nearest published figure, and below them whose figures these are; 80 columns wide.

    over: what each line's figures are of.
    """
    form = "{:<17} {:>10}  {:<18} {:<17} {:>9}"
    shown = [form.format("application", "parameters", "metric", "measured", "published")]
    notes = []
    for line in lines:
        known = PUBLISHED.get((line.label, line.metric), ())
        nearest = f"{known[0].figure:.4g}" if known else ""
        shown.append(form.format(line.label, f"{line.parameters:,}", line.metric, interval(line.figures), nearest))
        notes += [f"{line.label}, {line.metric}: {each.figure:.4g} {each.by}" for each in known]
    count = max(len(line.figures) for line in lines)
    means = f"Measured: mean and 95 % interval over {count} {over}." if count > 1 else "Measured: of one seed."
    return "\n".join([*map(str.rstrip, shown), "", means, *(["Published:"] if notes else []), *map(_note, notes)])


def _note(text: str) -> str:
    return fill(text, 80, initial_indent="  ", subsequent_indent="    ")


def _overrides(given: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE, the value in JSON or else text, as `deeplambda batch train` takes it."""
    chosen: dict[str, Any] = {}
    for name, _, value in (pair.partition("=") for pair in given):
        try:
            chosen[name] = from_json(value)
        except ValueError:
            chosen[name] = value
    return chosen


def main(
    name: Annotated[str, typer.Argument(help="an example, or all")] = "all",
    seeds: Annotated[int, typer.Option(help="how many trainings, with the seeds 0, 1, …", min=1)] = 3,
    set_: Annotated[list[str] | None, typer.Option("--set", help="a hyperparameter: name=value")] = None,
    split: Annotated[str, typer.Option(help="what the model is judged by")] = "test",
    folds: Annotated[int, typer.Option(help="where splits are by hash: cross-validate on all rows instead")] = 0,
) -> None:
    """Train an example, or all of them, with several seeds; print the figures beside published ones."""
    torch.set_num_threads(1)  # so that a seed gives the same figures on any machine of one kind
    names = EXAMPLES if name == "all" else (name,)
    lines = [line for each in names for line in measured(each, seeds, _overrides(set_ or ()), split, folds)]
    print(f"\n{table(lines, 'folds' if folds else 'seeds')}")


if __name__ == "__main__":
    typer.run(main)
