"""Kinds of input of `fuzz.py` that need no model: files that kvray reads, command lines, model ids."""

from __future__ import annotations

import contextlib
import importlib
import json
from typing import Any

import fuzz_samples as samples
import typer
import yaml
from fuzz_mutator import Mutator
from fuzz_watch import BrokenPromiseError, Place, Watch, call_cli, names_canary
from typing_extensions import override

from kvray.candidate import AttentionBackend, CacheStrategy, CompileMode, DeviceType, DType
from kvray.cli.app import COMMANDS
from kvray.engines.base import ModelRequest
from kvray.engines.registry import get_engine
from kvray.errors import KvrayError
from kvray.forecast.hardware import Hardware, HardwareKey, save_hardware
from kvray.plan.plan import load_plan_file
from kvray.probes.cpu import openmp_threads
from kvray.workload import list_profiles, load_profile

FAKE = ("tune", "fake:ok", "--engine", "fake", "--device", "cpu", "--context", "16", "--output-len", "4", "--dry-run")


class Kind:
    """One kind of input. `feed` makes an input, hands it to kvray within `watch`, and tells whether it was accepted."""

    def __init__(self, place: Place, watch: Watch) -> None:
        self.place, self.watch = place, watch
        self.prepare()

    def prepare(self) -> None:
        """Make what inputs start from."""

    def feed(self, mutator: Mutator) -> bool:
        """Feed one input.

        Raises:
            BrokenPromiseError, or whatever escaped.
        """
        raise NotImplementedError

    def cli(self, *arguments: object) -> tuple[int, str]:
        """A watched command line."""
        with self.watch():
            return call_cli(*map(str, arguments))


class Plans(Kind):
    """best_plan.json: shown, printed as a snippet, asked what to use."""

    @override
    def prepare(self) -> None:
        self.sample = samples.plan()
        self.path = self.place.input / "best_plan.json"

    @override
    def feed(self, mutator: Mutator) -> bool:
        self.path.write_bytes(mutator.json_bytes(self._with_true_ids(mutator)))
        code, out = self.cli("apply", self.path, *(["--print-snippet"] if mutator.chance(0.6) else []))
        if code == 0:
            if out.startswith("#") and names_canary(out):
                raise BrokenPromiseError("escapes", "a string of the plan is code in the snippet")
            with self.watch():
                plan = load_plan_file(self.path)
                plan.choose(mutator.one_of(0, 1, 64, 10**9), 1, mutator.one_of(None, 0.0, 1e300))
                plan.fallback_after(plan.winner.candidate.candidate_id)
        return code == 0

    def _with_true_ids(self, mutator: Mutator) -> dict[str, Any]:
        """Half of the time strings are hostile where nothing forbids it, so that the snippet has to bear them."""
        if mutator.chance(0.5):
            return self.sample
        free = ("model_id", "architecture", "run_id", "kvray_version")
        changed = {**self.sample, mutator.one_of(*free): mutator.string()}
        return {**changed, "fingerprint": {**self.sample["fingerprint"], "device_name": mutator.string()}}


class Profiles(Kind):
    """A profile's .json file."""

    @override
    def prepare(self) -> None:
        self.sample = samples.PROFILE.model_dump(mode="json")
        self.path = self.place.input / "profile.json"

    @override
    def feed(self, mutator: Mutator) -> bool:
        self.path.write_bytes(mutator.json_bytes(self.sample))
        own = [] if mutator.chance(0.7) else ["--json"]
        code, _ = self.cli(*FAKE[:6], "--dry-run", "--profile", self.path, *own)
        with self.watch(), _kvray_errors_allowed():
            load_profile(self.path)
        return code == 0


