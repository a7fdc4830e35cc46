"""The contract that users write against: columns from the schema, one hash for the code, clear refusals."""

import pickle
import shutil
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pytest

from deeplambda.application import Event, payload_fields, payload_schema
from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError, UnknownApplication
from deeplambda.loading import pack_application
from examples.digits.application import DigitDrawn, Digits

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", applications_dir=EXAMPLES)


def test_the_payload_is_what_the_user_added() -> None:
    assert payload_fields(DigitDrawn) == ["image"]
    assert payload_schema(DigitDrawn) == pa.schema([("image", pa.binary())])


def test_every_plain_type_has_a_column() -> None:
    class Reading(Event):
        station: str
        values: list[float]
        count: Annotated[int, "how many"]
        ok: bool

    types = [pa.string(), pa.list_(pa.float64()), pa.int64(), pa.bool_()]
    assert payload_schema(Reading).types == types


def test_a_field_without_a_column_type_is_named() -> None:
    class Odd(Event):
        parts: dict[str, int]

    with pytest.raises(TypeError, match=r"Odd\.parts"):
        payload_schema(Odd)


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
