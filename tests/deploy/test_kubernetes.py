"""The manifests in deploy/kubernetes: valid for Kubernetes, and true of pdq: settings, routes, users, keys, times."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from api.key_file import hash_of, read_keys
from api.key_gate import OPEN_PATHS
from api.meters import ApiMeters
from api.metrics import exposition
from broker.keys import Keys
from messages.request import Priority
from messages.worker_status import Role
from settings.loading import Settings, load_settings
from tests.deploy.kustomization import Resource, build, containers, find, of_kind, pod_of

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "cpu-batches", "gpu", "gpu-nodes")
WORKERS = ("prefill", "decode")
ROLES = ("api", *WORKERS)
BATCHES = ("batch", "beat")
SCHEMAS = ("1.30", "1.37")  # the oldest and the newest that they are checked against


@pytest.fixture(scope="module", params=OVERLAYS)
def resources(request: pytest.FixtureRequest) -> list[Resource]:
    return build(KUBERNETES / "overlays" / request.param)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    class Loader(yaml.SafeLoader):
        """Compose's own tags say nothing here."""

    said: dict[str, Any] = yaml.load((ROOT / "compose.yaml").read_text(), Loader)  # noqa: S506 - a SafeLoader
    return said


def settings_of(resources: list[Resource], role: str) -> dict[str, str]:
    """The variables with a fixed value that the container of `role` gets."""
    (container,) = containers(find(resources, "Deployment", role))
    variables: dict[str, str] = dict(find(resources, "ConfigMap", "settings")["data"])
    return variables | {one["name"]: one["value"] for one in container["env"] if "value" in one}


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        one["operator"] == "In" and labels.get(one["key"]) in one["values"]
        for one in selector.get("matchExpressions", [])
    )


def pods(resources: list[Resource]) -> dict[str, dict[str, str]]:
    """Labels of what runs, by name."""
    return {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"] for each in resources if pod_of(each)
    }


@pytest.mark.parametrize("version", SCHEMAS)
def test_kubernetes_takes_every_resource(resources: list[Resource], version: str) -> None:
    for each in resources:
        if each["apiVersion"].startswith("keda.sh/"):
            continue  # below
        kubernetes_validate.validate(each, version, strict=True)


def test_the_schemas_see_a_misspelt_field(resources: list[Resource]) -> None:
    broken = json.loads(json.dumps(find(resources, "Deployment", "prefill")))
    broken["spec"]["template"]["spec"]["hostIpc"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="hostIpc"):
        kubernetes_validate.validate(broken, SCHEMAS[1], strict=True)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl here")
