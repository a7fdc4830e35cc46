from batch_layer.feed import Announcements, partition_prepared
from deeplambda.records.lifecycle import ModelPublished, PartitionPrepared


def prepared(split: str, partition: int, **changed: object) -> PartitionPrepared:
    facts: dict[str, object] = {
        "application": "digits",
        "dataset": "ab12",
        "split": split,
        "partition": partition,
        "partitions": 2,
        "key": f"{split}-{partition}",
        "sha256": "0" * 64,
        "rows": 10,
        "size_bytes": 100,
        "duration_s": 0.5,
    }
    return PartitionPrepared.model_validate(facts | changed)


def announcements() -> Announcements:
    return Announcements("digits", "ab12", ["train", "test"])


def test_a_data_set_is_complete_when_every_partition_of_every_split_was_announced() -> None:
    told = announcements()
    for split, partition in [("test", 1), ("train", 0), ("train", 1)]:
        assert told.take(prepared(split, partition))
        assert not told.complete
    assert told.take(prepared("test", 0))
    assert told.complete
    assert told.missing() == []


def test_a_partition_announced_again_counts_once() -> None:
    told = announcements()
    assert told.take(prepared("train", 0))
    assert not told.take(prepared("train", 0))
    assert told.missing() == ["train-00001", "all of test"]


def test_other_data_sets_applications_and_splits_are_passed_over() -> None:
    told = announcements()
    assert not told.take(prepared("train", 0, dataset="cd34"))
    assert not told.take(prepared("train", 0, application="letters"))
    assert not told.take(prepared("validation", 0))
    assert told.missing() == ["all of train", "all of test"]


def test_a_record_of_another_type_or_a_broken_one_is_no_announcement() -> None:
    published = ModelPublished(application="digits", version=1, run="PartitionPrepared", weights_sha256="", metrics={})
    assert partition_prepared(published.model_dump_json().encode()) is None
    assert partition_prepared(b'{"type": "PartitionPrepared"') is None
    assert partition_prepared(None) is None
    announcement = prepared("train", 1)
    assert partition_prepared(announcement.model_dump_json().encode()) == announcement
