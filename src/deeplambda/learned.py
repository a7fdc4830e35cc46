"""Learned state: what an application's `fit` learns from the training rows, kept with the version as plain data.

It may be a pydantic model (named as the return type of `fit`), anything that JSON holds, an Arrow table, or NumPy
arrays by name. It is stored as JSON, Arrow or safetensors, never as a pickle.
"""

import hashlib
import io
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal, get_type_hints

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from pydantic_core import from_json, to_json

from deeplambda.errors import BadInput
from deeplambda.features import padded

Format = Literal["json", "arrow", "safetensors"]


@dataclass(frozen=True, kw_only=True)
class EncodedState:
    """A learned state as it is stored."""

    format: Format
    content: bytes

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the content."""
        return hashlib.sha256(self.content).hexdigest()


def encode_state(state: Any) -> EncodedState:
    """Raises: BadInput for what is none of the forms."""
    if isinstance(state, (pa.Table, pa.RecordBatch)):
        table = state if isinstance(state, pa.Table) else pa.Table.from_batches([state])
        sink = io.BytesIO()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        return EncodedState(format="arrow", content=sink.getvalue())
    if isinstance(state, Mapping) and state and all(isinstance(value, np.ndarray) for value in state.values()):
        from safetensors.numpy import save

        return EncodedState(format="safetensors", content=save(dict(state)))
    try:
        return EncodedState(format="json", content=to_json(state))
    except ValueError as exc:
        raise BadInput(
            f"fit returned {type(state).__name__}, which cannot be kept: {exc}",
            "return a pydantic model, JSON values, an Arrow table or NumPy arrays by name",
        ) from exc


def decode_state(fit: Any, encoded: EncodedState) -> Any:
    """The state as `fit` returned it. fit: the application's, whose return type a pydantic model is made of."""
    if encoded.format == "arrow":
        return pa.ipc.open_file(pa.BufferReader(encoded.content)).read_all()
    if encoded.format == "safetensors":
        from safetensors.numpy import load

        return load(encoded.content)
    kind = get_type_hints(fit).get("return")
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind.model_validate_json(encoded.content)
    return from_json(encoded.content)


