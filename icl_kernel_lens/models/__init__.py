"""Access to models: the only place that imports transformer_lens."""

from icl_kernel_lens.models.fast import fast_attention
from icl_kernel_lens.models.lens import Lens, LensShape, as_lens
from icl_kernel_lens.models.load import (
    LoadRecord,
    bridge_from_hf,
    hooked_from_hf,
    load_model,
    load_record,
)
from icl_kernel_lens.models.probe import ProbeReport, probe

__all__ = [
    "Lens",
    "LensShape",
    "LoadRecord",
    "ProbeReport",
    "as_lens",
    "bridge_from_hf",
    "fast_attention",
    "hooked_from_hf",
    "load_model",
    "load_record",
    "probe",
]
