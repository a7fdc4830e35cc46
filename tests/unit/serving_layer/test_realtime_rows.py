"""A prediction as the values of a row: the short way and the one by pydantic say the same of every record."""

import json
import random
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, NamedTuple

import pytest

from deeplambda.records import topics
from deeplambda.records.predictions import Prediction
from serving_layer.views import realtime, rows
from serving_layer.views.rows import COLUMNS, Row

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
FACTS: dict[str, Any] = {
    "application": "digits",
    "event_id": "e-1",
    "kafka_partition": 3,
    "kafka_offset": 17,
    "occurred_at": AT,
    "received_at": AT + timedelta(milliseconds=2),
    "predicted_at": AT + timedelta(milliseconds=7),
    "model_version": 2,
    "prediction": "7",
    "confidence": 0.5,
    "value": None,
    "scores": {"7": 0.5, "8": 1e-07, "9": 1.0},
    "inference_ms": 1.25,
    "code_version": "0" * 12,
    "slices": {"shop": 4, "zone": None, "new": True, "name": "x", "rate": 0.25},
    "replayed": False,
}


class Record(NamedTuple):
    value: bytes | None
    topic: str = topics.predictions("digits")


def written(**facts: Any) -> bytes:
    return Prediction.model_validate(FACTS | facts).model_dump_json().encode()


def by_pydantic(value: bytes) -> Row:
    return rows.of_prediction(Prediction.model_validate_json(value))


def meaning(row: Row) -> list[Any]:
    """The row with its values as a database has them; numbers may be written in more than one way."""
    values = list(sqlite3.connect(":memory:").execute(f"SELECT {row.values}").fetchone())
    for place in map(COLUMNS.index, ("scores", "slices")):
        values[place] = values[place] and json.loads(values[place], object_pairs_hook=list)
    return [*row[:-1], *values]


def row_or_none(read: Callable[[], Row]) -> Row | None:
    try:
        return read()
    except ValueError:
        return None


def same(one: Row | None, other: Row | None) -> bool:
    return one == other or (one is not None and other is not None and meaning(one) == meaning(other))


def test_the_values_are_in_the_order_of_the_columns_and_moments_are_utc() -> None:
    east = timezone(timedelta(hours=2))
    row = rows.of_prediction(Prediction.model_validate(FACTS | {"occurred_at": AT.astimezone(east)}))
    kept = {name: list(fact.items()) if isinstance(fact, dict) else fact for name, fact in FACTS.items()} | {
        "occurred_at": "2026-01-02T03:04:05.678901",
        "received_at": "2026-01-02T03:04:05.680901",
        "predicted_at": "2026-01-02T03:04:05.685901",
    }
    assert meaning(row)[6:] == [kept[name] for name in COLUMNS]


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"scores": None, "slices": None, "confidence": None},
        {"scores": {}, "slices": {}},
        {"replayed": True, "value": -2.5e-09, "confidence": 1.2345678901234567e-05},
        {"occurred_at": AT.replace(microsecond=0), "received_at": AT.replace(month=2, day=28)},
        {"event_id": "ä 日本", "prediction": "ünï 💡 %s %(x)s --", "scores": {"ünï": 0.1}, "slices": {"/*": "{[:,]}"}},
        {"event_id": "x" * 128, "prediction": "日" * 255, "kafka_offset": 10**18 - 1, "model_version": 0},
    ],
)
def test_what_a_stream_writes_takes_the_short_way_and_is_the_same_row(facts: dict[str, Any]) -> None:
    value = written(**facts)
    assert rows._as_written(value) == by_pydantic(value)


