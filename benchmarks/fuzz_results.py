"""Kinds of input of `fuzz.py` that kvray itself has written: a results folder, and its own cache."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import fuzz_samples as samples
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fuzz_mutator import Mutator
from fuzz_plain import HARDWARE, Kind, keep_hardware
from fuzz_watch import BrokenPromiseError, names_canary
from typing_extensions import override

from kvray.errors import KvrayError
from kvray.forecast.hardware import load_hardware
from kvray.trial.quality import compare, summarize
from kvray.trial.reference import load_reference


class Results(Kind):
    """What the commands that read a results folder have in common."""

    @override
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
            raise BrokenPromiseError("escapes", f"wrote {strange[0]}")
        snippet = self.paths.optimized_config
        if snippet.exists() and names_canary(snippet.read_text(encoding="utf-8")):
            raise BrokenPromiseError("escapes", "a string of the records is code in the snippet")
        return code == 0


class Manifests(Results):
    """sweeps/<id>.json."""

    @override
    def feed(self, mutator: Mutator) -> bool:
        sample = json.loads(samples.manifest().model_dump_json())
        if mutator.chance(0.4):
            sample[mutator.one_of("model_id", "architecture", "device_name", "memory_note")] = mutator.string()
        self.paths.manifest.write_bytes(mutator.json_bytes(sample))
        return self.read(mutator)


class Records(Results):
    """Parquet files of trials and runs."""

    @override
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

    @override
    def prepare(self) -> None:
        self.key = keep_hardware()
        self.reference_path = self.place.cache / "reference" / "some.npz"
        self.reference_path.parent.mkdir(parents=True)
        rows = np.log(np.full((6, 32), 1 / 32, dtype=np.float32))
        self.stream = [(number, number, row[None]) for number, row in enumerate(rows)]
        self.reference = vars(summarize(self.stream))
        self.model = tiny_config_folder(self.place.input / "model")
        self.feeds: tuple[Callable[[Mutator], bool], ...] = (self._hardware, self._reference, self._hash)

    @override
    def feed(self, mutator: Mutator) -> bool:
        return mutator.one_of(*self.feeds)(mutator)

    def _hardware(self, mutator: Mutator) -> bool:
        self.key.path.parent.mkdir(exist_ok=True)
        self.key.path.write_bytes(mutator.json_bytes(json.loads(HARDWARE.to_json())))
        with self.watch():
            loaded = load_hardware(self.key)
        code, _ = self.cli("tune", self.model, "--device", "cpu", "--context", "16", "--output-len", "4", "--dry-run")
        if code != 0:
            raise BrokenPromiseError("tracebacks", f"a damaged cache ends a command with {code}")
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
        from kvray.models.hashes import file_sha256

        target = self.model.removeprefix("random:") + "/config.json"
        file_sha256(Path(target))
        for memo in (self.place.cache / "hashes").glob("*.json"):
            memo.write_bytes(mutator.json_bytes(json.loads(memo.read_bytes())))
        with self.watch():
            found = file_sha256(Path(target))
        for memo in (self.place.cache / "hashes").glob("*.json"):
            memo.unlink()
        if any(not character.isalnum() for character in found):
            raise BrokenPromiseError("escapes", f"a hash that is a path: {found!r}"[:200])
        return True


def tiny_config_folder(folder: Path) -> str:
    """A `random:` model."""
    from transformers import LlamaConfig

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=256, max_position_embeddings=512).save_pretrained(folder)
    return f"random:{folder}"


KINDS: dict[str, type[Kind]] = {"manifests": Manifests, "records": Records, "caches": Caches}
