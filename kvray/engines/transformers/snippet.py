"""The generated program: applies one candidate with torch and transformers alone.

It is printed from the same `CallArguments` that the measurement executed.
"""

from __future__ import annotations

from pathlib import Path

from kvray.candidate import Candidate
from kvray.engines.transformers.arguments import CallArguments, cache_length, call_arguments
from kvray.engines.transformers.models import RANDOM_PREFIX, SourceKind, parse_model_id
from kvray.workload import Cell


def render(*, model_id: str, candidate: Candidate, cell: Cell, trust_remote_code: bool) -> str:
    """Python source with `load()` and `generate(model, tokenizer, prompt, max_new_tokens)`, runnable as a script.

    Every outside string enters through `repr`, so it cannot leave its quotes.
    """
    arguments = call_arguments(candidate)
    blocks = [
        _imports(arguments),
        f'MODEL = {model_id!r}\nDEVICE = "cuda" if torch.cuda.is_available() else "cpu"',
        _load_function(model_id, arguments, trust_remote_code),
        _generate_function(arguments, cell),
        _MAIN.format(new_tokens=cell.output_tokens),
    ]
    return "\n\n".join(blocks[:2]) + "\n\n\n" + "\n\n\n".join(blocks[2:])


def _imports(arguments: CallArguments) -> str:
    lines = ["import sys", "", "import torch"]
    if arguments.sdpa_kernel is not None:
        lines.append("from torch.nn.attention import SDPBackend, sdpa_kernel")
    names = ["AutoModelForCausalLM", "AutoTokenizer", arguments.cache_class]
    if arguments.compile_mode is not None:
        names.append("CompileConfig")
    lines.append(f"from transformers import {', '.join(sorted(names))}")
    return "\n".join(lines)


def _load_function(model_id: str, arguments: CallArguments, trust_remote_code: bool) -> str:
    trust = ", trust_remote_code=True" if trust_remote_code else ""
    common = f"dtype=torch.{arguments.dtype}, attn_implementation={arguments.attn_implementation!r}{trust}"
    if model_id.startswith(RANDOM_PREFIX):
        folder = str(parse_model_id(model_id).local_path)
        return _RANDOM_LOAD.format(folder=folder, common=common, trust=trust)
    where, file_argument = "MODEL", ""
    if model_id.endswith(".gguf") and parse_model_id(model_id).kind is SourceKind.GGUF:
        path = Path(model_id).expanduser().resolve()
        where, file_argument = repr(str(path.parent)), f", gguf_file={path.name!r}"
    return _LOAD.format(where=where, file_argument=file_argument, common=common, trust=trust)


def _generate_function(arguments: CallArguments, cell: Cell) -> str:
    if arguments.static_cache:
        cache = f"{arguments.cache_class}(config=config, max_cache_len=max(length, {cache_length(cell)}))"
    else:
        cache = f"{arguments.cache_class}(config=config)"
    lines = [
        "def generate(model, tokenizer, prompt, max_new_tokens):",
        '    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)',
        "    config = model.config.get_text_config(decoder=True)",
    ]
    if arguments.static_cache:
        lines.append('    length = inputs["input_ids"].shape[1] + max_new_tokens')
    lines += [f"    cache = {cache}", *_options(arguments)]
    call = "model.generate(**inputs, past_key_values=cache, **options)"
    if arguments.sdpa_kernel is not None:
        lines += [f"    with sdpa_kernel([SDPBackend.{arguments.sdpa_kernel}]):", f"        tokens = {call}"]
    else:
        lines.append(f"    tokens = {call}")
    return "\n".join([*lines, "    return tokens"])


def _options(arguments: CallArguments) -> list[str]:
    if arguments.compile_mode is None:
        return ['    options = {"max_new_tokens": max_new_tokens, "do_sample": False, "disable_compile": True}']
    return [
        f"    compile_config = CompileConfig(mode={arguments.compile_mode!r}, fullgraph=False)",
        "    compile_config._compile_all_devices = True  # generate() compiles on accelerators only, unless told so",
        '    options = {"max_new_tokens": max_new_tokens, "do_sample": False, "compile_config": compile_config}',
    ]


_LOAD = """\
def load():
    tokenizer = AutoTokenizer.from_pretrained({where}{file_argument}{trust})
    model = AutoModelForCausalLM.from_pretrained({where}{file_argument}, {common})
    return model.to(DEVICE).eval(), tokenizer"""

_RANDOM_LOAD = """\
def load():
    # Random weights: what was tuned is the speed and memory of the architecture, so replace this by your model.
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained({folder!r}{trust})
    with torch.device(DEVICE):
        model = AutoModelForCausalLM.from_config(config, {common})
    return model.eval(), AutoTokenizer.from_pretrained({folder!r}{trust})"""

_MAIN = """\
if __name__ == "__main__":
    model, tokenizer = load()
    prompt = sys.argv[1] if len(sys.argv) > 1 else "The capital of France is"
    tokens = generate(model, tokenizer, prompt, max_new_tokens={new_tokens})
    print(tokenizer.decode(tokens[0], skip_special_tokens=True))
"""
