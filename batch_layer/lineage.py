"""Lineage: what a model version was made of, from raw objects to the versions whose weights it began from; and which
versions something has come into."""

from collections.abc import Callable, Iterable, Iterator

from pydantic import AwareDatetime, BaseModel
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from rich.tree import Tree
from sqlalchemy import Connection

from batch_layer.newest import newest_examples
from deeplambda.adapters import mysql
from deeplambda.config import Settings
from deeplambda.records.shown import shown
from deeplambda.state import registry
from deeplambda.state.card import Card

OBJECTS_LIMIT = 1_000
"""Raw objects that are told of; a folder of images has one for each."""
_SHOWN = 20


class RawObject(BaseModel):
    """Rows that count, of one raw object as it was then. sha256: the one on S3 when it was ingested."""

    name: str
    sha256: str
    rows: int


class Lineage(BaseModel):
    """What a version was made of. objects: those of the examples, by name, up to OBJECTS_LIMIT of `objects_in_all`.

    snapshots: of the tables in `lake.<application>`, by table. rows: by split and source. parents: the version whose
    weights this one began from, the one before that, and so on, as `digits/3`.
    """

    application: str
    version: int
    created_at: AwareDatetime
    code_version: str
    code_sha256: str | None
    dataset: str
    snapshots: dict[str, int]
    rows: dict[str, dict[str, int]]
    recent_from: AwareDatetime | None
    made_anew: tuple[str, ...]
    parents: list[str]
    objects_in_all: int
    objects: list[RawObject]


def lineage(spark: SparkSession, settings: Settings, application: str, version: int) -> Lineage:
    """Raises: BadInput when there is no such version, NotReady."""
    with mysql.mysql_errors(), mysql.engine(settings, "platform").connect() as connection:
        card = registry.published_card(connection, application, version)
        parents = list(_parents(connection, card))
    tables = {
        "examples": card.snapshot,
        "events": card.events_snapshot,
        "labels": card.labels_snapshot,
        "withdrawals": card.withdrawals_snapshot or None,
    }
    rows = newest_examples(spark, application, card.snapshot).where("label IS NOT NULL")
    objects = rows.groupBy("source", "source_sha256").agg(F.count("*").alias("rows")).persist()
    try:
        told = objects.orderBy("source", "source_sha256").limit(OBJECTS_LIMIT).collect()
        in_all = objects.count()
    finally:
        objects.unpersist()
    return Lineage(
        **card.model_dump(include=set(Lineage.model_fields) & set(Card.model_fields) - {"recent_from"}),
        snapshots={table: snapshot for table, snapshot in tables.items() if snapshot is not None},
        recent_from=card.recent_from[0] if card.recent_from else None,
        parents=parents,
        objects_in_all=in_all,
        objects=[RawObject(name=row["source"], sha256=row["source_sha256"], rows=row["rows"]) for row in told],
    )


def _parents(connection: Connection, card: Card) -> Iterator[str]:
    while card.init_from is not None:
        yield card.init_from
        card = registry.version_named(connection, card.application, card.init_from)


def that_learned(cards: Iterable[Card], saw: Callable[[Card], bool]) -> list[int]:
    """The versions whose own data set had something, and those whose weights began from one of them.

    cards: of one application, the oldest first. saw: whether a version's data set had it.
    """
    found: dict[str, int] = {}
    for card in cards:
        if card.init_from in found or saw(card):
            found[card.name] = card.version
    return list(found.values())


def lineage_tree(found: Lineage) -> Tree:
    """For people: the version at the root."""
    tree = Tree(f"[bold]{found.application}/{found.version}[/] of {found.created_at:%Y-%m-%d %H:%M}Z")
    tree.add(f"code {found.code_version}")
    data = tree.add(f"data set {found.dataset}")
    for table, snapshot in found.snapshots.items():
        told = {split: rows[table] for split, rows in found.rows.items() if table in rows}
        node = data.add(
            f"lake.{found.application}.{table}, snapshot {snapshot}"
            + "".join(f"; {rows:,} rows in {split}" for split, rows in told.items())
        )
        if table == "examples":
            for each in found.objects[:_SHOWN]:
                node.add(f"{shown(each.name)}: {each.rows:,} rows, SHA-256 {each.sha256[:12]}…", highlight=False)
            if found.objects_in_all > _SHOWN:
                node.add(f"and {found.objects_in_all - _SHOWN:,} objects more")
    if found.recent_from is not None:
        data.add(f"events since {found.recent_from:%Y-%m-%d %H:%M:%S}Z are held out as the split recent")
    node = tree
    for parent in found.parents:
        node = node.add(f"began from the weights of {parent}")
    if found.made_anew:
        tree.add(f"made anew, for other outputs: {', '.join(found.made_anew)}")
    return tree
