"""The parameter objects of every stage: what a template may know, already legal and divided."""

from __future__ import annotations

from forgec.plan.stages.attention import (
    AttentionDecodeParams,
    AttentionParams,
    AttentionPrefillParams,
    MaskParams,
    QKParams,
    ScaleParams,
    SoftmaxParams,
    WeightedVParams,
)
from forgec.plan.stages.base import Arg, StageParams
from forgec.plan.stages.cache import KVCache
from forgec.plan.stages.elementwise import ElementwiseParams, KVAppendParams, RopeParams, SampleParams
from forgec.plan.stages.experts import (
    ExpertDownParams,
    ExpertGatherParams,
    ExpertMatmulParams,
    ExpertSumParams,
    ExpertUpParams,
    RouterParams,
    SharedExpert,
)
from forgec.plan.stages.latent import HeadMatvecParams, LatentParams
from forgec.plan.stages.linear import (
    POINTWISE,
    EmbeddingParams,
    LinearParams,
    MatmulParams,
    MatvecParams,
    NormParams,
    NormRopeKVParams,
    QuantiseParams,
    RopeFields,
    RopeKVParams,
    Segment,
)
from forgec.plan.stages.token import TokenParams

__all__ = [
    "POINTWISE",
    "Arg",
    "AttentionDecodeParams",
    "AttentionParams",
    "AttentionPrefillParams",
    "ElementwiseParams",
    "EmbeddingParams",
    "ExpertDownParams",
    "ExpertGatherParams",
    "ExpertMatmulParams",
    "ExpertSumParams",
    "ExpertUpParams",
    "HeadMatvecParams",
    "KVAppendParams",
    "KVCache",
    "LatentParams",
    "LinearParams",
    "MaskParams",
    "MatmulParams",
    "MatvecParams",
    "NormParams",
    "NormRopeKVParams",
    "QKParams",
    "QuantiseParams",
    "RopeFields",
    "RopeKVParams",
    "RopeParams",
    "RouterParams",
    "SampleParams",
    "ScaleParams",
    "Segment",
    "SharedExpert",
    "SoftmaxParams",
    "StageParams",
    "TokenParams",
    "WeightedVParams",
]
