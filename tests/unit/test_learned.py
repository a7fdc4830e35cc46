"""What `fit` returns comes back as it was, whatever its form, and nothing is unpickled."""

import unicodedata
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from deeplambda import learned as learned_states
from deeplambda.errors import BadInput
from deeplambda.learned import (
    Categories,
    EncodedState,
    NaiveBayes,
    Standardization,
    Vocabulary,
    decode_state,
    encode_state,
    split_words,
)


def fit_vocabulary(batches: Iterator[pa.RecordBatch]) -> Vocabulary: ...  # type: ignore[empty-body]


def fit_naive_bayes(batches: Iterator[pa.RecordBatch]) -> NaiveBayes: ...  # type: ignore[empty-body]


def fit_standardization(batches: Iterator[pa.RecordBatch]) -> Standardization: ...  # type: ignore[empty-body]


def fit_anything(batches: Iterator[pa.RecordBatch]) -> Any: ...


def again(fit: Any, state: Any) -> Any:
    encoded = encode_state(state)
    assert encoded == encode_state(state), "equal states have equal hashes"
    return decode_state(fit, encoded)


def test_a_model_comes_back_as_the_model_that_fit_names() -> None:
    state = Vocabulary.of(["So good, so good!", "so bad"], size=5)
    found = again(fit_vocabulary, state)
    assert found == state
    np.testing.assert_array_equal(found.padded(["bad so odd", None], 4), state.padded(["bad so odd", ""], 4))


def test_json_tables_and_arrays_come_back() -> None:
    assert again(fit_anything, {"mean": [1.5, None], "words": ["ü"]}) == {"mean": [1.5, None], "words": ["ü"]}
    table = pa.table({"word": ["a", "b"], "id": [1, 2]})
    assert again(fit_anything, table).equals(table)
    arrays = {"mean": np.array([12_345, 2**40]), "mask": np.array([[True], [False]])}
    found = again(fit_anything, arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_what_is_none_of_the_forms_is_refused() -> None:
    with pytest.raises(BadInput, match="fit returned object"):
        encode_state(object())


def test_a_vocabulary_gives_ids_to_the_commonest_words() -> None:
    vocabulary = Vocabulary.of(["the cat, the dog", "the end"], size=4)
    assert vocabulary.words == ("the", ",")
    assert vocabulary.size == 4
    ids = vocabulary.padded(pa.array(["The CAT the the", "", None]), 3)
    np.testing.assert_array_equal(ids, [[2, 1, 2], [0, 0, 0], [0, 0, 0]])
    assert ids.dtype == np.int64


def test_evidence_is_the_sum_of_log_count_ratios() -> None:
    # Counted by hand: "good" 2 for and 0 against, "film" 1 and 1, "bad" 0 and 1; with 1 added, 3 to 1, 2 to 2, 1 to 2.
    learned = NaiveBayes.of(["Good good film", "good", "bad film"], [True, True, False], lengths=(1, 1))
    for_all, against_all = 3 + 2 + 1, 1 + 2 + 2
    expected = np.log([3 / 1, 2 / 2, 1 / 2]) - np.log(for_all / against_all)
    found = learned.evidence(pa.array(["good", "film", "bad", "good BAD good", "never seen", "", None]))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [*expected, expected[0] + expected[2], 0, 0, 0], atol=2e-4)


def test_neighbouring_words_are_evidence_as_well() -> None:
    texts, holds = ["not good", "good", "not bad", "bad"], [False, True, True, False]
    words, pairs = (NaiveBayes.of(texts, holds, lengths=(1, longest)) for longest in (1, 2))
    np.testing.assert_allclose(words.evidence(texts), 0, atol=1e-6)
    np.testing.assert_array_equal(pairs.evidence(["not good", "not bad"]) > 0, [False, True])


def test_characters_are_evidence_across_forms_of_a_word() -> None:
    learned = NaiveBayes.of(["charming!", "dulled"], [True, False], unit="characters", lengths=(4, 6))
    np.testing.assert_array_equal(np.sign(learned.evidence(["CHARMED", "dull", "odd"])), [1, -1, 0])
    assert " char" in learned.ratios
    assert all(4 <= len(run) <= 6 for run in learned.ratios)


def test_naive_bayes_keeps_the_commonest_runs_and_comes_back_as_it_was() -> None:
    learned = NaiveBayes.of((f"a b{n}" for n in range(1000)), (n % 2 == 0 for n in range(1000)), size=2, lengths=(1, 1))
    assert "a" in learned.ratios, "the common ones are never forgotten"
    learned = NaiveBayes.of(["a b", "a c", "a b"], [True, False, True], size=2)
    assert set(learned.ratios) == {"a", "a b"}
    assert again(fit_naive_bayes, learned) == learned


def test_naive_bayes_of_no_row_or_of_one_class_says_something_finite() -> None:
    assert NaiveBayes.of([], []).evidence(["good"]) == 0
    assert np.isfinite(NaiveBayes.of(["good", "film"], [True, True]).evidence(["good film"])).all()
    with pytest.raises(ValueError, match="shorter"):
        NaiveBayes.of(["good", "film"], [True])


