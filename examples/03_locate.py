# %% [markdown]
# # Which heads are kernel-regression heads? Chosen on half of the prompts, confirmed on the other half
#
# Shell: `python examples/03_locate.py`
#
# The best of many heads always looks good on the prompts it was chosen on. Here all heads of the bundled model are
# tested on one half of the prompts, and what that singles out is measured again on the other half: does the head
# vote for the answer, do its weights follow the inputs, and does the answer need what it reads at the labels?

# %%
import copy

import torch

import icl_kernel_lens as ikl
from icl_kernel_lens.locate.ablation import ablation_curves
from icl_kernel_lens.locate.search import locate_heads

model = ikl.load_model("mini")
task = ikl.load_task("topics")
prompts = task.prompts(model, demos=16, count=400, seed=0)
ranking = locate_heads(model, prompts, progress=False)
print("kernel heads:", *ranking.heads)
print("the band:", ranking.band)

# %% [markdown]
# **Classes.** A head that agrees with the answer is no kernel head if its weights follow the label words (word
# preference) or the answer itself (echo), or if nothing is lost without it (shadow). What is wider than the smallest
# effect of interest stays undetermined.

# %%
columns = [
    "head",
    "class",
    "agreement",
    "control",
    "margin_low",
    "label_shift",
    "word_bound_shift",
    "logit_diff_drop",
]
print(ranking.table()[columns].to_string(index=False, float_format="%.2f"))
print(ranking.criteria)

# %% [markdown]
# **Nothing where nothing is.** The same architecture with random weights: its best head agrees with the answer more
# often than not too, but no head is confirmed.

# %%
blank = copy.deepcopy(model)
torch.manual_seed(0)
for weights in blank.parameters():
    torch.nn.init.normal_(weights, std=0.2)
nothing = locate_heads(blank, prompts, progress=False)
print(f"best agreement {nothing.columns['agreement'].max():.2f}; kernel heads:", nothing.heads or "none")

# %% [markdown]
# **Necessity and sufficiency**, on prompts that no head was located on: accuracy as the answer no longer reads the
# labels through the located heads, and as it reads them through these alone; beside random sets of other heads.

# %%
fresh = task.prompts(model, demos=16, count=200, seed=1)
curves = ablation_curves(model, fresh, ranking, progress=False)
print(curves)
share, low, high = curves.sufficiency()
print(f"alone they restore {share[-1]:.0%} ({low[-1]:.0%} to {high[-1]:.0%}) of ceiling − floor")

# %% [markdown]
# Figures: shown inline by a notebook, or saved.

# %%
print(ranking.figure(), curves.figure())
