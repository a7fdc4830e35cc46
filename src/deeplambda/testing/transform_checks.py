"""Checks of `fit` and `transform`. Legend: N rows."""

import time
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deeplambda.application import learns, payload_batch
from deeplambda.errors import DeepLambdaError
from deeplambda.features import BadFeatures, Features, chosen, finite_rows, row_count
from deeplambda.learned import decode_state, encode_state
from deeplambda.records.featurizer import Featurizer, bounded
from deeplambda.testing import made_up
from deeplambda.testing.labels import labels_for
from deeplambda.testing.work import Work, batch_of, tried_rows

_FIT_LIMIT_S = 10.0
_MICRO_BATCH_ROWS = 1000
_RELATIVE, _ABSOLUTE = 1e-4, 1e-5


def check_learning(work: Work) -> str:
    """`fit` on the rows, and what it returned after storage."""
    application = work.application
    state = None
    seen = "nothing is learned"
    if learns(application):
        batches = _training_batches(work)
        try:
            learned = bounded(lambda: application.fit(iter(batches)), _FIT_LIMIT_S, "fit")
        except BadFeatures as exc:
            columns = ", ".join(batches[0].schema.names)
            if "KeyError" in exc.message:
                exc = BadFeatures(exc.message, f"use the columns that its batches have: {columns}")
            raise work.blame("learning", exc, "fit") from exc
        try:
            encoded = encode_state(learned)
            state = decode_state(application.fit, encoded)
        except DeepLambdaError as exc:
            raise work.blame("learning", exc, "fit") from exc
        except Exception as exc:
            raise work.stop(
                "learning",
                f"what fit returned does not come back from storage: {type(exc).__name__}: {exc}",
                "return a pydantic model that is named as fit's return type, JSON values, a table or arrays by name",
                "fit",
            ) from exc
        seen = f"{len(encoded.content):,} bytes as {encoded.format}"
    work.featurizer = Featurizer(application, code_version="check", state=state)
    return seen


