"""What can be chosen: the enums of each axis, and `Candidate`: one frozen configuration, its id over every field."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kvray.errors import InvalidValueError

CACHE_PARAM_TYPES = (bool, int, float, str)
_AXIS_NAMES = {
    "DeviceType": "device",
    "DType": "dtype",
    "CacheStrategy": "cache strategy",
    "AttentionBackend": "attention backend",
    "CompileMode": "compile mode",
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


class AttentionBackend(Choice):
    """Which attention implementation runs. `sdpa` is the library's own choice among its kernels; `sdpa_*` force one."""

    EAGER = "eager"
    SDPA = "sdpa"
    SDPA_FLASH = "sdpa_flash"
    SDPA_EFFICIENT = "sdpa_efficient"
    SDPA_MATH = "sdpa_math"
    SDPA_CUDNN = "sdpa_cudnn"

    @property
    def forces_a_kernel(self) -> bool:
        """Whether one SDPA kernel is demanded, so that any other running instead is a substitution."""
        return self.value.startswith("sdpa_")


class CompileMode(Choice):
    """`torch.compile` of the decode step: off, or the mode passed to it."""

    OFF = "off"
    DEFAULT = "default"
    REDUCE_OVERHEAD = "reduce-overhead"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One configuration that can be measured.

    Attributes:
        engine: name of the engine in the registry.
        cache_params: further settings of the cache strategy as sorted (name, value) pairs.
        batch_size: sequences generated together, all of the same prompt length.
        parallelism: GPUs that one copy of the model is spread over.
    """

    engine: str
    cache: CacheStrategy
    attention: AttentionBackend
    dtype: DType
    compile: CompileMode = CompileMode.OFF
    batch_size: int = 1
    parallelism: int = 1
    cache_params: tuple[tuple[str, bool | int | float | str], ...] = ()

    def __post_init__(self) -> None:
        for name in ("batch_size", "parallelism"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InvalidValueError(f"{name} {value!r} is not a positive whole number.")
        object.__setattr__(self, "cache_params", tuple(sorted(self.cache_params)))

    @property
    def candidate_id(self) -> str:
        """Twelve hex digits of a SHA-256 over every field: equal candidates have equal ids on any machine."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """Short name for tables, e.g. `static/sdpa_math/bfloat16+compile:default×4`."""
        params = ",".join(f"{name}={value}" for name, value in self.cache_params)
        text = f"{self.cache}{f'({params})' if params else ''}/{self.attention}/{self.dtype}"
        if self.compile is not CompileMode.OFF:
            text += f"+compile:{self.compile}"
        if self.batch_size > 1:
            text += f"×{self.batch_size}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the inverse of `from_dict`."""
        return {**asdict(self), "cache_params": dict(self.cache_params)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Candidate:
        """Rebuild from `to_dict`.

        Raises:
            InvalidValueError: a field is missing, unknown, or of a value that is not allowed.
        """
        params = data.get("cache_params", {})
        if not isinstance(params, Mapping) or not all(isinstance(v, CACHE_PARAM_TYPES) for v in params.values()):
            raise InvalidValueError(f"cache_params {params!r} is not a mapping of names to plain values.")
        try:
            return cls(
                **{
                    **data,
                    "cache": CacheStrategy.parse(str(data["cache"])),
                    "attention": AttentionBackend.parse(str(data["attention"])),
                    "dtype": DType.parse(str(data["dtype"])),
                    "compile": CompileMode.parse(str(data.get("compile", CompileMode.OFF))),
                    "cache_params": tuple(params.items()),
                }
            )
        except (KeyError, TypeError) as error:
            raise InvalidValueError(f"Not a candidate: {error}.") from error
