"""Events made up from a schema, for an application whose rows are not at hand, and the edges of each field's values.

Every value passes the schema: what the schema refuses never reaches a transform.
"""

import random
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AwareDatetime, BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from deeplambda.application import Event, payload_fields
from deeplambda.fields import ByteLength

MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
_TEXTS = (
    "a",
    "the quick brown fox",
    "Zürich 漢字 😀",
    "no",
    "12",
    "a longer text, with words and signs!",
    "B-7",
    "x y",
)
_EDGE_TEXTS = ("", " ", "'; \"", "word " * 2000)


class NoValue(Exception):
    """No value can be made up for the field `name`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def events(schema: type[Event], count: int, seed: int = 0) -> list[Event]:
    """`count` ordinary events. Raises: NoValue."""
    values = {name: _accepted(schema, name, edges=False) for name in payload_fields(schema)}
    draw = random.Random(seed)  # noqa: S311  no secret: the same rows in each check
    made: list[Event] = []
    for number in range(100 * count):
        row = {name: draw.choice(choices) for name, choices in values.items()}
        try:
            made.append(schema.model_validate({"event_id": f"made-up-{number}", "occurred_at": MOMENT, **row}))
        except ValidationError:
            continue  # fields that must fit together
        if len(made) == count:
            return made
    if not made:
        raise NoValue(next(iter(values), "event_id"))
    return made


def edges(schema: type[Event], ordinary: Event) -> Iterator[tuple[str, Any, Event]]:
    """`ordinary` with one field at an edge: (field, its value, event)."""
    row = {name: getattr(ordinary, name) for name in schema.model_fields}
    for name in payload_fields(schema):
        for value in _accepted(schema, name, edges=True):
            try:
                yield name, value, schema.model_validate({**row, name: value})
            except ValidationError:
                continue


def _accepted(schema: type[Event], name: str, *, edges: bool) -> list[Any]:
    field = schema.model_fields[name]
    kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    found = []
    for value in _candidates(field.annotation, field, edges=edges):
        try:
            found.append(adapter.validate_python(value, strict=True))
        except ValidationError:
            continue
        except TypeError:  # a model's or alias's own settings forbid `strict`
            found.append(adapter.validate_python(value))
    if not found and not edges:
        raise NoValue(name)
    return found


def _candidates(annotation: Any, field: FieldInfo | None, *, edges: bool) -> Iterator[Any]:
    metadata = list(field.metadata) if field else []
    if field and field.examples and not edges:
        yield from field.examples
        return
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        metadata += more
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Union or type(annotation).__name__ == "UnionType":
        for each in arguments:
            if each is type(None):
                if edges:
                    yield None
            else:
                yield from _candidates(each, None, edges=edges)
    elif origin is Literal:
        yield from arguments
    elif origin in (list, tuple):
        yield from _lists(origin, arguments[0], metadata, edges=edges)
    elif origin is dict:
        keys = list(_candidates(arguments[0], None, edges=False))[:3]
        values = list(_candidates(arguments[1], None, edges=False))[:3]
        yield {} if edges else dict(zip(keys, values, strict=False))
    elif isinstance(annotation, type) and issubclass(annotation, Enum):
        yield from annotation
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from _models(annotation, edges=edges)
    else:
        yield from _scalars(annotation, metadata, edges=edges)


def _lists(kind: Any, item: Any, metadata: list[Any], *, edges: bool) -> Iterator[Any]:
    items = list(_candidates(item, None, edges=False))
    low = _bound(metadata, "min_length", 0)
    high = _bound(metadata, "max_length", max(1000, low))
    lengths = (low, high, 1) if edges else (3, 1, 5, low, high)
    for length in lengths if items else ():
        for first in (0,) if edges else (0, 1, 2):
            yield kind(items[(first + n) % len(items)] for n in range(length))


def _models(model: type[BaseModel], *, edges: bool) -> Iterator[Any]:
    by_field = {
        name: list(_candidates(each.annotation, each, edges=False)) or [None]
        for name, each in model.model_fields.items()
    }
    for number in range(1 if edges else 5):
        try:
            yield model.model_validate(
                {name: values[number % len(values)] for name, values in by_field.items()}, strict=False
            )
        except ValidationError:
            continue


def _scalars(kind: Any, metadata: list[Any], *, edges: bool) -> Iterator[Any]:
    low, high = (
        _bound(metadata, "ge", _bound(metadata, "gt", None)),
        _bound(metadata, "le", _bound(metadata, "lt", None)),
    )
    bounds = [bound for bound in (low, high) if bound is not None]
    lengths = [_bound(metadata, "min_length", None), _bound(metadata, "max_length", None)]
    if kind is bool:
        yield from (True, False)
    elif kind is int:
        inner = [bound + step for bound in bounds for step in (0, 1, -1)]
        yield from (
            [*inner, 0, -1, 2**31, -(2**31), 2**53 + 1, 2**63 - 1, -(2**63)] if edges else [*range(8), 17, 100, *inner]
        )
    elif kind is float:
        inner = [float(bound) + step for bound in bounds for step in (0, 1e-9, -1e-9)]
        yield from (
            [*inner, 0.0, -1.0, 1e-12, 1e9, -1e9] if edges else [0.25, 0.5, 0.75, 1.0, 2.5, -1.5, 10.0, 99.5, *inner]
        )
    elif kind is str:
        long = [("x" * length) for length in lengths if length is not None and length <= 1_000_000]
        yield from [*_EDGE_TEXTS, *long] if edges else [*_TEXTS, *long]
    elif kind is bytes:
        sizes = [each.length for each in metadata if isinstance(each, ByteLength)] or [
            length for length in (*lengths, 16, 784) if length is not None
        ]
        for size in sizes if not edges else [0, *sizes]:
            fills = (0, 255) if edges else (7, 60, 120, 200)
            yield from (bytes((fill + step * n) % 256 for n in range(size)) for fill in fills for step in (0, 1))
    elif kind in (datetime, AwareDatetime):
        yield from (
            [datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)]
            if edges
            else [MOMENT + timedelta(hours=31 * n) for n in range(8)]
        )
    elif kind is date:
        yield from [date(1970, 1, 1), date(9999, 12, 31)] if edges else [date(2026, 1, 1 + n) for n in range(8)]
    elif kind is Decimal:
        yield from (
            [Decimal(0), Decimal("-1"), Decimal("0.000001"), Decimal(10) ** 12]
            if edges
            else [
                Decimal("1.50"),
                Decimal("12.25"),
                Decimal(3),
            ]
        )


def _bound(metadata: list[Any], name: str, default: Any) -> Any:
    return next((value for each in metadata if (value := getattr(each, name, None)) is not None), default)
