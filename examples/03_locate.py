# %% [markdown]
# # Which heads are kernel-regression heads? Chosen on half of the prompts, confirmed on the other half
#
# Shell: `python examples/03_locate.py`
#
# The model's own kernel is how far each demonstration's label pulls the answer, and what of that belongs to the pair of test
# input and demonstration. Heads of the bundled model are singled out on one half of the prompts and held against that kernel on
# the other: do a head's weights follow it, do its values carry labels to the answer, and does it do so by itself?

# %%
import copy

import torch

import icl_kernel_lens as ikl
from icl_kernel_lens.locate.ablation import ablation_curves
from icl_kernel_lens.locate.search import locate_heads

model = ikl.load_model("mini")
task = ikl.load_task("topics")
prompts = task.prompts(model, demos=8, count=128, sets=64, seed=0)
ranking = locate_heads(model, prompts, progress=False)
print(ranking.verdict())
print("the band:", ranking.band)

# %% [markdown]
# **Test inputs share demonstrations** (`sets=`), so that the test input alone varies. Where all prompts have the same label words,
# prompts drawn apart are crossed with one another instead.
#
# **Classes.** All six conditions hold of a kernel head. The weights of a pair kernel go with more than the input: with the label
# beside it, or with its place. A head whose weights follow the label words is a word preference, one that follows the answer
# formed below it an echo, one that carries nothing a shadow. Where an interval reaches over the smallest effect of interest, the
# condition is undetermined.

# %%
columns = [
    "head",
    "class",
    "fit",
    "fit_low",
    "swap_slope",
    "input_shift",
    "transport",
    "transport_low",
    "zeroed",
    "fit_cut_below",
    "label_shift",
]
print(ranking.table()[columns].head(6).to_string(index=False, float_format="%.2f", na_rep="–"))
print(f"of the model's own kernel, the slope is {ranking.slope_of_model:.2f}")
for head in ranking.heads:
    print(ranking.why(head))
print(ranking.joint_table().to_string(index=False, float_format="%.2f", na_rep="–"))

# %% [markdown]
# **Nothing where nothing is.** The same architecture with random weights has no kernel part, and no head is located.

# %%
blank = copy.deepcopy(model)
torch.manual_seed(0)
for weights in blank.parameters():
    torch.nn.init.normal_(weights, std=0.2)
nothing = locate_heads(blank, prompts, offsets=(0,), progress=False)
print(nothing.verdict())
print("located heads:", nothing.heads or "none")

# %% [markdown]
# **Necessity and sufficiency**, on prompts that no head was located on: accuracy as the answer no longer reads the
# labels through the located heads, and as it reads them through these alone; beside random sets of other heads.

# %%
fresh = task.prompts(model, demos=8, count=200, seed=1)
curves = ablation_curves(model, fresh, ranking, progress=False)
print(curves)
share, low, high = curves.sufficiency()
print(f"alone they restore {share[-1]:.0%} ({low[-1]:.0%} to {high[-1]:.0%}) of ceiling − floor")

# %% [markdown]
# Figures: shown inline by a notebook, or saved.

# %%
print(ranking.figure(), curves.figure())
