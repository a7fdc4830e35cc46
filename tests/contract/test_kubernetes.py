"""deploy/kubernetes fits the code: settings, commands, probes, secrets; and no pod may more than it needs.

Every check but the last reads the files as they are; that one builds them, and needs kubectl or kustomize.
"""

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values
from prometheus_client.parser import text_string_to_metric_families
from typer.main import get_command

from deeplambda.cli import build
from deeplambda.config import Settings, port_of
from deeplambda.errors import NotReady
from deeplambda.stack.containers.health import check
from deeplambda.stack.containers.secrets import READERS
from speed_layer.model_service.metrics import ServiceMetrics

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
BASE = FOLDER / "base"
JOB_READERS = {
    # MySQL's accounts get their passwords from it. Superset is not among what runs there.
    "provision": {name for name in Settings.model_fields if re.fullmatch(r"mysql_(?!superset)\w+_password", name)}
    | {"analyst_password", "kafka_password", "s3_secret_key"},
    "cron": {"kafka_password", "mysql_platform_password", "ray_token", "s3_secret_key", "spark_secret"},
    "executor": {"s3_secret_key", "spark_secret"},
}
"""What is read by pods that compose has no service for; the services are in READERS."""


def kustomization(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / folder / "kustomization.yaml").read_text())
    return found


def resources(folder: str) -> list[dict[str, Any]]:
    """What the folder's own files hold, before it is patched."""
    files = [FOLDER / folder / name for name in kustomization(folder)["resources"] if name.endswith(".yaml")]
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


def resource(kind: str, name: str) -> dict[str, Any]:
    every = resources("base") + resources("keda")
    return next(each for each in every if (each["kind"], name_of(each)) == (kind, name))


