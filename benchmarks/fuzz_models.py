"""Kinds of input of `fuzz.py` that Transformers reads: configs, tokenizers, weights, GGUF files."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from fuzz_mutator import CANARY, Mutator
from fuzz_plain import Kind
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typing_extensions import override

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DType
from kvray.engines.base import ModelRequest
from kvray.engines.transformers import description, outline
from kvray.engines.transformers.arguments import call_arguments
from kvray.engines.transformers.gguf import converted_gguf
from kvray.engines.transformers.inspection import inspect_weights
from kvray.engines.transformers.loading import load_model
from kvray.engines.transformers.model_folder import weights_path
from kvray.engines.transformers.shapes import layer_kinds
from kvray.engines.transformers.texts import ModelTexts
from kvray.engines.transformers.tokenizer import choose_texts, load_tokenizer
from kvray.engines.transformers.translation import translated_errors
from kvray.errors import KvrayError
from kvray.models.source import parse_model_id
from kvray.workload import Cell

HIDDEN, INNER, HEADS, KV_HEADS = 32, 48, 4, 2
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [(BYTES[0], BYTES[1]), (BYTES[2], BYTES[3])]
VOCABULARY = ["<s>", "</s>", *BYTES, *map("".join, MERGES)]
TYPES = ("llama", "qwen2", "gemma2", "gpt2", "mixtral", "deepseek_v3", "bamba", "falcon", "gpt_oss", "phi3", "mistral")
CANDIDATE = Candidate(
    engine="transformers", cache=CacheStrategy.DYNAMIC, attention=AttentionBackend.SDPA, dtype=DType.FLOAT32
)
PREVIEW = ("--device", "cpu", "--context", "16", "--output-len", "4", "--dry-run")
CODE = f"open({CANARY!r}, 'w').close()\nraise RuntimeError('code of the model ran')\n"


class ModelKind(Kind):
    """A small model in a folder, of which some file is wrong; beside it lies code that must never run."""

    @override
    def prepare(self) -> None:
        self.good = self.place.root / "good"
        self.folder = self.place.input / "model"
        save_tiny_model(self.good)
        shutil.copytree(self.good, self.folder)
        for name in ("configuration_own", "modeling_own", "tokenization_own", "sitecustomize"):
            (self.folder / f"{name}.py").write_text(CODE, encoding="utf-8")
        self.request = ModelRequest(model_id=str(self.folder))

    def restore(self) -> None:
        """Every file as it was."""
        for path in self.good.iterdir():
            target = self.folder / path.name
            if target.stat().st_mtime_ns != path.stat().st_mtime_ns or target.stat().st_size != path.stat().st_size:
                shutil.copy2(path, target)

    def damage(self, name: str, mutator: Mutator, sample: Any) -> None:
        """Put a mutation of `sample` into a file of the folder."""
        (self.folder / name).write_bytes(mutator.json_bytes(sample))


class Configs(ModelKind):
    """config.json, of a bare config and of a folder with weights: described, forecast, all rules asked."""

    @override
    def prepare(self) -> None:
        super().prepare()
        self.samples = [AutoConfig.for_model(name).to_dict() for name in TYPES]
        own = {"AutoConfig": "configuration_own.Config", "AutoModelForCausalLM": "modeling_own.Model"}
        self.samples += [{**self.samples[0], "auto_map": own}, {"model_type": "own", "auto_map": own}]

    @override
    def feed(self, mutator: Mutator) -> bool:
        self.damage("config.json", mutator, mutator.one_of(*self.samples))
        model_id = str(self.folder) if mutator.chance(0.15) else f"random:{self.folder}"
        code, _ = self.cli("tune", model_id, *PREVIEW, *(["--space", "full"] if mutator.chance(0.05) else []))
        if mutator.chance(0.3):
            self._outline(model_id)
        return code == 0

    def _outline(self, model_id: str) -> None:
        """What `kvray forecast` does in a process of its own."""
        with self.watch():
            try:
                request = ModelRequest(model_id=model_id)
                config = description.read_config(request, self.folder)
                with description.config_errors(request):
                    kinds = layer_kinds(config.get_text_config(decoder=True))
                    json.dumps(asdict(description.info_of_config(parse_model_id(model_id), config, kinds)))
            except KvrayError:
                return


class Tokenizers(ModelKind):
    """tokenizer.json, tokenizer_config.json and a chat template: loaded, and prompts made."""

    @override
    def feed(self, mutator: Mutator) -> bool:
        self.restore()
        name = mutator.one_of("tokenizer.json", "tokenizer.json", "tokenizer_config.json")
        sample = json.loads((self.good / name).read_bytes())
        if name == "tokenizer_config.json":
            own = {
                "auto_map": {"AutoTokenizer": [None, "tokenization_own.Tokenizer"]},
                "tokenizer_class": mutator.one_of("tokenization_own.Tokenizer", "LlamaTokenizer", mutator.string()),
                "chat_template": mutator.string(),
            }
            sample = {**sample, **dict(mutator.random.sample(sorted(own.items()), mutator.random.randrange(3)))}
        self.damage(name, mutator, sample)
        with self.watch():
            try:
                tokenizer = load_tokenizer(self.request, self.folder)
                texts = choose_texts(self.request, tokenizer, len(VOCABULARY)).texts
                with translated_errors():
                    ModelTexts(texts, range(len(VOCABULARY))).prompts(Cell(16, 4, 1))
            except KvrayError:
                return False
        return True


class Weights(ModelKind):
    """model.safetensors, its index, generation_config.json: checked by the driver, then loaded."""

    @override
    def prepare(self) -> None:
        super().prepare()
        self.content = (self.good / "model.safetensors").read_bytes()
        length = struct.unpack("<Q", self.content[:8])[0]
        self.header, self.body = json.loads(self.content[8 : 8 + length]), self.content[8 + length :]
        names = [name for name in self.header if name != "__metadata__"]
        self.index: dict[str, Any] = {
            "metadata": {"total_size": len(self.body)},
            "weight_map": dict.fromkeys(names, "model.safetensors"),
        }

    @override
    def feed(self, mutator: Mutator) -> bool:
        self.restore()
        weights, index = self.folder / "model.safetensors", self.folder / "model.safetensors.index.json"
        index.unlink(missing_ok=True)
        match mutator.random.randrange(4):
            case 0:
                weights.write_bytes(mutator.damaged(self.content))
            case 1:
                header = mutator.json_bytes(self.header)
                length = len(header) if mutator.chance(0.9) else mutator.one_of(0, 2**63, 2**64 - 1, 10**8, 7)
                weights.write_bytes(struct.pack("<Q", length) + header + self.body)
            case 2:
                weights.unlink()
                (self.folder / "part.safetensors").write_bytes(self.content)
                index.write_bytes(mutator.json_bytes(self._index(mutator)))
            case _:
                settings = {"bos_token_id": 0, "eos_token_id": [1], "temperature": 0.7, "cache_implementation": None}
                (self.folder / "generation_config.json").write_bytes(mutator.json_bytes(settings))
        try:
            return self._load()
        finally:
            (self.folder / "part.safetensors").unlink(missing_ok=True)
            if not weights.exists():
                weights.write_bytes(self.content)

    def _index(self, mutator: Mutator) -> Any:
        names = ("part.safetensors", "../good/model.safetensors", "/etc/passwd", "pytorch_model.bin", "modeling_own.py")
        files = {name: mutator.one_of(*names[: 1 + 4 * mutator.chance(0.2)]) for name in self.index["weight_map"]}
        return {**self.index, "weight_map": files}

    def _load(self) -> bool:
        with self.watch():
            try:
                folder = weights_path(self.request)
                description.describe(self.request)
                inspect_weights(self.request)
                with translated_errors():
                    load_model(self.request, folder, call_arguments(CANDIDATE), torch.device("cpu"))
            except KvrayError:
                return False
        return True


class Gguf(Kind):
    """GGUF files, as the process that converts them reads them."""

    @override
    def prepare(self) -> None:
        self.path = self.place.input / "tiny.gguf"
        self.fields = {
            "llama.block_count": 1,
            "llama.context_length": 512,
            "llama.embedding_length": HIDDEN,
            "llama.feed_forward_length": INNER,
            "llama.attention.head_count": HEADS,
            "llama.attention.head_count_kv": KV_HEADS,
            "llama.rope.freq_base": 10000.0,
            "llama.attention.layer_norm_rms_epsilon": 1e-5,
            "llama.vocab_size": len(VOCABULARY),
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.tokens": VOCABULARY,
            "tokenizer.ggml.merges": [" ".join(pair) for pair in MERGES],
            "tokenizer.ggml.bos_token_id": 0,
            "tokenizer.ggml.eos_token_id": 1,
        }
        torch.manual_seed(7)
        self.tensors = {name: torch.randn(shape).mul(0.3).numpy() for name, shape in _gguf_shapes().items()}
        write_gguf(self.path, "llama", self.fields, self.tensors)
        self.content = self.path.read_bytes()
        self.header_bytes = len(self.content) - sum(tensor.nbytes for tensor in self.tensors.values())

    @override
    def feed(self, mutator: Mutator) -> bool:
        if mutator.chance(0.4):
            self._write_other_fields(mutator)
        else:
            header = mutator.damaged(self.content[: self.header_bytes])
            self.path.write_bytes(header + self.content[self.header_bytes :])
        shutil.rmtree(self.place.cache / "gguf", ignore_errors=True)
        shutil.rmtree(self.place.cache / "hashes", ignore_errors=True)
        with self.watch():
            try:
                converted_gguf(self.path)
            except KvrayError:
                return False
        return True

    def _write_other_fields(self, mutator: Mutator) -> None:
        fields, tensors = dict(self.fields), dict(self.tensors)
        for _ in range(1 + mutator.random.randrange(2)):
            name = mutator.one_of(*fields)
            match mutator.random.randrange(5):
                case 0:
                    del fields[name]
                case 1:
                    fields[name] = mutator.one_of(0, 1, 2**31, 2**32 - 1, 10**6, 10**4, -1, 3)
                case 2:
                    fields[name] = mutator.string()
                case 3:
                    fields[name] = mutator.one_of(float("nan"), float("inf"), -1.0, True, ["x"], [1, 2], VOCABULARY[:3])
                case _:
                    tensor = mutator.one_of(*tensors)
                    other = tensors.pop(tensor)
                    tensors[mutator.one_of(tensor, f"{tensor}.x", "blk.9999999.attn_q.weight")] = other.reshape(-1)
        architecture = mutator.one_of(*["llama"] * 9, mutator.string(), "qwen2", "gemma2", "phi3")
        try:
            write_gguf(self.path, architecture, fields, tensors)
        except (ValueError, TypeError, KeyError, struct.error, OverflowError, UnicodeError):
            self.path.write_bytes(mutator.damaged(self.content))


def save_tiny_model(folder: Path) -> None:
    """A two-layer Llama over bytes with its tokenizer."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(BPE(vocab={token: number for number, token in enumerate(VOCABULARY)}, merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


