"""What `kubectl kustomize` makes of deploy/kubernetes, read without kubectl: the fields that those files use only.

Names of generated ConfigMaps and Secrets have no hash here; with kubectl on the machine a test compares the rest.
Secrets are those of the files that make_secrets.sh would make, by key and without content.
"""

import copy
import re
from pathlib import Path
from typing import Any

import yaml

Resource = dict[str, Any]
KNOWN = {
    "apiVersion",
    "kind",
    "namespace",
    "resources",
    "components",
    "configMapGenerator",
    "secretGenerator",
    "patches",
    "images",
}


def build(folder: Path) -> list[Resource]:
    """The resources of an overlay, in no order that matters."""
    resources: list[Resource] = []
    _apply(folder, resources)
    return resources


def _apply(folder: Path, resources: list[Resource]) -> None:
    said = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = said.keys() - KNOWN
    assert not unknown, f"{folder}: {unknown} is not read here"
    for name in said.get("resources", []):
        if (folder / name).is_dir():
            _apply((folder / name).resolve(), resources)
        else:
            resources += [each for each in yaml.safe_load_all((folder / name).read_text()) if each]
    for one in said.get("configMapGenerator", []):
        literals = dict(literal.split("=", 1) for literal in one["literals"])
        if one.get("behavior") == "merge":
            find(resources, "ConfigMap", one["name"])["data"].update(literals)
        else:
            resources.append(_generated("ConfigMap", one["name"], {"data": literals}))
    for one in said.get("secretGenerator", []):
        keys = [file.split("=", 1)[0] for file in one["files"]]
        resources.append(_generated("Secret", one["name"], {"type": "Opaque", "data": dict.fromkeys(keys, "")}))
    for name in said.get("components", []):
        _apply((folder / name).resolve(), resources)
    for one in said.get("patches", []):
        chosen = [each for each in resources if _is_target(each, one["target"])]
        assert chosen, f"{folder}: {one['target']} is nothing"
        for each in chosen:
            for operation in yaml.safe_load(one["patch"]):
                _patch(each, operation)
    for image in said.get("images", []):
        for container in (each for resource in resources for each in containers(resource)):
            if container["image"] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
    if "namespace" in said:
        for each in resources:
            if each["kind"] != "Namespace":
                each["metadata"]["namespace"] = said["namespace"]


def find(resources: list[Resource], kind: str, name: str) -> Resource:
    (found,) = (each for each in resources if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def of_kind(resources: list[Resource], kind: str) -> dict[str, Resource]:
    return {each["metadata"]["name"]: each for each in resources if each["kind"] == kind}


def pod_of(resource: Resource) -> dict[str, Any]:
    """The pod's spec of what makes pods; empty of others."""
    template = resource["spec"].get("template") if "spec" in resource else None
    spec: dict[str, Any] = template["spec"] if template else {}
    return spec


def containers(resource: Resource) -> list[dict[str, Any]]:
    pod = pod_of(resource)
    return [*pod.get("initContainers", []), *pod.get("containers", [])]


def _generated(kind: str, name: str, content: dict[str, Any]) -> Resource:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, **content}


def _is_target(resource: Resource, target: dict[str, str]) -> bool:
    assert target.keys() <= {"kind", "name"}, target
    names = {"kind": resource["kind"], "name": resource["metadata"]["name"]}
    return all(re.fullmatch(pattern, names[field]) for field, pattern in target.items())


def _patch(resource: Resource, operation: dict[str, Any]) -> None:
    """One operation of RFC 6902."""
    *way, last = operation["path"].removeprefix("/").split("/")
    place: Any = resource
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place[step]
    match operation["op"]:
        case "add" if isinstance(place, list):
            assert last == "-"
            place.append(copy.deepcopy(operation["value"]))
        case "add":
            place[last] = copy.deepcopy(operation["value"])
        case "replace":
            assert last in place
            place[last] = copy.deepcopy(operation["value"])
        case "remove":
            del place[last]
        case other:
            raise AssertionError(f"op {other} is not read here")