_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[^\w\s]")
_SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Khmer, kana and Chinese characters, between whose words there are no spaces."""
SPACELESS = re.compile(f"[{_SPACELESS}]")


@cache
def _word_of_any_script() -> re.Pattern[str]:
    """Marks, such as vowels of Devanagari, belong to the letter before them."""
    marks = "".join(letter for letter in map(chr, range(0x20000)) if unicodedata.category(letter).startswith("M"))
    letter = rf"(?![{_SPACELESS}])[^\W_][{marks}]*"
    return re.compile(rf"[{_SPACELESS}][{marks}]*|(?:{letter})+(?:'(?:{letter})+)*|[^\w\s]")


_COUNTED = 20
"""Of the runs, words or values that are kept, how many times as many are counted at once."""


def _forget_rare(counts: Sequence[Counter[str]]) -> None:
    """Drop those with the least count, and those with more until half are left."""
    every, least = sum(map(len, counts)), 1
    while sum(map(len, counts)) > every // 2:
        for of in counts:
            for rare in [each for each, count in of.items() if count <= least]:
                del of[rare]
        least += 1


def _commonest(pieces: Iterable[Iterable[str]], size: int) -> list[tuple[str, int]]:
    """The `size` commonest of what the pieces have, with their counts."""
    counts: Counter[str] = Counter()
    for piece in pieces:
        counts.update(piece)
        if len(counts) > _COUNTED * size:
            _forget_rare((counts,))
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:size]


class Vocabulary(BaseModel):
    """The commonest words of the training rows, each with an id: 0 is padding, 1 any word that is not among them.

    by_script: whether words are divided as `split_words` does today; states of before divide them as they were learned.
    """

    model_config = ConfigDict(frozen=True)

    words: tuple[str, ...]
    by_script: bool = False

    @classmethod
    def of(cls, texts: Iterable[str], size: int, minimum: int = 1) -> "Vocabulary":
        """At most `size` ids in all; words that occur less than `minimum` times are left out. Of far more words than
        that, the rare are forgotten while they are counted, as `NaiveBayes.of` does."""
        commonest = _commonest(map(split_words, texts), size - 2)
        return cls(words=tuple(word for word, count in commonest if count >= minimum), by_script=True)

    @property
    def size(self) -> int:
        """Ids in all: what an embedding must hold."""
        return len(self.words) + 2

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words, start=2)}

    def padded(self, texts: pa.Array | Sequence[str | None], length: int) -> NDArray[np.int64]:
        """Ids of the first `length` words of N texts, int64 (N, length)."""
        ids = self._ids
        rows = [
            [ids.get(word, 1) for word in split_words(text or "", by_script=self.by_script)[:length]]
            for text in _plain(texts)
        ]
        return padded(rows, length)


class NaiveBayes(BaseModel):
    """What runs of neighbouring words, or of characters, say for one of two classes: their log-count ratios.

    Usage, in an application whose network and naive Bayes judge together (`examples/sentiment/application.py`):

        learned = NaiveBayes.of(texts, [label == "positive" for label in labels])
        learned.evidence(["a moving film"])  # above 0: for the class; float32 (N,), in nats

    It knows the labels of the rows that it was made of: a model that is trained on its evidence trusts it too much.
    by_script: as of `Vocabulary`.
    Source: Wang and Manning, Baselines and bigrams (2012).
    """

    model_config = ConfigDict(frozen=True)

    unit: Literal["words", "characters"]
    lengths: tuple[int, int]
    ratios: dict[str, float]
    by_script: bool = False

    @classmethod
    def of(
        cls,
        texts: Iterable[str],
        holds: Iterable[bool],
        unit: Literal["words", "characters"] = "words",
        lengths: tuple[int, int] = (1, 2),
        size: int = 200_000,
    ) -> "NaiveBayes":
        """holds: for each text, whether it is of the class. lengths: the shortest and the longest run, in units.

        size: how many runs are kept at most, the commonest. A run counts once for each text that has it, and once more
        for either class. While 20 times as many are counted, those seen least are forgotten, so memory has a bound.
        """
        counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        for text, held in zip(texts, holds, strict=True):
            counts[held].update(_runs(text, unit, lengths))
            if sum(map(len, counts)) > _COUNTED * size:
                _forget_rare(counts)
        against, towards = counts
        both = against + towards
        kept = sorted(both, key=lambda run: (-both[run], run))[:size]
        totals = [sum(of[run] + 1 for run in kept) for of in counts]
        prior = math.log(totals[0] / totals[1]) if kept else 0.0
        ratios = {run: round(math.log((towards[run] + 1) / (against[run] + 1)) + prior, 4) for run in kept}
        return cls(unit=unit, lengths=lengths, ratios=ratios, by_script=True)

    def evidence(self, texts: pa.Array | Sequence[str | None]) -> NDArray[np.float32]:
        """The sum over the runs of each of N texts, float32 (N,); a run that training has not seen says nothing."""
        ratio = self.ratios.get
        rows = (_runs(text or "", self.unit, self.lengths, by_script=self.by_script) for text in _plain(texts))
        # fsum, for a set has no order and a row's features must be the same in every process.
        return np.array([math.fsum(ratio(run, 0.0) for run in runs) for runs in rows], dtype=np.float32)


_CONSTANT = 1e-13
"""Of a column's mean: a deviation that is no more comes of rounding."""


