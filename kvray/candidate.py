"""What can be chosen: the enums of each axis, and `Candidate`: one frozen configuration, its id over every field."""

from __future__ import annotations

import enum
import functools
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvray.errors import InvalidValueError

ParamValue = bool | int | float | str
MOST_DIGITS = 18
"""Most digits of a whole number that a user writes: more would not fit into the 64 bits in which it is stored."""
CACHE_PARAM_TYPES = (bool, int, float, str)
TRUSTED_KERNELS = "kernels-community/"
"""Begins the names of kernels that Transformers itself trusts. Any other is compiled code by anybody."""
_AXIS_NAMES = {
    "DeviceType": "device",
    "DType": "dtype",
    "CacheStrategy": "cache strategy",
    "AttentionBackend": "attention backend",
    "CompileMode": "compile mode",
    "SearchStrategy": "search strategy",
}


class Choice(enum.StrEnum):
    """A string enum that is parsed from user input with an error naming what is allowed."""

    @classmethod
    def parse(cls, value: str) -> Any:
        """The member whose value is `value` (case-insensitive).

        Raises:
            InvalidValueError: no such member; the message lists them.
        """
        try:
            return cls(value.strip().lower())
        except ValueError:
            raise InvalidValueError.not_one_of(cls.axis_name(), value, list(cls)) from None

    @classmethod
    def axis_name(cls) -> str:
        """What messages call this axis."""
        return _AXIS_NAMES[cls.__name__]


class DeviceType(Choice):
    """Where a candidate runs."""

    CPU = "cpu"
    CUDA = "cuda"


class DType(Choice):
    """Floating-point type of weights and activations."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class CacheStrategy(Choice):
    """How keys and values of past tokens are held."""

    DYNAMIC = "dynamic"
    """Grows by concatenation at every token (`DynamicCache`)."""
    STATIC = "static"
    """Allocated once at the cell's full length and written in place (`StaticCache`); what compiled graphs need."""
    SLIDING_WINDOW = "sliding_window"
    """Holds the first tokens and the most recent ones, drops the rest. Changes what the model sees."""
    OFFLOADED = "offloaded"
    """Like `dynamic`, all layers but the one at work in host memory."""
    OFFLOADED_STATIC = "offloaded_static"
    """Like `static`, all layers but the one at work in host memory."""
    QUANTIZED = "quantized"
    """Keys and values in 8 bits or fewer. Changes what the model sees."""
    PAGED = "paged"
    """Held in pages that requests share (continuous batching); the engine schedules them by itself."""

    @property
    def is_lossy(self) -> bool:
        """Whether it forgets or rounds, so that the model's output changes however correct everything is."""
        return self in (CacheStrategy.SLIDING_WINDOW, CacheStrategy.QUANTIZED)

    @property
    def has_fixed_size(self) -> bool:
        """Whether it is allocated for a number of tokens before the first one comes."""
        return self in (CacheStrategy.STATIC, CacheStrategy.OFFLOADED_STATIC)


class AttentionBackend(Choice):
    """Which attention implementation runs. `sdpa` is the library's own choice among its kernels; `sdpa_*` force one."""

    EAGER = "eager"
    SDPA = "sdpa"
    SDPA_FLASH = "sdpa_flash"
    SDPA_EFFICIENT = "sdpa_efficient"
    SDPA_MATH = "sdpa_math"
    SDPA_CUDNN = "sdpa_cudnn"
    FLASH_ATTENTION_2 = "flash_attention_2"
    FLASH_ATTENTION_3 = "flash_attention_3"
    FLEX_ATTENTION = "flex_attention"
    XFORMERS = "xformers"
    FLASH = "flash"
    """The engine's own fused kernel, which never writes the scores to memory."""
    HUB_KERNEL = "hub_kernel"
    """A kernel from a model hub; its name is in `Candidate.hub_kernel`."""

    @property
    def forces_a_kernel(self) -> bool:
        """Whether one SDPA kernel is demanded, so that any other running instead is a substitution."""
        return self.value.startswith("sdpa_")


