# %% [markdown]
# # Do the heads that vote also decide? Patch, cut, swap and replace what they read at the labels
#
# Shell: `python examples/02_patch_labels.py`
#
# A head whose attention on the labels votes for the model's answer may cause nothing. Here every head of the
# bundled model is put to four tests, each beside a control.

# %%
import icl_kernel_lens as ikl

model = ikl.load_model("mini")
task = ikl.load_task("topics")
prompts = task.prompts(model, demos=16, count=100, seed=0)
print(ikl.interventions.verify_interventions(model).to_string(index=False, float_format="%.0e"))

# %% [markdown]
# **Patching.** The same prompts with the two labels exchanged, every position unchanged. Which head, reading
# the labels of the clean run inside the corrupted one, brings the clean answer back?

# %%
corrupted = ikl.corrupt(prompts, "map_labels", seed=0)
print(corrupted.info.corruption)
edges = ikl.patch_labels(model, clean=prompts, corrupted=corrupted, offsets=(0,), progress=False)
print(edges.top(3).to_string(index=False, float_format="%.2f"))
print("share of the whole difference:", [f"{x:.2f}" for x in edges.normalised()[2, :, 0].tolist()])

# %% [markdown]
# **Where along the prompt?** The residual stream, layer by layer, at offsets from the label.

# %%
few = prompts.select(range(20))
stream = ikl.patch_labels(
    model, clean=few, corrupted=ikl.corrupt(few, "map_labels", seed=0), activation="residual", progress=False
)
print(stream.top(3).to_string(index=False, float_format="%.2f"))

# %% [markdown]
# **Knock-outs.** The answer no longer reads the labels, one head at a time; beside it, as many other keys
# and other keys of as much attention (where there is as much). Then the two heads together, and the ten others.

# %%
cut = ikl.knock_out(model, prompts, progress=False)
print(cut.top(3).to_string(index=False, float_format="%.2f"))
kernel = ["L2H1", "L2H3"]
every = [f"L{layer}H{head}" for layer in range(3) for head in range(4)]
sets = ikl.knock_out(
    model,
    prompts,
    heads=[kernel, [h for h in every if h not in kernel], every],
    controls=False,
    progress=False,
)
before = (sets.base_label_scores.argmax(1) == prompts.test_labels).float().mean()
print(f"accuracy {before:.2f} before,", end=" ")
for name, accuracy in zip(
    ("L2H1 L2H3", "the ten others", "all"), sets.accuracy(prompts.test_labels), strict=True
):
    print(f"{accuracy:.2f} without {name}", end="; " if name != "all" else "\n")

# %% [markdown]
# **Substitution.** The head's attention on the labels, shared out by another kernel. Its own changes nothing; if
# weighing all demonstrations alike is as good, the head is no kernel regression over the inputs.

# %%
own = ikl.substitute_kernel(model, prompts, "own", controls=False, progress=False)
print(f"its own weights: the largest change is {own.effect().abs().nan_to_num().max():.0e}")
uniform = ikl.substitute_kernel(model, prompts, "uniform", progress=False)
print(uniform.top(2).to_string(index=False, float_format="%.2f"))

# %% [markdown]
# **Swaps.** Two demonstrations' values exchanged: a head that regresses labels must move the answer by the
# difference of their weights, times what the label is worth in other prompts.

# %%
swaps = ikl.swap_values(model, prompts, progress=False)
print(swaps.prediction().head(2).to_string(index=False, float_format="%.2f"))

# %% [markdown]
# What each head writes straight into the label logits, and how well weight × label explains it.

# %%
direct = ikl.direct_logit_attribution(model, prompts, progress=False)
print(direct)

# %% [markdown]
# Figures: shown inline by a notebook, or saved.

# %%
print(cut.figure(), stream.figure())
