"""The contract that users write against: columns from the schema, one hash for the code, clear refusals."""

import hashlib
import pickle
import shutil
import tempfile
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pytest
from pydantic import AwareDatetime, BaseModel, Field, create_model

from deeplambda.application import Event, event_of, payload_batch, payload_fields, payload_row, payload_schema, restored
from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError, UnknownApplication
from deeplambda.fields import compatible
from deeplambda.loading import pack_application, unpack_application
from examples.digits.application import DigitDrawn, Digits

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", applications_dir=EXAMPLES)


def test_the_payload_is_what_the_user_added() -> None:
    assert payload_fields(DigitDrawn) == ["image"]
    assert payload_schema(DigitDrawn) == pa.schema([pa.field("image", pa.binary(), nullable=False)])


class Colour(Enum):
    RED = "red"


class Priority(IntEnum):
    HIGH = 2


class Place(BaseModel):
    x: int
    note: str | None = None


class Reading(Event):
    station: str
    values: list[float]
    count: Annotated[int, "how many"]
    ok: bool
    maybe: Annotated[float, Field(ge=0)] | None = None
    colour: Colour
    priority: Priority
    side: Literal["left", "right"]
    price: Decimal
    at: AwareDatetime
    day: date
    grid: list[list[int]]
    place: Place
    weights: dict[str, float]


_UTC = pa.timestamp("us", tz="UTC")
_PLACE = pa.struct([pa.field("x", pa.int64(), nullable=False), ("note", pa.string())])


def test_every_type_has_a_column() -> None:
    types = [pa.string(), pa.list_(pa.float64()), pa.int64(), pa.bool_(), pa.float64(), pa.string(), pa.int64()]
    types += [pa.string(), pa.string(), _UTC, pa.date32(), pa.list_(pa.list_(pa.int64())), _PLACE]
    assert payload_schema(Reading).types == [*types, pa.map_(pa.string(), pa.float64())]
    assert [field.name for field in payload_schema(Reading) if field.nullable] == ["maybe"]


@pytest.fixture
def reading() -> Reading:
    return Reading.model_validate_json(
        '{"event_id": "1", "occurred_at": "2024-01-01T00:00:00Z", "station": "a", "values": [1.5], "count": 2, '
        '"ok": true, "colour": "red", "priority": 2, "side": "left", "price": "1.50", '
        '"at": "2024-01-01T02:00:00+02:00", '
        '"day": "2024-01-02", "grid": [[1], [2, 3]], "place": {"x": 1}, "weights": {"q": 1.5}}'
    )


def test_values_are_stored_as_their_columns_hold_them(reading: Reading) -> None:
    row = payload_batch(Reading, [reading]).to_pylist()[0]
    assert row == payload_row(reading) | {"at": datetime(2024, 1, 1, tzinfo=UTC)}
    assert (row["colour"], row["priority"], row["price"], row["maybe"]) == ("red", 2, "1.50", None)
    assert (row["place"], row["weights"]) == ({"x": 1, "note": None}, [("q", 1.5)])


def test_stored_values_are_read_again_as_an_equal_event(reading: Reading) -> None:
    row = payload_batch(Reading, [reading]).to_pylist()[0]
    again = {"event_id": "1", "occurred_at": reading.occurred_at} | restored(Reading, row)
    assert Reading.model_validate(again) == reading


class Nested(BaseModel):
    inner: "Nested | None" = None


@pytest.mark.parametrize("kind", [complex, int | str, set[int], Literal[1, "a"], Nested, dict[float, int]])
def test_a_field_without_a_column_type_is_named(kind: Any) -> None:
    odd = create_model("Odd", __base__=Event, parts=(kind, ...))
    with pytest.raises(TypeError, match=r"Odd\.parts: no column type for"):
        payload_schema(odd)


def _schema(*fields: tuple[str, pa.DataType, bool]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=nullable) for name, kind, nullable in fields])


_BEFORE = _schema(("id", pa.int64(), False), ("place", _PLACE, False))


@pytest.mark.parametrize(
    ("after", "problem"),
    [
        (_schema(("id", pa.int64(), False), ("place", _PLACE, False), ("new", pa.string(), True)), None),
        (_schema(("id", pa.float64(), False), ("place", _PLACE, False)), None),
        (_schema(("id", pa.int64(), True), ("place", _PLACE, True)), None),
        (_schema(("id", pa.int64(), False), ("place", _PLACE, False), ("new", pa.string(), False)), "'new' is new"),
        (_schema(("id", pa.int64(), False)), "'place' is gone"),
        (_schema(("id", pa.string(), False), ("place", _PLACE, False)), "'id' was int64 and is string"),
        (_schema(("id", pa.int64(), False), ("place", pa.struct([("note", pa.string())]), False)), "'place.x' is gone"),
    ],
)
def test_what_old_rows_can_be_read_as(after: pa.Schema, problem: str | None) -> None:
    found = compatible(_BEFORE, after)
    assert (not found) if problem is None else (len(found) == 1 and problem in found[0])


