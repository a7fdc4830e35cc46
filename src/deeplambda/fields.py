"""Field types for event schemas: values that arrive as JSON text and are wanted as checked bytes."""

import binascii
from base64 import b64decode
from datetime import UTC, datetime
from io import BytesIO
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, StringConstraints, WithJsonSchema

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

EventId = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^\S(.*\S)?$")]
"""What tells events apart. No spaces at its ends: MySQL would take "a" and "a " for one key."""


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError as exc:
        raise ValueError("before the year 1 or after 9999 in UTC") from exc


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""A point in time, in any zone; checked, it is in UTC."""


def grey_image(height: int, width: int) -> tuple[BeforeValidator, WithJsonSchema]:
    """Annotations for a field of type `bytes` that holds a grey image: `image: Annotated[bytes, *grey_image(28, 28)]`.

    In JSON it is base64 of a PNG or of height × width raw bytes, row by row, 0 black to 255 white. Checked, it is the
    raw bytes.
    """

    def check(value: Any) -> Any:
        if isinstance(value, str):
            try:
                value = b64decode(value, validate=True)
            except (binascii.Error, ValueError) as exc:
                raise ValueError(f"not base64: {exc}") from exc
        if not isinstance(value, bytes):
            return value  # pydantic names the wrong type
        if value.startswith(_PNG_SIGNATURE):
            return _png_pixels(value, height, width)
        if len(value) != height * width:
            raise ValueError(f"neither a PNG nor {height * width} raw bytes, but {len(value)} bytes")
        return value

    return BeforeValidator(check), WithJsonSchema(
        {
            "type": "string",
            "contentEncoding": "base64",
            "description": f"base64 of a {height}×{width} PNG or of {height * width} grey bytes",
        }
    )


def _png_pixels(png: bytes, height: int, width: int) -> bytes:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(BytesIO(png), formats=["PNG"]) as image:
            if image.size != (width, height):  # from the header, before a byte is inflated
                raise ValueError(f"the PNG is {image.size[1]}×{image.size[0]}, not {height}×{width}")
            return image.convert("L").tobytes()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as exc:
        raise ValueError(f"broken PNG: {exc}") from exc
