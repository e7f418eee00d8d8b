"""Prompts: tokens, and where every demonstration, text and label sits."""

from icl_kernel_lens.prompts.build import build_prompts, prompts_from, rebuilt
from icl_kernel_lens.prompts.fit import check_fits
from icl_kernel_lens.prompts.promptset import PromptInfo, PromptSet, Role

__all__ = ["PromptInfo", "PromptSet", "Role", "build_prompts", "check_fits", "prompts_from", "rebuilt"]
