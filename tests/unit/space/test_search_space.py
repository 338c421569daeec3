"""From axes to candidates."""

from __future__ import annotations

from dataclasses import replace

from kvray.candidate import (
    AttentionBackend,
    AttentionChoice,
    CacheChoice,
    CacheStrategy,
    Candidate,
    CompileMode,
    DeviceType,
    DType,
)
from kvray.space.constraints import Constraint, SpaceFacts
from kvray.space.search_space import SearchSpace, SpaceBlock, build_space

FACTS = SpaceFacts(device=DeviceType.CPU, dtypes=frozenset({DType.FLOAT32, DType.BFLOAT16}))
BASELINE = Candidate(engine="fake", cache=CacheStrategy.DYNAMIC, attention=AttentionBackend.SDPA, dtype=DType.FLOAT32)


def _kernel_on_device(candidate: Candidate, facts: SpaceFacts) -> str | None:
    lacking = candidate.attention is AttentionBackend.SDPA_CUDNN and facts.device is DeviceType.CPU
    return "PyTorch has no cudnn attention kernel for the CPU" if lacking else None


KERNELS = Constraint(name="kernel-on-device", check=_kernel_on_device)


def axes(
    *,
    caches: tuple[CacheStrategy, ...] = (CacheStrategy.DYNAMIC, CacheStrategy.STATIC),
    attentions: tuple[AttentionBackend, ...] = (AttentionBackend.EAGER, AttentionBackend.SDPA),
    dtypes: tuple[DType, ...] = (DType.FLOAT32,),
    compiles: tuple[CompileMode, ...] = (CompileMode.OFF,),
    batch_sizes: tuple[int, ...] = (1,),
) -> SpaceBlock:
    return SpaceBlock(
        caches=tuple(CacheChoice(one) for one in caches),
        attentions=tuple(AttentionChoice(one) for one in attentions),
        dtypes=dtypes,
        compiles=compiles,
        batch_sizes=batch_sizes,
    )


def space_of(given: SpaceBlock, *rules: Constraint) -> SearchSpace:
    return build_space([given], baseline=BASELINE, facts=FACTS, engine_rules=rules)


def labels(space: SearchSpace) -> list[str]:
    return [candidate.label for candidate in space.candidates]


def test_the_space_is_the_product_of_all_axes() -> None:
    space = space_of(
        axes(
            dtypes=(DType.FLOAT32, DType.BFLOAT16),
            compiles=(CompileMode.OFF, CompileMode.DEFAULT),
            batch_sizes=(1, 4),
        )
    )
    assert len(space.candidates) == space.asked_for == 2 * 2 * 2 * 2 * 2
    assert len(set(space.candidates)) == len(space.candidates)
    assert {candidate.engine for candidate in space.candidates} == {"fake"}
    assert space.rejected == ()


def test_the_baseline_comes_first_and_once_wherever_the_axes_have_it() -> None:
    space = space_of(axes())
    assert labels(space) == [
        "dynamic/sdpa/float32",
        "dynamic/eager/float32",
        "static/eager/float32",
        "static/sdpa/float32",
    ]
    assert space.asked_for == 4


def test_the_baseline_is_measured_even_where_nobody_asked_for_it() -> None:
    space = space_of(axes(caches=(CacheStrategy.STATIC,)))
    assert labels(space) == ["dynamic/sdpa/float32", "static/eager/float32", "static/sdpa/float32"]
    assert space.asked_for == 2


def test_a_rejected_point_is_kept_with_its_reason_and_not_launched() -> None:
    space = space_of(axes(attentions=(AttentionBackend.SDPA, AttentionBackend.SDPA_CUDNN)), KERNELS)
    assert [(one.candidate.label, one.reason) for one in space.rejected] == [
        ("dynamic/sdpa_cudnn/float32", "PyTorch has no cudnn attention kernel for the CPU (kernel-on-device)"),
        ("static/sdpa_cudnn/float32", "PyTorch has no cudnn attention kernel for the CPU (kernel-on-device)"),
    ]
    assert space.asked_for == len(space.candidates) == 2


def test_rules_of_the_engine_come_after_those_of_all_engines() -> None:
    def no_static(candidate: Candidate, facts: SpaceFacts) -> str | None:
        return "static is not for me" if candidate.cache is CacheStrategy.STATIC else None

    space = space_of(
        axes(attentions=(AttentionBackend.SDPA, AttentionBackend.SDPA_CUDNN), dtypes=(DType.FLOAT32, DType.FLOAT16)),
        KERNELS,
        Constraint(name="mine", check=no_static),
    )
    assert {one.candidate.label: one.reason.rpartition(" ")[2] for one in space.rejected} == {
        "dynamic/sdpa/float16": "(dtype-on-device)",
        "static/sdpa/float16": "(dtype-on-device)",
        "dynamic/sdpa_cudnn/float16": "(dtype-on-device)",
        "static/sdpa_cudnn/float16": "(dtype-on-device)",
        "dynamic/sdpa_cudnn/float32": "(kernel-on-device)",
        "static/sdpa_cudnn/float32": "(kernel-on-device)",
        "static/sdpa/float32": "(mine)",
    }


def test_when_all_is_rejected_nothing_is_asked_for_and_the_baseline_stands_alone() -> None:
    space = space_of(axes(attentions=(AttentionBackend.SDPA_CUDNN,)), KERNELS)
    assert (space.asked_for, space.candidates) == (0, (BASELINE,))


def test_what_several_blocks_have_is_measured_once() -> None:
    narrow = axes(caches=(CacheStrategy.STATIC,), attentions=(AttentionBackend.SDPA,))
    space = build_space([narrow, axes(), narrow], baseline=BASELINE, facts=FACTS)
    assert labels(space) == [
        "dynamic/sdpa/float32",
        "static/sdpa/float32",
        "dynamic/eager/float32",
        "static/eager/float32",
    ]
    assert space.asked_for == 4


def test_a_block_combines_chunks_and_limits_with_everything_else() -> None:
    given = replace(
        axes(caches=(CacheStrategy.DYNAMIC,), attentions=(AttentionBackend.SDPA,)),
        settings={"weights_limit_mib": (None, 900), "prefill_chunk": (None, 64)},
    )
    assert set(labels(space_of(given))) == {
        "dynamic/sdpa/float32",
        "dynamic/sdpa/float32+chunk:64",
        "dynamic/sdpa/float32+weights:900MiB",
        "dynamic/sdpa/float32+chunk:64+weights:900MiB",
    }
