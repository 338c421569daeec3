"""How a machine is divided into slots."""

from __future__ import annotations

from dataclasses import replace

import pytest
from queue_samples import BASELINE

from kvray.candidate import DeviceType
from kvray.errors import SweepError
from kvray.sweep.capacity import Room
from kvray.sweep.gpu_types import PREFIX
from kvray.sweep.slot_plan import SlotPlan, plan_slots


def plan(
    cpus: float, gpus: float = 0, *, device: DeviceType = DeviceType.CPU, slots: int | None = None, threads: int = 0
) -> SlotPlan:
    return plan_slots([{"CPU": cpus, "GPU": gpus}], device=device, slots=slots, user_threads=threads or None)


def test_one_trial_has_the_whole_cpu_and_the_library_chooses_its_threads() -> None:
    divided = plan(8)
    assert (divided.slots, divided.cpus_per_slot, divided.gpus_per_slot, divided.threads) == (1, 8.0, 0, None)
    assert divided.resources(BASELINE) == {"CPU": 8.0, "GPU": 0.0}


def test_several_trials_share_cpus_and_threads_evenly() -> None:
    divided = plan(8, slots=3)
    assert (divided.slots, divided.cpus_per_slot, divided.threads) == (3, 2.0, 2)


def test_a_user_s_own_thread_count_wins() -> None:
    assert plan(8, threads=5).threads == 5
    assert plan(8, slots=4, threads=5).threads == 5


def test_threads_follow_a_cpu_quota_unless_they_are_divided_or_the_user_has_chosen() -> None:
    assert on([{"CPU": 2.0}], quota_threads=2).threads == 2
    assert on([{"CPU": 2.0}], quota_threads=2, slots=2).threads == 1
    assert on([{"CPU": 2.0}], quota_threads=2, user_threads=4).threads == 4


def test_each_gpu_is_a_slot() -> None:
    divided = plan(8, 4, device=DeviceType.CUDA)
    assert (divided.slots, divided.gpus_per_slot, divided.cpus_per_slot) == (4, 1, 2.0)


def test_a_cpu_sweep_on_a_machine_with_gpus_takes_none() -> None:
    assert plan(8, 4).resources(BASELINE)["GPU"] == 0.0


def test_more_slots_than_fit_are_refused_with_the_most_that_do() -> None:
    with pytest.raises(SweepError, match=r"99 slots do not fit: Ray offers 2 CPUs and 0 GPUs\. At most 2\."):
        plan(2, slots=99)
    with pytest.raises(SweepError, match=r"3 slots do not fit: Ray offers 8 CPUs and 2 GPUs\. At most 2\."):
        plan(8, 2, device=DeviceType.CUDA, slots=3)


def test_cuda_on_a_ray_without_gpus_is_refused() -> None:
    with pytest.raises(SweepError, match=r"The sweep needs 1 GPU, Ray offers 0\. Pass --device cpu"):
        plan(8, device=DeviceType.CUDA)


def test_a_ray_without_a_cpu_is_refused() -> None:
    with pytest.raises(SweepError, match="Ray offers no CPU"):
        plan(0)


def on(nodes: list[dict[str, float]], **how: object) -> SlotPlan:
    return plan_slots(nodes, **{"device": DeviceType.CPU, "slots": None, **how})  # type: ignore[arg-type]


def test_a_slot_never_spans_machines() -> None:
    two = [{"CPU": 4.0}, {"CPU": 2.0}]
    assert on(two).cpus_per_slot == 4
    assert on(two, slots=2).cpus_per_slot == 2
    assert on(two, slots=3).cpus_per_slot == 2
    assert on(two, slots=4).cpus_per_slot == 1
    with pytest.raises(SweepError, match="7 slots do not fit"):
        on(two, slots=7)


def test_gpus_without_a_cpu_beside_them_make_no_slot() -> None:
    divided = on([{"CPU": 1.0, "GPU": 4.0}, {"CPU": 8.0}], device=DeviceType.CUDA)
    assert (divided.slots, divided.cpus_per_slot) == (1, 1)


def test_machines_with_gpus_that_come_and_go_change_the_room_unless_slots_are_asked_for() -> None:
    one, two = [{"CPU": 2.0, "GPU": 1.0}], [{"CPU": 2.0, "GPU": 1.0}] * 2
    divided = on(one, device=DeviceType.CUDA)
    assert divided.follows_nodes
    assert [divided.room_on(nodes).slots for nodes in (one, two, [])] == [1, 2, 0]
    assert not on(two, device=DeviceType.CUDA, slots=2).follows_nodes
    assert not on([{"CPU": 2.0}]).follows_nodes


def test_a_trial_holds_as_many_gpus_as_its_candidate_is_spread_over() -> None:
    divided = plan(8, 4, device=DeviceType.CUDA)
    assert divided.resources(replace(BASELINE, parallelism=4)) == {"CPU": 2.0, "GPU": 4.0}


def test_room_counts_the_gpus_that_trials_share_and_those_of_the_largest_machine() -> None:
    nodes = [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 0.0, "GPU": 8.0}]
    assert on(nodes, device=DeviceType.CUDA).room == Room(slots=6, gpus=6, largest=4)
    assert on(nodes, device=DeviceType.CUDA, slots=2).room == Room(slots=2, gpus=6, largest=4)
    assert on(nodes).room == Room(slots=1)


def test_an_exclusive_trial_has_its_machine_to_itself() -> None:
    gpus = [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 6.0, "GPU": 1.0}]
    divided = on(gpus, device=DeviceType.CUDA, exclusive=True)
    assert (divided.slots, divided.threads, divided.follows_nodes) == (2, None, True)
    held = divided.resources(replace(BASELINE, parallelism=2))
    assert held["GPU"] == 2
    assert all(2 * held["CPU"] > node["CPU"] for node in gpus), "Ray has no room for two"
    assert [divided.room_on(nodes).slots for nodes in (gpus, gpus * 2, [])] == [2, 4, 0]
    assert on([{"CPU": 8.0}, {"CPU": 8.0}], exclusive=True).slots == 2
    assert on([{"CPU": 1.0}], exclusive=True).slots == 1
    with pytest.raises(SweepError, match=r"3 slots do not fit: .* With --exclusive each has a machine to itself"):
        on(gpus, device=DeviceType.CUDA, slots=3, exclusive=True)


def test_two_exclusive_trials_do_not_fit_beside_each_other_on_gpus_of_a_type() -> None:
    typed = [{"CPU": 8.0, "GPU": 4.0, f"{PREFIX}A100": 1.0}]
    held = on(typed, device=DeviceType.CUDA, gpu_type="A100", exclusive=True).resources(BASELINE)
    assert 0.5 < held[f"{PREFIX}A100"] < 1, "a sweep of others may run there all the same"


def test_a_machine_that_is_too_small_to_be_exclusive_beside_the_largest_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("WARNING", logger="kvray.sweep"):
        assert on([{"CPU": 64.0}, {"CPU": 8.0}, {"CPU": 40.0}], exclusive=True).slots == 2
    assert "1 of 3 nodes are left out: they have fewer than 33 CPUs, the largest has 64" in caplog.text