def write_gguf(path: Path, architecture: str, fields: dict[str, Any], tensors: dict[str, Any]) -> None:
    """A GGUF file with `fields` of the types that their values have."""
    path.unlink(missing_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in fields.items():
        match value:
            case bool():
                writer.add_bool(name, value)
            case int():
                writer.add_uint32(name, value) if value >= 0 else writer.add_int32(name, value)
            case float():
                writer.add_float32(name, value)
            case str():
                writer.add_string(name, value)
            case _:
                writer.add_array(name, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_shapes() -> dict[str, tuple[int, ...]]:
    keys = KV_HEADS * HIDDEN // HEADS
    block = {
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (keys, HIDDEN),
        "attn_v": (keys, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_gate": (INNER, HIDDEN),
        "ffn_up": (INNER, HIDDEN),
        "ffn_down": (HIDDEN, INNER),
        "attn_norm": (HIDDEN,),
        "ffn_norm": (HIDDEN,),
    }
    whole = {"token_embd": (len(VOCABULARY), HIDDEN), "output": (len(VOCABULARY), HIDDEN), "output_norm": (HIDDEN,)}
    return {f"blk.0.{name}.weight": shape for name, shape in block.items()} | {
        f"{name}.weight": shape for name, shape in whole.items()
    }


def quicken() -> None:
    """`kvray forecast` looks at a model in a process of its own, which costs a second: let it use its other way."""
    outline.outline_model = lambda request: None  # noqa: ARG005


KINDS: dict[str, type[Kind]] = {"configs": Configs, "tokenizers": Tokenizers, "weights": Weights, "gguf": Gguf}
