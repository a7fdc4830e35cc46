"""Where the examples get their data from: a folder that the environment names, or small rows of the same form.

| application | variable | files |
|---|---|---|
| digits | DEEPLAMBDA_MNIST_DIR | the four of MNIST; see `examples.mnist` |
| sentiment | DEEPLAMBDA_POLARITY_DIR | rt-polarity.pos, rt-polarity.neg |
| turbofan | DEEPLAMBDA_TURBOFAN_DIR | train_FD001.txt.gz, test_FD001.txt.gz, RUL_FD001.txt.gz |
| fraud | DEEPLAMBDA_TRANSACTIONS_DIR | transactions.parquet |

What is generated is the same in every run. It has a pattern that a model can find and says nothing about quality.
`python -m examples.data turbofan` prints the folder, for `deeplambda data put turbofan FOLDER`.
"""

import gzip
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from deeplambda.config import find_data_dir
from deeplambda.errors import ConfigurationError
from examples.mnist import mnist_folder


@dataclass(frozen=True)
class _DataSet:
    variable: str
    files: tuple[str, ...]
    generate: Callable[[Path], None]


def data_folder(application: str, scratch: Path | None = None) -> tuple[Path, str]:
    """The folder with an example's files, and a sentence that says what is in it. Raises: ConfigurationError.

    scratch: where downloads and generated files go; None: below the data folder.
    """
    scratch = scratch or find_data_dir() / "downloads"
    if application == "digits":
        return mnist_folder(scratch)
    if application not in _DATA_SETS:
        raise ConfigurationError(f"{application!r} is no example", f"choose from digits, {', '.join(_DATA_SETS)}")
    wanted = _DATA_SETS[application]
    if configured := os.environ.get(wanted.variable):
        folder = Path(configured)
        if missing := [name for name in wanted.files if not (folder / name).is_file()]:
            raise ConfigurationError(
                f"{wanted.variable}={folder} has no {missing[0]}", f"it should hold {', '.join(wanted.files)}"
            )
        return folder, f"{', '.join(wanted.files)} from {folder}"
    folder = scratch / f"generated-{application}"
    folder.mkdir(parents=True, exist_ok=True)
    wanted.generate(folder)
    return folder, f"generated rows in {folder}, for {wanted.variable} is not set: the figures say nothing"


def _write_sentences(folder: Path) -> None:
    random = np.random.default_rng(0)
    subjects, rest = ("the film", "this story", "her part", "the ending"), ("at times", "once more", "by far", "in all")
    moods = {"pos": ("moving", "charming", "clever", "a joy"), "neg": ("dull", "clumsy", "hollow", "a bore")}
    for mood, words in moods.items():
        lines = [
            f"{random.choice(subjects)} is {random.choice(words)} {random.choice(rest)} , {n} ." for n in range(150)
        ]
        (folder / f"rt-polarity.{mood}").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_engines(folder: Path) -> None:
    random = np.random.default_rng(0)
    wear_of_sensor = random.normal(size=21)

    def flights(units: int, cut: int) -> list[str]:
        lines = []
        for unit in range(1, units + 1):
            life = 60 + 7 * unit
            for cycle in range(1, life - cut + 1):
                wear = np.exp((cycle - life) / 20) * wear_of_sensor + random.normal(scale=0.05, size=21)
                lines.append(" ".join(f"{value:.4f}" for value in (unit, cycle, 0, 0, 100, *(500 + wear))))
        return lines

    texts: Mapping[str, list[str]] = {
        "train_FD001.txt.gz": flights(8, 0),
        "test_FD001.txt.gz": flights(4, 20),
        "RUL_FD001.txt.gz": ["20"] * 4,
    }
    for name, lines in texts.items():
        (folder / name).write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))


def _write_payments(folder: Path) -> None:
    random, rows = np.random.default_rng(0), 4000
    begin, seconds = datetime(2018, 7, 25), np.sort(random.integers(0, 21 * 24 * 60 * 60, rows))
    amounts = random.gamma(2, 25, rows).round(2)
    frauds = (amounts > 120) | (random.random(rows) < 0.005)
    columns = {
        "TRANSACTION_ID": np.arange(rows, dtype=np.int32),
        "TX_DATETIME": pa.array([begin + timedelta(seconds=int(s)) for s in seconds], pa.timestamp("ns")),
        "CUSTOMER_ID": random.integers(0, 200, rows, dtype=np.int32),
        "TERMINAL_ID": random.integers(0, 400, rows, dtype=np.int32),
        "TX_AMOUNT": amounts,
        "TX_FRAUD": frauds.astype(np.int8),
    }
    parquet.write_table(pa.table(columns), folder / "transactions.parquet")


_DATA_SETS: Mapping[str, _DataSet] = {
    "sentiment": _DataSet("DEEPLAMBDA_POLARITY_DIR", ("rt-polarity.pos", "rt-polarity.neg"), _write_sentences),
    "turbofan": _DataSet(
        "DEEPLAMBDA_TURBOFAN_DIR", ("train_FD001.txt.gz", "test_FD001.txt.gz", "RUL_FD001.txt.gz"), _write_engines
    ),
    "fraud": _DataSet("DEEPLAMBDA_TRANSACTIONS_DIR", ("transactions.parquet",), _write_payments),
}


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(f"python -m examples.data NAME: a folder with the data of digits, {', '.join(_DATA_SETS)}")
    try:
        place, said = data_folder(sys.argv[1])
    except ConfigurationError as exc:
        sys.exit(str(exc))
    print(said, file=sys.stderr)
    print(place)
