from typing import Any

import numpy as np
import pytest
import torch

from batch_layer.compute import Compute, as_model_input, best_compute, channels_last_rows
from batch_layer.rows import Rows, Window
from batch_layer.trainer import Trainer, all_hyperparameters, learning_rate_factor, load_model_state
from deeplambda.errors import BadInput, UnfitModel
from examples.digits.application import Digits

CPU = Compute(torch.device("cpu"), torch.float32)
RANDOMNESS = np.random.default_rng(3)
LABELS_N = RANDOMNESS.integers(0, 10, 100)
IMAGES = (RANDOMNESS.normal(0, 0.3, (100, 1, 28, 28)) + LABELS_N[:, None, None, None] / 3).astype(np.float32)
ROWS = Rows.of({"features": IMAGES}, LABELS_N)
FEW_ROWS = Rows.of({"features": IMAGES[:50]}, LABELS_N[:50])


def trainer(compute: Compute = CPU, **overrides: Any) -> Trainer:
    application = Digits()
    return Trainer(application, all_hyperparameters(application, {"batch_size": 25, "hidden": 20} | overrides), compute)


def after(made: Trainer, epochs: range, rows: Rows = ROWS) -> Trainer:
    for epoch in epochs:
        made.train_epoch(epoch, [Window.whole(rows)], lambda: len(rows))
    return made


def same(one: Trainer, other: Trainer) -> bool:
    a, b = one.state(), other.state()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_training_lowers_the_loss() -> None:
    made = after(trainer(), range(1, 2))
    first = made.mean_loss()
    assert after(made, range(2, 5)).mean_loss() < first


def test_bf16_trains_to_about_the_same_loss() -> None:
    bf16 = after(trainer(Compute(torch.device("cpu"), torch.bfloat16)), range(1, 5))
    assert bf16.mean_loss() == pytest.approx(after(trainer(), range(1, 5)).mean_loss(), abs=0.1)


def test_equal_seeds_give_equal_runs_and_others_do_not() -> None:
    one = after(trainer(seed=1), range(1, 3))
    assert same(one, after(trainer(seed=1), range(1, 3)))
    assert not same(one, after(trainer(seed=2), range(1, 3)))


def test_a_run_taken_up_from_its_state_ends_as_if_it_had_gone_through() -> None:
    stopped = after(trainer(), range(1, 3))
    taken_up = trainer()
    taken_up.load_state(stopped.state())
    assert same(after(taken_up, range(3, 5)), after(trainer(), range(1, 5)))


@pytest.mark.slow
def test_fp16_trains_with_a_scaler_that_is_part_of_the_state() -> None:
    fp16 = Compute(torch.device("cpu"), torch.float16)  # which takes a CPU ten times as long
    stopped = after(trainer(fp16), range(1, 2), FEW_ROWS)
    assert stopped.state()["scaler.0.scale"] > 1
    taken_up = trainer(fp16)
    taken_up.load_state(stopped.state())
    made = after(taken_up, range(2, 3), FEW_ROWS)
    assert same(made, after(trainer(fp16), range(1, 3), FEW_ROWS))
    assert made.mean_loss() == pytest.approx(after(trainer(), range(1, 3), FEW_ROWS).mean_loss(), abs=0.1)


def test_the_state_of_another_model_is_refused() -> None:
    with pytest.raises(BadInput, match="does not fit digits"):
        trainer(hidden=10).load_state(after(trainer(hidden=20), range(1, 2)).state())


def test_evaluation_gives_every_metric_of_the_application() -> None:
    made = after(trainer(), range(1, 3))
    metrics = made.evaluate([ROWS])
    assert metrics.keys() == Digits.metrics.keys()
    assert 0 <= metrics["accuracy"] <= 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
def test_the_device_that_is_set_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert best_compute("gpu").device == torch.device("cpu"), "a part of the stack that has no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    found = [str(best_compute(setting).device) for setting in ("auto", "gpu", "cuda:1", "cpu")]
    assert found == ["cuda:0", "cuda:0", "cuda:1", "cpu"]
    assert not torch.backends.cudnn.allow_tf32, "fp32 is what it says"


def test_a_model_is_judged_in_passes_of_no_more_rows_than_it_is_trained_with() -> None:
    made, passed = trainer(batch_size=16), list[int]()
    made.model.register_forward_hook(lambda _, given, outputs: passed.append(len(outputs)))
    made.evaluate([ROWS])
    assert max(passed) == 16
    assert sum(passed) == len(ROWS)