def test_an_optional_field_cannot_become_required() -> None:
    optional, required = _schema(("id", pa.int64(), True)), _schema(("id", pa.int64(), False))
    assert compatible(optional, required) == ["field 'id' was optional and is required: leave it optional"]


def test_json_schema_follows_from_the_event() -> None:
    schema = DigitDrawn.model_json_schema()
    assert set(schema["required"]) == {"event_id", "occurred_at", "image"}
    assert schema["properties"]["image"]["contentEncoding"] == "base64"


def test_digits_is_the_network_of_the_literature() -> None:
    assert sum(parameter.numel() for parameter in Digits().build_model().parameters()) == 1_256_080


def test_equal_code_has_one_version_and_changed_code_another(settings: Settings, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "digits", tmp_path / "digits")
    packed = pack_application("digits", settings)
    copied = pack_application(str(tmp_path / "digits"), settings)
    (tmp_path / "digits" / "application.py").write_text(
        (tmp_path / "digits" / "application.py").read_text() + "\n# another version\n"
    )
    changed = pack_application(str(tmp_path / "digits"), settings)
    assert copied.code_version == packed.code_version != changed.code_version
    assert packed.load().name == changed.load().name == "digits"


def test_an_application_may_lie_in_a_hidden_folder_and_what_it_hides_is_not_packed(
    settings: Settings, tmp_path: Path
) -> None:
    folder = tmp_path / ".local" / "digits"
    shutil.copytree(EXAMPLES / "digits", folder)
    (folder / ".env").write_text("PASSWORD=secret")
    assert pack_application(str(folder), settings).code_version == pack_application("digits", settings).code_version


@pytest.mark.parametrize("damaged", [b"", b"PK\x05\x06"])
def test_a_zip_that_a_crash_of_the_machine_has_cut_is_made_anew(settings: Settings, damaged: bytes) -> None:
    packed = pack_application("digits", settings)
    whole = packed.zip_file.read_bytes()
    packed.zip_file.write_bytes(damaged)
    assert pack_application("digits", settings).zip_file.read_bytes() == whole


@pytest.fixture
def foreign_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Nothing can be written below it, as where it belongs to another user."""
    (tmp_path / "data").write_text("a file, so that no folder can be made below it")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return Settings(data_dir=tmp_path / "data")


def test_code_that_the_data_folder_cannot_take_lies_in_a_folder_of_this_user_alone(
    foreign_data_folder: Settings,
) -> None:
    content = b"a zip"
    sha256 = hashlib.sha256(content).hexdigest()
    fetched = unpack_application("digits", "0123", sha256, foreign_data_folder, lambda: content).zip_file
    assert fetched.read_bytes() == content
    assert fetched.parent.stat().st_mode & 0o777 == 0o700

    def fetch() -> bytes:
        raise AssertionError("it is there already")

    assert unpack_application("digits", "0123", sha256, foreign_data_folder, fetch).zip_file == fetched


@pytest.mark.parametrize("taken", ["open to others", "a link"])
def test_code_is_neither_put_nor_looked_for_where_others_could_put_theirs(
    foreign_data_folder: Settings, tmp_path: Path, taken: str
) -> None:
    content = b"a zip"
    sha256 = hashlib.sha256(content).hexdigest()
    folder = unpack_application("digits", "0123", sha256, foreign_data_folder, lambda: content).zip_file.parent
    if taken == "a link":
        folder.rename(tmp_path / "theirs")
        folder.symlink_to(tmp_path / "theirs")
    else:
        folder.chmod(0o777)
    with pytest.raises(ConfigurationError, match="this user alone"):
        unpack_application("digits", "0123", sha256, foreign_data_folder, lambda: content)


def test_a_packed_application_survives_pickling(settings: Settings) -> None:
    packed = pack_application("digits", settings)
    assert pickle.loads(pickle.dumps(packed)).load().event.__name__ == "DigitDrawn"


def test_an_unknown_application_says_where_it_was_looked_for(settings: Settings) -> None:
    with pytest.raises(UnknownApplication, match="DEEPLAMBDA_APPLICATIONS_DIR"):
        pack_application("nowhere", settings)


def test_an_application_is_named_as_its_folder(settings: Settings, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "digits", tmp_path / "numbers")
    with pytest.raises(ConfigurationError, match="one name"):
        pack_application(str(tmp_path / "numbers"), settings)


def test_a_slice_is_a_field_of_the_event(settings: Settings, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "digits", tmp_path / "digits")
    file = tmp_path / "digits" / "application.py"
    file.write_text(file.read_text().replace('    name = "digits"', '    name = "digits"\n    slices = ("country",)'))
    with pytest.raises(ConfigurationError, match="'country' of digits is no field of its event"):
        pack_application(str(tmp_path / "digits"), settings)


def test_what_is_null_is_none_where_it_may_be_and_else_the_default() -> None:
    class Sparse(Event):
        may_be: float | None = 1.0
        may_not: float = 2.0
        absent: float | None = 3.0

    found = event_of(Sparse, {"event_id": "a", "occurred_at": datetime.now(UTC), "may_be": None, "may_not": None})
    assert found.model_dump(include={"may_be", "may_not", "absent"}) == {"may_be": None, "may_not": 2.0, "absent": 3.0}
