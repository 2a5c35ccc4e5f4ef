"""Which ops fuzzing treats in a way of their own."""

from pathlib import Path

from fuzz_fitting import SEQUENCES

# Where the processor multiplies bfloat16 itself, these round what they multiply to it.
ROUNDS_FACTORS = (
    ("FlashAttention", "FusedLinearCrossEntropy") if "avx512_bf16" in Path("/proc/cpuinfo").read_text() else ()
)
# Ops that visit every row of a matrix even where rows hold no numbers: 2^31 of them take half a minute.
VISIT_EMPTY_ROWS = ("FusedLinearCrossEntropy", "FusedLinearCrossEntropyGrad")
# Ops that refuse some values and shapes which their schemas allow: an error is right for them, too.
STRICTER = (
    "AdamW",
    "AdamWMaster",
    "AdamWRows",
    "BatchedNms",
    "DeformConv2d",
    "DeformConv2dGrad",
    "CrfDecode",
    "CrfLogLikelihood",
    "CrfLogLikelihoodGrad",
    "CrfMarginals",
    "DropoutAdd",
    "DropoutAddGrad",
    "EmbeddingBag",
    "EmbeddingBagGrad",
    "EmbeddingBagMax",
    "EmbeddingBagMaxGrad",
    "EmbeddingBagWeightsGrad",
    "FlashAttention",
    "FlashAttentionGrad",
    "FlashAttentionVarlen",
    "FlashAttentionVarlenGrad",
    "FusedLinearCrossEntropy",
    "FusedLinearCrossEntropyGrad",
    "GridSample",
    "GridSample3d",
    "GridSample3dGrad",
    "GridSampleGrad",
    "MedianFilter2d",
    "RandAugment",
    "RoiAlign",
    "RoiAlignGrad",
    "RoiPool",
    "RoiPoolGrad",
    "RotaryEmbedding",
    "SoftmaxCrossEntropy",
    "SoftNms",
    "SoftmaxCrossEntropyGrad",
    *SEQUENCES,
)
