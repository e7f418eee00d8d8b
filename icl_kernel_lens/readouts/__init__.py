"""Readouts: what a head's attention does to the label logits, and what it goes along with."""

from icl_kernel_lens.readouts.direct_logits import DirectLogits, ValueSide, direct_logits
from icl_kernel_lens.readouts.saliency import Saliency, saliency
from icl_kernel_lens.readouts.similarity import prediction_similarity

__all__ = [
    "DirectLogits",
    "Saliency",
    "ValueSide",
    "direct_logits",
    "prediction_similarity",
    "saliency",
]
