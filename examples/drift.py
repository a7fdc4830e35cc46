"""What drift detection says of the examples' own changes over time: `python -m examples.drift`, without a stack.

| application | learned and judged | streamed after that |
|---|---|---|
| fraud | the first week of payments; its last two days judge | six weeks in their order; shuffled |
| turbofan | half of the training engines; the test engines judge | the other half by flight; by engine; shuffled |

Windows are those of the monitor, with the same reference and detectors; labels are known at once. The figures of
docs/loop.md are from it.
"""

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from batch_layer.drift import THRESHOLD, Detector, compared, named, worsened
from batch_layer.reference import columns_of, made_reference
from batch_layer.summaries import Column, Histogram, Reference
from deeplambda.application import Application, payload_schema
from examples.data import data_folder
from examples.fraud.application import Fraud
from examples.fraud_story import TEST_DAYS, Payments
from examples.measure import Split, featurized, read, trained
from examples.turbofan.application import Turbofan

Order = tuple[str, NDArray[np.int64], Callable[[int], str]]
"""What an order is called, the streamed rows in it, and where in it a row is."""


def fraud() -> tuple[Application, dict[str, Split], list[Order]]:
    """The rows by what is done with them, and the orders in which those of `live` are streamed."""
    folder, _ = data_folder("fraud")
    found = Payments.read(folder, 1, 7)
    days_N, application = found.days_N, Fraud()
    payload = found.payload.cast(payload_schema(application.event), safe=False)
    rows = payload.append_column("label", pa.array(found.frauds.astype(str)))
    rows = rows.append_column("event_id", pa.array(found.ids))

    def of(first: int, end: int) -> Split:
        chosen_N = (days_N >= first) & (days_N < end)
        return rows.filter(pa.array(chosen_N)), found.frauds[chosen_N]

    live_N = days_N[days_N >= 7]
    ordered = np.arange(len(live_N))
    splits = {"train": of(0, 7 - TEST_DAYS), "test": of(7 - TEST_DAYS, 7), "live": of(7, 49)}
    orders = [
        ("in their order", ordered, lambda n: f"week {live_N[n] // 7 + 1}"),
        ("shuffled", _shuffled(ordered), str),
    ]
    return application, splits, orders


def turbofan() -> tuple[Application, dict[str, Split], list[Order]]:
    """As `fraud`."""
    application = Turbofan()
    splits = read(application, data_folder("turbofan")[0])
    table, labels = splits["train"]
    engine_N = np.array([int(name.removeprefix("train-")) for name in table["engine"].to_pylist()])
    flight_N = np.array([int(name.rpartition("-")[2]) for name in table["event_id"].to_pylist()])
    learned_N = engine_N <= np.median(np.unique(engine_N))
    flights = flight_N[~learned_N]
    splits = {
        "train": (table.filter(pa.array(learned_N)), labels[learned_N]),
        "test": splits["test"],
        "live": (table.filter(pa.array(~learned_N)), labels[~learned_N]),
    }
    fleet_N, one_by_one = np.argsort(flights, kind="stable"), np.arange(len(flights))
    orders: list[Order] = [
        ("as a fleet", fleet_N, lambda n: f"flight {flights[fleet_N[n]]}"),
        ("one engine after another", one_by_one, str),
        ("shuffled", _shuffled(one_by_one), str),
    ]
    return application, splits, orders


def main() -> None:
    """Print a line for each application, order and kind of drift."""
    torch.set_num_threads(1)
    for told in (fraud, turbofan):
        application, splits, orders = told()
        rows = featurized(application, splits)
        model = trained(application, rows, {}).model.cpu().eval()
        names = payload_schema(application.event).names
        of = {
            split: columns_of(application, table.select(names).combine_chunks().to_batches()[0], rows[split], model)
            for split, (table, _) in splits.items()
        }
        reference = made_reference("test", len(rows["test"]), of["test"])
        print(f"{application.name}: judged by {len(rows['test']):,} rows, {len(rows['live']):,} streamed", flush=True)
        for order, rows_N, place in orders:
            for what, columns in of["live"].items():
                said = _said(reference, what, columns, rows_N, application.drift_window, place)
                print(f"  {order}, {what}: {said}", flush=True)


def _said(
    reference: Reference,
    what: str,
    columns: Mapping[str, Column],
    rows_N: NDArray[np.int64],
    window: int,
    place: Callable[[int], str],
) -> str:
    """What the monitor would say of the rows in an order."""
    known: Mapping[str, Histogram] = getattr(reference, what)
    detector, highest, alarms, standing, fields = Detector(), 0.0, list[str](), 0, Counter[str]()
    windows = len(rows_N) // window
    for n in range(windows):
        of_window = {name: column[rows_N[n * window : (n + 1) * window]] for name, column in columns.items()}
        told = compared(known, of_window)
        if what == "accuracy":
            told = [each for each in told if worsened(known[each.field], of_window[each.field])]
        if detector.take(np.array([each.p for each in told] or [1.0])):
            alarms.append(place((n + 1) * window - 1))
            fields.update(each.field for each in named(told))
        standing += detector.drifted
        highest = max(highest, detector.value)
    if not alarms:
        return f"no alarm in {windows:,} windows, the detector at most at {highest:,.0f} of {THRESHOLD:,.0f}"
    often = ", ".join(f"{name} ({times})" for name, times in fields.most_common(5))
    return (
        f"{len(alarms)} alarms, the first at {alarms[0]}; one stood in {standing:,} of {windows:,} windows; by {often}"
    )


def _shuffled(rows_N: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.random.default_rng(0).permutation(rows_N)


if __name__ == "__main__":
    main()
