"""Every way in which an event can be wrong has its reason; what is right passes, plain or as a CloudEvent."""

import pickle
from base64 import b64encode
from datetime import UTC, datetime
from io import BytesIO
from typing import Annotated, Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError, field_validator
from pydantic_core import to_json

from deeplambda.application import Event
from deeplambda.fields import grey_image
from deeplambda.records.decoding import Reason, RefusedEvent, check_key, decode_event
from examples.digits.application import DigitDrawn

PIXELS = bytes(range(196)) * 4
GOOD = {"event_id": "a", "occurred_at": "2026-01-01T00:00:00Z", "image": b64encode(PIXELS).decode()}
LIMIT_BYTES = 10_000
_SMALL = TypeAdapter[bytes](Annotated[bytes, *grey_image(2, 3)])


def png(width: int, height: int) -> str:
    buffer = BytesIO()
    Image.frombytes("L", (width, height), bytes(width * height)).save(buffer, "PNG")
    return b64encode(buffer.getvalue()).decode()


def decode(value: bytes | None) -> DigitDrawn:
    return decode_event(DigitDrawn, value, limit_bytes=LIMIT_BYTES)


def test_raw_bytes_and_png_give_the_same_pixels() -> None:
    buffer = BytesIO()
    Image.frombytes("L", (28, 28), PIXELS).save(buffer, "PNG")
    from_png = decode(to_json(GOOD | {"image": b64encode(buffer.getvalue()).decode()}))
    assert decode(to_json(GOOD)).image == PIXELS == from_png.image


def pixels_of(image: Image.Image, **options: Any) -> list[int]:
    """Of the image as a PNG, as a field of 2 rows and 3 columns takes it."""
    buffer = BytesIO()
    image.save(buffer, "PNG", **options)
    return list(_SMALL.validate_python(buffer.getvalue()))


def test_an_image_is_taken_as_it_is_looked_at() -> None:
    grey = Image.frombytes("L", (3, 2), bytes([0, 50, 100, 150, 200, 250]))
    assert pixels_of(grey) == [0, 50, 100, 150, 200, 250]
    assert pixels_of(Image.fromarray(257 * np.asarray(grey).astype(np.uint16))) == [0, 50, 100, 150, 200, 250]
    inked = Image.new("RGBA", (3, 2))
    inked.putpixel((0, 0), (0, 0, 0, 255))
    assert pixels_of(inked) == [0, 255, 255, 255, 255, 255], "black ink on glass is on white"
    turned = Image.Exif()
    turned[0x112] = 8  # to be turned left by a quarter
    assert pixels_of(grey.transpose(Image.Transpose.ROTATE_270), exif=turned) == pixels_of(grey)
    with pytest.raises(ValidationError, match="the image is 3×2, not 2×3"):
        pixels_of(grey, exif=turned)


def test_cloud_event_takes_id_and_time_from_its_envelope() -> None:
    event = decode(
        to_json(
            {
                "specversion": "1.0",
                "id": "cloud-7",
                "time": "2026-01-02T03:04:05Z",
                "type": "digit.drawn",
                "source": "/pad",
                "data": {"image": GOOD["image"]},
            }
        )
    )
    assert (event.event_id, event.occurred_at.isoformat()) == ("cloud-7", "2026-01-02T03:04:05+00:00")


def test_an_added_field_passes() -> None:
    assert decode(to_json(GOOD | {"pressure": 3})).event_id == "a"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, Reason.NOT_JSON),
        (b"", Reason.NOT_JSON),
        (b"not json", Reason.NOT_JSON),
        (b'{"event_id": "\xff\xfe"}', Reason.NOT_JSON),
        (b"[" * 9_000, Reason.NOT_JSON),
        (b"[1, 2]", Reason.WRONG_TYPE),
        (to_json({"event_id": "a", "occurred_at": "2026-01-01T00:00:00Z"}), Reason.MISSING_FIELD),
        (to_json(GOOD | {"event_id": 7}), Reason.WRONG_TYPE),
        (to_json(GOOD | {"event_id": ""}), Reason.BAD_VALUE),
        (to_json(GOOD | {"event_id": "x" * 129}), Reason.BAD_VALUE),
        (to_json(GOOD | {"occurred_at": "yesterday"}), Reason.BAD_VALUE),
        (to_json(GOOD | {"occurred_at": "2026-01-01T00:00:00"}), Reason.BAD_VALUE),
        (to_json(GOOD | {"image": 5}), Reason.WRONG_TYPE),
        (to_json(GOOD | {"image": None}), Reason.WRONG_TYPE),
        (to_json(GOOD | {"image": "not base64!"}), Reason.BAD_VALUE),
        (to_json(GOOD | {"image": b64encode(bytes(783)).decode()}), Reason.BAD_VALUE),
        (to_json(GOOD | {"image": b64encode(b"\x89PNG\r\n\x1a\nbroken").decode()}), Reason.BAD_VALUE),
        (to_json(GOOD | {"image": png(29, 28)}), Reason.BAD_VALUE),
        (to_json(GOOD | {"image": png(4000, 4000)}), Reason.TOO_LARGE),
        (to_json(GOOD | {"pad": "x" * LIMIT_BYTES}), Reason.TOO_LARGE),
    ],
)
def test_a_bad_event_is_refused_with_its_reason(value: bytes | None, reason: Reason) -> None:
    with pytest.raises(RefusedEvent) as refusal:
        decode(value)
    assert refusal.value.reason is reason
    assert refusal.value.remedy


