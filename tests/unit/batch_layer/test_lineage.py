"""What a version was made of, as people see it."""

from datetime import UTC, datetime

from rich.console import Console

from batch_layer.lineage import Lineage, RawObject, lineage_tree, that_learned
from tests.unit.batch_layer.test_gate import card

FOUND = Lineage(
    application="digits",
    version=7,
    created_at=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
    code_version="c0de",
    code_sha256="ab",
    dataset="d1",
    snapshots={"examples": 11, "events": 12, "labels": 13},
    rows={"train": {"examples": 60_000, "events": 800}, "test": {"examples": 10_000}, "recent": {"events": 200}},
    recent_from=datetime(2026, 1, 1, tzinfo=UTC),
    made_anew=("7.weight",),
    parents=["digits/5", "letters/2"],
    objects_in_all=22,
    objects=[RawObject(name=f"part-{n}", sha256="f" * 64, rows=n) for n in range(22)],
)


def printed(found: Lineage) -> list[str]:
    console = Console(width=120, record=True, quiet=False)
    with console.capture() as capture:
        console.print(lineage_tree(found))
    return [line.lstrip("│├└─ ").rstrip() for line in capture.get().splitlines()]


def test_a_version_leads_to_its_code_its_rows_their_objects_and_the_versions_that_it_began_from() -> None:
    lines = printed(FOUND)
    assert lines[:3] == ["digits/7 of 2026-01-02 03:04Z", "code c0de", "data set d1"]
    assert "lake.digits.examples, snapshot 11; 60,000 rows in train; 10,000 rows in test" in lines
    assert "lake.digits.events, snapshot 12; 800 rows in train; 200 rows in recent" in lines
    assert "lake.digits.labels, snapshot 13" in lines
    assert "part-19: 19 rows, SHA-256 ffffffffffff…" in lines
    assert "and 2 objects more" in lines
    assert "part-20" not in "".join(lines)
    first, second = (lines.index(f"began from the weights of {name}") for name in ("digits/5", "letters/2"))
    assert second == first + 1
    assert "made anew, for other outputs: 7.weight" in lines


def test_a_version_of_examples_alone_says_no_more() -> None:
    alone = FOUND.model_copy(
        update={"snapshots": {"examples": 11}, "recent_from": None, "parents": [], "made_anew": (), "objects": []}
        | {"objects_in_all": 0, "rows": {"train": {"examples": 5}}}
    )
    assert printed(alone)[3:] == ["lake.digits.examples, snapshot 11; 5 rows in train"]


def test_what_a_version_learned_its_heirs_have_learned_too() -> None:
    begun_from = {1: None, 2: None, 3: "digits/2", 4: "digits/1", 5: "digits/3", 6: "letters/2"}
    cards = [card(version, 0.9).model_copy(update={"init_from": of}) for version, of in begun_from.items()]
    assert that_learned(cards, lambda each: each.version == 2) == [2, 3, 5]
    assert that_learned(cards, lambda each: False) == []
