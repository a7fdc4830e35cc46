"""Field types for event schemas: values that arrive as JSON text, and the column that each type is kept in.

The mapping from annotations to columns is our own: that of pydantic-to-pyarrow 0.1.6 gives unsigned integers and
dictionaries, which neither Spark nor Iceberg has, drops the zone of a moment, wants a decimal's digits fixed, and
converts schemas without their values.
"""

import binascii
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from io import BytesIO
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, StringConstraints, WithJsonSchema

if TYPE_CHECKING:
    from PIL.Image import Image

_PNG_SIGNATURE, _JPEG_SIGNATURE, _JPEG_END = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\xff\xd9"

EventId = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^\S(.*\S)?$")]
"""What tells events apart. No spaces at its ends: MySQL would take "a" and "a " for one key."""


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError as exc:
        raise ValueError("before the year 1 or after 9999 in UTC") from exc


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""A point in time, in any zone; checked, it is in UTC."""


@dataclass(frozen=True)
class ByteLength:
    """Annotation of a field of type `bytes`: a length that its validators accept, for whoever makes up values."""

    length: int


def grey_image(height: int, width: int) -> tuple[BeforeValidator, WithJsonSchema, ByteLength]:
    """Annotations for a field of type `bytes` that holds a grey image: `image: Annotated[bytes, *grey_image(28, 28)]`.

    In JSON it is base64 of a PNG, of a JPEG, or of height × width raw bytes, row by row, 0 black to 255 white. Checked,
    it is the raw bytes: colours become grey, transparency white, 16 bits 8, and a photo is turned as its EXIF says.
    """

    def check(value: Any) -> Any:
        if isinstance(value, str):
            try:
                value = b64decode(value, validate=True)
            except (binascii.Error, ValueError) as exc:
                raise ValueError(f"not base64: {exc}") from exc
        if not isinstance(value, bytes):
            return value  # pydantic names the wrong type
        fits = len(value) == height * width
        # Raw bytes may begin as a JPEG does: of their length, only what ends as one too is taken for one.
        jpeg = value.startswith(_JPEG_SIGNATURE) and (not fits or value.endswith(_JPEG_END))
        if jpeg or value.startswith(_PNG_SIGNATURE):
            return _pixels(value, height, width)
        if not fits:
            raise ValueError(f"neither a PNG nor a JPEG nor {height * width} raw bytes, but {len(value)} bytes")
        return value

    return (
        BeforeValidator(check),
        WithJsonSchema(
            {
                "type": "string",
                "contentEncoding": "base64",
                "description": f"base64 of a {height}×{width} PNG or JPEG, or of {height * width} grey bytes",
            }
        ),
        ByteLength(height * width),
    )


def _pixels(content: bytes, height: int, width: int) -> bytes:
    from PIL import Image, UnidentifiedImageError

    kind = "PNG" if content.startswith(_PNG_SIGNATURE) else "JPEG"
    try:
        with Image.open(BytesIO(content), formats=[kind]) as image:
            if sorted(image.size) != sorted((width, height)):  # from the header, before a byte is inflated
                raise ValueError(f"the {kind} is {image.size[1]}×{image.size[0]}, not {height}×{width}")
            return _grey(image, height, width)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as exc:
        raise ValueError(f"broken {kind}: {exc}") from exc


def _grey(opened: "Image", height: int, width: int) -> bytes:
    image = as_seen(opened)
    if image.size != (width, height):
        raise ValueError(f"the image is {image.size[1]}×{image.size[0]}, not {height}×{width}")
    return image.convert("L").tobytes()


def as_seen(opened: "Image") -> "Image":
    """An image as it is looked at: turned as its EXIF says, on white where it is transparent, in 8 bits; in a mode that
    `convert` takes to grey or to colours."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):  # 16 bits, of which `convert` would take all above 255 for white
        return Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8))
    if image.has_transparency_data:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image


_SCALARS: Mapping[Any, pa.DataType] = {
    bytes: pa.binary(),
    str: pa.string(),
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    Decimal: pa.string(),  # exact at any number of digits; Arrow's and Spark's decimals need them fixed
    date: pa.date32(),
    datetime: pa.timestamp("us", tz="UTC"),
    AwareDatetime: pa.timestamp("us", tz="UTC"),
}
_STORED_AS_THEY_ARE = {bytes, str, bool, int, float}
_COLUMN_TYPES = (
    "bytes, str, bool, int, float, Decimal, date, datetime, a Literal or Enum of strings or of ints, a list, "
    "a dictionary with keys of str or int, a pydantic model, or one of these or None"
)


def column(name: str, annotation: Any) -> pa.Field:
    """The column of a field: what Spark and Iceberg hold as well, so neither unsigned integers nor dictionaries.

    A field that may be None is nullable, and no other. Raises: TypeError for a type that has no column.
    """
    kind, optional = _without_none(_plain_annotation(annotation))
    return pa.field(name, _column_type(kind, ()), nullable=optional)


