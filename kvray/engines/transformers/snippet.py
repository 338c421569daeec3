"""The generated program: applies one candidate with torch and transformers alone.

It is printed from the same `CallArguments` that the measurement executed. Every outside string enters through `repr`,
so it cannot leave its quotes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import ModelRequest
from kvray.engines.hugging_face.tokenizer import has_tokenizer
from kvray.engines.transformers import templates
from kvray.engines.transformers.arguments import (
    LENGTH_STEP,
    RANDOM_WEIGHTS_SEED,
    SLIDING_WINDOW_CLASS,
    XFORMERS,
    CallArguments,
    Split,
    call_arguments,
    settings_objection,
)
from kvray.engines.transformers.embedded import EmbeddedModule, arranged_imports, embedded_module
from kvray.engines.transformers.model_class import CAUSAL_LM, LOADERS
from kvray.errors import InvalidValueError
from kvray.models.revision import is_commit
from kvray.record import RANDOM_PREFIX
from kvray.workload import Cell


def render(
    request: ModelRequest, *, loader: str | None, candidate: Candidate, device: DeviceType, cells: Sequence[Cell]
) -> str:
    """Python source with `load()` and `generate(model, tokenizer, prompt, max_new_tokens)`, runnable as a script.

    A candidate with a batch size takes a list of prompts instead of one. Where a `random:` model has no tokenizer, the
    source brings a stand-in, so that it runs. Where the request names a commit of the hub, the source loads just
    that. Needs none of the model's files.

    Raises:
        InvalidValueError: the candidate's cache does not take its settings, or `loader` is unknown: nobody has measured
            that.
    """
    if (objection := settings_objection(candidate)) is not None:
        raise InvalidValueError(f"There is no code for {candidate.label}: {objection}.", hint="Tune again.")
    model = request.model_id.removeprefix(RANDOM_PREFIX)
    random_weights = request.model_id.startswith(RANDOM_PREFIX)
    if random_weights:
        model = model.removesuffix("/config.json")
    return _Program(
        model=_absolute(model),
        random_weights=random_weights,
        arguments=call_arguments(candidate),
        auto_class=_known_loader(loader),
        batch_size=candidate.batch_size,
        device=device,
        cells=tuple(cells),
        commit=request.revision if is_commit(request.revision) else None,
        trust=("trust_remote_code=True",) if request.trust_remote_code else (),
        allow_pickle=request.allow_pickle,
    ).source()


def _known_loader(loader: str | None) -> str:
    """A plan's file may name anything."""
    if loader not in (None, *LOADERS):
        raise InvalidValueError.not_one_of("class that loads a model", loader, LOADERS)
    return loader or CAUSAL_LM


