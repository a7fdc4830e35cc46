"""What is held of a listing."""

from datetime import UTC, datetime, timedelta, timezone

from deeplambda.adapters.s3 import StoredObject


def test_the_times_of_a_listing_share_their_zone() -> None:
    moment = datetime(2026, 11, 23, 12, tzinfo=timezone(timedelta(hours=1)))
    found = StoredObject.of({"Key": "a/raw/b", "Size": 1, "LastModified": moment, "ETag": '"0a"'})
    assert found.modified == moment
    assert found.modified.tzinfo is UTC, "a zone for each object is more memory than all else that is held of it"
    assert found.tag == "0a"