def stored(value: Any) -> Any:
    """A field's value as its column holds it: an enum's value, a decimal's text, a model's fields by name."""
    if type(value) in _STORED_AS_THEY_ARE:
        return value  # nearly all are, and every event of an archive comes by here
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, BaseModel):
        return {name: stored(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, dict):
        return [(stored(key), stored(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        if value and type(value[0]) in _STORED_AS_THEY_ARE:
            return value  # a list has items of one type, and a long one is not to be walked
        return [stored(item) for item in value]
    return value


def is_decimal(annotation: Any) -> bool:
    """Whether values of this type are kept as a decimal's text."""
    return _without_none(_plain_annotation(annotation))[0] is Decimal


def stored_as_it_is(annotation: Any) -> bool:
    """Whether `stored` leaves values of this type alone; false where it cannot be told, for lists and the like."""
    kind, _ = _without_none(_plain_annotation(annotation))
    return get_origin(kind) is Literal or (kind in _SCALARS and kind is not Decimal)


def compatible(old: pa.Schema, new: pa.Schema) -> list[str]:
    """What makes rows of `old` unreadable as `new`, each as a sentence that names the field; none when nothing does.

    A new optional field, an integer that becomes a float, and a required field that becomes optional are no obstacle.
    """
    return _incompatible(list(old), list(new), "")


def _incompatible(old: list[pa.Field], new: list[pa.Field], inside: str) -> list[str]:
    there, wanted = {field.name: field for field in old}, {field.name: field for field in new}
    added = [name for name, field in wanted.items() if name not in there and not field.nullable]
    found = [
        f"field {inside + name!r} is gone or renamed: keep it under its old name, as optional"
        for name in there
        if name not in wanted
    ]
    found += [f"field {inside + name!r} is new and required: make it optional, with the default None" for name in added]
    for name, field in there.items():
        if name in wanted:
            found += _incompatible_field(field, wanted[name], inside + name)
    return found


def _incompatible_field(old: pa.Field, new: pa.Field, path: str) -> list[str]:
    found = []
    if old.nullable and not new.nullable:
        found.append(f"field {path!r} was optional and is required: leave it optional")
    if pa.types.is_struct(old.type) and pa.types.is_struct(new.type):
        return found + _incompatible(list(old.type), list(new.type), f"{path}.")
    widened = pa.types.is_integer(old.type) and pa.types.is_floating(new.type)
    if not widened and not _same_type(old.type, new.type):
        found.append(
            f"field {path!r} was {old.type} and is {new.type}: leave its type, and add another field beside it"
        )
    return found


def _same_type(old: pa.DataType, new: pa.DataType) -> bool:
    """Whatever the items of a list or a map are called, for that differs between Arrow and Spark."""
    if pa.types.is_list(old) and pa.types.is_list(new):
        return _same_type(old.value_type, new.value_type)
    if pa.types.is_map(old) and pa.types.is_map(new):
        return _same_type(old.key_type, new.key_type) and _same_type(old.item_type, new.item_type)
    if pa.types.is_struct(old) and pa.types.is_struct(new):
        return [field.name for field in old] == [field.name for field in new] and all(
            _same_type(one.type, other.type) for one, other in zip(old, new, strict=True)
        )
    return bool(old == new)


def _plain_annotation(annotation: Any) -> Any:
    """Without what `Annotated` adds: constraints are pydantic's, a column has none."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) not in (Union, UnionType):
        return annotation, False
    others = [each for each in get_args(annotation) if each is not NoneType]
    if len(others) != 1 or len(others) == len(get_args(annotation)):
        return annotation, False
    return _plain_annotation(others[0]), True


def _column_type(annotation: Any, within: tuple[type, ...]) -> pa.DataType:
    """within: the models that hold this one, for a model that holds itself has no column."""
    annotation = _plain_annotation(annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    if origin is Literal or (isinstance(annotation, type) and issubclass(annotation, Enum)):
        values = arguments if origin is Literal else [member.value for member in annotation]
        types = {type(value) for value in values}
        if len(types) == 1 and types <= {str, int}:
            return _SCALARS[types.pop()]
    elif origin is list or (origin is tuple and arguments[1:] == (...,)):
        return pa.list_(_column_type(_without_none(_plain_annotation(arguments[0]))[0], within))
    elif origin is dict and _plain_annotation(arguments[0]) in (str, int):
        item, _ = _without_none(_plain_annotation(arguments[1]))
        return pa.map_(_column_type(arguments[0], within), _column_type(item, within))
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in within:
        return pa.struct(
            [
                pa.field(name, _column_type(kind, (*within, annotation)), nullable=optional)
                for name, field in annotation.model_fields.items()
                for kind, optional in [_without_none(_plain_annotation(field.annotation))]
            ]
        )
    named = annotation.__name__ if isinstance(annotation, type) and origin is None else annotation
    raise TypeError(f"no column type for {named}; use {_COLUMN_TYPES}")
