"""Small real models, saved as Transformers and GGUF save them: real files for tests that must not take minutes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, Mistral3Config, PreTrainedTokenizerFast

from kvray.candidate import AttentionBackend, CacheChoice, Candidate, CompileMode, DeviceType, DType
from kvray.engines.base import ModelRequest
from kvray.engines.transformers.loaded import TransformersModel

LAYERS, HEADS, KV_HEADS, HEAD_DIM = 2, 4, 2, 16
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [(BYTES[0], BYTES[1]), (BYTES[2], BYTES[3])]  # with a single one Transformers 5.16 cannot read the GGUF file
VOCABULARY = ["<s>", "</s>", *BYTES, *map("".join, MERGES)]
BOS, EOS = 0, 1


def make_candidate(
    cache: str = "dynamic", attention: str = "sdpa", dtype: str = "float32", *, compile: str = "off", **more: Any
) -> Candidate:
    """`cache` may have settings, as in `static(max_cache_len=64)`; `more` are further fields."""
    choice = CacheChoice.parse(cache)
    return Candidate(
        engine="transformers",
        cache=choice.strategy,
        cache_params=choice.params,
        attention=AttentionBackend(attention),
        dtype=DType(dtype),
        compile=CompileMode(compile),
        **more,
    )


def load(model_id: str | Path, candidate: Candidate | None = None) -> TransformersModel:
    return TransformersModel(ModelRequest(model_id=str(model_id)), candidate or make_candidate(), DeviceType.CPU)


def save_tiny_model(
    folder: Path,
    *,
    adds_bos: bool = False,
    has_special_tokens: bool = True,
    max_shard_size: str = "1GB",
    dtype: torch.dtype = torch.float32,
    **generation: Any,
) -> Path:
    """A two-layer Llama over bytes with random weights; `generation` goes into its generation_config.json."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=HEADS * HEAD_DIM,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=2048,
        bos_token_id=BOS,
        eos_token_id=EOS if has_special_tokens else None,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    special = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS} if has_special_tokens else {}
    (folder / "generation_config.json").write_text(json.dumps({**special, **generation}))
    _tokenizer(adds_bos=adds_bos, has_special_tokens=has_special_tokens).save_pretrained(folder)
    return folder


def pickle_weights(folder: Path, *, old_format: bool = False) -> Path:
    """Put a pickle in the place of the safetensors file."""
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not old_format)
    (folder / "model.safetensors").unlink()
    return folder


def change_config(folder: Path, *removed: str, name: str = "config.json", **changed: Any) -> Path:
    """Edit the folder's config.json, or another file of settings."""
    path = folder / name
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key not in removed}
    path.write_text(json.dumps({**kept, **changed}))
    return folder


_CALLS_SDPA = """
    def __init__(self, config):
        super().__init__(config)
        import copy

        for layer in self.model.layers:
            layer.self_attn.config = copy.deepcopy(config)
            layer.self_attn.config._attn_implementation = "sdpa"
"""


def give_own_code(folder: Path, *, calls_sdpa: bool = False) -> Path:
    """Make the model one of its own code, whose class says nothing of SDPA, as code from before SDPA does not; it may
    call it all the same."""
    (folder / "configuration_own.py").write_text(
        "from transformers import LlamaConfig\n\n\nclass OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
    )
    (folder / "modeling_own.py").write_text(
        "from transformers import LlamaForCausalLM\n\nfrom .configuration_own import OwnConfig\n\n\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n    _supports_sdpa = False\n"
        + (_CALLS_SDPA if calls_sdpa else "")
    )
    names = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    return change_config(folder, model_type="own", architectures=["OwnForCausalLM"], auto_map=names)


def save_image_text_config(folder: Path) -> Path:
    """The config of a tiny model that takes images beside text."""
    text = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=HEADS * HEAD_DIM,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
    )
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = Mistral3Config(text_config=text, vision_config={"model_type": "pixtral", "patch_size": 16, **vision})
    config.architectures = ["Mistral3ForConditionalGeneration"]
    config.save_pretrained(folder)
    return folder


def _tokenizer(*, adds_bos: bool, has_special_tokens: bool) -> Any:
    tokenizer = Tokenizer(BPE(vocab={token: number for number, token in enumerate(VOCABULARY)}, merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    special = {"bos_token": "<s>", "eos_token": "</s>"} if has_special_tokens else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def save_fp8_model(folder: Path) -> Path:
    """The same with its projections in FP8, one scale for each block, and all else in bfloat16."""
    save_tiny_model(folder)
    weights, packed = folder / "model.safetensors", {}
    for name, tensor in load_file(weights).items():
        if name.endswith("_proj.weight"):
            scale = tensor.abs().max() / torch.finfo(torch.float8_e4m3fn).max
            packed[name] = (tensor / scale).to(torch.float8_e4m3fn)
            packed[f"{name}_scale_inv"] = torch.full((1, 1), float(scale))
        else:
            packed[name] = tensor.to(torch.bfloat16)
    save_file(packed, weights, metadata={"format": "pt"})
    packing = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head"],
    }
    change_config(folder, dtype="bfloat16", quantization_config=packing)
    return folder


def write_tiny_gguf(path: Path) -> Path:
    """The GGUF file of such a model, in float32."""
    torch.manual_seed(7)
    hidden, inner = HEADS * HEAD_DIM, 128
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(VOCABULARY)
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    block = {
        "attn_q": (hidden, hidden),
        "attn_k": (KV_HEADS * HEAD_DIM, hidden),
        "attn_v": (KV_HEADS * HEAD_DIM, hidden),
        "attn_output": (hidden, hidden),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
        "attn_norm": (hidden,),
        "ffn_norm": (hidden,),
    }
    shapes: dict[str, tuple[int, ...]] = {f"blk.0.{name}.weight": shape for name, shape in block.items()}
    shapes |= {
        "token_embd.weight": (len(VOCABULARY), hidden),
        "output.weight": (len(VOCABULARY), hidden),
        "output_norm.weight": (hidden,),
    }
    for name, shape in shapes.items():
        writer.add_tensor(name, torch.randn(shape).mul(0.3).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
