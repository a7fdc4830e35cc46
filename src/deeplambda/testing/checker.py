"""The whole contract tried on one application, in this process: no stack, no Spark.

1. Its source: the folder, the class, the event's columns, hyperparameters.
2. Its rows: sources and splits, on a sample of the raw objects when their folder is given; else made-up events.
3. What it learns, and whether that comes back from storage.
4. Its transform: shapes and dtypes, edges of each field, equal results in any batch.
5. Its model: forward, backward, a small batch learned by heart, metrics.
6. Its artefacts: safetensors and ONNX; only when nothing else is wrong, for the export takes seconds.
Each step needs the ones before it: what a finding makes meaningless is skipped.
"""

import math
import shlex
import tempfile
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json, to_jsonable_python

from deeplambda.application import Event, payload_fields, payload_row, payload_schema
from deeplambda.config import Settings, load_settings
from deeplambda.errors import DeepLambdaError
from deeplambda.loading import find_folder, pack_application
from deeplambda.records.decoding import decode_event
from deeplambda.state.card import TrainerHyperparameters
from deeplambda.testing import made_up
from deeplambda.testing.findings import Broken, Finding, Report, of_error
from deeplambda.testing.places import Places
from deeplambda.testing.sample import Row, Sample, read_sample
from deeplambda.testing.work import Work

REFUSED_SHARE = 0.05
SAME_SHARE = 0.01
MADE_UP_ROWS = 48


def check_application(application: str | Path, data: str | Path | None = None) -> Report:
    """Try an application against the whole contract. Never raises for what is wrong with it.

    application: a name, or the path of its folder. data: a folder with the raw objects, as `deeplambda data put` takes
    it; without one, events are made up from the schema. In a test of your own:

        def test_the_contract():
            assert not check_application("examples/sentiment", data="tests/rows").findings
    """
    from deeplambda.testing.model_checks import check_artefacts, check_model
    from deeplambda.testing.transform_checks import check_learning, check_transform

    report = Report(application=Path(application).name)
    try:
        folder = find_folder(str(application), load_settings())
    except DeepLambdaError as exc:
        report.findings.append(of_error("source", exc))
        return report
    work = Work(places=Places(folder), report=report)
    checks: list[tuple[str, Callable[[Work], str]]] = [
        ("source", lambda work: _check_source(work, folder)),
        ("event", _check_event),
        ("hyperparameters", _check_hyperparameters),
        ("rows", lambda work: _check_rows(work, Path(data) if data else None)),
        ("learning", check_learning),
        ("transform", check_transform),
        ("request", _check_request),
        ("model", check_model),
        ("artefacts", check_artefacts),
    ]
    needs = {"artefacts": {name for name, _ in checks}, "model": {"transform"}, "transform": {"learning"}}
    failed: set[str] = set()
    for name, check in checks:
        required = needs.get(name, set()) | {"source", "event", "rows"}
        if failed & (required - {name}) or (name == "artefacts" and report.findings):
            report.skipped.append(name)
            failed.add(name)
            continue
        before = len(report.findings)
        try:
            seen = check(work)
        except Broken as exc:
            report.findings.append(exc.finding)
            failed.add(name)
        else:
            if len(report.findings) == before:
                report.passed[name] = seen
    return report


def _check_source(work: Work, folder: Path) -> str:
    for library, file, line in work.places.heavy_imports():
        work.report.findings.append(
            Finding(
                check="source",
                problem=f"{library} is imported when the file is: each of Spark's workers would load it",
                remedy=f"import {library} within build_model",
                file=file,
                line=line,
            )
        )
    settings = load_settings()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            packed = pack_application(
                str(folder), Settings.model_construct(**{**dict(settings), "data_dir": Path(scratch)})
            )
            work.application = packed.load()
        except DeepLambdaError as exc:
            field = exc.message.partition(":")[0]
            raise work.blame("source", exc, field, "metrics" if "metric" in exc.message else "name") from exc
        except SyntaxError as exc:
            raise Broken(
                Finding(
                    check="source",
                    problem=f"it is no Python: {exc.msg}",
                    remedy="correct the line",
                    file=Path(exc.filename or "application.py").name,
                    line=exc.lineno,
                )
            ) from exc
        except Exception as exc:  # whatever a user's module raises while it is imported
            raise Broken(_of_exception(work, "source", exc)) from exc
    application = work.application
    for name in ("event", "sources", "objective", "metrics", "hyperparameters"):
        if not hasattr(application, name):
            work.find(
                "source", f"the application has no `{name}`", f"set {name} in the class", type(application).__name__
            )
    if work.report.findings and not all(hasattr(application, name) for name in ("event", "sources", "objective")):
        raise Broken(work.report.findings.pop())
    return f"{type(application).__name__}, code version {packed.code_version}"


