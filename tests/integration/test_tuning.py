"""Tuning draws from the search space, ends what is behind, and runs where it is told to: on a cluster, or here."""

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from batch_layer.tune import Trial, tune
from deeplambda.config import Settings
from deeplambda.errors import BadInput, UnfitModel
from deeplambda.loading import PackedApplication
from tests.integration.blobs import prepared_data_set
from tests.traffic import eventually

ROOT = Path(__file__).parents[2]


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
    assert [trial.failure for trial in found] == [""] * trials
    assert all(1e-4 <= trial.drawn["learning_rate"] <= 1e-1 and trial.drawn["hidden"] in (8, 16) for trial in found)
    assert len({trial.drawn["learning_rate"] for trial in found}) == trials
    assert [trial.metric for trial in found] == sorted((trial.metric for trial in found), reverse=True)
    assert found[0].metric > 0.9
    assert found[0].epochs == epochs


def test_the_best_trial_is_first_and_those_behind_end_early(
    stack: Settings, application: PackedApplication, dataset: str
) -> None:
    ends = []
    found = tune(stack, application, dataset=dataset, overrides={"epochs": 9}, trials=8, ended=lambda: ends.append(1))
    assert_sensible(found, trials=8, epochs=9)
    assert len(ends) == 8
    assert min(trial.epochs for trial in found) < 9


@pytest.mark.long
def test_trials_that_diverge_all_are_refused_with_the_reason(
    cluster: Settings, application: PackedApplication, dataset: str
) -> None:
    with pytest.raises(UnfitModel, match=r"every trial .* failed: the loss became"):
        tune(cluster, application, dataset=dataset, overrides={"learning_rate": 1e30}, trials=1)


def test_nothing_to_search_is_refused(stack: Settings, application: PackedApplication, dataset: str) -> None:
    with pytest.raises(BadInput, match="nothing to search"):
        tune(stack, application, dataset=dataset, overrides={"learning_rate": 0.01, "hidden": 8}, trials=1)


@pytest.mark.long
def test_trials_run_on_the_cluster_whose_address_is_given(
    cluster: Settings, application: PackedApplication, dataset: str
) -> None:
    found = tune(cluster, application, dataset=dataset, overrides={}, trials=3)
    assert_sensible(found, trials=3, epochs=3)


def test_a_cluster_that_does_not_answer_is_named(stack: Settings, application: PackedApplication, dataset: str) -> None:
    """In a process of its own: Ray does not start again in one that has been refused a cluster."""
    stranger = textwrap.dedent(f"""
        from pathlib import Path
        import ray.util.client.worker
        from batch_layer.tune import tune
        from deeplambda.config import load_settings
        from deeplambda.errors import NotReady
        from deeplambda.loading import PackedApplication

        ray.util.client.worker.INITIAL_TIMEOUT_SEC = ray.util.client.worker.MAX_TIMEOUT_SEC = 1  # of 30
        packed = PackedApplication(
            name={application.name!r},
            code_version={application.code_version!r},
            zip_file=Path({str(application.zip_file)!r}),
        )
        nowhere = load_settings().model_copy(update={{"ray_address": "ray://127.0.0.1:1"}})
        try:
            tune(nowhere, packed, dataset={dataset!r}, overrides={{}}, trials=1)
        except NotReady as refused:
            print(refused)
    """)
    done = subprocess.run([sys.executable, "-c", stranger], cwd=ROOT, capture_output=True, text=True, check=False)
    assert re.search(r"ray://127\.0\.0\.1:1: .*DEEPLAMBDA_RAY_TOKEN", done.stdout), done.stderr


@pytest.mark.long
def test_the_last_line_is_the_command_that_trains_with_the_best(
    champion: int, deeplambda: Callable[..., "CompletedProcess[str]"]
) -> None:
    said = deeplambda("batch", "tune", "digits", "--trials", "1", "--set", "epochs=1").stdout
    learning_rate = r"--set learning_rate=0\.0\d+"
    assert re.fullmatch(
        rf"deeplambda batch train digits --set epochs=1 {learning_rate} --set batch_size=\d+ --set architecture=[\w-]+",
        said.splitlines()[-1],
    )