def patch(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((BASE / f"{name}.yaml").read_text())
    return found


def pod_of(document: dict[str, Any]) -> dict[str, Any]:
    """The pod in a Pod, Deployment, Job or CronJob."""
    if document["kind"] == "Pod":
        return document
    spec = document["spec"]
    found: dict[str, Any] = spec["jobTemplate"]["spec"]["template"] if "jobTemplate" in spec else spec["template"]
    return found


def container_of(document: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod_of(document)["spec"]["containers"]
    return dict(found)


def workloads() -> list[dict[str, Any]]:
    return [each for each in resources("base") if each["kind"] in {"Deployment", "Job", "CronJob"}]


def deployments() -> list[dict[str, Any]]:
    return [each for each in workloads() if each["kind"] == "Deployment"]


def name_of(document: dict[str, Any]) -> str:
    return str(document["metadata"]["name"])


def commands() -> Iterator[list[str]]:
    for each in workloads():
        container = container_of(each)
        yield container["command"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if "exec" in container.get(probe, {}):
                yield container[probe]["exec"]["command"]


def secrets_of(document: dict[str, Any]) -> set[str]:
    (volume,) = [each for each in pod_of(document)["spec"]["volumes"] if each["name"] == "secrets"]
    items = volume["secret"]["items"]
    assert all(item["key"] == item["path"] for item in items)
    return {item["key"].removeprefix("deeplambda_") for item in items}


def test_every_setting_is_one_and_its_value_can_be(tmp_path: Path) -> None:
    base = dotenv_values(BASE / "settings.env")
    (overlaid,) = kustomization("example")["configMapGenerator"]
    given = dict(pair.split("=", 1) for pair in overlaid["literals"])
    assert set(given) < set(base), "an overlay changes what the base names"
    assert {name.removeprefix("DEEPLAMBDA_").lower() for name in base} < set(Settings.model_fields)
    merged = tmp_path / "settings.env"
    merged.write_text("".join(f"{name}={value}\n" for name, value in (base | given).items()))
    for file in (BASE / "settings.env", merged):
        assert Settings(data_dir=tmp_path, _env_file=file).on_spark_cluster  # type: ignore[call-arg]
    set_by_pods = {
        variable["name"]
        for each in [*workloads(), patch("driver"), patch("cron")]
        for variable in container_of(each).get("env", [])
        if variable["name"].startswith("DEEPLAMBDA_")
    }
    assert {name.removeprefix("DEEPLAMBDA_").lower() for name in set_by_pods} < set(Settings.model_fields)


def test_every_command_is_there() -> None:
    for command in commands():
        if command[0] == "python":
            assert command[1] == "-m"
            assert importlib.util.find_spec(command[2]), command
        elif command[0] != "sleep":  # commands are run in that pod
            assert command[0] == "deeplambda"
            found = get_command(build(command[1:]))
            for word in command[1:3]:
                found = found.commands[word]  # type: ignore[attr-defined]


def test_every_probed_part_has_a_health_check(tmp_path: Path) -> None:
    parts = {command[3] for command in commands() if "deeplambda.stack.containers.health" in command}
    assert parts
    settings = Settings(data_dir=tmp_path, metastore_uri="thrift://127.0.0.1:1", hive_address="127.0.0.1:1")
    for part in parts:
        with pytest.raises(NotReady):
            check(settings, part)


@pytest.mark.parametrize("deployment", deployments(), ids=name_of)
def test_every_service_is_probed_and_bounded(deployment: dict[str, Any]) -> None:
    container = container_of(deployment)
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
    for bound in ("requests", "limits"):
        assert set(container["resources"][bound]) == {"cpu", "memory"}
    if deployment["metadata"].get("labels") == {"spark": "driver"}:
        assert deployment["spec"]["replicas"] == 1
        assert deployment["spec"]["strategy"] == {"type": "Recreate"}, "two drivers would share one checkpoint"


def test_of_the_query_service_there_is_one_at_a_time() -> None:
    spec = resource("Deployment", "query")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"}), "the second fails the first one's queries"


@pytest.mark.parametrize("service", ["gateway", "model", "query"])
def test_who_is_still_sent_requests_answers_them(service: str) -> None:
    deployment = resource("Deployment", service)
    (_, waits_s) = container_of(deployment)["lifecycle"]["preStop"]["exec"]["command"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"][service]
    stops_within_s = int(compose["stop_grace_period"].removesuffix("s"))
    assert pod_of(deployment)["spec"]["terminationGracePeriodSeconds"] >= int(waits_s) + stops_within_s


@pytest.mark.parametrize(("kind", "name"), [("Deployment", "generations"), ("CronJob", "tune")])
def test_what_trials_share_is_in_memory_where_ray_takes_its_default_share_of_it(kind: str, name: str) -> None:
    found = resource(kind, name)
    (shared,) = [each["name"] for each in container_of(found)["volumeMounts"] if each["mountPath"] == "/dev/shm"]
    (volume,) = [each for each in pod_of(found)["spec"]["volumes"] if each["name"] == shared]
    assert volume["emptyDir"]["medium"] == "Memory"
    all_mib = 1024 * int(container_of(found)["resources"]["limits"]["memory"].removesuffix("Gi"))
    share_mib = int(volume["emptyDir"]["sizeLimit"].removesuffix("Mi"))
    assert share_mib >= 0.3 * all_mib, "else Ray uses /tmp"
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for service in ("generations", "operator"):
        assert (services[service]["mem_limit"], services[service]["shm_size"]) == ("4g", f"{share_mib}m")


def test_a_model_that_fails_or_is_stale_takes_no_replica_from_the_others() -> None:
    probe = container_of(resource("Deployment", "model"))["readinessProbe"]
    assert probe["httpGet"]["path"] == "/v1/health"


def test_every_port_is_that_of_its_setting() -> None:
    values = dotenv_values(BASE / "settings.env")
    for part, setting in (("model", "MODEL_URL"), ("query", "QUERY_URL"), ("gateway", "HIVE_ADDRESS")):
        address = str(values[f"DEEPLAMBDA_{setting}"])
        (port,) = container_of(resource("Deployment", part))["ports"]
        (offered,) = resource("Service", part)["spec"]["ports"]
        assert port["containerPort"] == offered["port"] == port_of(address)
        assert f"{part}:{port_of(address)}" in address
        assert port["name"] == offered["targetPort"]


def test_every_pod_gets_the_secrets_that_it_reads_and_no_other() -> None:
    for each in deployments():
        assert secrets_of(each) == set(READERS[name_of(each)]), name_of(each)
    assert secrets_of(resource("Job", "provision")) == JOB_READERS["provision"]
    assert secrets_of(patch("cron")) == JOB_READERS["cron"]
    assert secrets_of(patch("executor")) == JOB_READERS["executor"]


def test_no_secret_is_here_and_the_guide_names_each() -> None:
    every = [each for folder in ("base", "keda", "example") for each in resources(folder)]
    assert "Secret" not in {each["kind"] for each in every}
    needed = set().union(*JOB_READERS.values(), *(READERS[name_of(each)] for each in deployments()))
    guide = (ROOT / "docs" / "kubernetes.md").read_text()
    assert set(re.findall(r"^\| `deeplambda_(\w+)`", guide, re.MULTILINE)) == needed
    secret_fields = needed | {"kafka_producer_password"}
    for path in FOLDER.rglob("*"):
        if path.is_file():
            assert not re.search(rf"DEEPLAMBDA_({'|'.join(secret_fields)})=", path.read_text(), re.IGNORECASE), path


def test_all_pods_share_one_image_and_one_account() -> None:
    assert not [each for each in workloads() if "image" in container_of(each)], "pod.yaml and cron.yaml name it"
    named = {container_of(patch(name))["image"] for name in ("pod", "cron")}
    (executor,) = [each for each in kustomization("base")["configMapGenerator"] if each["name"] == "executor"]
    named |= {pair.removeprefix("image=") for pair in executor["literals"]}
    assert named == {"deeplambda"}
    account = {name: pod_of(patch(name))["spec"]["securityContext"] for name in ("pod", "cron", "executor")}
    assert account["pod"] == account["cron"] == account["executor"]


@pytest.mark.parametrize("name", ["pod", "cron", "executor"])
def test_pods_are_restricted(name: str) -> None:
    is_restricted(patch(name))


def is_restricted(document: dict[str, Any]) -> None:
    """What the PodSecurity standard asks for, and a file system that cannot be written."""
    spec, container = pod_of(document)["spec"], container_of(document)
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] == 1000
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) >= {"/data", "/tmp", "/secrets"}
    for volume in spec["volumes"]:
        assert set(volume) - {"name"} <= {"emptyDir", "secret", "configMap"}


def test_a_cron_job_has_what_other_drivers_have() -> None:
    cron, driver = ({each["name"]: each for each in container_of(patch(name))["env"]} for name in ("cron", "driver"))
    assert {name: cron[name] for name in driver} == driver
    for name in ("subdomain", "serviceAccountName"):
        assert pod_of(patch("cron"))["spec"][name] == pod_of(patch("driver"))["spec"][name]
    for each in workloads():
        hosts = [pair["value"] for pair in container_of(each).get("env", []) if pair["name"].endswith("DRIVER_HOST")]
        assert hosts == ([f"{pod_of(each)['spec']['hostname']}.drivers"] if "hostname" in pod_of(each)["spec"] else [])


def test_the_query_service_reaches_its_stores_and_no_other() -> None:
    rules = resource("NetworkPolicy", "query")["spec"]
    assert rules["policyTypes"] == ["Egress"]
    ports = [port["port"] for rule in rules["egress"] for port in rule["ports"]]
    assert ports == ["hive", port_of(str(dotenv_values(BASE / "settings.env")["DEEPLAMBDA_MYSQL_ADDRESS"])), 53, 53]


def test_replicas_follow_a_metric_that_is_sent() -> None:
    (trigger,) = resource("ScaledObject", "model")["spec"]["triggers"]
    families = text_string_to_metric_families(ServiceMetrics(("digits",)).exposition().decode())
    (asked,) = re.findall(r"deeplambda_\w+", trigger["metadata"]["query"])
    assert asked in {family.name for family in families if family.type == "gauge"}
    assert {type(value) for value in trigger["metadata"].values()} == {str}


def test_the_guides_patch_fits_the_job() -> None:
    """Kustomize takes a patch that begins like JSON for JSON."""
    (block,) = re.findall(r"```yaml\n(patches:.*?)```", (ROOT / "docs" / "kubernetes.md").read_text(), re.DOTALL)
    (patch,) = yaml.safe_load(block)["patches"]
    assert not patch["patch"].startswith(("[", "{"))
    (change,) = yaml.safe_load(patch["patch"])
    at: Any = resource(patch["target"]["kind"], patch["target"]["name"])
    for step in change["path"].strip("/").split("/"):
        at = at[int(step) if isinstance(at, list) else step]
    assert (change["op"], at) == ("replace", "digits")


@pytest.mark.slow
@pytest.mark.parametrize("overlay", ["base", "example"])
def test_what_is_built_is_restricted_and_complete(overlay: str) -> None:
    tools = [tool for tool in (["kubectl", "kustomize"], ["kustomize", "build"]) if shutil.which(tool[0])]
    if not tools:
        pytest.skip("neither kubectl nor kustomize is installed")
    done = subprocess.run([*tools[0], FOLDER / overlay], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    built = [document for document in yaml.safe_load_all(done.stdout) if document]
    made = [each for each in built if each["kind"] in {"Deployment", "Job", "CronJob"}]
    assert {name_of(each) for each in made} == {name_of(each) for each in workloads()}
    images = {container_of(each)["image"] for each in made}
    images |= {each["data"]["image"] for each in built if "image" in each.get("data", {})}
    assert len(images) == 1, "executors run what their drivers run"
    config_maps = {name_of(each) for each in built if each["kind"] == "ConfigMap"}
    for each in made:
        is_restricted(each)
        spec, container = pod_of(each)["spec"], container_of(each)
        assert "limits" in container["resources"]
        assert {source["configMapRef"]["name"] for source in container["envFrom"]} <= config_maps
        assert spec["automountServiceAccountToken"] is (spec.get("serviceAccountName") == "spark-driver")
        known: set[str] = set()
        for variable in container.get("env", []):  # one may refer to those before it
            assert set(re.findall(r"\$\((\w+)\)", variable.get("value", ""))) <= known
            known.add(variable["name"])
        mounted = {volume["name"]: volume for volume in spec["volumes"]}["secrets"]["secret"]
        assert mounted["secretName"] == "deeplambda"
        assert mounted["defaultMode"] == 0o440
        assert mounted["items"]