def _training_batches(work: Work) -> list[pa.RecordBatch]:
    """As prepare gives them: the payload and `label`, in two batches."""
    labels = pa.array([str(label) for label in labels_for(work.application, work.rows)], pa.string())
    whole = batch_of(work.application, work.rows)
    table = pa.Table.from_batches([whole]).append_column("label", labels)
    batches: list[pa.RecordBatch] = table.to_batches(max_chunksize=max(1, len(table) // 2))
    return batches


def check_transform(work: Work) -> str:
    """Shapes, edges, and equal results in any batch."""
    whole = batch_of(work.application, tried_rows(work))
    started = time.monotonic()
    features = _features(work, whole, "the sampled rows" if work.sample else "made-up rows")
    row_s = (time.monotonic() - started) / whole.num_rows
    work.batch, work.features = whole, features
    if not finite_rows(features, whole.num_rows).all():
        raise work.stop(
            "transform",
            "a feature is NaN or infinite: events like that are refused",
            "let transform fill what is missing, or let the schema refuse it",
            "transform",
        )
    differ = work.sample is not None and len(set(map(repr, whole.to_pylist()))) > 1
    if differ and all(_are_alike(each) for each in features.values()):
        work.find(
            "transform",
            f"all features are the same for each of {whole.num_rows} sampled rows, which are not alike",
            "look at what transform makes of the columns",
            "transform",
        )
    limit_s = work.application.transform_limit_s
    if row_s * _MICRO_BATCH_ROWS > limit_s:
        work.find(
            "transform",
            f"transform takes {row_s * 1e3:.0f} ms a row: {_MICRO_BATCH_ROWS:,} events take "
            f"{row_s * _MICRO_BATCH_ROWS:.0f} s, and it is ended after {limit_s:g} s",
            "work on whole columns instead of single rows, or raise transform_limit_s",
            "transform",
        )
        return ""
    if not _check_unchanged(work, whole) or not _check_repeats(work, whole, features):
        return ""
    _check_batches(work, whole, features)
    _check_edges(work)
    return f"{_listed(features)}; {row_s * 1e6:,.0f} µs a row"


def _are_alike(rows: NDArray[Any]) -> bool:
    return bool((rows == rows[:1]).all())


def _features(work: Work, batch: pa.RecordBatch, of: str) -> Features:
    try:
        return work.featurizer.features(batch)
    except BadFeatures as exc:
        wrong_rows = f" on {of}" if "raised" in exc.message else ""
        raise work.blame("transform", BadFeatures(exc.message + wrong_rows, exc.remedy), "transform") from exc


def _check_unchanged(work: Work, batch: pa.RecordBatch) -> bool:
    """Whether batch and learned state are as before: a changed one would leak from event to event."""
    before = batch.to_pylist()
    arguments = work.featurizer._arguments
    states = [encode_state(state).content for state in arguments]
    _features(work, batch, "rows")
    if batch.to_pylist() != before:
        work.find(
            "transform", "transform changes the batch that it is given", "work on a copy of the column", "transform"
        )
        return False
    if [encode_state(state).content for state in arguments] != states:
        work.find(
            "transform",
            "transform changes what fit learned: an event would depend on those before it",
            "leave the state as it is",
            "transform",
        )
        return False
    return True


def _check_repeats(work: Work, batch: pa.RecordBatch, features: Features) -> bool:
    if differing := _differing(features, _features(work, batch, "rows")):
        work.find(
            "transform",
            f"transform gives other {differing} for the same events the second time",
            "take randomness, clock and memory of earlier calls out of it; `augment` is for random changes",
            "transform",
        )
        return False
    return True


def _check_batches(work: Work, batch: pa.RecordBatch, features: Features) -> None:
    """One by one, in pieces, and in another order: a row's features must not depend on the rows beside it."""
    count = batch.num_rows
    order = np.random.default_rng(0).permutation(count)
    remedy = "compute each row from that row alone; what depends on many rows is for fit to learn"
    for wanted, pieces, how in (
        (features, [batch.slice(n, 1) for n in range(count)], "alone"),
        (features, [batch.slice(n, 7) for n in range(0, count, 7)], "in a smaller batch"),
        (chosen(features, order), [batch.take(pa.array(order))], "in another order"),
    ):
        try:
            found = _joined([work.featurizer.features(piece) for piece in pieces])
        except BadFeatures as exc:
            raise work.blame("transform", BadFeatures(f"{exc.message} for events {how}", remedy), "transform") from exc
        if differing := _differing(wanted, found):
            work.find(
                "transform",
                f"transform gives other {differing} for an event {how} than among others",
                remedy,
                "transform",
            )
            return


def _joined(pieces: list[Features]) -> Features:
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _check_edges(work: Work) -> None:
    schema = work.application.event
    fields: set[str] = set()
    for name, value, event in made_up.edges(schema, work.rows[0].event):
        if name in fields:
            continue
        try:
            found = work.featurizer.features(payload_batch(schema, [event]))
        except (BadFeatures, pa.ArrowException, OverflowError, UnicodeEncodeError) as exc:
            said = exc.message if isinstance(exc, BadFeatures) else f"no column holds it: {exc}"
            fields.add(name)
            raised = BadFeatures(
                f"with {name}={_short(value)}, {said}",
                "give features for it, or let the schema refuse it" + _constraint(value),
            )
            work.report.findings.append(work.blame("transform", raised, "transform").finding)
            continue
        if not finite_rows(found, 1).all():
            fields.add(name)
            work.find(
                "transform",
                f"with {name}={_short(value)}, a feature is NaN or infinite",
                "give a finite feature for it, or let the schema refuse it" + _constraint(value),
                "transform",
            )
        else:
            work.edges.append((name, _short(value), found))


def _constraint(value: Any) -> str:
    if value is None:
        return ": without `| None`"
    if isinstance(value, (str, bytes, list)):
        return ": Field(min_length=1)" if not value else ": Field(max_length=...)"
    return ": Field(ge=..., le=...)" if isinstance(value, (int, float)) else ""


def _differing(wanted: Features, found: Features) -> str | None:
    for name, array in wanted.items():
        if found[name].shape != array.shape or not _close(array, found[name]):
            return repr(name)
    return None


def _close(one: NDArray[Any], other: NDArray[Any]) -> bool:
    if one.dtype.kind == "f":
        return bool(np.allclose(one, other, rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True))
    return bool(np.array_equal(one, other))


def _listed(features: Features) -> str:
    rows = row_count(features)
    return (
        ", ".join(
            f"{name} {array.dtype} {('N', *array.shape[1:])}".replace("'", "") for name, array in features.items()
        )
        + f" of {rows} rows"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:30]}… ({len(value) if hasattr(value, '__len__') else len(text)} long)"
