"""Limits of control groups, from files laid out as the kernel and container runtimes lay them out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kvray.probes import cgroups

V2_MOUNT = "30 23 0:26 {root} {mount} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "31 23 0:28 / {mount} ro,nosuid - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 {root} {mount}/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {root} {mount}/memory rw,relatime - cgroup cgroup rw,memory\n"
    "40 31 0:37 / {mount}/systemd rw,relatime - cgroup cgroup rw,name=systemd\n"
)
V2, V1 = "0::/pod/app\n", "5:memory:/pod/app\n4:cpu,cpuacct:/pod/app\n1:name=systemd:/\n"


@dataclass
class System:
    """A `/proc` and a tree of groups below `folder`."""

    folder: Path
    own: str = V2
    mounts: str = V2_MOUNT
    root: str = "/"
    files: dict[str, str] = field(default_factory=dict)

    @property
    def mount(self) -> Path:
        return self.folder / "groups"

    def folders(self, controller: str) -> tuple[Path, ...]:
        for name, content in self.files.items():
            path = self.mount / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content + "\n")
        proc = self.folder / "proc"
        proc.mkdir(exist_ok=True)
        (proc / "cgroup").write_text(self.own)
        (proc / "mountinfo").write_text(self.mounts.format(mount=self.mount, root=self.root))
        return cgroups.group_folders(controller, proc / "cgroup", proc / "mountinfo")


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(folder=tmp_path)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"pod/app/cpu.max": "150000 100000"}, 1.5),
        ({"pod/app/cpu.max": "max 100000", "pod/cpu.max": "200000 100000"}, 2.0),
        ({"pod/app/cpu.max": "300000 100000", "pod/cpu.max": "200000 100000", "cpu.max": "400000 100000"}, 2.0),
        ({"cpu.max": "50000 100000"}, 0.5),
        ({"pod/app/cpu.max": "max 100000"}, None),
        ({"pod/app/cpu.max": "100000"}, None),
        ({"pod/app/cpu.max": "0 0"}, None),
        ({"elsewhere/cpu.max": "100000 100000"}, None),
        ({}, None),
    ],
)
def test_the_smallest_cpu_quota_of_the_own_group_and_those_above_holds(
    system: System, files: dict[str, str], quota: float | None
) -> None:
    system.files = files
    assert cgroups.cpu_quota(system.folders("cpu")) == quota


def v1_quota(folder: str, quota: str, period: str = "100000") -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": period}


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        (v1_quota("cpu,cpuacct/pod/app", "300000"), 3.0),
        (v1_quota("cpu,cpuacct/pod/app", "-1") | v1_quota("cpu,cpuacct/pod", "25000", "50000"), 0.5),
        (v1_quota("cpu,cpuacct", "-1"), None),
        (v1_quota("memory/pod/app", "300000"), None),
    ],
)
def test_version_1_has_a_hierarchy_of_its_own_for_cpus(
    system: System, files: dict[str, str], quota: float | None
) -> None:
    system.own, system.mounts, system.files = V1, V1_MOUNTS, files
    assert cgroups.cpu_quota(system.folders("cpu")) == quota


def test_a_container_that_is_shown_the_hosts_path_finds_its_group_at_the_mount(system: System) -> None:
    system.own = "4:cpu,cpuacct:/docker/4f5e\n5:memory:/docker/4f5e\n"
    system.mounts, system.root = V1_MOUNTS, "/docker/4f5e"
    system.files = v1_quota("cpu,cpuacct", "100000") | {"memory/memory.limit_in_bytes": str(2**29)}
    assert cgroups.cpu_quota(system.folders("cpu")) == 1.0
    assert system.folders("memory") == (system.mount / "memory",)


@pytest.mark.parametrize(
    ("own", "root", "folder"),
    [
        ("0::/\n", "/", "."),
        ("0::/job/step\n", "/", "job/step"),
        ("0::/slice/box/job\n", "/slice/box", "job"),
        ("0::/../other\n", "/", "."),
        ("0::/\n", "/..", "."),
        ("0::/slice/boxer\n", "/slice/box", "."),
    ],
)
def test_in_a_namespace_the_group_is_found_from_the_mounts_root(
    system: System, own: str, root: str, folder: str
) -> None:
    system.own, system.root = own, root
    assert system.folders("cpu")[0] == system.mount / folder


def test_both_versions_side_by_side_are_both_asked(system: System) -> None:
    system.own = V1 + V2
    system.mounts = V1_MOUNTS + V2_MOUNT.replace("{mount}", "{mount}/unified")
    system.files = v1_quota("cpu,cpuacct/pod", "150000") | {"unified/pod/app/cpu.max": "400000 100000"}
    assert cgroups.cpu_quota(system.folders("cpu")) == 1.5


def test_a_mount_whose_name_has_a_blank_is_found(system: System) -> None:
    system.mounts = V2_MOUNT.replace("{mount}", "{mount}/a\\040b")
    system.files = {"a b/pod/app/cpu.max": "100000 100000"}
    assert cgroups.cpu_quota(system.folders("cpu")) == 1.0


def test_a_system_without_control_groups_limits_nothing(system: System, tmp_path: Path) -> None:
    system.mounts = ""
    assert system.folders("cpu") == ()
    assert cgroups.group_folders("cpu", tmp_path / "none", tmp_path / "none") == ()
    assert cgroups.cpu_quota(()) is None


@pytest.mark.parametrize(
    ("stat", "seconds"),
    [
        ("usage_usec 9\nnr_periods 40\nnr_throttled 12\nthrottled_usec 250000\n", 0.25),
        ("nr_periods 40\nnr_throttled 12\nthrottled_time 1500000000\n", 1.5),
        ("usage_usec 9\nuser_usec 5\n", None),
        ("", None),
    ],
)
def test_the_time_that_a_quota_took_is_counted_in_both_versions(
    tmp_path: Path, stat: str, seconds: float | None
) -> None:
    (tmp_path / "cpu.stat").write_text(stat)
    assert cgroups.throttled_s([tmp_path]) == seconds
    assert cgroups.throttled_s([]) is None


@pytest.mark.parametrize(
    ("own", "mounts", "files", "limits"),
    [
        (V2, V2_MOUNT, {"pod/memory.max": str(2**30), "pod/app/memory.max": "max"}, [1024.0]),
        (V1, V1_MOUNTS, {"memory/pod/app/memory.limit_in_bytes": str(2**29)}, [512.0]),
        (V2, V2_MOUNT, {}, []),
    ],
)
def test_memory_limits_are_found_in_the_own_group_and_above(
    system: System, own: str, mounts: str, files: dict[str, str], limits: list[float]
) -> None:
    system.own, system.mounts, system.files = own, mounts, files
    folders = system.folders("memory")
    assert [limit for folder in folders if (limit := cgroups._memory_limit_mib(folder)) is not None] == limits


def test_memory_that_the_kernel_would_drop_again_is_left(tmp_path: Path) -> None:
    mib = 2**20
    (tmp_path / "memory.max").write_text(f"{1000 * mib}\n")
    (tmp_path / "memory.current").write_text(f"{700 * mib}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {200 * mib}\n")
    assert cgroups._memory_left_mib(tmp_path) == 500.0


@pytest.mark.parametrize(
    ("files", "kills"),
    [
        ({"g/memory.events": "low 0\nmax 9\noom 5\noom_kill 4\noom_group_kill 0\n"}, 4),
        ({"g/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", "memory.events": "oom_kill 7"}, 2),
        ({"memory.events": "oom 8\noom_kill 7\n"}, 7),
        ({"vmstat": "nr_free_pages 12\noom_kill 3\n"}, 3),
        ({"vmstat": "nr_free_pages 12\n"}, None),
        ({}, None),
    ],
)
def test_the_kernels_kills_are_counted_where_it_tells(tmp_path: Path, files: dict[str, str], kills: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cgroups.kernel_oom_kills([tmp_path / "g", tmp_path], tmp_path / "vmstat") == kills


@pytest.mark.skipif(not Path("/proc/vmstat").exists(), reason="Linux tells them")
def test_a_linux_tells_the_kernels_kills() -> None:
    assert (cgroups.kernel_oom_kills() or 0) >= 0
    assert cgroups.kernel_oom_kills() is not None
