"""Loads models, verifies them and takes their attention over: the only place that imports transformer_lens."""

from icl_kernel_lens.models.adapter import ModelAdapter, ModelShape, as_adapter
from icl_kernel_lens.models.fast import fast_attention
from icl_kernel_lens.models.load import LoadRecord, bridge_from_hf, hooked_from_hf, load_model, load_record
from icl_kernel_lens.models.verify import VerificationReport, verify_model

__all__ = [
    "LoadRecord",
    "ModelAdapter",
    "ModelShape",
    "VerificationReport",
    "as_adapter",
    "bridge_from_hf",
    "fast_attention",
    "hooked_from_hf",
    "load_model",
    "load_record",
    "verify_model",
]
