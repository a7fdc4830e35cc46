"""MySQL's tables: recent data, and the state that the layers share."""

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any

import pyarrow as pa
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Engine,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    inspect,
    text,
)
from sqlalchemy.dialects.mysql import LONGTEXT, MEDIUMTEXT
from sqlalchemy.schema import CreateColumn
from sqlalchemy.types import TypeEngine

from deeplambda.adapters.mysql import UtcDateTime, mysql_errors
from deeplambda.errors import ConfigurationError
from deeplambda.objective import PREDICTION_LIMIT
from deeplambda.records.predictions import VIEW_SCHEMA

SCHEMA = MetaData()
_EXACT = "utf8mb4_bin"
"""What is data tells case and accents apart, as Hive and Python do; the servers' own collations do not."""
_NAME = String(64, collation=_EXACT)


_LENGTHS = {"event_id": 128, "prediction": PREDICTION_LIMIT}
LABEL_LIMIT = 255
"""Characters of a label in MySQL."""
LIVE_ANSWERS_KEPT, LIVE_ANSWERS_KEPT_FOR = 100_000, timedelta(days=30)
"""Rows of `live_answers` of an application that have a label, and as many that wait for one; and for how long."""
_TYPES: Mapping[pa.DataType, type[TypeEngine[Any]]] = {
    pa.int32(): Integer,
    pa.int64(): BigInteger,
    pa.float64(): Double,
    pa.timestamp("us", tz="UTC"): UtcDateTime,
}


def _prediction_columns(keys: Collection[str] = ("event_id",)) -> list[Column[Any]]:
    columns: list[Column[Any]] = [Column("application", _NAME, primary_key=True)]
    for field in VIEW_SCHEMA:
        is_key = field.name in keys
        kind: TypeEngine[Any]
        if field.type != pa.string():
            kind = _TYPES[field.type]()
        elif field.name in _LENGTHS:
            kind = String(_LENGTHS[field.name], collation=_EXACT)
        else:
            kind = MEDIUMTEXT(collation=_EXACT)
        columns.append(Column(field.name, kind, primary_key=is_key, nullable=field.nullable))
    return columns


def _decided() -> list[Column[Any]]:
    return [
        Column("who", String(128), comment="who asked for it"),
        Column("why", Text, comment="in that one's words"),
        Column("verdict", JSON(none_as_null=True), comment="the gate's, with its figures"),
    ]


HIDDEN_FROM_ANALYSTS = frozenset({"outbox", "queries"})
"""The account `analyst` is granted no right to these, and the SQL guard does not know them."""

