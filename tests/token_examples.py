"""The kernel of a whole token for a model of one layer, from launches written by hand."""

from __future__ import annotations

from forgec.plan.persistent import persist
from forgec.plan.program import Launch, Ref
from forgec.plan.stages import (
    AttentionDecodeParams,
    EmbeddingParams,
    KVCache,
    MatvecParams,
    RopeFields,
    SampleParams,
    Segment,
    StageParams,
)
from forgec.targets import Target

__all__ = ["token_examples", "token_launches"]

E, F, HEADS, KV_HEADS, VOCABULARY, CONTEXT = 64, 96, 4, 2, 99, 128


def token_launches(target: Target, act: str, length: int = 16) -> list[Launch]:
    """One layer of a llama with biases, activations "q8" or "f32"; addresses are distinct, no more.

    Heads have ``length`` elements.
    """
    values, rows = HEADS * length, KV_HEADS * length
    common = (target.family, target.wave, target.block_size)
    state = Ref("state", 0)
    x, q, mixed, h = (Ref("arena", 4096 * i) for i in range(4))
    at = iter(Ref("weights", 4096 * i) for i in range(100))
    rope = RopeFields(HEADS, KV_HEADS, length, length, False, CONTEXT, "f16")
    cache = KVCache(KV_HEADS, length, length, CONTEXT, "f16")
    qkv = (Segment("q4_1", values), Segment("q4_1", rows), Segment("q8_0", rows))
    gated = (Segment("q4_0", F), Segment("q4_1", F))
    wide = ("none", 0.0, False, 16, 2)
    normed = ("rmsnorm", 1e-5, False, 16, 2)
    caches = (Ref("kv", 0), Ref("kv", 8192))
    weights = [next(at) for _ in range(12)]
    return [
        Launch(
            EmbeddingParams(*common, "q8_0", "rows", E, VOCABULARY, True),
            1,
            (state, Ref("tokens", 0), next(at), x),
            "embedding",
        ),
        Launch(
            MatvecParams(*common, E, qkv, "rows", "f32", "rope_kv", True, *normed, rope),
            1,
            (state, x, next(at), *weights[:6], next(at), q, *caches),
            "layer0.attn_qkv",
        ),
        Launch(
            AttentionDecodeParams(*common, HEADS, cache, 0.25, splits=2, lanes_per_key=2),
            1,
            (state, q, *caches, Ref("arena", 65536), Ref("sync", 0), mixed),
            "layer0.attention",
        ),
        Launch(
            MatvecParams(*common, values, (Segment("q4_1", E),), "rows", act, "residual", True, *wide),
            1,
            (state, mixed, next(at), next(at), x, x),
            "layer0.attn_output",
        ),
        Launch(
            MatvecParams(*common, E, gated, "rows", act, "gated", True, *normed, then="silu"),
            1,
            (state, x, next(at), *weights[6:8], *weights[8:10], h),
            "layer0.ffn_gate",
        ),
        Launch(
            MatvecParams(*common, F, (Segment("q4_1", E),), "rows", act, "residual", False, *wide),
            1,
            (state, h, next(at), x, x),
            "layer0.ffn_down",
        ),
        Launch(
            MatvecParams(
                *common,
                E,
                (Segment("q8_0", VOCABULARY),),
                "rows",
                "f32",
                "store",
                False,
                *normed,
                then="softcap",
                factor=30.0,
            ),
            1,
            (state, x, next(at), next(at), Ref("logits", 0)),
            "output",
        ),
        Launch(SampleParams(*common, VOCABULARY), 1, (state, Ref("logits", 0), Ref("ring", 0)), "sample"),
    ]


def token_examples(target: Target) -> list[StageParams]:
    """The kernel in both maths, on targets that have one, with attention on matrix units, stamping clocks."""
    if target.wave != 32:
        return []
    forms = [("fast", "q8", 16), ("exact", "f32", 16)]
    if target.matrix == "mma.sync":
        forms.append(("fast", "q8", 64))
    made = [
        persist(token_launches(target, act, length), {}, target, math, 1 << 20) for math, act, length in forms
    ]
    timed = [] if made[0].timed is None else [made[0].timed.kernel]
    return [*(p.launch.kernel for p in made), *timed]
