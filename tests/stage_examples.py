"""Small legal parameters of every stage for a target: what rendering and compiling tests go through."""

from __future__ import annotations

from dataclasses import replace

from forgec.plan.geometry import matrix_decode
from forgec.plan.stages import (
    POINTWISE,
    AttentionDecodeParams,
    AttentionPrefillParams,
    ElementwiseParams,
    EmbeddingParams,
    KVAppendParams,
    KVCache,
    MaskParams,
    MatmulParams,
    MatvecParams,
    NormParams,
    NormRopeKVParams,
    QKParams,
    QuantiseParams,
    RopeFields,
    RopeKVParams,
    RopeParams,
    SampleParams,
    ScaleParams,
    Segment,
    SoftmaxParams,
    StageParams,
    WeightedVParams,
)
from forgec.targets import get_target
from tests.expert_examples import expert_examples
from tests.token_examples import token_examples

__all__ = ["examples", "linear_examples"]

ROPE = RopeFields(9, 3, 64, 64, False, 512, "f16")
UNROTATED = RopeFields(9, 3, 64, 0, True, 512, "f16")
ONE = (Segment("q4_1", 64),)
GATED = (Segment("q4_1", 1536), Segment("q4_1", 1536))
MIXED = (Segment("q4_0", 576), Segment("f16", 192), Segment("bf16", 192))
BLOCKED = (Segment("q4_1", 576), Segment("q8_0", 192), Segment("q4_0", 192))


def examples(target_name: str) -> list[StageParams]:
    """At least one of every stage, in the shapes of a 135 M model."""
    target = get_target(target_name)
    common = (target.family, target.wave, target.block_size)
    cache = KVCache(3, 64, 64, 512, "f16")
    attention = (9, cache, 0.125)
    bounded = replace(cache, positions=192, dtype="q8_0", ring=True)
    keys = 32 if target.wave > 1 else 8
    return [
        *linear_examples(target_name),
        *expert_examples(target_name),
        *token_examples(target),
        AttentionDecodeParams(*common, *attention, splits=4, lanes_per_key=min(8, target.wave)),
        AttentionDecodeParams(
            *common, 9, bounded, 0.1, 64, 30.0, 8.0, True, 4, min(8, target.wave), fresh=True
        ),
        *(
            [AttentionDecodeParams(*common, *attention, splits=4, matrix=True)]
            if matrix_decode(cache, target)
            else []
        ),
        AttentionPrefillParams(*common, *attention, causal=True, tile_queries=keys, tile_keys=keys),
        AttentionPrefillParams(
            *common, 9, bounded, 0.1, 64, 30.0, 8.0, True, causal=True, tile_queries=keys, tile_keys=keys
        ),
        ElementwiseParams(*common, "add", 576),
        *(ElementwiseParams(*common, op, 576, 30.0) for op in POINTWISE),
        KVAppendParams(*common, cache),
        KVAppendParams(*common, bounded, 128),
        MaskParams(*common, 9, 512, True),
        QKParams(*common, 9, cache),
        RopeParams(*common, 9, 64, 64, False),
        SampleParams(*common, 49152),
        ScaleParams(*common, 9, 512, 0.125),
        SoftmaxParams(*common, 9, 512),
        WeightedVParams(*common, 9, cache),
    ]


def linear_examples(target_name: str) -> list[StageParams]:
    """The stages around weight matrices: every format, prologue, epilogue and kind of activations."""
    target = get_target(target_name)
    common = (target.family, target.wave, target.block_size)
    lanes = min(8, target.wave)
    tile = (*common[:2], 256 if target.wave > 1 else 1)
    size = 64 if target.wave > 1 else 16
    return [
        EmbeddingParams(*common, "q8_0", "rows", 576, 49152, decode=True),
        EmbeddingParams(*common, "f32", "rows", 576, 49152, decode=False),
        EmbeddingParams(*common, "f16", "rows", 576, 49152, decode=True, positions=True),
        NormParams(*common, 576, 1e-5, "f32"),
        NormParams(*common, 576, 1e-5, "q8"),
        QuantiseParams(*common, 1536),
        NormParams(*common, 576, 1e-5, "f32", centred=True, bias=True),
        NormParams(*common, 64, 1e-5, "f32", groups=9, own_weights=True),
        NormParams(*common, 576, 1e-5, "f32", residual=True),
        RopeKVParams(*common, ROPE),
        RopeKVParams(*common, UNROTATED),
        NormRopeKVParams(*common, ROPE, "head", 1e-6, centred=False),
        NormRopeKVParams(*common, UNROTATED, "heads", 1e-5, centred=True),
        NormRopeKVParams(*common, ROPE, "row", 1e-6, centred=False),
        MatvecParams(
            *common, 576, BLOCKED, "rows", "q8", "rope_kv", False, "rmsnorm", 1e-5, False, lanes, 2, ROPE
        ),
        MatvecParams(
            *common,
            576,
            MIXED,
            "rows",
            "f32",
            "rope_kv",
            True,
            "rmsnorm",
            1e-5,
            False,
            lanes,
            2,
            ROPE,
            then="clamp",
            factor=8.0,
        ),
        MatvecParams(
            *common, 576, GATED, "rows", "q8", "gated", False, "rmsnorm", 1e-5, False, lanes, 2, then="silu"
        ),
        MatvecParams(*common, 1536, GATED[:1], "rows", "q8", "residual", False, "none", 0.0, False, lanes, 2),
        MatvecParams(
            *common, 12288, GATED[:1], "rows", "f32", "residual", False, "none", 0.0, False, target.wave, 2
        ),
        MatvecParams(
            *common, 576, (Segment("f32", 999),), "rows", "f32", "store", False, "rmsnorm", 1e-5, True, 1, 4
        ),
        MatvecParams(
            *common,
            64,
            ONE,
            "rows",
            "f32",
            "norm_residual",
            True,
            "none",
            0.0,
            False,
            lanes,
            2,
            post_eps=1e-6,
        ),
        *(
            MatvecParams(
                *common,
                64,
                ONE,
                "rows",
                "f32",
                "store",
                True,
                norm,
                1e-5,
                False,
                lanes,
                2,
                then=then,
                factor=30.0,
            )
            for norm, then in (("layernorm", "gelu"), ("rmsnorm", "softcap"), ("none", "scale"))
        ),
        MatmulParams(*tile, 576, BLOCKED, "rows", "q8", "store", True, size, size),
        MatmulParams(*tile, 576, GATED[:1], "rows", "f32", "store", True, size, size, then="squared_relu"),
        MatmulParams(*tile, 576, MIXED, "rows", "f32", "residual", False, size, size),
        MatmulParams(*tile, 576, GATED, "rows", "q8", "gated", False, size, size, then="silu"),
        MatmulParams(*tile, 576, GATED, "rows", "f32", "gated", False, size, size, then="silu"),
    ]
