"""Kinds of input of `fuzz.py` that need no model: plans, profiles, spaces, command lines, model ids, results, caches."""

from __future__ import annotations

import importlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_samples as samples
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
import yaml
from fuzz_mutator import Mutator
from fuzz_watch import Finding, Place, Watch, call_cli, names_canary

from kvray.candidate import AttentionBackend, CacheStrategy, CompileMode, DeviceType, DType
from kvray.cli.app import COMMANDS
from kvray.engines.registry import get_engine
from kvray.errors import KvrayError
from kvray.forecast.hardware import Hardware, HardwareKey, load_hardware, save_hardware
from kvray.probes.cpu import openmp_threads
from kvray.plan.plan import load_plan_file
from kvray.trial.quality import compare, summarize
from kvray.trial.reference import load_reference
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
            Finding, or whatever escaped.
        """
        raise NotImplementedError

    def cli(self, *arguments: object) -> tuple[int, str]:
        """A watched command line."""
        with self.watch():
            return call_cli(*map(str, arguments))


class Plans(Kind):
    """best_plan.json: shown, printed as a snippet, asked what to use."""

    def prepare(self) -> None:
        self.sample = samples.plan()
        self.path = self.place.input / "best_plan.json"

    def feed(self, mutator: Mutator) -> bool:
        self.path.write_bytes(mutator.json_bytes(self._with_true_ids(mutator)))
        code, out = self.cli("apply", self.path, *(["--print-snippet"] if mutator.chance(0.6) else []))
        if code == 0:
            if out.startswith("#") and names_canary(out):
                raise Finding("escapes", "a string of the plan is code in the snippet")
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

    def prepare(self) -> None:
        self.sample = samples.PROFILE.model_dump(mode="json")
        self.path = self.place.input / "profile.json"

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
        "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}, *{p}, *{p}]\n" for p, c in zip("abcdefgh", "bcdefghi")),
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
                try:
                    text = yaml.safe_dump(json.loads(text), allow_unicode=True)
                except (ValueError, RecursionError, yaml.YAMLError):
                    pass
        data = text.encode("utf-8", errors="surrogatepass")
        return mutator.damaged(data) if mutator.chance(0.2) else data


class CommandLines(Kind):
    """Every option of every command, in any combination; what could start something is a dry run."""

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

    def feed(self, mutator: Mutator) -> bool:
        name = mutator.one_of(*self.commands, "tune", "tune", "forecast")
        arguments: list[str] = []
        for parameter in self.commands[name].params:
            if parameter.param_type_name == "argument":
                arguments += self._positional(parameter.name, name, mutator)
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

    def _positional(self, parameter: str, command: str, mutator: Mutator) -> list[str]:
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

    def prepare(self) -> None:
        folder = self.place.input / "folder"
        for name in ("config.json", "broken.gguf", "empty"):
            (folder / name).mkdir(parents=True) if name == "empty" else None
        (folder / "config.json").write_text("{}", encoding="utf-8")
        (folder / "broken.gguf").write_bytes(b"GGUF")
        (folder / "loop").symlink_to(folder / "loop")
        self.parts = (
            *("random:", "random:random:", "org/name", "a/b/c", "name", "", ".", "..", "/", "~", "~/x", "fake:ok", ":"),
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
            get_engine("transformers").check_model_id(text)
        code, _ = self.cli("tune", "--device", "cpu", "--context", "16", "--output-len", "4", "--dry-run", "--", text)
        return code == 0


class Results(Kind):
    """What the commands that read a results folder have in common."""

    def prepare(self) -> None:
        self.folder = self.place.output / "results"
        self.store = samples.write_results(self.folder)
        self.paths = self.store.paths(samples.RUN_ID)
        self.other = self.place.output / "other"
        samples.write_results(self.other).compact(samples.RUN_ID)

    def read(self, mutator: Mutator) -> bool:
        """Rank, report or compare."""
        shutil.rmtree(self.folder / "reports", ignore_errors=True)
        line: list[object] = mutator.one_of(
            *[["rank", self.folder, "--json"]] * 5,
            *[["rank", self.folder, "--run", samples.RUN_ID]] * 3,
            ["report", self.folder],
            ["compare", self.folder, self.other],
        )
        code, _ = self.cli(*line)
        strange = [path for path in self.place.output.iterdir() if path not in (self.folder, self.other)]
        strange += [path for path in self.folder.glob("*") if path.name not in ("sweeps", "trials", "runs", "reports")]
        strange = [path for path in strange if path.name != ".partial"]
        if strange:
            raise Finding("escapes", f"wrote {strange[0]}")
        snippet = self.paths.optimized_config
        if snippet.exists() and names_canary(snippet.read_text(encoding="utf-8")):
            raise Finding("escapes", "a string of the records is code in the snippet")
        return code == 0


class Manifests(Results):
    """sweeps/<id>.json."""

    def feed(self, mutator: Mutator) -> bool:
        sample = json.loads(samples.manifest().model_dump_json())
        if mutator.chance(0.4):
            sample[mutator.one_of("model_id", "architecture", "device_name", "memory_note")] = mutator.string()
        self.paths.manifest.write_bytes(mutator.json_bytes(sample))
        return self.read(mutator)


class Records(Results):
    """Parquet files of trials and runs."""

    def feed(self, mutator: Mutator) -> bool:
        files = sorted([*self.paths.trials.glob("*.parquet"), *self.paths.runs.glob("*.parquet")])
        whole = {path: path.read_bytes() for path in files}
        try:
            for _ in range(1 + mutator.random.randrange(2)):
                path = mutator.one_of(*files)
                content = self._changed(whole[path], mutator)
                path.write_bytes(mutator.damaged(content) if mutator.chance(0.3) else content)
            return self.read(mutator)
        finally:
            for path, content in whole.items():
                path.write_bytes(content)

    def _changed(self, content: bytes, mutator: Mutator) -> bytes:
        """With a column dropped, retyped or filled with something else, or of other metadata."""
        if mutator.chance(0.1):
            return mutator.one_of(b"", b"PAR1", b"PAR1PAR1", b"not parquet", b"\0" * 4096)
        table = pq.read_table(io.BytesIO(content), partitioning=None)
        for _ in range(1 + mutator.random.randrange(3)):
            table = self._with_change(table, mutator)
        sink = io.BytesIO()
        pq.write_table(table, sink)
        return sink.getvalue()

    def _with_change(self, table: pa.Table, mutator: Mutator) -> pa.Table:
        name = mutator.one_of(*table.column_names)
        place, field = table.column_names.index(name), table.schema.field(name)
        kind = mutator.random.randrange(8)
        if kind == 0:
            return table.drop_columns([name])
        if kind == 1:
            version = mutator.one_of(b"2", b"", b"x", b"1" * 5000, "١".encode(), b"-1")
            return table.replace_schema_metadata({b"kvray_schema_version": version})
        if kind == 2:
            return pa.concat_tables([table, table]) if table.num_rows < 64 else table
        values = [self._value(field.type, mutator) for _ in range(table.num_rows)]
        try:
            column = pa.array(values, field.type if kind > 4 else None)
        except (pa.ArrowException, OverflowError, TypeError, ValueError, UnicodeError):
            return table.set_column(place, name, pa.nulls(table.num_rows, field.type))
        return table.set_column(place, pa.field(name, column.type), column)

    def _value(self, kind: pa.DataType, mutator: Mutator) -> object:
        if pa.types.is_floating(kind):
            return mutator.one_of(0.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e308, 5e-324, 1e-300, None)
        if pa.types.is_integer(kind):
            return mutator.one_of(0, -1, 1, 2, 2**31, 2**63 - 1, -(2**63), None)
        if pa.types.is_timestamp(kind):
            return mutator.one_of(samples.START, None)
        if pa.types.is_list(kind):
            return mutator.one_of([], [0.0], [float("nan")] * 3, [-1.0, 1e308], [float("inf")], None)
        if pa.types.is_boolean(kind):
            return mutator.one_of(True, False, None)
        texts = (
            "dynamic",
            "static",
            "ok",
            "oom",
            "baseline",
            "sdpa",
            "hub_kernel",
            "float32",
            "off",
            "t-0",
            "t-1",
            "{}",
        )
        more = ('{"a": [1]}', '{"nbits": 1e999}', "[" * 50_000, "[]", "null", '{"window": 0, "sinks": 0}')
        return mutator.one_of(mutator.string(), mutator.one_of(*texts), mutator.one_of(*more), None)


class Caches(Kind):
    """What kvray keeps in its cache folder: the device's rates, references for quality, hashes of files."""

    def prepare(self) -> None:
        self.key = keep_hardware()
        self.reference_path = self.place.cache / "reference" / "some.npz"
        self.reference_path.parent.mkdir(parents=True)
        rows = np.log(np.full((6, 32), 1 / 32, dtype=np.float32))
        self.stream = [(number, row[None]) for number, row in enumerate(rows)]
        self.reference = vars(summarize(self.stream))
        self.model = tiny_config_folder(self.place.input / "model")
        self.feeds: tuple[Callable[[Mutator], bool], ...] = (self._hardware, self._reference, self._hash)

    def feed(self, mutator: Mutator) -> bool:
        return mutator.one_of(*self.feeds)(mutator)

    def _hardware(self, mutator: Mutator) -> bool:
        self.key.path.parent.mkdir(exist_ok=True)
        self.key.path.write_bytes(mutator.json_bytes(json.loads(HARDWARE.to_json())))
        with self.watch():
            loaded = load_hardware(self.key)
        code, _ = self.cli("tune", self.model, "--device", "cpu", "--context", "16", "--output-len", "4", "--dry-run")
        if code != 0:
            raise Finding("tracebacks", f"a damaged cache ends a command with {code}")
        self.key.path.unlink()
        return loaded is not None

    def _reference(self, mutator: Mutator) -> bool:
        arrays = dict(self.reference)
        name = mutator.one_of(*arrays)
        arrays[name] = mutator.one_of(
            arrays[name][:1],
            arrays[name][::-1],
            arrays[name].astype(np.float64),
            np.full_like(arrays[name], mutator.one_of(0, 1)),
            np.zeros((0,)),
            np.array("text"),
            arrays[name].astype(str),
            arrays[name].reshape(-1),
        )
        if mutator.chance(0.2):
            arrays.pop(mutator.one_of(*arrays))
        sink = io.BytesIO()
        np.savez(sink, **arrays)
        content = sink.getvalue()
        self.reference_path.write_bytes(mutator.damaged(content) if mutator.chance(0.5) else content)
        with self.watch():
            try:
                compare(load_reference(self.reference_path), iter(self.stream))
            except KvrayError:
                return False
            return True

    def _hash(self, mutator: Mutator) -> bool:
        from kvray.engines.transformers.gguf import file_sha256

        target = self.model.removeprefix("random:") + "/config.json"
        file_sha256(Path(target))
        for memo in (self.place.cache / "hashes").glob("*.json"):
            memo.write_bytes(mutator.json_bytes(json.loads(memo.read_bytes())))
        with self.watch():
            found = file_sha256(Path(target))
        for memo in (self.place.cache / "hashes").glob("*.json"):
            memo.unlink()
        if any(not character.isalnum() for character in found):
            raise Finding("escapes", f"a hash that is a path: {found!r}"[:200])
        return True


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


def tiny_config_folder(folder: Path) -> str:
    """A `random:` model."""
    from transformers import LlamaConfig

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=256, max_position_embeddings=512).save_pretrained(folder)
    return f"random:{folder}"


def _kvray_errors_allowed() -> Any:
    import contextlib

    return contextlib.suppress(KvrayError)


KINDS: dict[str, type[Kind]] = {
    "plans": Plans,
    "profiles": Profiles,
    "spaces": Spaces,
    "command_lines": CommandLines,
    "model_ids": ModelIds,
    "manifests": Manifests,
    "records": Records,
    "caches": Caches,
}
