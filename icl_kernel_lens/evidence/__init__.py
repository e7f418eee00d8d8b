"""Reads models: answer rows reduced to demonstration weights, and the model's answers."""

from icl_kernel_lens.evidence.reading import answer, evidence_from_cache, read
from icl_kernel_lens.results.evidence import Evidence

__all__ = ["Evidence", "answer", "evidence_from_cache", "read"]
