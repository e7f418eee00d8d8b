"""Reading a model: the one place that runs it to look."""

from icl_kernel_lens.evidence.evidence import Evidence
from icl_kernel_lens.evidence.read import answer, read

__all__ = ["Evidence", "answer", "read"]