def _absolute(model: str) -> str:
    """A path that exists here as an absolute one; a hub id, or a path of another machine, as it is."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        path = Path(model).expanduser()
        if path.exists():
            return str(path.resolve())
    return model


@dataclass(frozen=True, kw_only=True)
class _Program:
    """What the source depends on, and its parts from top to bottom."""

    model: str
    random_weights: bool
    arguments: CallArguments
    auto_class: str
    batch_size: int
    device: DeviceType
    cells: tuple[Cell, ...]
    commit: str | None
    trust: tuple[str, ...]
    allow_pickle: bool

    def source(self) -> str:
        functions = [
            self._load_random() if self.random_weights else self._load(),
            self._generate_paged() if self.arguments.paged else self._generate(),
            *([templates.KEPT_CACHE.format(cache=self._cache("tokens"))] if self.arguments.static_cache else []),
            *(module.body for module in self._own_modules),
            *([templates.BYTES] if self.random_weights else []),
            (templates.MAIN if self.batch_size == 1 else templates.MAIN_BATCH).format(
                new_tokens=max(self.cells).output_tokens,
                rows=self.batch_size,
                shown=templates.FIRST_RANK_SHOWS if self._is_tp else "",
            ),
        ]
        return "\n\n\n".join([f"{self._imports()}\n\n{self._constants()}", *functions])

    @property
    def _is_gguf(self) -> bool:
        return self.model.lower().endswith(".gguf") and not self.random_weights

    @property
    def _is_tp(self) -> bool:
        return self.arguments.split is Split.TP

    @property
    def _lacks_tokenizer(self) -> bool:
        return self.random_weights and not has_tokenizer(Path(self.model))

    @property
    def _has_own_cache(self) -> bool:
        return self.arguments.cache_class == SLIDING_WINDOW_CLASS

    @property
    def _registers_attention(self) -> bool:
        return self.arguments.attn_implementation == XFORMERS

    @property
    def _own_modules(self) -> list[EmbeddedModule]:
        names = [
            "one_sequence",
            *(["sliding_window"] if self._has_own_cache else []),
            *(["paging"] if self.arguments.paged else []),
            *(["xformers_attention"] if self._registers_attention else []),
        ]
        return [embedded_module(name) for name in names]

    def _imports(self) -> str:
        names = {self.auto_class}
        if not self._has_own_cache and not self.arguments.paged:
            names.add(self.arguments.cache_class)
        if not self._lacks_tokenizer:
            names.add("AutoTokenizer")
        if self.random_weights:
            names |= {"AutoConfig", "BatchEncoding"}
        if self.arguments.compile_mode is not None:
            names.add("CompileConfig")
        lines = ["import sys", "import torch"]
        lines += ["import functools"] if self.arguments.static_cache else []
        if self.arguments.sdpa_kernel is not None:
            lines.append("from torch.nn.attention import SDPBackend, sdpa_kernel")
        if self.arguments.paged:
            lines.append("import copy")
        if self._is_tp:
            lines += ["import os", "from transformers.distributed import DistributedConfig"]
        if self.random_weights and self.arguments.split is not None:
            lines += ["import tempfile", "from safetensors.torch import save_model"]
        lines.append(f"from transformers import {', '.join(sorted(names))}")
        return arranged_imports([*lines, *(line for module in self._own_modules for line in module.imports)])

    def _constants(self) -> str:
        lines = [f"MODEL = {self.model!r}"]
        if self._is_gguf:
            path = Path(self.model)
            lines = [f"MODEL = {str(path.parent)!r}", f"GGUF_FILE = {path.name!r}", templates.DENSE_GGUF]
        if self.commit is not None:
            lines.append(f"REVISION = {self.commit!r}  # the commit that was measured")
        lines += self._device_lines
        if self.arguments.weights_limit_mib is not None:
            lines.append('HOST_MEMORY = "1000GiB"  # for the weights that the GPU has no room for')
        if self.arguments.static_cache:
            lengths = self.arguments.kept_lengths(self.cells)
            lines.append(f"CACHE_TOKENS = {lengths!r}  # {self._lengths_note}")
        if self.arguments.compile_mode is not None:
            lines += [
                f'COMPILE = CompileConfig(mode="{self.arguments.compile_mode}", fullgraph=False)',
                "COMPILE._compile_all_devices = True  # generate() compiles on accelerators only, unless told so",
            ]
        return "\n".join(lines)

    @property
    def _device_lines(self) -> list[str]:
        gpus = self.arguments.gpus
        if self._is_tp:
            started = f"torchrun --standalone --nproc-per-node {gpus} FILE"
            lines = [f"RANKS = {gpus}  # processes, one for each GPU: start it with {started}"]
        else:
            lines = [f"GPUS = {gpus}"] if self.arguments.split is Split.DEVICE_MAP else []
        if self.device is DeviceType.CPU:
            # Transformers takes the accelerator wherever there is one.
            hidden = ['os.environ["CUDA_VISIBLE_DEVICES"] = ""'] if self._is_tp else []
            return [*lines, *hidden, 'DEVICE = "cpu"']
        if self._is_tp:
            return [*lines, """DEVICE = f"cuda:{os.environ.get('LOCAL_RANK', 0)}\""""]
        return [*lines, 'DEVICE = "cuda" if torch.cuda.is_available() else "cpu"']

    @property
    def _lengths_note(self) -> str:
        return "as measured" if self.arguments.compile_mode is None else "compiled for the longest measured call"

    def _load(self) -> str:
        where = ["MODEL", *self._which]
        return templates.LOAD.format(
            tokenizer=self._registered + self._checked + self._tokenizer(where),
            auto_class=self.auto_class,
            options=_listed([*where, *self._dense, *self._precision, *self._placement], indent=8) + self._weights_line,
        )

    @property
    def _weights_line(self) -> str:
        """Pickled weights can run code, so they are loaded only where they were allowed."""
        if self._is_gguf:
            return ""
        return templates.MAYBE_PICKLED if self.allow_pickle else templates.SAFETENSORS

    def _load_random(self) -> str:
        return templates.LOAD_RANDOM.format(
            registered=self._registered,
            checked=self._checked,
            spread=self._spread_random,
            tokenizer=self._tokenizer(["MODEL"]),
            config=", ".join(["MODEL", *self.trust]),
            auto_class=self.auto_class,
            seed=RANDOM_WEIGHTS_SEED,
            options=_listed(["config", *self._precision], indent=12),
        )

    @property
    def _checked(self) -> str:
        return templates.CHECK_RANKS if self._is_tp else ""

    @property
    def _spread_random(self) -> str:
        if self.arguments.split is None:
            return ""
        options = _listed(["folder", *self._precision, *self._placement], indent=12)
        return templates.SPREAD_RANDOM.format(auto_class=self.auto_class, options=options)

    @property
    def _which(self) -> list[str]:
        if self._is_gguf:
            return ["gguf_file=GGUF_FILE"]
        return [] if self.commit is None else ["revision=REVISION"]

    @property
    def _dense(self) -> list[str]:
        return ["**DENSE"] if self._is_gguf else []

    @property
    def _placement(self) -> list[str]:
        if self._is_tp:
            return ["distributed_config=DistributedConfig(tp_size=RANKS)"]
        if self.arguments.split is Split.DEVICE_MAP:
            free = "{gpu: torch.cuda.mem_get_info(gpu)[0] for gpu in range(GPUS)}"
            return ['device_map="auto"', f"max_memory={free}"]
        if self.arguments.weights_limit_mib is None:
            return ["device_map=DEVICE"]
        memory = f'{{0: "{self.arguments.weights_limit_mib}MiB", "cpu": HOST_MEMORY}}'
        return ['device_map="auto"', f"max_memory={memory}"]

    @property
    def _precision(self) -> list[str]:
        asked = self.arguments.attn_implementation
        kernels = ["allow_all_kernels=True"] if "/" in asked and self.trust else []
        return [f"dtype=torch.{self.arguments.dtype}", f'attn_implementation="{asked}"', *self.trust, *kernels]

    @property
    def _registered(self) -> str:
        return "    register()\n" if self._registers_attention else ""

    def _tokenizer(self, where: list[str]) -> str:
        if self._lacks_tokenizer:
            return "    tokenizer = Bytes(vocabulary)"
        lines = [f"    tokenizer = AutoTokenizer.from_pretrained({', '.join([*where, *self.trust])})"]
        lines += [templates.LEFT_PADDING] if self.batch_size > 1 else []
        lines += [templates.OTHER_VOCABULARY] if self.random_weights else []
        return "\n".join(lines)

    def _generate(self) -> str:
        inset = 4 if self.arguments.sdpa_kernel is None else 8
        options = [f"{name}={value!r}" for name, value in self.arguments.generate_options.items()]
        if self.arguments.compile_mode is not None:
            options.append("compile_config=COMPILE")
        call = [
            'inputs["input_ids"]',
            'attention_mask=inputs["attention_mask"]',
            "past_key_values=cache",
            "max_new_tokens=max_new_tokens",
        ]
        return "\n".join(
            [
                (templates.GENERATE if self.batch_size == 1 else templates.GENERATE_BATCH),
                *self._cache_lines(),
                *([f"    with sdpa_kernel([SDPBackend.{self.arguments.sdpa_kernel}]):"] if inset == 8 else []),
                f"{' ' * inset}return model.generate(",
                _listed([*call, *options], indent=inset + 4),
                f"{' ' * inset})",
            ]
        )

    def _cache_lines(self) -> list[str]:
        length = 'inputs["input_ids"].shape[1] + max_new_tokens'
        if self.arguments.static_cache:
            return [templates.TAKE_KEPT_CACHE.format(length=length, step=LENGTH_STEP)]
        padded = [templates.NO_PADDING] if self._has_own_cache and self.batch_size > 1 else []
        return [*padded, f"    cache = {self._cache(length)}"]

    def _generate_paged(self) -> str:
        several = self.batch_size > 1
        return templates.GENERATE_PAGED.format(
            prompts="prompts" if several else "prompt",
            doc="each prompt" if several else "the prompt",
            listed="prompts" if several else "[prompt]",
            options=_listed([f"{name}={value!r}" for name, value in self.arguments.generate_options.items()], indent=8),
        )

    def _cache(self, length: str) -> str:
        settings = [f"{name}={value!r}" for name, value in self.arguments.cache_options]
        options = ["config=model.config.get_text_config(decoder=True)", *settings]
        if self.arguments.static_cache:
            options.append(f"max_cache_len={length}")
        if len(options) == 1:
            return f"{self.arguments.cache_class}({options[0]})"
        return f"{self.arguments.cache_class}(\n{_listed(options, indent=8)}\n    )"


def _listed(arguments: list[str], *, indent: int) -> str:
    return "\n".join(f"{' ' * indent}{argument}," for argument in arguments)
