"""Reads out what a head's attention does to the label logits, and what it goes along with."""

from icl_kernel_lens.readouts.gradients import saliency
from icl_kernel_lens.readouts.kernels import input_kernels
from icl_kernel_lens.readouts.logit_attribution import direct_logit_attribution
from icl_kernel_lens.readouts.similarity import prediction_similarity

__all__ = [
    "direct_logit_attribution",
    "input_kernels",
    "prediction_similarity",
    "saliency",
]