REALTIME_PREDICTIONS = Table(
    "realtime_predictions",
    SCHEMA,
    *_prediction_columns(),
    Column("received_at", UtcDateTime, nullable=False, comment="the broker's time stamp of the event"),
    Column("stored_at", UtcDateTime, nullable=False),
    Column("replayed", Boolean, comment="whether it had been scored before: its times tell no delay then"),
    Index("realtime_by_position", "application", "kafka_partition", "kafka_offset"),
    Index("realtime_by_time", "application", "predicted_at"),
)
RECENT_PREDICTIONS = Table(
    "recent_predictions",
    SCHEMA,
    *_prediction_columns(),
    Column("label", String(LABEL_LIMIT, collation=_EXACT), comment="ground truth, where it has arrived"),
    Index("recent_by_time", "application", "occurred_at"),
)
LIVE_ANSWERS = Table(
    "live_answers",
    SCHEMA,
    *(column for column in _prediction_columns(("event_id", "model_version")) if column.name != "scores"),
    Column(
        "label",
        String(LABEL_LIMIT, collation=_EXACT),
        comment="ground truth that has passed, as the objective writes it",
    ),
    Column("labelled_at", UtcDateTime, comment="the broker's time stamp of the label"),
    Column("correct", Boolean, comment="whether the label says the same; of numbers there is an error"),
    Column("error", Double, comment="of numbers, how far the label is off"),
    Index("live_answers_by_label", "application", "labelled_at", "predicted_at"),
)
RECENT_MODEL_METRICS = Table(
    "recent_model_metrics",
    SCHEMA,
    Column("application", _NAME, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("split", String(32), primary_key=True),
    Column("name", _NAME, primary_key=True),
    Column("value", Double, nullable=False),
    Column("recorded_at", UtcDateTime, nullable=False),
)
MODEL_VERSIONS = Table(
    "model_versions",
    SCHEMA,
    Column("application", _NAME, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("run", String(64), nullable=False),
    Column("published_at", UtcDateTime, nullable=False),
    Column("weights_sha256", String(64), nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("card", JSON, nullable=False),
    Index("one_version_per_run", "application", "run", unique=True),
)
PROMOTIONS = Table(
    "promotions",
    SCHEMA,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("application", _NAME, nullable=False),
    Column("version", Integer, nullable=False),
    Column("previous", Integer),
    Column("kind", String(16), nullable=False, comment="promoted or rolled_back"),
    Column("at", UtcDateTime, nullable=False),
    *_decided(),
    Index("promotions_by_application", "application", "id"),
)
DATA_CHANGES = Table(
    "data_changes",
    SCHEMA,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("application", _NAME, nullable=False),
    Column("kind", String(16), nullable=False, comment="published, dropped, rolled_back, withdrawn or restored"),
    Column("table_name", _NAME, nullable=False),
    Column("snapshot", BigInteger, comment="the table's newest after the change"),
    Column("previous", BigInteger, comment="before it"),
    Column("subject", String(64), comment="a branch's or a withdrawal's name"),
    Column("changed_rows", BigInteger, nullable=False),
    Column("who", _NAME, nullable=False),
    Column("why", Text, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Index("data_changes_by_application", "application", "id"),
)
REPLAYED_LETTERS = Table(
    "replayed_letters",
    SCHEMA,
    Column("topic", String(249), primary_key=True, comment="where the refused record stands"),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("offset", BigInteger, primary_key=True, autoincrement=False),
    Column("who", _NAME, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("is_copy", Boolean, comment="whether a replay sent the record that stands there"),
    Index("replayed_by_time", "at"),
)
REJECTIONS = Table(
    "rejections",
    SCHEMA,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("application", _NAME, nullable=False),
    Column("version", Integer, nullable=False),
    Column("champion", Integer, comment="which served meanwhile"),
    Column("reason", Text, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    *_decided(),
    Index("rejections_by_application", "application", "id"),
)
EXPERIMENTS = Table(
    "experiments",
    SCHEMA,
    Column("application", _NAME, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("kind", String(16), nullable=False, comment="shadow or canary"),
    Column("version", Integer, nullable=False, comment="the candidate"),
    Column("champion", Integer, nullable=False),
    Column("share", Double, nullable=False, comment="of a core (shadow), of the events (canary)"),
    Column("until_decided", Boolean, nullable=False),
    Column("labels_limit", Integer, comment="how many labels it may take to decide"),
    *_decided(),
    Column("state", String(16), nullable=False, comment="running, or how it ended"),
    Column("started_at", UtcDateTime, nullable=False),
    Column("until", UtcDateTime, comment="when it ends undecided"),
    Column("ended_at", UtcDateTime),
    Column("ended_by", String(128)),
    Column("reason", Text, comment="why it ended"),
    Column("answered", BigInteger, nullable=False, comment="events that the candidate answered"),
    Column("agreed", BigInteger, comment="of a shadow's, those of which the champion says the same"),
    Column("failed", BigInteger, nullable=False, comment="events that the candidate had no answer to"),
    Column("failure", Text, comment="why, of the last of them"),
    Column("shed", BigInteger, nullable=False, comment="events that a shadow passed over"),
    Column("labelled", BigInteger, nullable=False),
    Column("comparison", JSON(none_as_null=True), comment="paired difference, with its interval at any time"),
)
EXPERIMENT_ANSWERS = Table(
    "experiment_answers",
    SCHEMA,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("application", _NAME, nullable=False),
    Column("experiment", Integer, nullable=False),
    Column("event_id", String(128, collation=_EXACT), nullable=False),
    Column(
        "candidate",
        String(PREDICTION_LIMIT, collation=_EXACT),
        comment="its prediction; none where it failed or was not asked",
    ),
    Column("candidate_value", Double, comment="as a number, where it is one"),
    Column(
        "champion",
        String(PREDICTION_LIMIT, collation=_EXACT),
        comment="its prediction; none where it was not asked",
    ),
    Column("champion_value", Double),
    Column("error", Text, comment="why the candidate failed"),
    Column("at", UtcDateTime, nullable=False),
    Column("label", String(LABEL_LIMIT, collation=_EXACT)),
    Column("candidate_score", Double, comment="1 right, 0 wrong; of numbers, the error as a negative number"),
    Column("champion_score", Double),
    Index("one_answer_per_event", "application", "experiment", "event_id", unique=True),
)
DRIFT_WINDOWS = Table(
    "drift_windows",
    SCHEMA,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("application", _NAME, nullable=False),
    Column("version", Integer, nullable=False),
    Column("what", String(16), nullable=False, comment="inputs, predictions or accuracy"),
    Column("first_at", UtcDateTime, nullable=False),
    Column("last_at", UtcDateTime, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("value", Double, nullable=False, comment="of the detector; an alarm is raised at the threshold"),
    Column("threshold", Double, nullable=False),
    Column("p", Double, nullable=False, comment="the smallest of a field"),
    Column("drifted", Boolean, nullable=False, comment="whether an alarm stands"),
    Column("evidence", JSON, nullable=False, comment="offsets, fields, examples"),
    Column("at", UtcDateTime, nullable=False),
    Index("drift_by_application", "application", "what", "id"),
)
GENERATIONS = Table(
    "generations",
    SCHEMA,
    Column("application", _NAME, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("cause", String(16), nullable=False, comment="drift, labels, schedule or person"),
    Column("why", Text, nullable=False),
    Column("state", String(16), nullable=False, comment="running, promoted, rejected, unchanged, held or failed"),
    Column("step", String(16), nullable=False, comment="the one under way, or the last"),
    Column("attempts", Integer, nullable=False, comment="processes that have worked on it"),
    Column("started_at", UtcDateTime, nullable=False),
    Column("heartbeat_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    Column("label_offsets", JSON, nullable=False, comment="by partition, the first label that it has not seen"),
    Column("new_labels", BigInteger, nullable=False, comment="that came since the generation before"),
    Column("data", JSON, comment="data set, and the champion that it begins from"),
    Column("version", Integer),
    Column("verdict", Text, comment="why it ended as it did"),
)
SKEW = Table(
    "skew",
    SCHEMA,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("application", _NAME, nullable=False),
    Column("version", Integer, nullable=False),
    Column("field", String(32), nullable=False, comment="of a prediction, in which stream and batch differ"),
    Column("compared", Integer, nullable=False),
    Column("different", Integer, nullable=False),
    Column("examples", JSON, nullable=False, comment="ids of events in which they do"),
    Column("at", UtcDateTime, nullable=False),
    Index("skew_by_application", "application", "at"),
)
HORIZONS = Table(
    "horizons",
    SCHEMA,
    Column("application", _NAME, primary_key=True),
    Column("snapshot", BigInteger, nullable=False, comment="of lake.<application>.predictions"),
    Column("events_snapshot", BigInteger, nullable=False, comment="of lake.<application>.events"),
    Column("model_version", Integer, nullable=False),
    Column("offsets", JSON, nullable=False, comment="by partition, the first offset not absorbed"),
    Column("moved_at", UtcDateTime, nullable=False),
)
SHOWN_HORIZONS = Table(
    "shown_horizons",
    SCHEMA,
    Column("application", _NAME, primary_key=True),
    Column("shown_at", UtcDateTime, primary_key=True, comment="by MySQL's clock, once the union view showed it"),
    Column("snapshot", BigInteger, nullable=False, comment="of lake.<application>.predictions"),
    Column("offsets", JSON, nullable=False, comment="by partition, the first offset not absorbed"),
)
METRICS = Table(
    "metrics",
    SCHEMA,
    Column("kafka_offset", BigInteger, primary_key=True, autoincrement=False),
    Column("application", _NAME),
    Column("layer", String(32), nullable=False),
    Column("part", String(32), nullable=False),
    Column("name", String(64), nullable=False),
    Column("value", Double, nullable=False),
    Column("unit", String(16), nullable=False),
    Column("kafka_partition", Integer, comment="of the topic that the part reads, where the value is of one"),
    Column("at", UtcDateTime, nullable=False),
    Index("metrics_by_time", "at"),
)
SKIPPED_RECORDS = Table(
    "skipped_records",
    SCHEMA,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("application", _NAME, nullable=False),
    Column("reader", String(32), nullable=False, comment="the part that had not read them"),
    Column("topic", String(255), nullable=False),
    Column("partition", Integer, nullable=False),
    Column("from_offset", BigInteger, nullable=False),
    Column("to_offset", BigInteger, nullable=False, comment="the first that was read again"),
    Column("at", UtcDateTime, nullable=False),
)
QUERIES = Table(
    "queries",
    SCHEMA,
    Column("id", String(36), primary_key=True),
    Column("statement", MEDIUMTEXT(collation=_EXACT), nullable=False),  # a TEXT's bytes are fewer than it may have
    Column("store", String(16), nullable=False),
    Column("status", String(16), nullable=False, comment="queued, running, done, failed or cancelled"),
    Column("submitted_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime),
    Column("result", LONGTEXT, comment="JSON: columns, rows, truncated"),
    Column("error", MEDIUMTEXT(collation=_EXACT)),  # it may hold the statement
)
OUTBOX = Table(
    "outbox",
    SCHEMA,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("topic", String(249), nullable=False),
    Column("record_key", String(255), nullable=False),
    Column("value", LONGTEXT, nullable=False),
    Column("written_at", UtcDateTime, nullable=False),
    Column("published_at", UtcDateTime),
    Index("outbox_to_publish", "published_at", "id"),
)


def create_schema(root: Engine) -> None:
    """Create the tables that are missing, add the columns that older tables lack, and give texts the collation that
    they have here; each only where it is so.

    Raises: ConfigurationError for a missing column that is not nullable: rows of before have no value for it.
    """
    with mysql_errors():
        SCHEMA.create_all(root)
        with root.begin() as connection:
            for table in SCHEMA.sorted_tables:
                _add_missing_columns(connection, table)
            _set_collations(connection)


def _add_missing_columns(connection: Connection, table: Table) -> None:
    there = {column["name"] for column in inspect(connection).get_columns(table.name)}
    prepare = connection.dialect.identifier_preparer
    for column in table.columns:
        if column.name in there:
            continue
        if not column.nullable:
            raise ConfigurationError(
                f"MySQL's table {table.name} has no column {column.name}, which is not nullable",
                "it was made by another version of this platform, which cannot be brought up to date by itself",
            )
        name, kind = prepare.format_column(column), column.type.compile(connection.dialect)
        connection.exec_driver_sql(f"ALTER TABLE {prepare.format_table(table)} ADD COLUMN {name} {kind} NULL")


def _set_collations(connection: Connection) -> None:
    """A column of another collation is written anew, with the type that it has here: it takes a while in a large table,
    once."""
    asked = text(
        "SELECT table_name AS of_table, column_name AS name, collation_name AS collation "
        "FROM information_schema.columns WHERE table_schema = DATABASE()"
    )
    there = {(row.of_table, row.name): row.collation for row in connection.execute(asked)}
    prepare = connection.dialect.identifier_preparer
    for column in (each for table in SCHEMA.sorted_tables for each in table.columns):
        wanted = getattr(column.type, "collation", None)
        if wanted is not None and there[column.table.name, column.name] != wanted:
            table = prepare.format_table(column.table)
            written = CreateColumn(column).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {table} MODIFY {written}".replace("%", "%%"))
