"""The files of `cluster/` and the Dockerfile: valid for the tools that read them, and closed to strangers."""

from __future__ import annotations

import json
import lzma
import re
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from packaging.requirements import Requirement

from kvray.cli.app import LazyGroup, app
from kvray.sweep.metrics import Metric

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
DEFINITIONS = ROOT.parent / "shared" / "kuberay"
LAUNCHERS = sorted((CLUSTER / "launcher").glob("*.yaml"))
MANIFESTS = {"raycluster.yaml": "ray.io_rayclusters.yaml.xz", "rayjob.yaml": "ray.io_rayjobs.yaml.xz"}
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def load(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text())
    assert isinstance(content, dict)
    return content


def tool(name: str) -> str:
    path = Path(sysconfig.get_path("scripts")) / name
    if not path.exists():
        pytest.skip(f"{name} is not installed (the extra dev brings it where there is a wheel for the machine)")
    return str(path)


def check(*command: str | Path) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_rays_launcher_accepts_the_file_and_asks_for_the_token(path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(load(path))
    validate_config(config)
    starts = [line for side in ("head", "worker") for line in config[f"{side}_start_ray_commands"] if " start " in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert config["file_mounts"]["~/.ray/auth_token"]
    assert sum(kind.get("min_workers", 0) for kind in config["available_node_types"].values()) == 2


def definition_of(name: str) -> Any:
    """KubeRay's definition of the resource in a manifest: megabytes of YAML. Python's own loader takes 10 s for it."""
    content = lzma.decompress((DEFINITIONS / MANIFESTS[name]).read_bytes())
    return yaml.load(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


@pytest.mark.skipif(not DEFINITIONS.is_dir(), reason="KubeRay's resource definitions are not beside the project")
@pytest.mark.parametrize("name", MANIFESTS)
def test_kuberay_knows_every_field_of_the_manifest(name: str) -> None:
    from jsonschema import Draft202012Validator

    definition = definition_of(name)
    manifest = load(CLUSTER / "kubernetes" / name)
    group, version = manifest["apiVersion"].split("/")
    assert (group, manifest["kind"]) == (definition["spec"]["group"], definition["spec"]["names"]["kind"])
    (served,) = [one for one in definition["spec"]["versions"] if one["name"] == version and one["served"]]
    schema = served["schema"]["openAPIV3Schema"]
    Draft202012Validator(schema).validate(manifest)
    metadata = set(manifest.pop("metadata"))
    assert metadata <= {"name", "generateName"}
    assert list(unknown_fields(manifest, schema)) == []


def unknown_fields(value: Any, schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Kubernetes drops fields that a definition does not name without a word."""
    if isinstance(value, list):
        for item in value:
            yield from unknown_fields(item, schema.get("items", {}), f"{path}[]")
    if not isinstance(value, dict) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    for key, item in value.items():
        inner = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
        if inner is None:
            yield f"{path}.{key}"
        elif isinstance(inner, dict):
            yield from unknown_fields(item, inner, f"{path}.{key}")


def test_a_field_that_kuberay_does_not_know_is_found() -> None:
    schema: dict[str, Any] = {
        "properties": {"spec": {"properties": {"known": {"items": {"properties": {"name": {}}}}}}}
    }
    manifest = {"spec": {"known": [{"name": "a", "nmae": "b"}], "other": 1}}
    assert list(unknown_fields(manifest, schema)) == [".spec.known[].nmae", ".spec.other"]


def ray_cluster_specs() -> list[dict[str, Any]]:
    whole, job = (load(CLUSTER / "kubernetes" / name)["spec"] for name in MANIFESTS)
    return [whole, job["rayClusterSpec"]]


def test_pods_need_the_token_and_are_not_root() -> None:
    for spec in ray_cluster_specs():
        assert spec["authOptions"] == {"mode": "token", "secretName": "kvray-ray-token"}
        assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"]
            assert {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]} >= {"/results", "/cache"}
    claims = {one["metadata"]["name"] for one in yaml.safe_load_all((CLUSTER / "kubernetes/storage.yaml").read_text())}
    volumes = ray_cluster_specs()[0]["headGroupSpec"]["template"]["spec"]["volumes"]
    assert {v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v} == claims


def test_the_compose_file_meets_the_specification_and_opens_no_port_to_others() -> None:
    from check_jsonschema.builtin_schemas import get_builtin_schema
    from jsonschema import validators

    compose, schema = load(CLUSTER / "compose.yaml"), get_builtin_schema("vendor.compose-spec")
    validators.validator_for(schema)(schema).validate(compose)
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert ports == ["127.0.0.1:8265:8265"]
    for service in compose["services"].values():
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == f"/run/secrets/{service['secrets'][0]}"
    gpus = [
        device["device_ids"]
        for name, service in compose["services"].items()
        if name != "head"
        for device in service["deploy"]["resources"]["reservations"]["devices"]
    ]
    assert gpus == [["0"], ["1"]], "each worker has a GPU of its own"


WATCH = CLUSTER / "kubernetes" / "watch.yaml"
CRON_JOB = {
    *("schedule", "timeZone", "concurrencyPolicy", "suspend", "startingDeadlineSeconds", "jobTemplate"),
    *("successfulJobsHistoryLimit", "failedJobsHistoryLimit"),
}
JOB = {
    *(
        "activeDeadlineSeconds",
        "backoffLimit",
        "backoffLimitPerIndex",
        "completionMode",
        "completions",
        "manualSelector",
    ),
    *("maxFailedIndexes", "parallelism", "podFailurePolicy", "podReplacementPolicy", "selector", "successPolicy"),
    *("manualSelector", "suspend", "template", "ttlSecondsAfterFinished"),
}
"""Fields of `CronJobSpec` and `JobSpec` in batch/v1 of the Kubernetes API."""


def watching_pod() -> dict[str, Any]:
    pod = load(WATCH)["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert isinstance(pod, dict)
    return pod


def test_the_cron_job_has_known_fields_and_watches_one_node_never_twice_at_once() -> None:
    manifest = load(WATCH)
    assert (manifest["apiVersion"], manifest["kind"], set(manifest["metadata"])) == ("batch/v1", "CronJob", {"name"})
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(manifest["spec"]) <= CRON_JOB
    assert set(manifest["spec"]["jobTemplate"]) == {"spec"}
    assert set(manifest["spec"]["jobTemplate"]["spec"]) <= JOB
    assert manifest["spec"]["concurrencyPolicy"] == "Forbid"
    pod = watching_pod()
    assert pod["nodeSelector"]["kubernetes.io/hostname"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.skipif(not DEFINITIONS.is_dir(), reason="KubeRay's resource definitions are not beside the project")
def test_kubernetes_knows_every_field_of_the_cron_jobs_pod() -> None:
    from jsonschema import Draft202012Validator

    definition = definition_of("raycluster.yaml")
    (served,) = [one for one in definition["spec"]["versions"] if one["name"] == "v1"]
    cluster = served["schema"]["openAPIV3Schema"]["properties"]["spec"]
    schema = cluster["properties"]["headGroupSpec"]["properties"]["template"]["properties"]["spec"]
    Draft202012Validator(schema).validate(watching_pod())
    assert list(unknown_fields(watching_pod(), schema)) == []


def unit(kind: str) -> dict[str, list[str]]:
    """Every setting of a systemd unit with its values."""
    found: dict[str, list[str]] = {}
    for line in (CLUSTER / f"kvray-watch.{kind}").read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


SYSTEMD = shutil.which("systemd-analyze")


@pytest.mark.skipif(SYSTEMD is None, reason="systemd-analyze is not on the PATH")
def test_systemd_accepts_the_units_and_finds_the_service_closed(tmp_path: Path) -> None:
    assert SYSTEMD is not None
    service, timer = tmp_path / "kvray-watch.service", tmp_path / "kvray-watch.timer"
    program = unit("service")["ExecStart"][0].split()[0]
    service.write_text((CLUSTER / service.name).read_text().replace(program, "/bin/true"))
    timer.write_text((CLUSTER / timer.name).read_text())
    done = subprocess.run(
        [SYSTEMD, "verify", "--man=no", service, timer], capture_output=True, text=True, check=False, timeout=240
    )
    assert (done.returncode, done.stderr) == (0, "")
    known = subprocess.run([SYSTEMD, "--help"], capture_output=True, text=True, check=True, timeout=240).stdout
    if "--offline" in known:  # systemd 250
        check(SYSTEMD, "security", "--offline=true", "--threshold=30", service)  # 3.0 of 10: "OK"


def test_the_service_hides_no_gpu_and_starts_no_second_run() -> None:
    settings = unit("service")
    assert settings["Type"] == ["oneshot"]
    assert settings["NoNewPrivileges"] == ["yes"]
    assert not {"PrivateDevices", "ProtectClock", "DeviceAllow", "MemoryDenyWriteExecute", "CPUQuota"} & set(settings)
    assert unit("timer")["Persistent"] == ["true"]


def ray_starts() -> Iterator[list[str]]:
    """The arguments of each `ray start` in the templates and the page."""
    for path in LAUNCHERS:
        for line in (line for side in ("head", "worker") for line in load(path)[f"{side}_start_ray_commands"]):
            yield from ([shlex.split(line.partition("ray start ")[2])] if "ray start --" in line else [])
    for service in load(CLUSTER / "compose.yaml")["services"].values():
        yield service["command"][1:]
    for spec in ray_cluster_specs():
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            yield [
                f"--{name}" if value == "true" else f"--{name}={value}"
                for name, value in group["rayStartParams"].items()
            ]
    for line in (ROOT / "docs" / "cluster.md").read_text().replace("\\\n", " ").splitlines():
        yield from ([shlex.split(line.partition("ray start ")[2])] if "ray start --" in line else [])


def test_ray_knows_the_options_with_which_it_is_started() -> None:
    from ray.scripts.scripts import start

    shown = list(ray_starts())
    assert len(shown) == 16
    for arguments in shown:
        start.make_context("ray start", arguments)


def test_hadolint_accepts_the_dockerfile() -> None:
    check(tool("hadolint"), ROOT / "Dockerfile")


def test_shellcheck_accepts_every_script() -> None:
    stand_ins = Path(__file__).with_name("slurm_stand_ins").iterdir()
    scripts = (CLUSTER / "slurm" / "kvray.sbatch", ROOT / ".ci" / "run", ROOT / "benchmarks" / "llama_tools.sh")
    check(tool("shellcheck"), *scripts, *sorted(stand_ins))


def test_all_files_name_the_ray_of_the_image() -> None:
    found = re.search(r"^ARG RAY_VERSION=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert found is not None
    version = found[1]
    wanted = [Requirement(one) for one in requires("kvray") or () if Requirement(one).name == "ray"]
    assert wanted
    assert all(one.specifier.contains(version) for one in wanted)
    assert [spec["rayVersion"] for spec in ray_cluster_specs()] == [version] * 2
    assert all(f'"ray=={version}"' in path.read_text() for path in LAUNCHERS)


def test_the_image_is_not_root_and_answers_as_kvray() -> None:
    last = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    assert re.findall(r"^USER (\S+)$", last, re.MULTILINE) == ["1000"]
    (entry,) = re.findall(r"^ENTRYPOINT (.+)$", last, re.MULTILINE)
    assert json.loads(entry) == ["kvray"]
    assert all(":" in tag and "@" not in tag for tag in re.findall(r"^FROM (\S+) AS base-", DOCKERFILE, re.MULTILINE))


def test_what_the_dockerfile_copies_is_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        word for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]
    }
    assert copied == kept
    assert all((ROOT / name).exists() for name in kept)


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each `kvray` command that the pages and templates show, with its arguments."""
    for page in (ROOT / "docs" / "cluster.md", ROOT / "docs" / "watch.md", CLUSTER / "README.md"):
        for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                yield from _arguments(page.name, line)
    yield from _arguments("rayjob.yaml", load(CLUSTER / "kubernetes" / "rayjob.yaml")["spec"]["entrypoint"])
    yield from _arguments("kvray-watch.service", unit("service")["ExecStart"][0])
    yield "watch.yaml", watching_pod()["containers"][0]["args"]


def _arguments(source: str, line: str) -> Iterator[tuple[str, list[str]]]:
    words = shlex.split(line.strip().removeprefix("$ "), comments=True)
    if "exec" in words and words[0] == "ray":
        words = shlex.split(words[-1])
    for start in ("kvray", "kvray:cpu", "kvray.sbatch"):
        for position, word in enumerate(words):
            if Path(word).name == start and words[position + 1 : position + 2] and words[0] != "ssh":
                yield source, words[position + 1 :]


def test_the_kvray_commands_shown_have_only_options_that_exist() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, LazyGroup)
    shown = [(source, words) for source, words in commands() if words[0] in group.list_commands(None)]
    assert len(shown) >= 8
    for source, words in shown:
        command, *rest = words
        shown_command = group.get_command(None, command)
        while hasattr(shown_command, "commands"):  # of `kvray jobs list` the options are those of `list`
            command, *rest = rest
            shown_command = shown_command.commands[command]
        context = shown_command.make_context(f"{source}: kvray {command}", rest)
        assert context.params, (source, words)


def test_grafanas_panels_ask_for_what_kvray_exports_and_for_labels_that_it_has() -> None:
    known = {one.exported_name: {*one.labels, "le"} for one in Metric}
    asked: set[str] = set()
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            for name, labels in re.findall(r"(\w*kvray_\w+)(?:\{([^}]*)\})?", target["expr"]):
                assert name in known, target["expr"]
                assert set(re.findall(r"(\w+)=", labels.replace("!~", "=").replace("=~", "="))) <= known[name]
                asked.add(name)
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
            assert all(shown <= set(one.replace(" ", "").split(",")) for one in grouped if shown)
    assert asked == set(known), "no metric without a panel"
    (choice,) = (one for one in dashboard()["templating"]["list"] if one["type"] == "query")
    assert choice["definition"] == f"label_values({Metric.RUNNING.exported_name}, run_id)"


def test_grafanas_dashboard_has_what_its_schema_asks_for() -> None:
    board = dashboard()
    assert {"title", "uid", "tags", "timezone", "time", "refresh", "annotations", "templating", "panels"} <= set(board)
    assert board["schemaVersion"] == 39
    assert "id" not in board, "Grafana gives one when the file is imported"
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    squares: set[tuple[int, int]] = set()
    for panel in panels:
        assert {"type", "title", "datasource", "fieldConfig", "options", "targets"} <= set(panel)
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)
        place = panel["gridPos"]
        covered = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not covered & squares, "panels lie on each other"
        squares |= covered
    variables = {one["name"] for one in board["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(board))) == variables


def dashboard() -> dict[str, Any]:
    board = json.loads((CLUSTER / "grafana.json").read_text())
    assert isinstance(board, dict)
    return board
