import pytest

from deeplambda.errors import ConfigurationError
from deeplambda.jvm.lock import read_lock
from deeplambda.stack.local.parts import PARTS, part_named, stopping_waves, with_needs


def test_every_part_comes_after_what_it_needs() -> None:
    seen: set[str] = set()
    for part in PARTS:
        assert set(part.needs) <= seen, part.name
        seen.add(part.name)


def test_naming_a_part_brings_what_it_needs_and_no_more() -> None:
    assert [part.name for part in with_needs(["metastore"])] == ["s3", "mysql", "metastore"]
    assert [part.name for part in with_needs(["kafka"])] == ["kafka"]


def test_naming_none_means_all() -> None:
    assert with_needs([]) == list(PARTS)


def test_an_unknown_part_is_refused_with_the_list_of_parts() -> None:
    with pytest.raises(ConfigurationError, match=r"no part 'kafak'.*kafka, s3, mysql"):
        part_named("kafak")


def test_nothing_is_stopped_while_something_still_running_needs_it() -> None:
    stopped: set[str] = set()
    for wave in stopping_waves(PARTS):
        stopped |= {part.name for part in wave}
        needed = {need for part in PARTS if part.name not in stopped for need in part.needs}
        assert not needed & stopped
    assert stopped == {part.name for part in PARTS}


def test_every_component_of_a_part_is_in_the_lock() -> None:
    locked = {jar.component for jar in read_lock()}
    assert {component for part in PARTS for component in part.components} <= locked