def test_kubectl_builds_what_is_tested_here(tmp_path: Path) -> None:
    folder = tmp_path / "kubernetes"
    shutil.copytree(KUBERNETES, folder, ignore=shutil.ignore_patterns("secrets"))
    for kustomization in folder.rglob("kustomization.yaml"):
        for one in yaml.safe_load(kustomization.read_text()).get("secretGenerator", []):
            for file in one["files"]:
                path = kustomization.parent / file.split("=", 1)[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("x")

    def told(each: Resource) -> str:
        text = json.dumps(each | ({"data": sorted(each["data"])} if each["kind"] == "Secret" else {}), sort_keys=True)
        return re.sub(r'"(settings|redis-[a-z]+|kv-seal|api-keys|keda-key|batch-key)-[a-z0-9]{10}"', r'"\1"', text)

    for overlay in OVERLAYS:
        command = ["kubectl", "kustomize", str(folder / "overlays" / overlay)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        built = sorted(told(each) for each in yaml.safe_load_all(done.stdout))
        assert built == sorted(told(each) for each in build(KUBERNETES / "overlays" / overlay))


def test_every_variable_is_a_setting_with_a_value_that_it_takes(
    resources: list[Resource], monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in resources:
        for container in containers(each):
            variables = dict(find(resources, "ConfigMap", "settings")["data"]) if "envFrom" in container else {}
            variables |= {one["name"]: one.get("value", "10.0.0.1") for one in container.get("env", [])}
            with monkeypatch.context() as patched:
                for name, value in variables.items():
                    if name.startswith("PDQ_"):
                        patched.setenv(name, value)
                load_settings()


def test_no_variable_comes_from_services_of_any_name(resources: list[Resource]) -> None:
    """A Service called pdq would make PDQ_SERVICE_HOST, which stops every start as an unknown setting."""
    assert all(pod_of(each)["enableServiceLinks"] is False for each in resources if pod_of(each))


def test_every_role_runs_its_own_command(resources: list[Resource]) -> None:
    for role in ROLES:
        (container,) = containers(find(resources, "Deployment", role))
        assert container["args"] == [role] and "command" not in container
        assert container["image"] in ("pdq:cpu", "pdq:cuda")


def test_workers_share_what_they_share_in_compose(resources: list[Resource], compose: dict[str, Any]) -> None:
    """IPC and PID namespaces, /dev/shm, one uid: docs/gpu.md says why."""
    for role in WORKERS:
        assert compose["services"][role]["ipc"] == compose["services"][role]["pid"] == "service:ipc"
        pod = pod_of(find(resources, "Deployment", role))
        assert pod["hostIPC"] is pod["hostPID"] is True
        places = {one["name"]: one["mountPath"] for one in pod["containers"][0]["volumeMounts"]}
        (shm,) = (one for one in pod["volumes"] if one.get("hostPath"))
        assert shm["hostPath"]["path"] == places[shm["name"]] == "/dev/shm"
        lease_dir = settings_of(resources, role)["PDQ_GPU__LEASE_DIR"]
        assert lease_dir.startswith("/dev/shm/"), "all workers of a node have to see it"
    api = pod_of(find(resources, "Deployment", "api"))
    assert not api.get("hostIPC") and not api.get("hostPID") and not any("hostPath" in one for one in api["volumes"])
    level = find(resources, "Namespace", "pdq")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert level == "privileged"


def test_every_container_is_hardened_as_in_compose(resources: list[Resource], compose: dict[str, Any]) -> None:
    uid, gid = (int(part) for part in compose["x-hardened"]["user"].split(":"))
    for each in resources:
        pod = pod_of(each)
        if not pod:
            continue
        of_pod = pod["securityContext"]
        assert (of_pod["runAsUser"], of_pod["runAsGroup"], of_pod["runAsNonRoot"]) == (uid, gid, True)
        assert pod["automountServiceAccountToken"] is False
        for container in containers(each):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True and context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]} and not context.get("privileged")


def test_every_mount_has_its_volume(resources: list[Resource]) -> None:
    claims, secrets = of_kind(resources, "PersistentVolumeClaim"), of_kind(resources, "Secret")
    for each in resources:
        pod = pod_of(each)
        volumes = {one["name"]: one for one in pod.get("volumes", [])}
        made = {one["metadata"]["name"] for one in each.get("spec", {}).get("volumeClaimTemplates", [])}
        mounted = {mount["name"] for container in containers(each) for mount in container.get("volumeMounts", [])}
        assert mounted == volumes.keys() | made
        for volume in volumes.values():
            assert "persistentVolumeClaim" not in volume or volume["persistentVolumeClaim"]["claimName"] in claims
            assert "secret" not in volume or volume["secret"]["secretName"] in secrets


def test_every_role_sees_its_own_secrets_and_no_other(resources: list[Resource]) -> None:
    secrets = of_kind(resources, "Secret")
    seen = {
        role: {
            one["secret"]["secretName"]
            for one in pod_of(find(resources, "Deployment", role))["volumes"]
            if "secret" in one
        }
        for role in ROLES
    }
    assert seen == {
        "api": {"redis-api", "api-keys"},
        "prefill": {"redis-prefill", "kv-seal"},
        "decode": {"redis-decode", "kv-seal"},
    }
    for role in ROLES:
        settings = settings_of(resources, role)
        assert settings["PDQ_REDIS__USERNAME"] == role
        files = {"PDQ_REDIS__PASSWORD_FILE": f"redis-{role}"}
        files |= (
            {"PDQ_SECURITY__KEYS_FILE": "api-keys"} if role == "api" else {"PDQ_KV_TRANSFER__SECRET_FILE": "kv-seal"}
        )
        pod = pod_of(find(resources, "Deployment", role))
        volumes = {one["secret"]["secretName"]: one["name"] for one in pod["volumes"] if "secret" in one}
        mounts = {one["name"]: one for one in pod["containers"][0]["volumeMounts"]}
        for variable, secret in files.items():
            mount = mounts[volumes[secret]]
            assert mount["readOnly"] is True
            (key,) = secrets[secret]["data"]
            assert settings[variable] == f"{mount['mountPath']}/{key}"


def test_users_and_files_are_those_that_make_secrets_makes() -> None:
    script = (ROOT / "deploy" / "make_secrets.sh").read_text()
    assert "for role in admin api prefill decode batch; do" in script and "workers/kv_secret" in script
    users = re.findall(r"^user (\w+) ", (ROOT / "deploy" / "redis_users.acl").read_text(), re.MULTILINE)
    assert {*ROLES, "probe"} <= set(users)


def test_make_secrets_makes_every_file_that_a_secret_is_of_and_keeps_it(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy", ignore=shutil.ignore_patterns("secrets"))
    pdq = tmp_path / "pdq"
    pdq.write_text(f'#!/bin/sh\ncd {ROOT} && exec {sys.executable} -m cli "$@"\n')
    pdq.chmod(0o700)
    folder = tmp_path / "deploy" / "kubernetes"

    def made() -> dict[Path, bytes]:
        command = ["sh", str(folder / "make_secrets.sh")]
        done = subprocess.run(
            command, env={**os.environ, "PDQ": str(pdq)}, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return {
            kustomization.parent / file.split("=", 1)[1]: (kustomization.parent / file.split("=", 1)[1]).read_bytes()
            for kustomization in folder.rglob("kustomization.yaml")
            for one in yaml.safe_load(kustomization.read_text()).get("secretGenerator", [])
            for file in one["files"]
        }

    files = made()
    assert len(files) == 9 and all(files.values())
    assert made() == files, "what is there is kept"
    keys = {key.id: key for key in read_keys(folder / "base" / "secrets" / "keys" / "keys")}
    scopes = {"keda": "monitor", "first-client": "client", "batch": "client"}
    assert {name: str(key.scope) for name, key in keys.items()} == scopes
    assert keys["keda"].sha256 == hash_of(files[folder / "components" / "keda" / "secrets" / "keys" / "keda"].decode())


def test_probes_ask_routes_that_exist_and_ask_for_no_key(resources: list[Resource]) -> None:
    (api,) = containers(find(resources, "Deployment", "api"))
    (port,) = api["ports"]
    assert str(port["containerPort"]) == settings_of(resources, "api")["PDQ_API__PORT"]
    paths = {name: api[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"startupProbe": "/liveness", "livenessProbe": "/liveness", "readinessProbe": "/readiness"}
    assert set(paths.values()) <= OPEN_PATHS
    assert all(api[name]["httpGet"]["port"] == port["name"] for name in paths)
    for role in WORKERS:
        (worker,) = containers(find(resources, "Deployment", role))
        assert worker["readinessProbe"]["exec"]["command"] == ["pdq", "health", "--role", "self"]
        assert "livenessProbe" not in worker, "while Redis is away it would kill every worker"
        longest_s = worker["startupProbe"]["periodSeconds"] * worker["startupProbe"]["failureThreshold"]
        assert longest_s >= 600, "as compose.yaml allows"


def test_nobody_is_killed_before_the_drain_is_over(resources: list[Resource]) -> None:
    for role in WORKERS:
        grace_s = pod_of(find(resources, "Deployment", role))["terminationGracePeriodSeconds"]
        queue = Settings().queue
        assert grace_s > queue.exit_s > queue.drain_s
        assert not {"PDQ_QUEUE__EXIT_S", "PDQ_QUEUE__DRAIN_S"} & settings_of(resources, role).keys()
    pod = pod_of(find(resources, "Deployment", "api"))
    (_, pause_s) = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    drain_s = float(settings_of(resources, "api")["PDQ_API__DRAIN_S"])
    assert pod["terminationGracePeriodSeconds"] > float(pause_s) + drain_s


def test_selectors_find_pods(resources: list[Resource]) -> None:
    running = pods(resources)
    for name, deployment in of_kind(resources, "Deployment").items():
        assert [pod for pod, labels in running.items() if matches(deployment["spec"]["selector"], labels)] == [name]
    for name, service in of_kind(resources, "Service").items():
        selected = [
            pod for pod, labels in running.items() if matches({"matchLabels": service["spec"]["selector"]}, labels)
        ]
        assert selected == [name]
        made_by = next(each for each in resources if pod_of(each) and each["metadata"]["name"] == name)
        named = {port["name"] for container in containers(made_by) for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named
    for name, budget in of_kind(resources, "PodDisruptionBudget").items():
        assert [pod for pod, labels in running.items() if matches(budget["spec"]["selector"], labels)] == [name]
    assert of_kind(resources, "PodDisruptionBudget").keys() == set(ROLES)
    for policy in of_kind(resources, "NetworkPolicy").values():
        assert any(matches(policy["spec"]["podSelector"], labels) for labels in running.values())


def test_workers_of_one_node_stay_on_it_and_of_several_have_a_way(resources: list[Resource]) -> None:
    running = pods(resources)
    for role in WORKERS:
        settings = settings_of(resources, role)
        pod = pod_of(find(resources, "Deployment", role))
        (address,) = [one for one in pod["containers"][0]["env"] if one["name"] == "PDQ_KV_TRANSFER__ADDRESS"] or [None]
        if settings.get("PDQ_KV_TRANSFER__NETWORK", "none") == "none":
            (term,) = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            near = [name for name, labels in running.items() if matches(term["labelSelector"], labels)]
            assert sorted(near) == sorted(WORKERS) and term["topologyKey"] == "kubernetes.io/hostname"
            assert address is None
        else:
            assert "affinity" not in pod
            assert address is not None and address["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"
            assert find(resources, "PersistentVolumeClaim", "models")["spec"]["accessModes"] == ["ReadWriteMany"]
            between = find(resources, "NetworkPolicy", "between-workers")["spec"]
            assert matches(between["podSelector"], running[role]) and between["policyTypes"] == ["Ingress", "Egress"]


def test_only_the_api_is_let_in_and_only_the_model_job_out(resources: list[Resource]) -> None:
    running = pods(resources)
    policies = of_kind(resources, "NetworkPolicy")
    assert policies["deny-all"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    open_in, open_out = set(), set()
    for name, policy in policies.items():
        said = policy["spec"]
        chosen = {pod for pod, labels in running.items() if matches(said["podSelector"], labels)}
        open_in |= chosen if any("from" not in rule for rule in said.get("ingress", [])) else set()
        if name not in ("names", "to-redis"):
            open_out |= chosen if any("to" not in rule for rule in said.get("egress", [])) else set()
    assert open_in == {"api"} and open_out == {"model-fetch"}
    to_redis = policies["to-redis"]["spec"]
    to_it = {pod for pod, labels in running.items() if matches(to_redis["podSelector"], labels)}
    assert to_it == {*ROLES, *BATCHES} & running.keys()


def test_redis_is_run_as_in_compose(compose: dict[str, Any]) -> None:
    resources = build(KUBERNETES / "overlays" / "gpu")
    (redis,) = containers(find(resources, "StatefulSet", "redis"))
    said = [*redis["command"], *redis["args"]]
    assert said == shlex.split(" ".join(compose["services"]["redis"]["command"]))
    assert "--user probe" in redis["readinessProbe"]["exec"]["command"][-1]
    url = settings_of(resources, "api")["PDQ_REDIS__URL"]
    service = find(resources, "Service", "redis")
    assert url == f"redis://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}/0"


# -- batches -----------------------------------------------------------------------------------------------------------


def test_batch_workers_are_run_as_in_compose(compose: dict[str, Any]) -> None:
    resources = build(KUBERNETES / "overlays" / "cpu-batches")
    for name in BATCHES:
        (container,) = containers(find(resources, "Deployment", name))
        assert container["args"] == compose["services"][name]["command"] and container["image"] == "pdq:cpu"
        assert settings_of(resources, name)["PDQ_REDIS__USERNAME"] == "batch"
    assert settings_of(resources, "batch")["PDQ_BATCH__BEAT"] == "false", "the clock is a process of its own"


def test_the_api_and_batch_workers_see_the_same_files() -> None:
    resources = build(KUBERNETES / "overlays" / "cpu-batches")
    for name in ("api", "batch"):
        pod = pod_of(find(resources, "Deployment", name))
        (volume,) = (one for one in pod["volumes"] if one.get("persistentVolumeClaim") == {"claimName": "files"})
        (mount,) = (one for one in pod["containers"][0]["volumeMounts"] if one["name"] == volume["name"])
        assert mount["mountPath"] == settings_of(resources, name)["PDQ_BATCH__STORE"] and not mount.get("readOnly")
    # What is being uploaded is on the volume, too, and not in memory.
    assert settings_of(resources, "api")["TMPDIR"] == settings_of(resources, "api")["PDQ_BATCH__STORE"]


def test_batch_workers_have_a_key_of_their_own_and_a_way_to_the_api() -> None:
    resources = build(KUBERNETES / "overlays" / "cpu-batches")
    pod, settings = pod_of(find(resources, "Deployment", "batch")), settings_of(resources, "batch")
    mounts = {one["name"]: one["mountPath"] for one in pod["containers"][0]["volumeMounts"]}
    paths = {
        f"{mounts[one['name']]}/{key}": one["secret"]["secretName"]
        for one in pod["volumes"]
        if "secret" in one
        for key in find(resources, "Secret", one["secret"]["secretName"])["data"]
    }
    assert paths == {
        settings["PDQ_REDIS__PASSWORD_FILE"]: "redis-batch",
        settings["PDQ_BATCH__API_KEY_FILE"]: "batch-key",
    }
    service = find(resources, "Service", "api")
    assert service["spec"]["ports"][0]["port"] == 80 and settings["PDQ_BATCH__API_URL"] == "http://api"
    (rule,) = find(resources, "NetworkPolicy", "batch-to-api")["spec"]["egress"]
    (peer,) = rule["to"]
    assert [name for name, labels in pods(resources).items() if matches(peer["podSelector"], labels)] == ["api"]
    assert rule["ports"][0]["port"] == service["spec"]["ports"][0]["targetPort"]


# -- KEDA --------------------------------------------------------------------------------------------------------------


SCALED_OBJECT = {
    "scaleTargetRef",
    "minReplicaCount",
    "maxReplicaCount",
    "pollingInterval",
    "fallback",
    "advanced",
    "triggers",
}
TRIGGER = {"type", "name", "metricType", "metadata", "authenticationRef"}
METRICS_API = {"url", "format", "valueLocation", "targetValue", "authMode"}


def scaled_objects() -> tuple[list[Resource], dict[str, Resource]]:
    resources = build(KUBERNETES / "overlays" / "gpu-nodes")
    return resources, of_kind(resources, "ScaledObject")


def test_keda_scales_the_workers_and_nobody_else_says_how_many() -> None:
    resources, scaled = scaled_objects()
    assert scaled.keys() == set(WORKERS)
    for role, one in scaled.items():
        assert one["spec"].keys() == SCALED_OBJECT
        assert one["spec"]["scaleTargetRef"] == {"kind": "Deployment", "name": role}
        assert 1 <= one["spec"]["minReplicaCount"] < one["spec"]["maxReplicaCount"]
        assert "replicas" not in find(resources, "Deployment", role)["spec"]


def test_keda_asks_the_api_with_a_key_of_its_own() -> None:
    resources, scaled = scaled_objects()
    service = find(resources, "Service", "api")
    assert service["spec"]["ports"][0]["port"] == 80
    for one in scaled.values():
        for trigger in one["spec"]["triggers"]:
            assert trigger.keys() <= TRIGGER and trigger["type"] == "metrics-api"
            assert trigger["metadata"].keys() <= METRICS_API and trigger["metadata"]["authMode"] == "bearer"
            host = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
            assert trigger["metadata"]["url"] in (f"http://{host}/metrics", f"http://{host}/token_load")
            reference = find(resources, "TriggerAuthentication", trigger["authenticationRef"]["name"])
            (target,) = reference["spec"]["secretTargetRef"]
            assert target["parameter"] == "token"  # what `bearer` reads
            assert target["key"] in find(resources, "Secret", target["name"])["data"]


def test_keda_reads_figures_that_the_api_gives() -> None:
    """Every class of the prefill queue by the label values that /metrics writes, and a field of /token_load."""
    _, scaled = scaled_objects()
    told = exposition(ApiMeters(), 0, [], {role: dict.fromkeys(Priority, 3) for role in Role}, []).decode()
    modifiers = scaled["prefill"]["spec"]["advanced"]["scalingModifiers"]
    triggers = {one["name"]: one["metadata"] for one in scaled["prefill"]["spec"]["triggers"]}
    assert (
        sorted(re.findall(r"[a-z]+", modifiers["formula"])) == sorted(triggers) == sorted(one.value for one in Priority)
    )
    for name, metadata in triggers.items():
        found = re.fullmatch(r"(\w+)\{(.*)\}", metadata["valueLocation"])
        assert found and dict(re.findall(r'(\w+)="(\w+)"', found[2])) == {"role": "prefill", "priority": name}
        labels = sorted(re.findall(r'\w+="\w+"', found[2]))
        assert f"{found[1]}{{{','.join(labels)}}} 3.0" in told.splitlines()
    (load,) = scaled["decode"]["spec"]["triggers"]
    assert f'"{load["metadata"]["valueLocation"]}": load.' in (ROOT / "api" / "status_routes.py").read_text()
    assert load["metricType"] == "Value", "it is a share of what all workers have, not a sum"


def test_redis_queues_are_more_than_one_stream() -> None:
    """Why KEDA does not read Redis: of several triggers it takes the largest, and jobs are on a stream per class."""
    assert len(set(Keys("pdq").queues(Role.PREFILL))) == len(Priority) > 1
