"""Small legal parameters of the stages of experts and latent attention, for every target."""

from __future__ import annotations

from forgec.ir.expert_ops import Routing
from forgec.plan.stages import (
    ExpertDownParams,
    ExpertGatherParams,
    ExpertMatmulParams,
    ExpertSumParams,
    ExpertUpParams,
    HeadMatvecParams,
    LatentParams,
    RouterParams,
    SharedExpert,
    StageParams,
)
from forgec.plan.stages.cache import KVCache
from forgec.targets import get_target

__all__ = ["expert_examples"]

ROUTING = Routing(64, 6, "sigmoid", True, 2.5, 8, 3)
SHARED = SharedExpert("q8_0", "q8_0", "q8_0", 512, True)


def expert_examples(target_name: str) -> list[StageParams]:
    """Every stage, with and without a shared expert and biases, of float and int8 activations."""
    target = get_target(target_name)
    common = (target.family, target.wave, target.block_size)
    tile = (*common[:2], 256 if target.wave > 1 else 1)
    lanes = min(8, target.wave)
    simple = Routing(32, 4, "softmax_chosen")
    first = ("sorted", 384, 16, 64)
    return [
        RouterParams(*common, ROUTING, True, 16),
        ExpertUpParams(
            *common,
            ROUTING,
            True,
            "q4_1",
            "q4_0",
            512,
            384,
            False,
            "silu",
            SHARED,
            "rmsnorm",
            1e-6,
            "q8",
            lanes,
            2,
        ),
        ExpertUpParams(
            *common,
            simple,
            False,
            "f16",
            "f16",
            512,
            384,
            True,
            "clamped",
            None,
            "none",
            0.0,
            "f32",
            lanes,
            2,
        ),
        ExpertDownParams(*common, 64, 6, "q4_1", 512, 384, False, "q8_0", 512, 1.0, True, "q8", lanes, 2),
        ExpertDownParams(*common, 32, 4, "bf16", 512, 384, True, "", 0, 0.5, False, "f32", lanes, 2),
        ExpertGatherParams(*common, 512, 512, 6, "sorted", "f32"),
        ExpertGatherParams(*common, 128, 192, 16, "heads", "q8"),
        ExpertMatmulParams(*tile, 512, 384, 64, ("q4_1", "q4_0"), "silu", False, "q8", *first),
        ExpertMatmulParams(*tile, 512, 384, 32, ("f16", "f16"), "clamped", True, "f32", *first),
        ExpertMatmulParams(*tile, 128, 512, 16, ("q8_0",), "", False, "f32", "heads", 576, 64, 64),
        ExpertSumParams(*common, 512, 6, 1.0, "gated", True),
        ExpertSumParams(*common, 512, 4, 0.25, "none", False),
        HeadMatvecParams(*common, 16, "q8_0", 512, 128, 192, 576, lanes, 2),
        LatentParams(*common, 16, 128, 64, True, 1e-6, KVCache(1, 576, 512, 512, "f16", v_from_k=True)),
    ]
