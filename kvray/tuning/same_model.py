"""Whether the files that several engines take are of one model, as far as their sizes tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvray.engines.base import ModelInfo

_MOST_UNLIKE = 1.25
"""Two files of one model may differ by what one engine leaves out, such as layers that predict further tokens."""


def unlike_model_notes(models: Mapping[str, ModelInfo]) -> Iterator[str]:
    """A sentence for each engine whose file cannot be of the first one's model. Sizes that are not known are alike.

    Args:
        models: by the engine's name.
    """
    (first, reference), *others = models.items()
    for engine, model in others:
        if model.model_id != reference.model_id and _are_unlike(reference, model):
            yield (
                f"{engine} takes another model than {first}: {_size(model)} in place of {_size(reference)}. So the "
                f"ranking does not compare these engines. Name a file of the same model: --model-for {engine}=FILE."
            )


def _are_unlike(one: ModelInfo, other: ModelInfo) -> bool:
    if one.shape is None or other.shape is None:
        return False
    # A table that serves as embedding and as head counts once, also where another file has it twice.
    fewer, more = sorted(shape.total_parameters - shape.lookup_parameters for shape in (one.shape, other.shape))
    return one.shape.hidden != other.shape.hidden or more > fewer * _MOST_UNLIKE


def _size(model: ModelInfo) -> str:
    assert model.shape is not None
    return f"{model.shape.total_parameters / 1e6:,.1f} million parameters of width {model.shape.hidden:,}"
