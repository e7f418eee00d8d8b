# %% [markdown]
# # What is the model's own kernel, and which head follows it?
#
# Shell: `python examples/05_influence.py`
#
# A head may agree with the answer for many reasons. So the model is asked first, as a whole: how far does the answer
# move when one demonstration's label is replaced? If it answers by kernel regression, that is the kernel.

# %%
import icl_kernel_lens as ikl
from icl_kernel_lens.influence.measure import influence_cost
from icl_kernel_lens.readouts import input_kernels

model = ikl.load_model("mini")
task = ikl.load_task("topics")
prompts = task.prompts(model, demos=8, count=96, sets=16, seed=0)
print(influence_cost(model, prompts))

# %% [markdown]
# Six test inputs share each set of demonstrations, so that the test input alone varies; the same demonstrations are shown
# in a second order, so that what belongs to a place drops out.

# %%
influence = ikl.label_influence(model, prompts, progress=False)
print(influence)

# %% [markdown]
# **Do single effects add up?** Of a kernel regression they do; where demonstrations are read in the light of each other, they
# do not.

# %%
for pattern in ("pair", "half", "all"):
    print(pattern, influence.additivity(pattern=pattern).r2)

# %% [markdown]
# **What does the kernel compare?** How much of it given kernels explain, on demonstration sets held out, each alone and all
# together. `encoders` may add the vectors of any text encoder.

# %%
kernels = input_kernels(model, prompts)
print(influence.compares(kernels).to_string(index=False, float_format="%.3f"))

# %% [markdown]
# **Which head follows it?** Weights and influence, within demonstration sets: one head of twelve fits. `p_family` is of the
# best of all heads.

# %%
evidence = ikl.read(model, prompts, progress=False)
fit = ikl.influence_fidelity(influence, evidence)
columns = ["head", "influence_fit", "low", "high", "control", "p_family", "other_order"]
print(fit.top(4)[columns].to_string(index=False, float_format="%.3f"))

# %% [markdown]
# It does not show that anything goes through that head.
#
# **How much goes through it?** The answer position reads one demonstration's label edge, in one head, from the run in which that
# label is replaced; what that moves, over the whole influence, is the head's share.

# %%
print(ikl.carried_influence(model, influence, prompts=[n for n in range(96) if n % 6 < 2], progress=False))

# %% [markdown]
# Figures: shown inline by a notebook, or saved.

# %%
print(influence.figure(), influence.additivity_figure())
print(influence.prompt_figure(evidence, [fit.best()]), fit.layer_figure())