def test_a_jpeg_gives_its_pixels_and_raw_bytes_that_begin_as_one_stay_what_they_are() -> None:
    buffer = BytesIO()
    Image.new("RGB", (28, 28), (120, 120, 120)).save(buffer, "JPEG")
    found = decode(to_json(GOOD | {"image": b64encode(buffer.getvalue()).decode()})).image
    assert set(found) == {120}
    assert len(found) == 784
    raw = b"\xff\xd8\xff" + bytes(781)
    assert decode(to_json(GOOD | {"image": b64encode(raw).decode()})).image == raw
    with pytest.raises(RefusedEvent, match="broken JPEG"):
        decode(to_json(GOOD | {"image": b64encode(buffer.getvalue()[:300]).decode()}))


def test_a_truncated_png_is_refused() -> None:
    whole = BytesIO()
    Image.effect_noise((28, 28), 80).save(whole, "PNG")
    cut = b64encode(whole.getvalue()[:200]).decode()
    with pytest.raises(RefusedEvent, match="broken PNG"):
        decode(to_json(GOOD | {"image": cut}))


@pytest.mark.parametrize(("key", "reason"), [(None, Reason.MISSING_KEY), (b"b", Reason.KEY_MISMATCH)])
def test_the_key_must_be_the_event_id(key: bytes | None, reason: Reason) -> None:
    with pytest.raises(RefusedEvent) as refusal:
        check_key(decode(to_json(GOOD)), key)
    assert refusal.value.reason is reason


def test_a_refusal_survives_pickling() -> None:
    refusal = pickle.loads(pickle.dumps(RefusedEvent("message", "remedy", Reason.BAD_VALUE)))
    assert (str(refusal), refusal.reason) == ("message; remedy", Reason.BAD_VALUE)


class Paid(Event):
    amount: int

    @field_validator("amount")
    @classmethod
    def divides(cls, amount: int) -> int:
        return 100 // amount


def test_a_validator_that_raises_what_it_should_not_refuses_its_event_alone() -> None:
    sent = {"event_id": "a", "occurred_at": GOOD["occurred_at"]}
    with pytest.raises(RefusedEvent, match=r"the schema raised ZeroDivisionError: .*test_decoding") as refused:
        decode_event(Paid, to_json(sent | {"amount": 0}), limit_bytes=LIMIT_BYTES)
    assert refused.value.reason is Reason.BAD_VALUE
    assert decode_event(Paid, to_json(sent | {"amount": 50}), limit_bytes=LIMIT_BYTES).amount == 2


class Dated(Event):
    at: datetime | None = None


@pytest.mark.parametrize("field", ["occurred_at", "at"])
@pytest.mark.parametrize(
    ("text", "year"),
    [("1700000000", 2023), ("250000000000", 1977), ("1920-01-01T00:00:00Z", 1920), ("2300-01-01T00:00:00+02:00", 2299)],
)
def test_a_time_is_what_it_says(field: str, text: str, year: int) -> None:
    record = to_json({"event_id": "a", "occurred_at": GOOD["occurred_at"]} | {field: text})
    event = decode_event(Dated, record, limit_bytes=1000)
    assert getattr(event, field).astimezone(UTC).year == year


@pytest.mark.parametrize("field", ["occurred_at", "at"])
@pytest.mark.parametrize("text", ["20240131", "20240131100000", "2024", "0"])
def test_digits_that_are_no_seconds_are_no_time(field: str, text: str) -> None:
    record = to_json({"event_id": "a", "occurred_at": GOOD["occurred_at"]} | {field: text})
    with pytest.raises(RefusedEvent, match=f"field '{field}': digits alone are no time"):
        decode_event(Dated, record, limit_bytes=1000)