def _of_exception(work: Work, check: str, exc: Exception) -> Finding:
    line: int | None = None
    trace = exc.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename.endswith("/application.py") and "src/deeplambda" not in (
            trace.tb_frame.f_code.co_filename
        ):
            line = trace.tb_lineno
        trace = trace.tb_next
    message = str(exc).partition("\n")[0]
    if isinstance(exc, TypeError) and "no column type" in message:
        named = message.partition(":")[0]
        file, found = work.places.of(named, named.partition(".")[2])
        problem, _, remedy = message.partition("; ")
        return Finding(check=check, problem=problem, remedy=remedy, file=file, line=found)
    if isinstance(exc, TypeError) and "abstract" in message:
        return Finding(
            check=check, problem=message, remedy="write the methods that are named", file=work.places.file, line=line
        )
    return Finding(
        check=check,
        problem=f"importing it raised {type(exc).__name__}: {message}",
        remedy="correct the line",
        file=work.places.file,
        line=line,
    )


def _check_event(work: Work) -> str:
    event = work.application.event
    schema = payload_schema(event)
    if not schema.names:
        raise work.stop(
            "event", f"{event.__name__} has no field of its own", "add the payload's fields", event.__name__
        )
    optional = [field.name for field in schema if field.nullable]
    for expected in work.application.expectations:
        if expected.measure == "nulls" and expected.field not in (None, *optional):
            work.find(
                "event",
                f"an expectation bounds the nulls of {expected.field!r}, of which there are none",
                f"name a field that may be None: {', '.join(optional) or 'there is none'}",
                "expectations",
            )
    try:
        event.model_json_schema()
    except Exception as exc:
        raise work.stop(
            "event",
            f"no JSON Schema can be made of {event.__name__}: {str(exc).partition(chr(10))[0]}",
            "annotate the field with WithJsonSchema",
            event.__name__,
        ) from exc
    return ", ".join(f"{each.name} {each.type}{' or none' if each.nullable else ''}" for each in schema)


def _check_hyperparameters(work: Work) -> str:
    application = work.application
    given = dict(application.hyperparameters)
    try:
        TrainerHyperparameters.model_validate({"seed": 0} | given)
    except ValidationError as exc:
        for error in exc.errors(include_url=False):
            name = ".".join(map(str, error["loc"]))
            missing = error["type"] == "missing"
            work.find(
                "hyperparameters",
                f"hyperparameters lacks {name!r}" if missing else f"hyperparameter {name!r}: {error['msg']}",
                f"give {name!r} a value" if missing else f"give another {name!r}",
                "hyperparameters",
            )
    for name in application.search_space:
        if name == "epochs":
            work.find(
                "hyperparameters",
                "'epochs' is in the search space",
                "leave it out: tuning itself decides how long a trial trains",
                "search_space",
            )
        elif name not in given and name not in TrainerHyperparameters.model_fields:
            work.find(
                "hyperparameters",
                f"{name!r} is in the search space and not among the hyperparameters",
                f"give hyperparameters a default for {name!r}",
                "search_space",
            )
    return ", ".join(f"{name} {value}" for name, value in given.items())


def _check_rows(work: Work, data: Path | None) -> str:
    application = work.application
    if data is None:
        try:
            events = made_up.events(application.event, MADE_UP_ROWS)
        except made_up.NoValue as exc:
            raise work.stop(
                "rows",
                f"no value of the field {exc.name!r} can be made up that the schema accepts",
                f"give it some, as {exc.name}: ... = Field(examples=[...]), or give rows with --data FOLDER",
                f"{application.event.__name__}.{exc.name}",
            ) from exc
        work.rows = [Row(event=event, label=None, split="train") for event in events]
        return f"{len(events)} made-up events; give --data FOLDER for real ones"
    try:
        sample = read_sample(application, data)
    except DeepLambdaError as exc:
        raise work.blame("rows", exc, "sources") from exc
    except Exception as exc:  # of the application's own `examples`
        finding = _of_exception(work, "rows", exc)
        raise work.stop(
            "rows",
            f"reading {data}: {type(exc).__name__}: {exc}",
            "correct sources or examples",
            *(() if finding.line else ("examples", "sources")),
        ) from exc
    work.sample = sample
    _check_refusals(work, sample)
    if not sample.rows:
        if any(finding.check == "rows" for finding in work.report.findings):
            raise Broken(work.report.findings.pop())  # it says why
        raise work.stop("rows", f"{data} has no rows", "give the folder of the raw objects", "sources")
    _check_leaks(work, sample)
    _check_ids(work, sample)
    for split in sample.expected_splits:
        if not sample.of(split):
            work.find(
                "rows",
                f"none of {len(sample.rows)} sampled rows is in the split {split!r}",
                "correct `splits`, or the split of a source",
                "splits",
                "sources",
            )
    work.rows = [row for row in sample.of("train") if row.label is not None]
    if not work.rows:
        raise work.stop("rows", "no row of the train split has a label", "correct sources, label and splits", "sources")
    return ", ".join(f"{split} {len(sample.of(split)):,}" for split in sample.expected_splits)


