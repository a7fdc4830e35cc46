"""Tuning draws from the search space, ends what is behind, and runs where it is told to."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from batch_layer.tune import Trial, tune
from deeplambda.config import Settings
from deeplambda.errors import BadInput, NotReady, UnfitModel
from deeplambda.loading import PackedApplication
from tests.integration.blobs import blobs, prepared_data_set
from tests.traffic import eventually


@pytest.fixture(scope="module")
def application(stack: Settings, tmp_path_factory: pytest.TempPathFactory) -> PackedApplication:
    return blobs(stack, tmp_path_factory.mktemp("applications"))


@pytest.fixture(scope="module")
def dataset(stack: Settings, application: PackedApplication) -> str:
    return prepared_data_set(stack, application.name)


@pytest.fixture(scope="module")
def cluster(stack: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """The settings of a Ray cluster of one node, that asks for our token."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = f"""start --head --block --num-cpus 2 --include-dashboard false --node-ip-address 127.0.0.1
        --port 0 --ray-client-server-port {port} --min-worker-port 0 --max-worker-port 0"""
    settings = stack.model_copy(update={"ray_address": f"ray://127.0.0.1:{port}"})
    environment = os.environ | {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": settings.ray_token.get_secret_value(),
    }
    words = [Path(sys.executable).with_name("ray"), *arguments.split()]
    head = subprocess.Popen(words, env=environment, cwd=tmp_path_factory.mktemp("ray"), stdout=subprocess.DEVNULL)
    try:
        assert eventually(lambda: listens(port)), "Ray did not start"
        yield settings
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(60)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def assert_sensible(found: list[Trial], trials: int, epochs: int) -> None:
    assert len(found) == trials
    assert all(1e-4 <= trial.drawn["learning_rate"] <= 1e-1 and trial.drawn["hidden"] in (8, 16) for trial in found)
    assert len({trial.drawn["learning_rate"] for trial in found}) == trials
    assert [trial.metric for trial in found] == sorted((trial.metric for trial in found), reverse=True)
    assert found[0].metric > 0.9
    assert found[0].epochs == epochs
    assert not any(trial.failure for trial in found)


def test_the_best_trial_is_first_and_those_behind_end_early(
    stack: Settings, application: PackedApplication, dataset: str
) -> None:
    ends = []
    found = tune(stack, application, dataset=dataset, overrides={"epochs": 9}, trials=8, ended=lambda: ends.append(1))
    assert_sensible(found, trials=8, epochs=9)
    assert len(ends) == 8
    assert min(trial.epochs for trial in found) < 9


def test_trials_that_diverge_all_are_refused_with_the_reason(
    stack: Settings, application: PackedApplication, dataset: str
) -> None:
    with pytest.raises(UnfitModel, match=r"every trial .* failed: the loss became"):
        tune(stack, application, dataset=dataset, overrides={"learning_rate": 1e30}, trials=1)


def test_nothing_to_search_is_refused(stack: Settings, application: PackedApplication, dataset: str) -> None:
    with pytest.raises(BadInput, match="nothing to search"):
        tune(stack, application, dataset=dataset, overrides={"learning_rate": 0.01, "hidden": 8}, trials=1)


def test_trials_run_on_the_cluster_whose_address_is_given(
    cluster: Settings, application: PackedApplication, dataset: str
) -> None:
    found = tune(cluster, application, dataset=dataset, overrides={}, trials=3)
    assert_sensible(found, trials=3, epochs=3)


# After the others: Ray does not start in a process that has been refused a cluster.
def test_a_cluster_that_does_not_answer_is_named(
    stack: Settings, application: PackedApplication, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("INITIAL_TIMEOUT_SEC", "MAX_TIMEOUT_SEC"):
        monkeypatch.setattr(f"ray.util.client.worker.{limit}", 1)  # of Ray's patience, 30 s
    nowhere = stack.model_copy(update={"ray_address": "ray://127.0.0.1:1"})
    with pytest.raises(NotReady, match=r"ray://127\.0\.0\.1:1: .*DEEPLAMBDA_RAY_TOKEN"):
        tune(nowhere, application, dataset=dataset, overrides={}, trials=1)


def test_the_last_line_is_the_command_that_trains_with_the_best(
    champion: int, deeplambda: Callable[..., "CompletedProcess[str]"]
) -> None:
    said = deeplambda("batch", "tune", "digits", "--trials", "1", "--set", "epochs=1").stdout
    learning_rate = r"--set learning_rate=0\.0\d+"
    assert re.fullmatch(
        rf"deeplambda batch train digits --set epochs=1 {learning_rate} --set batch_size=\d+", said.splitlines()[-1]
    )
