"""Files for several engines that cannot be of one model are told; those that may be are not."""

from __future__ import annotations

from dataclasses import replace

from kvray.candidate import DType
from kvray.engines.base import ModelInfo
from kvray.forecast.shape import LayerShape, ModelShape
from kvray.tuning.same_model import unlike_model_notes

SHAPE = ModelShape(
    total_parameters=134_500_000,
    lookup_parameters=0,
    vocab=49_152,
    hidden=576,
    intermediate=1536,
    heads=9,
    layers=(LayerShape(kv_heads=3, key_dim=64, value_dim=64, window=None),) * 30,
)
HUB = ModelInfo(
    model_id="org/model",
    revision="1",
    architecture="llama",
    max_context=None,
    native_dtype=DType.FLOAT32,
    shape=SHAPE,
)


def notes(shape: ModelShape | None, *, model_id: str = "/model.gguf") -> list[str]:
    file = replace(HUB, model_id=model_id, shape=shape)
    return list(unlike_model_notes({"first": HUB, "second": file}))


def test_another_model_is_told_with_both_sizes_and_what_to_do() -> None:
    assert notes(replace(SHAPE, hidden=64, total_parameters=200_000)) == [
        "second takes another model than first: 0.2 million parameters of width 64 in place of 134.5 million "
        "parameters of width 576. So the ranking does not compare these engines. Name a file of the same "
        "model: --model-for second=FILE."
    ]
    assert notes(replace(SHAPE, total_parameters=360_000_000)), "as wide, and deeper"


def test_what_may_be_the_same_model_is_not_told() -> None:
    table = SHAPE.vocab * SHAPE.hidden
    twice = replace(SHAPE, total_parameters=SHAPE.total_parameters + table, lookup_parameters=table)
    assert notes(twice) == [], "a file that has the embedding once more as its head"
    assert notes(None) == [], "sizes that are not known"
    assert notes(replace(SHAPE, hidden=64), model_id=HUB.model_id) == []
    assert list(unlike_model_notes({"first": HUB})) == []
