"""Prompts: token ids, and where every demonstration, text and label sits."""

from icl_kernel_lens.prompts.build import build_prompts, rebuilt
from icl_kernel_lens.prompts.corruptions import corrupt
from icl_kernel_lens.prompts.example import Episode, Example
from icl_kernel_lens.prompts.fit import check_fits
from icl_kernel_lens.prompts.promptset import PromptInfo, PromptSet, TokenRole
from icl_kernel_lens.prompts.template import Template

__all__ = [
    "Episode",
    "Example",
    "PromptInfo",
    "PromptSet",
    "Template",
    "TokenRole",
    "build_prompts",
    "check_fits",
    "corrupt",
    "rebuilt",
]