def _check_refusals(work: Work, sample: Sample) -> None:
    total = len(sample.rows) + sum(sample.refused.values()) + sum(sample.bad_labels.values())
    if sum(sample.refused.values()) > REFUSED_SHARE * total:
        reason, count = sample.refused.most_common(1)[0]
        work.find(
            "rows",
            f"{count:,} of {total:,} sampled rows are refused: {reason}",
            "correct the event's schema or the source's columns",
            "sources",
        )
    if sample.bad_labels:
        label, count = sample.bad_labels.most_common(1)[0]
        known = ", ".join(getattr(work.application.objective, "classes", ())[:10])
        work.find(
            "rows",
            f"{sum(sample.bad_labels.values()):,} of {total:,} sampled rows have a label that the objective refuses, "
            f"such as {label!r}",
            f"name it among the classes, which are {known}" if known else "correct the source's label",
            "objective",
        )


def _check_leaks(work: Work, sample: Sample) -> None:
    by_id: dict[str, str | None] = {}
    by_payload: dict[bytes, str] = {}
    both_ids, both_rows = 0, 0
    for row in sample.rows:
        if row.split is None:
            continue
        both_ids += by_id.setdefault(row.event.event_id, row.split) != row.split
        payload = repr([getattr(row.event, name) for name in payload_fields(type(row.event))]).encode()
        both_rows += by_payload.setdefault(payload, row.split) != row.split
    if both_ids:
        work.find(
            "rows",
            f"{both_ids:,} event ids are in two splits",
            "let each event id belong to one split",
            "splits",
            "sources",
        )
    elif both_rows > (SAME_SHARE + _equal_by_chance(sample)) * len(sample.rows):
        work.find(
            "rows",
            f"{both_rows:,} of {len(sample.rows):,} sampled rows stand in two splits with equal fields: the test would "
            "measure what was learned by heart",
            "remove doubles, or keep what belongs together in one split with ByGroup",
            "splits",
            "sources",
        )
    labelled = [row for row in sample.rows if row.label is not None]
    labels = {row.label for row in labelled}
    for name in payload_fields(work.application.event) if 1 < len(labels) <= len(labelled) // 4 else ():
        pairs = {(repr(getattr(row.event, name)), row.label) for row in labelled}
        if len(pairs) == len({value for value, _ in pairs}) == len(labels):
            work.find(
                "rows",
                f"the field {name!r} has one value for each label in every sampled row: it tells the answer",
                "take it out of the event",
                f"{work.application.event.__name__}.{name}",
            )


def _check_ids(work: Work, sample: Sample) -> None:
    for path, (rows, looked_at) in sample.overwritten.items():
        if rows > REFUSED_SHARE * looked_at:
            work.find(
                "rows",
                f"{rows:,} of {looked_at:,} rows of {path} have the event id of an earlier row and other fields: of "
                "each id the last row alone is learned from",
                "give event_id a column that is another in each row, or leave it out",
                "sources",
            )


def _equal_by_chance(sample: Sample) -> float:
    """How many rows would equal a given one if fields were drawn on their own: of few short columns, many do."""
    payloads = {repr(payload_row(row.event)): payload_row(row.event) for row in sample.rows}
    counts = [
        Counter(repr(row[name]) for row in payloads.values()) for name in payload_fields(type(sample.rows[0].event))
    ]
    same = (sum((count / len(payloads)) ** 2 for count in each.values()) for each in counts)
    return len(payloads) * math.prod(same)


def _check_request(work: Work) -> str:
    event = work.rows[0].event
    body = request_body(event)
    if body is None:
        raise work.stop(
            "request",
            "an event cannot be written as JSON so that the schema reads it again",
            "let the field accept base64 text, as grey_image does",
            type(event).__name__,
        )
    url = f"{load_settings().model_url}/v1/models/{work.application.name}:predict"
    content = to_json({"instances": [body]}).decode()
    work.report.request = f"curl -s -H 'Content-Type: application/json' {url} -d {shlex.quote(content)}"
    return f"{len(content):,} bytes of JSON"


def request_body(event: Event) -> dict[str, Any] | None:
    """An event as a producer writes it in JSON, bytes as base64 or as text; None when neither is read back as equal."""
    given = {name: value for name, value in event.model_dump().items() if value is not None}
    for form in (lambda raw: b64encode(raw).decode(), bytes.decode):
        try:
            body: dict[str, Any] = to_jsonable_python(_without_bytes(given, form))
            if decode_event(type(event), to_json(body), limit_bytes=1 << 30) == event:
                return body
        except (DeepLambdaError, ValueError):
            continue
    return None


def _without_bytes(value: Any, form: Callable[[bytes], str]) -> Any:
    if isinstance(value, bytes):
        return form(value)
    if isinstance(value, dict):
        return {key: _without_bytes(item, form) for key, item in value.items()}
    return [_without_bytes(item, form) for item in value] if isinstance(value, (list, tuple)) else value
