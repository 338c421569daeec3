"""What makes measurements comparable: named where it differs, unknown where it is not known, stable as a digest."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from resuming_samples import PROFILE, fingerprint

from kvray.candidate import DeviceType, DType
from kvray.engines.base import DeviceFacts, ModelInfo
from kvray.probes.environment import Environment
from kvray.store.fingerprint import SweepFingerprint, judgement_differences
from kvray.store.speed_variables import LIST, users_variables
from kvray.workload import Limits

ENVIRONMENT: dict[str, Any] = {
    "device_name": "a CPU",
    "driver_version": None,
    "engine_versions": {"torch": "2.12.0", "transformers": "5.20.0"},
    "kvray_version": "0.1.7",
    "python_version": "3.12.4",
    "host": "a-host",
    "cpus": 2,
}


def here(*, on_cluster: bool = False, device: DeviceType = DeviceType.CPU, **changes: Any) -> SweepFingerprint:
    return SweepFingerprint.of(
        engine="fake",
        model=ModelInfo(
            model_id="org/model", revision="r1", architecture="Fake", max_context=None, native_dtype=DType.FLOAT32
        ),
        profile=PROFILE,
        baseline_id="abc",
        device=DeviceFacts(device=device, device_name="a device", gpu_count=2),
        threads=None,
        slots=1,
        on_cluster=on_cluster,
        environment=Environment(**{**ENVIRONMENT, **changes}),
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"torch_version": "2.13.0"}, "torch: 2.12.0 → 2.13.0"),
        ({"transformers_version": "5.23.0"}, "transformers: 5.20.0 → 5.23.0"),
        ({"model_revision": "sha256:bbbb"}, "model file: sha256:aaaa → sha256:bbbb"),
        ({"device_name": "another CPU"}, "device name: a CPU → another CPU"),
        ({"cpus": 4}, "usable CPUs: 2 → 4"),
        ({"memory_gib": 32}, "memory, GiB: 16 → 32"),
        ({"threads": 1}, "threads: the library's own choice → 1"),
        ({"place": "a Ray cluster"}, "measured on: this machine → a Ray cluster"),
        ({"variables": {"OMP_NUM_THREADS": "1"}}, "OMP_NUM_THREADS: none → 1"),
        ({"profile": PROFILE.model_copy(update={"repeats": 5})}, "profile.repeats: 3 → 5"),
        ({"profile": PROFILE.model_copy(update={"context_lengths": (8, 9)})}, "profile.context_lengths: 512 → 8, 9"),
    ],
)
def test_a_difference_is_named_with_both_values(change: dict[str, Any], told: str) -> None:
    assert fingerprint().differences(fingerprint(**change)) == (told,)
    assert fingerprint().digest != fingerprint(**change).digest


@pytest.mark.parametrize(
    "change",
    [
        {"limits": Limits(max_ttft_ms=9.0)},
        {"weight_ttft": 0.2, "weight_memory": 0.4},
        {"name": "another", "description": "Told otherwise."},
    ],
)
def test_limits_weights_and_names_make_no_difference(change: dict[str, Any]) -> None:
    other = fingerprint(profile=PROFILE.model_copy(update=change))
    assert fingerprint().differences(other) == other.differences(fingerprint()) == ()
    assert fingerprint().digest == other.digest


def test_where_two_profiles_judge_otherwise_is_told_with_both_values() -> None:
    other = PROFILE.model_copy(update={"limits": Limits(max_ttft_ms=400.0), "weight_ttft": 1 / 3, "repeats": 9})
    assert judgement_differences(PROFILE, other) == (
        "limits.max_ttft_ms: none → 400",
        "weight_ttft: 0.4 → 0.333333",
    )
    assert judgement_differences(PROFILE, PROFILE) == ()


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({"engine_versions": {"vllm": "0.9.1"}}, {"engine_versions": {"vllm": "0.10.0"}}, ("vllm: 0.9.1 → 0.10.0",)),
        ({"engine_versions": {"vllm": "0.9.1"}}, {"engine_versions": {"vllm": "0.9.1", "xformers": "1"}}, ()),
        ({"engine_versions": {"vllm": "0.9.1"}}, {"engine_versions": None}, ()),
        ({"other_engines": {"b": "r1"}}, {"other_engines": {"b": "r2", "c": "r1"}}, ("engine b: r1 → r2",)),
        ({"other_engines": {"b": "r1"}}, {"other_engines": None}, ()),
        ({"torch_version": "2.12.0"}, {"engine_versions": {"torch": "2.13.0"}}, ("torch: 2.12.0 → 2.13.0",)),
        ({"torch_version": "2.13.0"}, {"engine_versions": {"torch": "2.13.0"}, "torch_version": "2.13.0"}, ()),
    ],
)
def test_the_libraries_of_the_engine_are_compared_where_both_know_them(
    before: dict[str, Any], after: dict[str, Any], told: tuple[str, ...]
) -> None:
    assert SweepFingerprint(**before).differences(SweepFingerprint(**after)) == told


def test_the_libraries_of_this_engine_are_in_the_fingerprint_of_here_and_now() -> None:
    made = here(engine_versions={"vllm": "0.9.1", "torch": "2.12.0"})
    assert (made.engine_versions, made.torch_version, made.transformers_version) == (
        {"vllm": "0.9.1", "torch": "2.12.0"},
        "2.12.0",
        None,
    )
    assert here(engine_versions={"vllm": "0.10.0", "torch": "2.12.0"}).digest != made.digest


def test_a_driver_that_changed_is_named() -> None:
    assert fingerprint(driver_version="550.1").differences(fingerprint(driver_version="570.2")) == (
        "driver: 550.1 → 570.2",
    )


def test_all_differences_are_named_at_once() -> None:
    assert len(fingerprint().differences(fingerprint(torch_version="9", cpus=64, model_revision="x"))) == 3


def test_what_is_not_known_differs_from_nothing() -> None:
    known, unknown = fingerprint(), SweepFingerprint()
    assert unknown.differences(known) == known.differences(unknown) == ()


def test_a_fingerprint_comes_back_equal_from_its_file() -> None:
    back = SweepFingerprint.model_validate_json(fingerprint().model_dump_json())
    assert back == fingerprint()
    assert back.digest == fingerprint().digest


def test_another_host_or_patch_version_makes_no_difference_and_another_minor_version_does() -> None:
    assert here() == here(host="another", kvray_version="0.1.9", python_version="3.12.9")
    assert here().differences(here(kvray_version="0.2.0")) == ("kvray: 0.1 → 0.2",)


def test_of_a_cluster_only_what_its_nodes_share_is_known() -> None:
    cluster = here(on_cluster=True)
    assert (cluster.cpus, cluster.memory_gib, cluster.gpus, cluster.driver_version) == (None,) * 4
    assert here().differences(cluster) == ("measured on: this machine → a Ray cluster",)


def test_gpus_are_counted_on_cuda_where_slots_do_not_share_one() -> None:
    cuda = here(device=DeviceType.CUDA, driver_version="550.1")
    assert (cuda.gpus, cuda.slots, cuda.driver_version) == (2, None, "550.1")
    assert (here().gpus, here().slots) == (None, 1)


def test_variables_that_change_speed_are_in_it_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    before = here()
    monkeypatch.setenv("KMP_BLOCKTIME", "0")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("GOMP_CPU_AFFINITY", "0")
    assert before.differences(here()) == ("GOMP_CPU_AFFINITY: none → 0", "KMP_BLOCKTIME: none → 0")
    assert "secret" not in here().model_dump_json()


def test_of_a_variable_that_an_older_kvray_did_not_look_at_nothing_is_known() -> None:
    now = {"GOMP_CPU_AFFINITY": "0", "OMP_NUM_THREADS": "1"}
    older, newer = fingerprint(variables={}), fingerprint(variables=now, variables_list=LIST)
    assert older.differences(newer) == ("OMP_NUM_THREADS: none → 1",)
    assert newer.differences(older) == ("OMP_NUM_THREADS: 1 → none",)
    plain = fingerprint(variables={}, variables_list=LIST)
    assert plain.digest == older.digest
    assert plain.differences(newer) == ("GOMP_CPU_AFFINITY: none → 0", "OMP_NUM_THREADS: none → 1")


@pytest.mark.parametrize(
    "name",
    [
        "ATEN_CPU_CAPABILITY",
        "CUDA_LAUNCH_BLOCKING",
        "GGML_CUDA_DISABLE_GRAPHS",
        "GOMP_CPU_AFFINITY",
        "MALLOC_CONF",
        "MKL_CBWR",
        "NCCL_ALGO",
        "OMP_WAIT_POLICY",
        "ONEDNN_MAX_CPU_ISA",
        "VLLM_ATTENTION_BACKEND",
    ],
)
def test_variables_of_every_library_are_known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {name: "1", "HOME": "/"})
    assert users_variables() == {name: "1"}


@pytest.mark.parametrize(
    ("job", "kept"), [(None, {"OMP_NUM_THREADS": "1"}), ({}, {}), ({"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "1"})]
)
def test_threads_that_ray_set_for_a_job_are_no_variable_of_the_users(
    job: dict[str, str] | None, kept: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", {"OMP_NUM_THREADS": "1"})
    if job is not None:
        monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, json.dumps({"runtime_env": {"env_vars": job}}))
    assert here().variables == kept


def test_on_a_cluster_the_gpu_is_no_difference_because_each_record_names_its_own() -> None:
    a100, h100 = (fingerprint(place="a Ray cluster", device="cuda", device_name=name) for name in ("A100", "H100"))
    assert a100.differences(h100) == ()
    assert a100.digest == h100.digest
    here, there = (fingerprint(device="cuda", device_name=name) for name in ("A100", "H100"))
    assert here.differences(there) == ("device name: A100 → H100",)
