"""What the platform itself makes of equal rows: while it is the same, data sets of before are taken up."""

import hashlib
from base64 import b64encode
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from enum import Enum
from io import BytesIO
from typing import Annotated

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pydantic import BaseModel, Field
from pydantic_core import to_json

from batch_layer.shard_format import SHARD_FORMAT, write_shard
from deeplambda.application import Event
from deeplambda.features import padded
from deeplambda.fields import as_seen, grey_image
from deeplambda.learned import Categories, NaiveBayes, Standardization, Vocabulary, encode_state
from deeplambda.objective import Classification, MultiLabel, Objective, Regression, labels_of, statistics_of
from deeplambda.records.admission import check
from deeplambda.splits import ByHash

TEXTS = ["It isn't GOOD, not at all…", "Très bien — ﬁne!", "हिन्दी में", "東京は good", "x_1 1.5", "", "good good bad"]
HELD = [False, True, False, True, True, False, True]
NUMBERS = pa.RecordBatch.from_pydict({"load": [1.0, 3.0, None, 8.0], "same": [2.0, 2.0, 2.0, 2.0]})


class Colour(Enum):
    RED = "red"


class Place(BaseModel):
    x: float
    note: str | None = None


class Seen(Event):
    day: date
    price: Decimal
    colour: Colour
    count: Annotated[int, Field(ge=0)]
    values: list[float]
    place: Place
    image: Annotated[bytes, *grey_image(2, 2)]
    said: str | None = None


def _events() -> bytes:
    picture = BytesIO()
    Image.new("RGBA", (2, 2), (200, 10, 10, 128)).save(picture, "PNG")
    whole = {
        "event_id": "1",
        "occurred_at": "2026-01-01T10:00:00+02:00",
        **{"day": "2026-01-02", "price": "1.50", "colour": "red", "count": 3, "values": [1, 2.5]},
        **{"place": {"x": 1}, "image": b64encode(picture.getvalue()).decode()},
    }
    changes = [{}, {"price": 1.5}, {"count": "3"}, {"count": -1}, {"count": 2**63}, {"day": "20260102"}, {"said": ""}]
    records = [(b"%d" % n, to_json(whole | {"event_id": str(n)} | change)) for n, change in enumerate(changes)]
    found = check(Seen, [*records, (b"7", b"{"), (b"other", records[0][1])], limit_bytes=10_000)
    refused = [(row, str(refusal.reason)) for row, refusal in found.refused]
    return to_json([found.payload.to_pylist(), found.rows_N, refused], bytes_mode="base64")


def _texts() -> bytes:
    vocabulary = Vocabulary.of(TEXTS, size=12)
    bayes = [NaiveBayes.of(TEXTS, HELD, unit) for unit in ("words", "characters")]
    states = [encode_state(each).content for each in (vocabulary, *bayes)]
    return b"".join(
        [*states, vocabulary.padded(TEXTS, 5).tobytes(), *(each.evidence(TEXTS).tobytes() for each in bayes)]
    )


def _columns() -> bytes:
    scale = Standardization.of([NUMBERS.slice(0, 2), NUMBERS.slice(2)], ("load", "same"))
    categories = Categories.of(["b", "a", None, "b", 7])
    codes = categories.codes(["a", None, "c", 7])
    states = [encode_state(scale).content, encode_state(categories).content]
    lists = padded([[1, 2, 3], None, [4]], 2, "float32", -1)
    return b"".join([*states, scale.of_batch(NUMBERS).tobytes(), codes.tobytes(), lists.tobytes()])


def _states() -> bytes:
    arrays, table = {"b": np.arange(3), "a": np.eye(2, dtype=np.float16)}, pa.table({"a": [1, None], "b": ["x", "ö"]})
    return b"".join(encode_state(state).content for state in (arrays, table, {"a": [1.5, None]}))


def _labels() -> bytes:
    given: list[tuple[Objective, list[str]]] = [
        (Classification(("a", "b", "3"), weights="balanced"), ["a", "3", "a"]),
        (MultiLabel(("a", "b")), ['["a", "b"]', "[]", '["b"]']),
        (Regression(minimum=0), ["1.5", "0", "2e1"]),
    ]
    arrays = [(objective, labels_of(objective, labels)) for objective, labels in given]
    return b"".join(array.tobytes() + to_json(statistics_of(objective, array)) for objective, array in arrays)


def _images() -> bytes:
    turned = Image.new("RGB", (3, 2), (10, 20, 30))
    turned.putpixel((0, 0), (250, 0, 0))
    turned.getexif()[0x0112] = 6
    deep = Image.fromarray(np.array([[0, 300], [40_000, 65_535]], np.uint16))
    clear = Image.new("RGBA", (2, 2), (200, 10, 10, 128))
    return b"".join(as_seen(image).convert("RGB").tobytes() for image in (turned, deep, clear))


def _shard() -> bytes:
    return write_shard({"words": np.arange(6).reshape(3, 2), "x": np.ones(3, np.float16)}, np.array([2, 0, 1]))


def _splits() -> bytes:
    rule = ByHash(train=0.5, validation=0.2, test=0.3)
    return to_json([rule.split_of(f"event-{n}", None) for n in range(50)])


KNOWN = {
    _events: "3ca218a971d127a6",
    _texts: "f9b7b09f170228c4",
    _columns: "b2df8c98425a0d54",
    _states: "c01ff3cf65d6d8fe",
    _labels: "0a613dd2e1091848",
    _images: "e6759b190a95bd92",
    _shard: "5ca6df04889adfb4",
    _splits: "df3a2e9e403dd10a",
}
OF_FORMAT = 6


@pytest.mark.parametrize("made", KNOWN, ids=lambda made: made.__name__.strip("_"))
def test_what_is_made_of_equal_rows_has_changed_only_with_the_shard_format(made: Callable[[], bytes]) -> None:
    found = hashlib.sha256(made()).hexdigest()[:16]
    assert (SHARD_FORMAT, found) == (OF_FORMAT, KNOWN[made]), (
        "the platform makes something else of equal rows than prepared data sets have: raise SHARD_FORMAT, and write "
        "it down here with what is made now"
    )