class Spaces(Kind):
    """A space's YAML file."""

    SNIPPETS = (
        "- cache: &a [static]\n  attention: *a\n",
        "- cache: !!python/object/apply:os.system ['touch kvray_escape']\n",
        "- !!python/object/new:type {}\n",
        "a: &a [x, x]\n"
        + "".join(f"{c}: &{c} [*{p}, *{p}, *{p}, *{p}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)),
        "- &a [*a]\n",
        "- cache: &b\n    - static\n    - *b\n",
        "? [a]\n: b\n",
        "- <<: *x\n",
        "- {cache: [dynamic], cache: [static]}\n",
        "%YAML 9.9\n---\n- cache: [dynamic]\n",
        "- cache: [dynamic]\n---\n- cache: [static]\n",
        "- cache:\n\t- dynamic\n",
        "[" * 5000,
        "{" * 5000,
        "- " * 5000,
        "- batch_size: [" + "1," * 50_000 + "]\n",
        "- cache: ["
        + ", ".join(f'"static(max_cache_len={n})"' for n in range(1, 400))
        + "]\n  batch_size: ["
        + ", ".join(map(str, range(1, 400)))
        + "]\n  prefill_chunk: ["
        + ", ".join(map(str, range(1, 400)))
        + "]\n",
    )

    @override
    def prepare(self) -> None:
        self.sample = [
            {
                "cache": ["dynamic", "static", "quantized(backend=hqq,nbits=4)", "sliding_window(window=8,sinks=2)"],
                "attention": ["sdpa", "eager"],
                "dtype": ["float32"],
                "compile": ["off"],
            },
            {"cache": ["static"], "prefill_chunk": ["none", "512"], "weights_limit_mib": ["none"], "batch_size": ["1"]},
        ]
        self.path = self.place.input / "space.yaml"

    @override
    def feed(self, mutator: Mutator) -> bool:
        self.path.write_bytes(self._content(mutator))
        code, _ = self.cli(*FAKE, "--space", self.path)
        return code == 0

    def _content(self, mutator: Mutator) -> bytes:
        if mutator.chance(0.15):
            text = mutator.one_of(*self.SNIPPETS)
        else:
            text = mutator.json_text(mutator.mutated(self.sample))
            if mutator.chance(0.5):
                with contextlib.suppress(ValueError, RecursionError, yaml.YAMLError):
                    text = yaml.safe_dump(json.loads(text), allow_unicode=True)
        data = text.encode("utf-8", errors="surrogatepass")
        return mutator.damaged(data) if mutator.chance(0.2) else data


class CommandLines(Kind):
    """Every option of every command, in any combination; what could start something is a dry run."""

    @override
    def prepare(self) -> None:
        samples.write_results(self.place.output / "results").compact(samples.RUN_ID)
        (self.place.input / "plan.json").write_text(json.dumps(samples.plan()), encoding="utf-8")
        (self.place.input / "space.yaml").write_text("- cache: [static]\n", encoding="utf-8")
        keep_hardware()
        self.commands = {
            name: typer.main.get_command(importlib.import_module(f"kvray.cli.{name}").app) for name in COMMANDS
        }
        axes = (AttentionBackend, CacheStrategy, CompileMode, DeviceType, DType)
        self.words = [
            *(value.value for axis in axes for value in axis),
            *list_profiles(),
            *(
                "none",
                "off",
                "on",
                "512",
                "16,4",
                "8GiB",
                "7.5 gb",
                "20m",
                "1.5h",
                "90s",
                "0s",
                "1e3",
                "fake",
                "latency",
            ),
            *(
                "transformers",
                "default",
                "full",
                "grid",
                "asha",
                "optuna",
                "model",
                samples.RUN_ID,
                "t-1",
                "#",
                "a#b#c",
            ),
            *(str(self.place.input / name) for name in ("plan.json", "space.yaml", "missing", "")),
            *("none,512", "512,none", "9" * 20, "quantized(nbits=4)", "sliding_window(window=8)", "owner/kernel"),
        ]

    @override
    def feed(self, mutator: Mutator) -> bool:
        name = mutator.one_of(*self.commands, "tune", "tune", "forecast")
        arguments: list[str] = []
        for parameter in self.commands[name].params:
            if parameter.param_type_name == "argument":
                arguments += self._positional(parameter.name, mutator)
            elif mutator.chance(0.12) and "--help" not in parameter.opts:
                arguments += self._option(parameter, mutator)
        if name in ("tune", "forecast"):
            arguments += ["--device", "cpu", *(["--engine", "fake"] if mutator.chance(0.6) else [])]
        if name == "tune":
            arguments.append("--dry-run")
        if mutator.chance(0.05):
            arguments.insert(mutator.random.randrange(len(arguments) + 1), mutator.string())
            if name == "tune" and "--dry-run" in arguments[:-1]:
                arguments.append("--dry-run")
        if name == "tune" and ("--" in arguments or arguments[-1] != "--dry-run"):
            return False
        code, _ = self.cli(name, *arguments)
        return code == 0

    def _positional(self, parameter: str, mutator: Mutator) -> list[str]:
        if mutator.chance(0.03):
            return []
        if mutator.chance(0.15):
            return [self._value(mutator)]
        usual = {"model": "fake:ok", "plan": self.place.input / "plan.json"}
        if parameter == "name":
            return [mutator.one_of(*list_profiles(), self._value(mutator))]
        return [str(usual.get(parameter, self.place.output / "results"))]

    def _option(self, parameter: Any, mutator: Mutator) -> list[str]:
        option = mutator.one_of(*parameter.opts, *parameter.secondary_opts)
        if parameter.is_flag:
            return [option]
        if option == "--out":
            return [option, str(self.place.output / f"x{self._value(mutator)}".replace("..", "").replace("/", "_"))]
        return [option, self._value(mutator)]

    def _value(self, mutator: Mutator) -> str:
        if mutator.chance(0.5):
            word = mutator.one_of(*self.words)
            return f"{word},{mutator.one_of(*self.words)}" if mutator.chance(0.15) else word
        return mutator.string() if mutator.chance(0.7) else str(mutator.one_of(-1, 0, 1, 3, 2**31, 2**63, 10**30))


class ModelIds(Kind):
    """What follows `kvray tune`."""

    @override
    def prepare(self) -> None:
        folder = self.place.input / "folder"
        (folder / "empty").mkdir(parents=True)
        sizes = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", **sizes}), encoding="utf-8")
        (folder / "broken.gguf").write_bytes(b"GGUF")
        (folder / "loop").symlink_to(folder / "loop")
        self.parts = (
            *(
                f"random:{folder}",
                "random:",
                "random:random:",
                "org/name",
                "a/b/c",
                "name",
                "",
                ".",
                "..",
                "/",
                "~",
                "~/x",
                "fake:ok",
                ":",
            ),
            *(
                str(folder),
                str(folder / "config.json"),
                str(folder / "loop"),
                str(folder / "empty"),
                "x.gguf",
                "x.GGUF",
            ),
            *("/dev/null", "/dev/zero", "/dev/stdin", "/proc/self/mem", "/proc/self/environ", "/root/.ssh", "x" * 4096),
            *(
                "/" + "x" * 300,
                "/".join("y" * 200 for _ in range(30)),
                "a" * 97 + "/b",
                "org/name.git",
                "-org/name-",
                "\0",
            ),
        )

        call_cli("tune", f"random:{folder}", *FAKE[4:])  # what libraries do when they are first imported is no escape

    @override
    def feed(self, mutator: Mutator) -> bool:
        pieces = [mutator.one_of(*self.parts) for _ in range(1 + mutator.random.randrange(2))]
        if mutator.chance(0.5):
            pieces.insert(mutator.random.randrange(len(pieces) + 1), mutator.string())
        text = mutator.one_of("", "/", "\\", " ").join(pieces)
        if mutator.chance(0.3):
            text = mutator.damaged(text.encode("utf-8", errors="surrogatepass")).decode(
                "utf-8", errors="surrogateescape"
            )
        with self.watch(), _kvray_errors_allowed():
            get_engine("transformers").check_model(ModelRequest(model_id=text))
        code, _ = self.cli("tune", "--device", "cpu", "--context", "16", "--output-len", "4", "--dry-run", "--", text)
        return code == 0


HARDWARE = Hardware(
    device=DeviceType.CPU,
    copy_bytes_s=1e10,
    matmul_flops_s={DType.FLOAT32: 1e11, DType.BFLOAT16: 1e11},
    stream_bytes_s={DType.FLOAT32: 1e10, DType.BFLOAT16: 1e10},
    layer_s=1e-4,
    step_s=1e-3,
    resident_mib=300.0,
)


def keep_hardware() -> HardwareKey:
    """Let this machine count as measured, so that no command line measures it."""
    key = HardwareKey.here("transformers", DeviceType.CPU, openmp_threads())
    save_hardware(key, HARDWARE)
    return key


def _kvray_errors_allowed() -> Any:
    return contextlib.suppress(KvrayError)


KINDS: dict[str, type[Kind]] = {
    "plans": Plans,
    "profiles": Profiles,
    "spaces": Spaces,
    "command_lines": CommandLines,
    "model_ids": ModelIds,
}