class Standardization(BaseModel):
    """Mean and standard deviation of numeric columns. A deviation is 1 of a column whose values are all alike, and 0 of
    one that had none: it tells a model nothing, and every value of it becomes 0."""

    model_config = ConfigDict(frozen=True)

    columns: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def of(cls, batches: Iterable[pa.RecordBatch], columns: Sequence[str]) -> "Standardization":
        """Of the values that are there, in one pass.

        Source: Chan, Golub, LeVeque, Updating formulae for computing sample variances (1979).
        """
        count_C, mean, squares = (np.zeros(len(columns)) for _ in range(3))
        for batch in batches:
            values_NC = np.asfortranarray(_columns(batch, columns))  # NumPy adds neighbours up pairwise, others in turn
            there_NC = np.isfinite(values_NC)
            added_C = there_NC.sum(axis=0)
            total_C = np.maximum(1, count_C + added_C)
            added_mean_C = np.where(there_NC, values_NC, 0).sum(axis=0) / np.maximum(1, added_C)
            difference = np.where(added_C > 0, added_mean_C - mean, 0)
            squares += (np.where(there_NC, values_NC - added_mean_C, 0) ** 2).sum(axis=0)
            squares += difference**2 * count_C * added_C / total_C
            mean += difference * added_C / total_C
            count_C += added_C
        deviation = np.sqrt(squares / np.maximum(1, count_C))
        return cls(
            columns=tuple(columns),
            mean=tuple(mean.tolist()),
            deviation=tuple(np.where(deviation > _CONSTANT * np.abs(mean), deviation, count_C > 0).tolist()),
        )

    def of_batch(self, batch: pa.RecordBatch) -> NDArray[np.float32]:
        """The columns of N rows less their means, in standard deviations: float32 (N, columns). A value that is missing
        counts as the mean, and is 0; NaN stays what it is."""
        deviation = np.array([each or np.inf for each in self.deviation])
        standardized = (_columns(batch, self.columns) - np.array(self.mean)) / deviation
        for i, name in enumerate(self.columns):
            if batch[name].null_count:
                standardized[batch[name].is_null().to_numpy(zero_copy_only=False), i] = 0.0
        features: NDArray[np.float32] = standardized.astype(np.float32)
        return features


class Categories(BaseModel):
    """Ids of the values of one column: 0 is a missing one, and any that the training rows have not."""

    model_config = ConfigDict(frozen=True)

    values: tuple[str, ...]

    @classmethod
    def of(cls, values: Iterable[Any], size: int = 100_000) -> "Categories":
        """Of all values that occur, as text; at most `size` ids in all, for the commonest. Of far more values, the rare
        are forgotten while they are counted, as `NaiveBayes.of` does."""
        commonest = _commonest(([str(value)] for value in values if value is not None), size - 1)
        return cls(values=tuple(sorted(value for value, _ in commonest)))

    @property
    def size(self) -> int:
        """Ids in all."""
        return len(self.values) + 1

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {value: number for number, value in enumerate(self.values, start=1)}

    def codes(self, values: pa.Array | Sequence[Any]) -> NDArray[np.int64]:
        """Ids of N values, int64 (N,)."""
        ids = self._ids
        return np.array([0 if each is None else ids.get(str(each), 0) for each in _plain(values)], dtype=np.int64)


def split_words(text: str, *, by_script: bool = True) -> list[str]:
    """Words and signs of a text, in lower case and in one form (NFKC); of a script without spaces, its characters.

    by_script: False for what was learned when letters with marks of their own fell apart, and such a script did not.
    """
    if text.isascii() or not by_script:
        return _WORD.findall(text.lower())
    return _word_of_any_script().findall(unicodedata.normalize("NFKC", text).lower())


def _runs(
    text: str, unit: Literal["words", "characters"], lengths: tuple[int, int], *, by_script: bool = True
) -> set[str]:
    """All runs of neighbouring words of a text, or of its characters when one space is between and around the words."""
    words = split_words(text, by_script=by_script)
    row = words if unit == "words" else f" {' '.join(words)} "
    between = " " if unit == "words" else ""
    shortest, longest = lengths
    return {between.join(row[i : i + n]) for n in range(shortest, longest + 1) for i in range(len(row) - n + 1)}


def _plain(values: Any) -> list[Any]:
    return values.to_pylist() if isinstance(values, (pa.Array, pa.ChunkedArray)) else list(values)


def _columns(batch: pa.RecordBatch, columns: Sequence[str]) -> NDArray[np.float64]:
    """float64 (N, columns), NaN where a value is missing."""
    numbers = (batch[name].cast(pa.float64(), safe=False) for name in columns)
    return np.column_stack([each.to_numpy(zero_copy_only=False) for each in numbers])