TEXT = '"prediction":"7"'
ODD = {
    "a quote in a text": (TEXT, '"prediction":"it\'s"'),
    "a text that ends in a backslash": (TEXT, r'"prediction":"x\\"'),
    "an escaped quote": (TEXT, r'"prediction":"\",\"confidence\":9,\""'),
    "an escaped letter": (TEXT, r'"prediction":"\u0037"'),
    "half a character": (TEXT, r'"prediction":"\ud800"'),
    "a new line in a text": (TEXT, '"prediction":"a\nb"'),
    "an escaped new line": (TEXT, r'"prediction":"a\nb"'),
    "a NUL in a text": (TEXT, '"prediction":"\x00"'),
    "SQL in a text": (TEXT, '"prediction":"7\',1,1),(\'"'),
    "a text that is too long": (TEXT, f'"prediction":"{"7" * 256}"'),
    "a number for a text": (TEXT, '"prediction":7'),
    "a text for a number": ('"kafka_offset":17', '"kafka_offset":"17"'),
    "a whole number with a point": ('"kafka_offset":17', '"kafka_offset":17.0'),
    "a fraction for a whole number": ('"kafka_offset":17', '"kafka_offset":17.5'),
    "a zero before a number": ('"kafka_offset":17', '"kafka_offset":017'),
    "a negative offset": ('"kafka_offset":17', '"kafka_offset":-1'),
    "the highest offset": ('"kafka_offset":17', f'"kafka_offset":{2**63 - 1}'),
    "an offset too high": ('"kafka_offset":17', f'"kafka_offset":{2**63}'),
    "a partition too high": ('"kafka_partition":3', f'"kafka_partition":{2**31}'),
    "the highest partition": ('"kafka_partition":3', f'"kafka_partition":{2**31 - 1}'),
    "NaN": ('"confidence":0.5', '"confidence":NaN'),
    "infinity": ('"confidence":0.5', '"confidence":Infinity'),
    "a number out of range": ('"confidence":0.5', '"confidence":1e999'),
    "a whole number for a fraction": ('"confidence":0.5', '"confidence":1'),
    "a long fraction": ('"confidence":0.5', '"confidence":0.50000000000000000000000000000000001'),
    "a power with a sign": ('"confidence":0.5', '"confidence":5E+1'),
    "true for a number": ('"confidence":0.5', '"confidence":true'),
    "NaN in milliseconds": ('"inference_ms":1.25', '"inference_ms":NaN'),
    "none where one has to be": ('"inference_ms":1.25', '"inference_ms":null'),
    "a name twice": (TEXT, f"{TEXT},{TEXT}"),
    "a score twice": ('"7":0.5', '"7":0.5,"7":0.25'),
    "a score that is none": ('"7":0.5', '"7":null'),
    "a score that is a text": ('"7":0.5', '"7":"0.5"'),
    "a comma too much": ('"9":1.0', '"9":1.0,'),
    "a comma too little": ('"7":0.5,', '"7":0.5'),
    "a slice twice": ('"shop":4', '"shop":4,"shop":5'),
    "a slice that holds another": ('"shop":4', '"shop":{"a":1}'),
    "a slice like a name": ('"shop":4', '"shop\\":":4'),
    "a field nobody knows": (TEXT, f'{TEXT},"colour":"red"'),
    "fields in another order": (f'{TEXT},"confidence":0.5', f'"confidence":0.5,{TEXT}'),
    "spaces": (TEXT, '"prediction" : "7"'),
    "no moment": ("2026-01-02T03:04:05.678901Z", "yesterday"),
    "a day that is not": ("2026-01-02T03:04:05.678901Z", "2026-02-30T03:04:05.678901Z"),
    "an hour that is not": ("2026-01-02T03:04:05.678901Z", "2026-01-02T24:00:00Z"),
    "a second that is not": ("2026-01-02T03:04:05.678901Z", "2026-01-02T03:04:60Z"),
    "a moment without a zone": ("2026-01-02T03:04:05.678901Z", "2026-01-02T03:04:05.678901"),
    "a moment in another zone": ("2026-01-02T03:04:05.678901Z", "2026-01-02T03:04:05.678901+02:00"),
    "a fraction of a microsecond": ("2026-01-02T03:04:05.678901Z", "2026-01-02T03:04:05.6789019Z"),
    "a moment as a number": ('"2026-01-02T03:04:05.678901Z"', "1767323045"),
    "a moment before all others": ("2026-01-02T03:04:05.680901Z", "0001-01-01T00:00:00+14:00"),
    "a moment after all others": ("2026-01-02T03:04:05.680901Z", "9999-12-31T23:59:59-14:00"),
    "digits of another script": ('"kafka_offset":17', '"kafka_offset":١٧'),
    "an id that ends in a space": ('"event_id":"e-1"', '"event_id":"e-1 "'),
    "an id that begins with a space": ('"event_id":"e-1"', '"event_id":"\u2003e-1"'),
    "an empty id": ('"event_id":"e-1"', '"event_id":""'),
    "an id that is too long": ('"event_id":"e-1"', f'"event_id":"{"x" * 129}"'),
    "an empty application": ('"application":"digits"', '"application":""'),
    "replayed as a number": ('"replayed":false', '"replayed":1'),
    "replayed as none": ('"replayed":false', '"replayed":null'),
    "nothing of a replay": (',"replayed":false', ""),
    "a second record": ("}", '}{"application":"digits"}'),
    "a new line at the end": ('"replayed":false}', '"replayed":false}\n'),
    "no end": ('"replayed":false}', '"replayed":false'),
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_record_is_read_as_pydantic_reads_it(odd: str) -> None:
    value = written().decode().replace(*ODD[odd]).encode("utf-8", "surrogatepass")
    assert value != written()
    assert same(row_or_none(lambda: rows.row_of(Record(value))), row_or_none(lambda: by_pydantic(value)))


def test_records_that_were_changed_anywhere_are_read_as_pydantic_reads_them() -> None:
    chance = random.Random(7)
    fragments = [replacement.encode("utf-8", "surrogatepass") for _, replacement in ODD.values()]
    fragments += [bytes([byte]) for byte in (*range(256), *b"\"\\',:{}[]0123456789eE+-. " * 8)]

    def mutants() -> Iterator[bytes]:
        for _ in range(4_000):
            value = bytearray(written())
            for _ in range(chance.choice((1, 1, 2))):
                first = chance.randrange(len(value))
                value[first : first + chance.choice((0, 0, 1, 1, 5))] = chance.choice(fragments)
            yield bytes(value)

    short = 0
    for value in mutants():
        row = rows._as_written(value)
        short += row is not None
        assert row is None or same(row, row_or_none(lambda value=value: by_pydantic(value))), value
    assert short > 100, "some changes leave a record as a stream writes it"


@pytest.mark.parametrize("text", ["it's", "''", "'); DROP TABLE x --", '"', "a\nb", "%s", "ü\u2028"])
def test_a_text_is_itself_in_sql(text: str) -> None:
    row = rows.of_prediction(Prediction.model_validate(FACTS | {"prediction": text}))
    assert meaning(row)[6 + COLUMNS.index("prediction")] == text


def test_a_record_without_a_value_or_of_another_application_is_none() -> None:
    with pytest.raises(ValueError, match="no value"):
        rows.row_of(Record(None))
    with pytest.raises(ValueError, match="it is of application 'other', in topic"):
        rows.row_of(Record(written(application="other")))
    with pytest.raises(ValueError, match="invalid unicode"):
        rows.row_of(Record(written(prediction="ü").replace("ü".encode(), b"\xff")))


def test_statements_are_cut_by_size_and_keep_the_order() -> None:
    texts = [str(n % 10) * size for n, size in enumerate([400_000, 600_000, 1, 2_000_000, 3, 4])]
    pieces = list(realtime._by_size(texts))
    assert [text for piece in pieces for text in piece] == texts
    assert [len(piece) for piece in pieces] == [2, 1, 1, 2]
    assert list(realtime._by_size([])) == []
