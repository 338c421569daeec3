"""A suite's model as files: a folder for engines that read Hugging Face checkpoints, a GGUF file for llama.cpp.

The folder is written byte by byte here, so that no version of a library can change it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvray.check.suite.models import BOS, CONTEXT_LIMIT, EOS, FAR_ROPE_BASE, NORM_EPSILON, ROPE_BASE, SuiteModel

_MERGES = ((0, 1), (2, 3))
"""Pairs of byte signs that are one token. GGUF files need some; texts have none of them."""


def write_folder(model: SuiteModel, folder: Path) -> Path:
    """Config, weights and tokenizer in `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", model.config)
    _write_json(folder / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS})
    _write_json(folder / "tokenizer.json", _tokenizer())
    _write_json(folder / "tokenizer_config.json", _TOKENIZER_CONFIG)
    _write_safetensors(folder / "model.safetensors", model.weights)
    return folder


def write_gguf(model: SuiteModel, path: Path) -> Path:
    """The same model at `path`, in float32."""
    import gguf

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "gemma3" if model.has_window else "llama")
    _describe(writer, model)
    for name, values in model.weights.items():
        writer.add_tensor(_gguf_name(name, model), _as_llama_cpp_reads(name, values, model))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_signs() -> list[str]:
    """The printable sign of each byte in byte-level vocabularies, by byte: printable ones stand for themselves, the
    others are counted on from 256. Source: `bytes_to_unicode` in GPT-2's encoder.py."""
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(hidden)) for byte in range(256)]


def vocabulary() -> list[str]:
    """All tokens by id."""
    signs = byte_signs()
    return ["<s>", "</s>", *signs, *(signs[first] + signs[second] for first, second in _MERGES)]


_TOKENIZER_CONFIG = {
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "model_max_length": CONTEXT_LIMIT,
    "pad_token": "</s>",
    "tokenizer_class": "PreTrainedTokenizerFast",
}


def _tokenizer() -> dict[str, Any]:
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    signs = byte_signs()
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": BOS, "content": "<s>", **special}, {"id": EOS, "content": "</s>", **special}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(vocabulary())},
            "merges": [[signs[first], signs[second]] for first, second in _MERGES],
        },
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_safetensors(path: Path, weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Source of the format: https://github.com/huggingface/safetensors#format."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, values in weights.items():
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [offset, offset + values.nbytes]}
        offset += values.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in weights.values():
            file.write(values.astype("<f4").tobytes())


def _describe(writer: Any, model: SuiteModel) -> None:
    writer.add_name(f"kvray suite: {model.name}")
    writer.add_block_count(model.layers)
    writer.add_context_length(CONTEXT_LIMIT)
    writer.add_embedding_length(model.hidden)
    writer.add_feed_forward_length(model.inner)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_layer_norm_rms_eps(NORM_EPSILON)
    writer.add_rope_freq_base(FAR_ROPE_BASE if model.has_window else ROPE_BASE)
    if model.window is not None:
        writer.add_sliding_window(model.window)
    tokens, signs = vocabulary(), byte_signs()
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, *[1] * (len(tokens) - 2)])  # LLAMA_TOKEN_TYPE_CONTROL, _NORMAL
    writer.add_token_merges([f"{signs[first]} {signs[second]}" for first, second in _MERGES])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(False)


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_GEMMA_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def _gguf_name(name: str, model: SuiteModel) -> str:
    names = {**_GGUF_NAMES, **_GEMMA_NAMES} if model.has_window else _GGUF_NAMES
    part = name.removesuffix(".weight")
    if not part.startswith("model.layers."):
        return f"{names[part]}.weight"
    layer, _, part = part.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{names[part]}.weight"


def _as_llama_cpp_reads(name: str, values: NDArray[np.float32], model: SuiteModel) -> NDArray[np.float32]:
    """llama.cpp rotates neighbouring values of Llama's queries and keys, where Transformers rotates those half a head
    apart, and it keeps the scales of Gemma's norms whole. Source: convert_hf_to_gguf.py."""
    if model.has_window:
        return values + np.float32(1.0) if values.ndim == 1 else values
    heads = {"q_proj": model.heads, "k_proj": model.kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return values
    halves = values.reshape(heads, 2, model.head_dim // 2, model.hidden)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
