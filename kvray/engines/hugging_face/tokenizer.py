"""A model's tokenizer, and the texts that are fed to the model as it writes them. Imports no torch.

The driver writes them once before the first trial: there a tokenizer of another model is noticed, or one for DNA.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kvray.engines.base import ModelRequest, UnsupportedError
from kvray.engines.hugging_face.quiet import quiet_library
from kvray.engines.prompts import forced_text, prompt_text
from kvray.errors import ModelError, sentence_of
from kvray.extras import pip_command
from kvray.record import RANDOM_PREFIX

TOKENIZER_FILES = ("tokenizer*", "vocab*", "tekken.json", "*.model", "*.spm", "*.tiktoken")
_READERS = {"*.model": "sentencepiece", "*.spm": "sentencepiece", "*.tiktoken": "tiktoken"}
"""Libraries that Transformers does without where there is a tokenizer.json."""
_PANIC = "PanicException"
"""Raised by a library in Rust: a `BaseException`, of a class that each library makes for itself and none exports."""
_MOST_UNKNOWN = 0.5
"""Share of unknown tokens in a text, beyond which the tokenizer is not made for such texts."""


@dataclass(frozen=True, kw_only=True)
class WrittenTexts:
    """Token ids of the texts that are fed.

    Attributes:
        prefix: what every text begins with: BOS, where the tokenizer adds it.
    """

    prompt: tuple[int, ...]
    forced: tuple[int, ...]
    prefix: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TextChoice:
    """What is fed to a model.

    Attributes:
        texts: written by its tokenizer; `None`: random ids are fed.
        note: why they are random.
    """

    texts: WrittenTexts | None = None
    note: str | None = None


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder` holds files of a tokenizer."""
    return any(path.suffix != ".py" for pattern in TOKENIZER_FILES for path in folder.glob(pattern))


def load_tokenizer(request: ModelRequest, folder: Path) -> Any | None:
    """The model's tokenizer, or `None` for a bare config with random weights.

    Raises:
        ModelError: there is none, its files are damaged, or they name code that is not trusted.
    """
    from transformers import AutoTokenizer

    if not has_tokenizer(folder):
        if request.model_id.startswith(RANDOM_PREFIX):
            return None
        raise ModelError(
            f"Model {request.model_id!r} has no tokenizer.", hint="Put it beside the weights with save_pretrained."
        )

    def load() -> Any:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=request.trust_remote_code)
        tokenizer("")  # some damage shows only here
        return tokenizer

    with quiet_library():
        tokenizer, error = _tried(load)
    if error is None:
        return tokenizer
    if "trust_remote_code" in str(error):
        raise ModelError(
            f"The tokenizer of model {request.model_id!r} is Python code of its own.",
            hint="If you trust its author, pass --trust-remote-code.",
        ) from error
    raise ModelError(
        f"The tokenizer of model {request.model_id!r} cannot be read: {sentence_of(error)}",
        hint=_missing_reader(folder),
    ) from error


def text_note(request: ModelRequest, folder: Path, config: Any) -> str | None:
    """Why random ids are fed to the model in `folder`; `None`: its tokenizer writes the usual texts.

    Raises:
        ModelError: the tokenizer is missing, cannot be read, or is another model's.
    """
    vocabulary = int(config.get_text_config(decoder=True).vocab_size)
    return choose_texts(request, load_tokenizer(request, folder), vocabulary).note


def choose_texts(request: ModelRequest, tokenizer: Any | None, vocabulary: int) -> TextChoice:
    """The texts as `tokenizer` writes them, or the reason why random ids take their place.

    Args:
        vocabulary: number of token ids that the model knows.

    Raises:
        ModelError: the tokenizer of a checkpoint writes ids that the model does not know.
    """
    if tokenizer is None:
        return _random("there is no tokenizer beside the config")
    texts, error = _tried(lambda: _written(tokenizer))
    if error is not None:
        return _random(f"the tokenizer cannot write English ({sentence_of(error)})")
    if not texts.prompt or not texts.forced or _unknown_share(tokenizer, texts) > _MOST_UNKNOWN:
        return _random("the tokenizer is not made for English: most of it becomes unknown tokens")
    highest = max(*texts.prompt, *texts.forced, *texts.prefix)
    if highest < vocabulary:
        return TextChoice(texts=texts)
    if request.model_id.startswith(RANDOM_PREFIX):
        return _random(f"the tokenizer writes ids up to {highest}, and the vocabulary has {vocabulary}")
    raise ModelError(
        f"The tokenizer of model {request.model_id!r} writes ids up to {highest} (it has {len(tokenizer)} tokens), and "
        f"the model's vocabulary has {vocabulary}: they do not belong together.",
        hint="Put the tokenizer that the model was trained with beside its weights.",
    )


def encoded(tokenizer: Any, text: str, **options: Any) -> Any:
    """What `tokenizer` makes of a user's text.

    Raises:
        UnsupportedError: it cannot write it.
    """
    made, error = _tried(lambda: tokenizer(text, **options))
    if error is not None:
        raise UnsupportedError(f"the tokenizer cannot write this text ({sentence_of(error)})") from error
    return made


def _missing_reader(folder: Path) -> str | None:
    """What to install, where Transformers reads the files with a library that is not there and says so badly."""
    if (folder / "tokenizer.json").is_file():
        return None
    for pattern, library in _READERS.items():
        if any(folder.glob(pattern)) and find_spec(library) is None:
            return f"Install {library} ({pip_command(library)}), which reads {pattern}."
    return None


def _random(reason: str) -> TextChoice:
    return TextChoice(note=f"Prompts are random token ids: {reason}.")


def _written(tokenizer: Any) -> WrittenTexts:
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
    return WrittenTexts(
        prompt=tuple(_token_ids(tokenizer, prompt_text())),
        forced=tuple(_token_ids(tokenizer, forced_text())),
        prefix=(bos,) if adds_bos else (),
    )


def _token_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of `text`, without special ones."""
    # `verbose=False`: the text may be longer than the model takes; what is fed of it is cut to size.
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _unknown_share(tokenizer: Any, texts: WrittenTexts) -> float:
    unknown = getattr(tokenizer, "unk_token_id", None)
    return 0.0 if unknown is None else texts.prompt.count(unknown) / len(texts.prompt)


def _tried(call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """What `call` returns, and what it raises: tokenizers are foreign readers of outside input, and panic too."""
    try:
        return call(), None
    except BaseException as error:
        if not (isinstance(error, Exception) or type(error).__name__ == _PANIC):
            raise
        return None, error
