"""What the story of card payments takes from the file, and the application that it makes of the example."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError
from deeplambda.loading import pack_application
from examples.fraud_story import MARGIN, Payments, write_application

DAYS, A_DAY, TERMINALS = 28, 40, 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random, rows = np.random.default_rng(0), DAYS * A_DAY
    seconds = random.permutation(np.arange(rows) * (86_400 // A_DAY))  # in no order
    columns = {
        "TRANSACTION_ID": np.arange(rows, dtype=np.int32),
        "TX_DATETIME": pa.array(np.datetime64("2018-06-25", "ns") + seconds * np.timedelta64(1, "s")),
        "CUSTOMER_ID": random.integers(0, 50, rows, dtype=np.int32),
        "TERMINAL_ID": np.arange(rows, dtype=np.int32) % TERMINALS,
        "TX_AMOUNT": random.gamma(2, 25, rows),
        "TX_FRAUD": (random.random(rows) < 0.1).astype(np.int8),
    }
    parquet.write_table(pa.table(columns), tmp_path / "transactions.parquet")
    return tmp_path


def test_weeks_are_of_seven_days_in_order_at_a_share_of_whole_terminals(folder: Path) -> None:
    found = Payments.read(folder, 0.25, 4)
    assert found.begin == datetime(2018, 6, 25, tzinfo=UTC)
    assert len(found.days_N) == DAYS * A_DAY // 4
    assert len(np.unique(found.rows["TERMINAL_ID"].to_numpy())) == TERMINALS // 4
    weeks = [found.week(number) for number in range(4)]
    assert sorted(each for week in weeks for each in week.ids) == sorted(found.ids)
    for number, week in enumerate(weeks):
        assert set(week.days_N) <= set(range(7 * number, 7 * number + 7))
        times = week.payload["paid_at"].to_pylist()
        assert times == sorted(times)


def test_a_file_of_too_few_days_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"takes 5 weeks, and .* has 28 days"):
        Payments.read(folder, 1, 5)


def test_the_application_is_the_example_with_the_first_week_for_its_examples(tmp_path: Path) -> None:
    write_application(tmp_path, datetime(2018, 6, 25, tzinfo=UTC))
    made = pack_application(str(tmp_path / "fraud"), Settings(data_dir=tmp_path)).load()
    split_of = {day: made.splits.split_of("an id", datetime(2018, 6, day)) for day in (25, 29, 30)}
    assert split_of == {25: "train", 29: "train", 30: "test"}
    assert made.splits.split_of("an id", datetime(2018, 7, 1)) == "test"
    assert made.splits.split_of("an id", datetime(2018, 7, 2)) is None
    assert made.margin == MARGIN
