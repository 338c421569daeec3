"""`kvray info`: what this machine offers."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvray.candidate import DeviceType
from kvray.engines.base import DeviceFacts, EngineAdapter
from kvray.engines.interpreter import chosen_python, inspect_python
from kvray.engines.registry import get_engine, list_engines
from kvray.errors import EngineError
from kvray.probes.cgroups import cpu_quota
from kvray.probes.cpu import quota_threads, visible_cpus
from kvray.probes.environment import capture_environment
from kvray.space.menu import SHARED_AXES
from kvray.tuning.local_device import detect_device

app = typer.Typer(add_completion=False)


@app.command()
def info(
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default cuda where there is one.")] = None,
) -> None:
    """Say what this machine offers: versions, device, and every value of every axis, or why not."""
    console = Console()
    facts = detect_device(None if device is None else DeviceType.parse(device))
    engines = {name: get_engine(name) for name in list_engines()}
    libraries = dict.fromkeys(library for engine in engines.values() for library in engine.libraries)
    environment = capture_environment(facts.device, libraries=libraries)
    missing = facts.device is DeviceType.CUDA and facts.gpu_count == 0
    name = "no GPU here; this is what one of the Ampere generation or later could do" if missing else facts.device_name
    rows: dict[str, str | None] = {
        "kvray": environment.kvray_version,
        "device": f"{name} ({facts.device})" + (f" ×{facts.gpu_count}" if facts.gpu_count > 1 else ""),
        "driver": environment.driver_version,
        **environment.engine_versions,
        "Python": environment.python_version,
        "CPUs": str(environment.cpus),
        "CPU quota": _quota(),
    }
    shown = {name: value for name, value in rows.items() if value is not None}
    width = max(map(len, shown)) + 2
    for name, value in shown.items():
        console.print(Text(f"{name:<{width}}{value}"), soft_wrap=True)
    for engine in list_engines():
        print_menu(console, get_engine(engine), facts)


def print_menu(console: Console, engine: EngineAdapter, facts: DeviceFacts) -> None:
    """Every value of every axis of `engine`, and how its own axes are set."""
    console.print(Text(f"\nEngine {engine.name}", style="bold"))
    try:
        _check_installed(console, engine)
    except EngineError as error:
        console.print(Text(str(error), style="yellow"), soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    for heading in ("axis", "value"):
        table.add_column(heading, no_wrap=True)
    table.add_column("here")
    for entry in engine.menu(facts):
        if entry.obstacle is not None:
            table.add_row(entry.axis, entry.value, Text(f"no: {entry.obstacle}", style="yellow"))
        else:
            note = f"yes, on request: {entry.on_request}" if entry.on_request else "yes"
            table.add_row(entry.axis, entry.value, Text(note, style="green"))
    console.print(table)
    own = [axis for axis in engine.axes(facts) if axis.name not in SHARED_AXES and not axis.option]
    for axis in own:
        console.print(Text(f"--set {axis.name}=…  {axis.describe()}"), soft_wrap=True)


def _check_installed(console: Console, engine: EngineAdapter) -> None:
    """In the Python that the engine has of its own, where a variable names one.

    Raises:
        EngineError: the engine cannot run there.
    """
    path = chosen_python(engine.name, {}, {})
    if path is None:
        engine.check_installed()
        return
    found = inspect_python(path, engine)
    versions = ", ".join(f"{name} {version}" for name, version in found.engine_versions.items())
    console.print(Text(f"in a Python of its own, {path}: {versions}"), soft_wrap=True)


def _quota() -> str | None:
    """A limit of this process's control group, where it is below what the process sees."""
    if quota_threads() is None:
        return None
    return f"{cpu_quota():g} of the {visible_cpus()} CPUs that are visible"