def test_a_fresh_model_with_a_states_weights_answers_as_the_trained_one() -> None:
    made = after(trainer(), range(1, 2))
    fresh = made.fresh_model()
    load_model_state(fresh, made.state(), "digits")
    images = as_model_input(ROWS.features["features"])
    assert torch.equal(fresh.eval()(images), made.model.eval()(images))
    with pytest.raises(BadInput, match=r"(?s)other weights than one that is built anew: .*extra"):
        load_model_state(fresh, made.state() | {"model.extra": torch.zeros(1)}, "digits")


def test_a_model_that_has_no_number_for_a_row_is_not_judged_as_if_it_had() -> None:
    made = after(trainer(), range(1, 2))
    with torch.no_grad():
        next(made.model.parameters()).fill_(torch.nan)
    with pytest.raises(UnfitModel, match="outputs of digits became NaN"):
        made.evaluate([ROWS])


def test_a_loss_that_is_not_finite_names_the_epoch_and_the_remedy() -> None:
    made = trainer(learning_rate=1e30)
    with pytest.raises(UnfitModel, match=r"epoch 1 of digits; .*learning_rate=1e\+29"):
        after(made, range(1, 2))


def test_rows_are_reported_as_they_are_trained_on_and_each_once() -> None:
    seen: list[int] = []
    made = trainer(batch_size=4)
    made.train_epoch(1, [Window.whole(ROWS)], lambda: len(ROWS), lambda rows, loss: seen.append(rows))
    assert sum(seen) == len(ROWS)
    assert len(seen) > 1


def test_no_rows_are_no_step() -> None:
    made, untouched = trainer(), trainer()
    made.train_epoch(1, [Window.whole(ROWS.chosen(torch.arange(0)))], lambda: 0)
    assert same(made, untouched)


def test_overrides_are_laid_over_the_defaults_and_the_seed_is_0() -> None:
    chosen = all_hyperparameters(Digits(), {"epochs": 2})
    assert chosen == dict(Digits.hyperparameters) | {"epochs": 2, "seed": 0}


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"momentum": 0.9}, "no hyperparameter 'momentum'.*choose from architecture, batch_size, epochs"),
        ({"epochs": 0}, "'epochs'"),
        ({"batch_size": "many"}, "'batch_size'"),
        ({"learning_rate": float("nan")}, "'learning_rate'"),
        ({"weight_decay": -1}, "'weight_decay'"),
    ],
)
def test_a_wrong_hyperparameter_is_named(overrides: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match=named):
        all_hyperparameters(Digits(), overrides)


def test_the_learning_rate_rises_and_falls_once() -> None:
    factors = [learning_rate_factor(progress / 100) for progress in range(101)]
    top = factors.index(max(factors))
    assert factors[:top] == sorted(factors[:top])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert (max(factors), min(factors)) == (1.0, 0.0)
    assert factors[0] > 0, "a step of no size is a step wasted"


def test_a_batch_is_channels_last_without_a_copy() -> None:
    images_NCHW = torch.randn(5, 3, 4, 6)
    batch = as_model_input(channels_last_rows(images_NCHW).index_select(0, torch.tensor([4, 1])))
    assert torch.equal(batch, images_NCHW[[4, 1]])
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_what_is_no_image_keeps_its_layout() -> None:
    rows = torch.randn(5, 7)
    assert torch.equal(as_model_input(channels_last_rows(rows)), rows)


def test_the_device_that_is_found_can_be_trained_on() -> None:
    made = after(trainer(best_compute()), range(1, 2))
    assert made.mean_loss() == pytest.approx(after(trainer(), range(1, 2)).mean_loss(), abs=0.1)


@pytest.mark.parametrize(
    ("numbers", "workers", "name"),
    [(torch.float32, 1, "cpu, fp32"), (torch.bfloat16, 1, "cpu, bf16"), (torch.float16, 2, "2 × cpu, fp16")],
)
def test_a_device_is_named_with_the_numbers_it_computes_in(numbers: torch.dtype, workers: int, name: str) -> None:
    assert Compute(torch.device("cpu"), numbers, workers=workers).name == name


@pytest.mark.parametrize(
    ("capabilities", "name"),
    [({}, "cpu, fp32"), ({"avx512_bf16": False}, "cpu, fp32"), ({"amx_bf16": True}, "cpu, bf16")],
)
def test_a_processor_computes_in_bf16_where_it_has_the_instructions(
    capabilities: dict[str, bool], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert best_compute().name == name