def test_standardization_in_batches_is_that_of_all_rows() -> None:
    randomness = np.random.default_rng(5)
    rows = randomness.normal(3, 7, (100, 2))
    batches = [
        pa.RecordBatch.from_pydict({"a": part[:, 0], "b": part[:, 1], "c": [1.0] * len(part)})
        for part in (rows[:1], rows[1:60], rows[60:])
    ]
    learned = Standardization.of(batches, ["a", "b", "c"])
    np.testing.assert_allclose(learned.mean, [*rows.mean(axis=0), 1])
    np.testing.assert_allclose(learned.deviation, [*rows.std(axis=0), 1])
    np.testing.assert_allclose(learned.of_batch(batches[0])[0, 2], 0)


def test_a_missing_value_is_learned_from_in_no_column_and_counts_as_the_mean() -> None:
    rows = {"a": [1.0, None, 3.0, None], "b": [None, 2, 4, 6], "c": [True, False, None, True], "d": [None] * 4}
    whole = pa.RecordBatch.from_pydict(rows, schema=pa.schema(
        {"a": pa.float64(), "b": pa.int64(), "c": pa.bool_(), "d": pa.float64()}
    ))  # fmt: skip
    learned = Standardization.of([whole.slice(0, 1), whole.slice(1, 1), whole.slice(2)], list(rows))
    np.testing.assert_allclose(learned.mean, [2, 4, 2 / 3, 0])
    np.testing.assert_allclose(learned.deviation, [1, np.std([2, 4, 6]), np.std([1, 0, 1]), 0])
    again = decode_state(fit_standardization, encode_state(learned))
    np.testing.assert_allclose(again.of_batch(whole)[:, 0], [-1, 0, 1, 0])
    large = pa.RecordBatch.from_pydict(rows | {"b": [2**62 + 1] * 4}, schema=whole.schema)
    assert (learned.of_batch(large)[:, 1] > 1e17).all(), "of an integer that no float is, the nearest"
    nan = pa.RecordBatch.from_pydict(rows | {"a": [float("nan")] * 4}, schema=whole.schema)
    assert np.isnan(learned.of_batch(nan)[:, 0]).all(), "NaN is no missing value, and is refused"


def test_a_column_is_constant_by_its_own_scale() -> None:
    small = np.random.default_rng(1).normal(0, 1e-13, 50_000)
    batch = pa.RecordBatch.from_pydict({"small": small, "alike": [0.1] * 50_000, "none": [0.0] * 50_000})
    learned = Standardization.of([batch, batch.slice(7)], batch.schema.names)
    np.testing.assert_allclose(learned.deviation, [small.std(), 1, 1], rtol=1e-3)


def test_a_column_that_training_has_no_value_of_is_0_in_every_row() -> None:
    column = pa.schema({"a": pa.float64()})
    learned = Standardization.of([pa.RecordBatch.from_pydict({"a": [None, None]}, schema=column)], ["a"])
    later = pa.RecordBatch.from_pydict({"a": [7e6, -3.0, None]}, schema=column)
    np.testing.assert_array_equal(decode_state(fit_standardization, encode_state(learned)).of_batch(later), [[0]] * 3)


def test_a_value_that_training_has_not_seen_is_category_0() -> None:
    found = Categories.of(["x", "y", None, "x"])
    np.testing.assert_array_equal(found.codes(["y", "never", None, "x"]), [2, 0, 0, 1])
    assert found.size == 3


def test_a_missing_value_is_not_the_text_none() -> None:
    np.testing.assert_array_equal(Categories.of(["None", "x"]).codes(["None", None, "x"]), [1, 0, 2])


def test_what_is_counted_of_a_large_column_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    forget = learned_states._forget_rare
    monkeypatch.setattr(learned_states, "_forget_rare", lambda of: (counted.append(len(of[0])), forget(of)))
    texts = [f"common c{n % 5} rare{n}" for n in range(2_000)]
    assert Vocabulary.of(texts, size=8).words == ("common", "c0", "c1", "c2", "c3", "c4")
    assert Categories.of([word for text in texts for word in text.split()], size=7).values == (
        *(f"c{n}" for n in range(5)),
        "common",
    )
    assert max(counted) <= 20 * 6 + 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't, twice", ["don't", ",", "twice"]),
        ("好电影!", ["好", "电", "影", "!"]),
        ("ดีมาก film", ["ดี", "ม", "า", "ก", "film"]),
        ("हिन्दी फ़िल्म", ["हिन्दी", "फ़िल्म"]),
        ("Ｆｕｌｌ cafe\u0301", ["full", "café"]),
        ("Größe_m²", ["größe", "m2"]),
    ],
)
def test_words_are_those_of_their_script(text: str, words: list[str]) -> None:
    assert split_words(text) == [unicodedata.normalize("NFKC", word) for word in words]


def test_a_state_of_before_divides_texts_as_it_learned_them() -> None:
    old = decode_state(fit_vocabulary, EncodedState(format="json", content='{"words": ["好电影", "film"]}'.encode()))
    np.testing.assert_array_equal(old.padded(["好电影", "film"], 2), [[2, 0], [3, 0]])
    new = again(fit_vocabulary, Vocabulary.of(["好电影"], size=9))
    assert new.padded(["影"], 1).item() == new.words.index("影") + 2
    assert again(fit_naive_bayes, NaiveBayes.of(["好电影"], [True])).evidence(["电影"]) == NaiveBayes.of(
        ["好电影"], [True]
    ).evidence(["电影"])
