"""kvray measures which KV-cache configuration of an LLM is best for a model, a machine and a workload.

The public names, imported lazily: `import kvray` costs nothing. Modules inside the package never import from here.
"""

import sys

TYPE_CHECKING = False  # the module `typing` is one more file that could be found in the working folder


def _is_run_as_module() -> bool:
    """Whether Python is about to run `-m kvray` or one of its modules: until it does, it calls the program `-m`."""
    if sys.argv[:1] != ["-m"] or sys.flags.safe_path:
        return False
    asked = sys.orig_argv[-len(sys.argv)]  # what follows -m, or -Bmkvray
    name = asked.partition(".")[0]
    return name == "kvray" or (name.startswith("-") and name.endswith("mkvray"))


if _is_run_as_module():
    del sys.path[0]  # the working folder

__version__ = "0.1.0"

_HOME = {
    "AttentionBackend": "kvray.candidate",
    "CacheStrategy": "kvray.candidate",
    "Candidate": "kvray.candidate",
    "CheckConfig": "kvray.check.config",
    "DType": "kvray.candidate",
    "DeviceType": "kvray.candidate",
    "KvrayError": "kvray.errors",
    "Limits": "kvray.workload",
    "Objective": "kvray.workload",
    "PlanBuilder": "kvray.plan.builder",
    "RegressionCheck": "kvray.check.check",
    "TransformersAdapter": "kvray.engines.transformers",
    "TuneConfig": "kvray.config",
    "TuningSearch": "kvray.tuning.search",
    "WorkloadProfile": "kvray.workload",
    "create_custom_profile": "kvray.workload",
    "get_profile": "kvray.workload",
    "list_profiles": "kvray.workload",
    "load_plan": "kvray.plan.session",
    "load_profile": "kvray.workload",
    "save_profile": "kvray.workload",
}

__all__ = [*sorted(_HOME), "__version__"]  # noqa: PLE0604  (names are strings; the linter cannot see it)

if TYPE_CHECKING:
    from kvray.candidate import AttentionBackend as AttentionBackend
    from kvray.candidate import CacheStrategy as CacheStrategy
    from kvray.candidate import Candidate as Candidate
    from kvray.candidate import DeviceType as DeviceType
    from kvray.candidate import DType as DType
    from kvray.check.check import RegressionCheck as RegressionCheck
    from kvray.check.config import CheckConfig as CheckConfig
    from kvray.config import TuneConfig as TuneConfig
    from kvray.engines.transformers import TransformersAdapter as TransformersAdapter
    from kvray.errors import KvrayError as KvrayError
    from kvray.plan.builder import PlanBuilder as PlanBuilder
    from kvray.plan.session import load_plan as load_plan
    from kvray.tuning.search import TuningSearch as TuningSearch
    from kvray.workload import Limits as Limits
    from kvray.workload import Objective as Objective
    from kvray.workload import WorkloadProfile as WorkloadProfile
    from kvray.workload import create_custom_profile as create_custom_profile
    from kvray.workload import get_profile as get_profile
    from kvray.workload import list_profiles as list_profiles
    from kvray.workload import load_profile as load_profile
    from kvray.workload import save_profile as save_profile


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'kvray' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
