"""Tuning draws from the search space, ends what is behind, goes on after kill -9, and runs where it is told to."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import psutil
import pytest

from batch_layer.trials import Trial, TrialStore
from batch_layer.tune import tune
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.config import Settings
from deeplambda.errors import BadInput, UnfitModel
from deeplambda.loading import PackedApplication, pack_application
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
    arguments = f"""start --head --block --num-cpus 1 --include-dashboard false --node-ip-address 127.0.0.1
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
    assert all(1e-4 <= trial.drawn["learning_rate"] <= 1e-1 for trial in found)
    assert all(trial.ended for trial in found)
    reached = [trial.metrics[-1] for trial in found]
    assert reached == sorted(reached, reverse=True)
    assert reached[0] > 0.9
    assert found[0].epochs == epochs


_COUNTED = """
    def loss(self, outputs, labels_N, features):
        import time

        time.sleep(0.03)
        with open({file!r}, "a") as file:
            file.write(f"{{type(self).size}}\\n")
        return self.objective.loss(outputs, labels_N)

    def build_model(self, *, hidden):
        type(self).size = hidden
"""


@pytest.mark.long
def test_a_tuning_that_is_killed_goes_on_repeats_no_ended_trial_and_ends_best_first(
    stack: Settings, application: PackedApplication, dataset: str, tmp_path: Path
) -> None:
    batches, epochs, trials = 10, 9, 6  # a sixth of 600 rows is set aside; 50 in a batch
    home, seen = tmp_path / application.name, tmp_path / "batches"
    shutil.copytree(next(tmp_path.parent.glob(f"*/{application.name}")), home)
    source = (home / "application.py").read_text()
    source = source.replace("Choice((8, 16))", "Choice(tuple(range(4, 40)))")
    source = source.replace("    def build_model(self, *, hidden):\n", _COUNTED.format(file=str(seen)))
    (home / "application.py").write_text(source)
    packed = pack_application(str(home), stack)
    given: dict[str, Any] = {"dataset": dataset, "overrides": {"epochs": epochs}, "trials": trials}

    def on_s3() -> list[Trial]:
        keys = (found.key for found in ObjectStore(stack).list(f"{packed.name}/tuning/"))
        studies = {key.split("/")[2] for key in keys}
        return [trial for study in studies for trial in TrialStore(ObjectStore(stack), packed.name, study).trials()]

    def some_ended_and_some_not() -> bool:
        states = {(trial.ended, trial.epochs > 1) for trial in on_s3()}
        return {ended for ended, _ in states} == {True, False} and (False, True) in states

    victim = subprocess.Popen([sys.executable, "-c", tuning(packed, **given)], cwd=ROOT, start_new_session=True)
    try:
        assert eventually(lambda: victim.poll() is not None or some_ended_and_some_not(), 300), on_s3()
        assert victim.poll() is None, "it should be at work"
    finally:
        victim.kill()
        victim.wait()
    before = {trial.key: trial for trial in on_s3()}
    assert eventually(lambda: not trials_at_work(victim.pid)), "Ray ends them with the process that started it"

    states: list[Trial] = []
    found = tune(stack, packed, **given, told=states.append)
    assert_sensible(found, trials=trials, epochs=epochs)
    assert min(trial.epochs for trial in found) < epochs, "those behind end early"
    after = {trial.key: trial for trial in found}
    trained = Counter(map(int, seen.read_text().split()))
    for key, trial in before.items():
        assert after[key].metrics[: trial.epochs] == trial.metrics
        alike = [each for each in found if each.drawn["hidden"] == trial.drawn["hidden"]]
        again = trained[trial.drawn["hidden"]] - batches * sum(each.epochs for each in alike)
        if trial.ended and all(before.get(each.key, each).ended for each in alike):
            assert 0 <= again <= batches, "it is not trained again; what ends it may come within an epoch"
    assert {state.key for state in states} == set(after)
    assert {found.key[-5:] for found in ObjectStore(stack).list(f"{packed.name}/tuning/")} == {".json"}, "none is left"
    assert tune(stack, packed, **given) == found, "nothing is left to train"
    assert Counter(map(int, seen.read_text().split())) == trained


def trials_at_work(leader: int) -> list[int]:
    """Ray's workers in the session that this process led."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == leader and "ray::ImplicitFunc" in "".join(process.cmdline()[:1]):
                found.append(process.pid)
    return found


def tuning(packed: PackedApplication, **given: Any) -> str:
    """A program that tunes and prints why it cannot. given: also a setting, `ray_address`."""
    return textwrap.dedent(f"""
        from pathlib import Path
        import ray.util.client.worker
        from batch_layer.tune import tune
        from deeplambda.config import load_settings
        from deeplambda.errors import NotReady
        from deeplambda.loading import PackedApplication

        ray.util.client.worker.INITIAL_TIMEOUT_SEC = ray.util.client.worker.MAX_TIMEOUT_SEC = 1  # of 30
        packed = PackedApplication(
            name={packed.name!r},
            code_version={packed.code_version!r},
            zip_file=Path({str(packed.zip_file)!r}),
        )
        settings = load_settings().model_copy(update={{"ray_address": {given.pop("ray_address", "")!r}}})
        try:
            tune(settings, packed, **{given!r})
        except NotReady as refused:
            print(refused)
    """)


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
def test_a_search_space_of_few_draws_has_as_many_trials_and_then_ends(
    stack: Settings, application: PackedApplication, dataset: str
) -> None:
    given: dict[str, Any] = {"dataset": dataset, "overrides": {"learning_rate": 0.02, "epochs": 2}, "trials": 5}
    found = tune(stack, application, **given)
    assert sorted(trial.drawn["hidden"] for trial in found) == [8, 16]
    assert all(trial.ended and 1 <= trial.epochs <= 2 for trial in found)
    states: list[Trial] = []
    assert tune(stack, application, **given, told=states.append) == found
    assert len(states) == 2, "what is known is told, and nothing is trained"


@pytest.mark.long
def test_trials_run_on_the_cluster_whose_address_is_given(
    cluster: Settings, application: PackedApplication, dataset: str
) -> None:
    open_ones, most = set[str](), 0

    def told(trial: Trial) -> None:
        nonlocal most
        (open_ones.discard if trial.ended else open_ones.add)(trial.key)
        most = max(most, len(open_ones))

    slow = {"epochs": 30, "batch_size": 5}  # a trial takes longer than a worker needs to start
    found = tune(cluster, application, dataset=dataset, overrides=slow, trials=4, cpus=0.5, told=told)
    assert_sensible(found, trials=4, epochs=30)
    assert most > 1, "one core is shared by several trials"


def test_a_cluster_that_does_not_answer_is_named(stack: Settings, application: PackedApplication, dataset: str) -> None:
    """In a process of its own: Ray does not start again in one that has been refused a cluster."""
    stranger = tuning(application, ray_address="ray://127.0.0.1:1", dataset=dataset, overrides={}, trials=1)
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