class CompileMode(Choice):
    """`torch.compile` of the decode step: off, or the mode passed to it."""

    OFF = "off"
    DEFAULT = "default"
    REDUCE_OVERHEAD = "reduce-overhead"
    MAX_AUTOTUNE_NO_CUDAGRAPHS = "max-autotune-no-cudagraphs"


@dataclass(frozen=True)
class CacheChoice:
    """A cache strategy with its settings, written `quantized(backend=hqq,nbits=4)`.

    Attributes:
        params: sorted (name, value) pairs; which ones a strategy knows is the engine's to say.
    """

    strategy: CacheStrategy
    params: tuple[tuple[str, ParamValue], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", tuple(sorted(self.params)))

    def __str__(self) -> str:
        settings = ",".join(f"{name}={value}" for name, value in self.params)
        return f"{self.strategy}({settings})" if settings else self.strategy.value

    @classmethod
    def parse(cls, text: str) -> CacheChoice:
        """The inverse of `str`. A value of digits is a whole number, `true` and `false` are truth values.

        Raises:
            InvalidValueError: the strategy is unknown, or the text has another form.
        """
        match = re.fullmatch(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*", text)
        if match is None:
            raise InvalidValueError(f"Cache {text!r} is not of the form name or name(setting=value,…).")
        pairs = [part.partition("=") for part in (match[2] or "").split(",") if part.strip()]
        if any(not (name.strip() and equals and value.strip()) for name, equals, value in pairs):
            raise InvalidValueError(f"Cache {text!r} has a setting that is not of the form name=value.")
        strategy = CacheStrategy.parse(match[1])
        return cls(strategy, tuple((name.strip(), _param_value(value.strip())) for name, _, value in pairs))


@dataclass(frozen=True)
class AttentionChoice:
    """An attention backend; a kernel from a hub is written by its name, `owner/kernel`."""

    backend: AttentionBackend
    hub_kernel: str | None = None

    def __str__(self) -> str:
        return self.hub_kernel or self.backend.value

    @classmethod
    def parse(cls, text: str) -> AttentionChoice:
        """The inverse of `str`.

        Raises:
            InvalidValueError: neither a backend nor a kernel's name.
        """
        name = text.strip()
        if "/" in name:
            return cls(AttentionBackend.HUB_KERNEL, _checked_kernel_name(name))
        by_name = [one for one in AttentionBackend if one is not AttentionBackend.HUB_KERNEL]
        if name.lower() not in by_name:
            allowed = [*by_name, "a kernel of a hub such as kernels-community/flash-attn2"]
            raise InvalidValueError.not_one_of(AttentionBackend.axis_name(), name, allowed)
        return cls(AttentionBackend(name.lower()))


SINGLE = "single"
"""What a user writes for a model that is on one GPU."""
SPLIT = "split"
"""The axis of an engine that can spread a model in several ways: which of them."""


@dataclass(frozen=True)
class ParallelChoice:
    """Over how many GPUs a model is spread and in which way, written `single`, `tp=2` or, where an engine knows but one
    way, `2`.

    Attributes:
        split: value of the engine's axis `split`; `None`: it has none, or the model is on one GPU.
    """

    gpus: int = 1
    split: str | None = None

    def __str__(self) -> str:
        if self.gpus == 1:
            return SINGLE
        return str(self.gpus) if self.split is None else f"{self.split}={self.gpus}"

    @classmethod
    def parse(cls, text: str) -> ParallelChoice:
        """The inverse of `str`.

        Raises:
            InvalidValueError: the text has another form.
        """
        match = re.fullmatch(r"\s*(?:([a-z_]+)\s*=\s*)?([1-9]\d{0,3})\s*", text.lower(), flags=re.ASCII)
        if text.strip().lower() == SINGLE:
            return cls()
        if match is None:
            raise InvalidValueError(
                f"Parallelism {text.strip()!r} is neither {SINGLE} nor a way and a number of GPUs.",
                hint="Write it like single,device_map=2,tp=2.",
            )
        gpus = int(match[2])
        return cls(gpus, match[1] if gpus > 1 else None)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One configuration that can be measured.

    Attributes:
        engine: name of the engine in the registry.
        cache_params: further settings of the cache strategy as sorted (name, value) pairs.
        hub_kernel: `owner/kernel` if `attention` is `hub_kernel`, else `None`.
        batch_size: sequences generated together, all of the same prompt length.
        parallelism: GPUs that one copy of the model is spread over.
        prefill_chunk: prompt tokens that are worked on at once; `None`: all.
        weights_limit_mib: device memory (MiB) that the weights may take, the others staying in host memory; `None`:
            no limit.
        settings: values of further axes that the engine declares, as sorted (name, value) pairs; an axis that is not
            set is not among them.
    """

    engine: str
    cache: CacheStrategy
    attention: AttentionBackend
    dtype: DType
    compile: CompileMode = CompileMode.OFF
    batch_size: int = 1
    parallelism: int = 1
    cache_params: tuple[tuple[str, ParamValue], ...] = ()
    hub_kernel: str | None = None
    prefill_chunk: int | None = None
    weights_limit_mib: int | None = None
    settings: tuple[tuple[str, ParamValue], ...] = ()

    def __post_init__(self) -> None:
        for name in ("batch_size", "parallelism", "prefill_chunk", "weights_limit_mib"):
            value = getattr(self, name)
            if name in _LATER_FIELDS and value is None:
                continue
            if type(value) is not int or value < 1:
                raise InvalidValueError(f"{name} {value!r} is not a positive whole number.")
        if (self.attention is AttentionBackend.HUB_KERNEL) != (self.hub_kernel is not None):
            raise InvalidValueError(f"attention {self.attention} does not go with hub_kernel {self.hub_kernel!r}.")
        if self.hub_kernel is not None:
            _checked_kernel_name(self.hub_kernel)
        for name, _ in self.cache_params:
            if not is_setting_name(name):  # they become names of arguments in generated code
                raise InvalidValueError(f"Cache setting {name!r} is not a name of letters, digits and underscores.")
        object.__setattr__(self, "cache_params", tuple(sorted(self.cache_params)))
        _check_settings(self.settings)
        object.__setattr__(self, "settings", tuple(sorted(self.settings)))

    @functools.cached_property
    def candidate_id(self) -> str:
        """Twelve hex digits of a SHA-256 over every field: equal candidates have equal ids on any machine."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]

    @functools.cached_property
    def label(self) -> str:
        """Short name for tables, e.g. `static/sdpa_math/bfloat16+compile:default+tp=2×4`. It begins with the engine's
        name, e.g. `vllm:dynamic/…`, except for Transformers. Of several GPUs it tells as `--parallelism` does."""
        text = "" if self.engine in _UNNAMED_ENGINES else f"{self.engine}:"
        text += f"{self.cache_choice}/{AttentionChoice(self.attention, self.hub_kernel)}/{self.dtype}"
        if self.compile is not CompileMode.OFF:
            text += f"+compile:{self.compile}"
        if self.prefill_chunk is not None:
            text += f"+chunk:{self.prefill_chunk}"
        if self.weights_limit_mib is not None:
            text += f"+weights:{self.weights_limit_mib}MiB"
        split = self.setting(SPLIT) if self.parallelism > 1 else None
        for name, value in self.settings:
            if name != SPLIT or split is None:
                text += f"+{name}:{setting_text(value)}"
        if self.parallelism > 1:
            text += f"+gpus:{self.parallelism}" if split is None else f"+{ParallelChoice(self.parallelism, str(split))}"
        if self.batch_size > 1:
            text += f"×{self.batch_size}"
        return text

    def setting(self, name: str) -> ParamValue | None:
        """The value of the engine's own axis `name`; `None`: it is not set."""
        return getattr(self, name) if name in SETTING_COLUMNS else dict(self.settings).get(name)

    @property
    def foreign_kernel(self) -> str | None:
        """The hub kernel, if it is code that needs the user's trust."""
        kernel = self.hub_kernel
        return None if kernel is None or kernel.startswith(TRUSTED_KERNELS) else kernel

    @property
    def cache_choice(self) -> CacheChoice:
        """The cache strategy with its settings."""
        return CacheChoice(self.cache, self.cache_params)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the inverse of `from_dict`."""
        own = {name: getattr(self, name) for name in Candidate.__dataclass_fields__}
        values = {**own, "cache_params": dict(self.cache_params), "settings": dict(self.settings) or None}
        return {name: value for name, value in values.items() if not (name in _LATER_FIELDS and value is None)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Candidate:
        """Rebuild from `to_dict`.

        Raises:
            InvalidValueError: a field is missing, unknown, or of a value that is not allowed.
        """
        params, settings = (_plain_values(name, data.get(name, {})) for name in ("cache_params", "settings"))
        try:
            return cls(
                **{
                    **data,
                    "cache": CacheStrategy.parse(str(data["cache"])),
                    "attention": AttentionBackend.parse(str(data["attention"])),
                    "dtype": DType.parse(str(data["dtype"])),
                    "compile": CompileMode.parse(str(data.get("compile", CompileMode.OFF))),
                    "cache_params": params,
                    "settings": settings,
                }
            )
        except (KeyError, TypeError) as error:
            raise InvalidValueError(f"Not a candidate: {error}.") from error


_UNNAMED_ENGINES = ("transformers", "fake")
"""Engines whose candidates are labelled without a name: the first one that kvray had, and that of its tests."""
SETTING_COLUMNS = ("prefill_chunk", "weights_limit_mib")
"""Axes of an engine that have a field of their own, because old records know them by it. All others are `settings`."""
_LATER_FIELDS = ("hub_kernel", *SETTING_COLUMNS, "settings")
"""Left out of `to_dict` where they are not used, so that candidates keep the ids that earlier records know."""


def is_setting_name(name: str) -> bool:
    """Whether `name` can name a setting: an identifier of ASCII letters."""
    return re.fullmatch(r"[A-Za-z_]\w*", name, flags=re.ASCII) is not None


def setting_text(value: ParamValue) -> str:
    """`value` as a user writes it: truth values in lower case."""
    return str(value).lower() if isinstance(value, bool) else str(value)


_LONGEST_TEXT = 200


def _check_settings(settings: tuple[tuple[str, ParamValue], ...]) -> None:
    """They are shown in tables and written by users between commas: text is printable and has none."""
    names = [name for name, _ in settings]
    if len(set(names)) != len(names):
        raise InvalidValueError(f"Settings {', '.join(names)} name one twice.")
    for name, value in settings:
        if not is_setting_name(name):
            raise InvalidValueError(f"Setting {name!r} is not a name of letters, digits and underscores.")
        if name in Candidate.__dataclass_fields__:
            raise InvalidValueError(f"Setting {name!r} has the name of a candidate's own field.")
        if not isinstance(value, CACHE_PARAM_TYPES) or not _is_plain(value):
            raise InvalidValueError(f"Setting {name} {value!r} is not a plain value.")


def _is_plain(value: ParamValue) -> bool:
    if isinstance(value, str):
        return 0 < len(value) <= _LONGEST_TEXT and value.isprintable() and not set(value) & set(", ")
    return not isinstance(value, float) or math.isfinite(value)


def _plain_values(field: str, values: object) -> tuple[tuple[str, ParamValue], ...]:
    if not isinstance(values, Mapping) or not all(isinstance(one, CACHE_PARAM_TYPES) for one in values.values()):
        raise InvalidValueError(f"{field} {values!r} is not a mapping of names to plain values.")
    return tuple(values.items())


def _param_value(text: str) -> ParamValue:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS else text


def _checked_kernel_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(@\w[\w.-]*)?(:\w[\w.-]*)?", name, flags=re.ASCII):
        raise InvalidValueError(f"Kernel {name!r} is not of the form owner/kernel.")
    return name
