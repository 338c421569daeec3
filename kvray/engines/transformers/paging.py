"""Pages and buffers for given requests: left to itself, continuous batching takes what memory there is.

A generated snippet prints this module as it stands here, so it uses nothing but transformers.
"""

from __future__ import annotations

from typing import Any

from transformers.generation.configuration_utils import ContinuousBatchingConfig

PAGE_TOKENS = 256


def paging(requests: int, prompt_tokens: int, new_tokens: int) -> ContinuousBatchingConfig:
    """Settings for so many `requests` of at most `prompt_tokens`, without two habits that would make answers differ in
    time: keeping prompts, so that a repeated one has no prefill, and trading the attention for flash attention."""
    pages = requests * -(-(prompt_tokens + new_tokens) // PAGE_TOKENS) + 1
    wanted: dict[str, Any] = {"allow_block_sharing": False, "auto_switch_to_flash": False}
    wanted |= {"num_blocks": pages, "max_batch_tokens": requests * prompt_tokens}
    known = ContinuousBatchingConfig.__dataclass_fields__  # not every version has them all, nor by the same name
    wanted["page_size" if "page_size" in known else "block_size"] = PAGE_TOKENS
    return ContinuousBatchingConfig(**{name: value for name, value in wanted.items() if name in known})
