# %% [markdown]
# # Score every head of a small model, and look at the best one
#
# Shell: `python examples/01_score_heads.py`
#
# The bundled model learned, on documents with other topics and other label words, to answer from the
# demonstrations alone. Which of its twelve heads does the answering?

# %%
import icl_kernel_lens as ikl

model = ikl.load_model("mini")
task = ikl.load_task("topics")
prompts = task.prompts(model, demos=16, count=200, seed=0)
print(prompts)

# %% [markdown]
# Is there anything to explain? The accuracy with demonstrations, beside three conditions without them.

# %%
evidence = ikl.read(model, prompts, progress=False)
print(ikl.in_context_accuracy(model, prompts, evidence=evidence, progress=False))

# %% [markdown]
# Each head's attention on the labels, taken as kernel weights, votes; how often is the vote the model's
# own answer? The controls vote by simple rules. In a notebook, `vote` alone shows the head map.

# %%
vote = ikl.head_vote(evidence)
print(vote.top(5).to_string(index=False, float_format="%.3f"))

# %% [markdown]
# The best of twelve heads is too good on the prompts it was chosen on. Fresh documents, the same head
# (where test inputs come from a file, take two parts of one set instead: `prompts.select(range(100))`):

# %%
best = vote.best()
fresh = ikl.read(model, task.prompts(model, demos=16, count=200, seed=1), progress=False)
again = ikl.head_vote(fresh)
low, high = (edge[best] for edge in again.interval())
print(f"{best} on fresh prompts: {again.mean()[best]:.3f} (95 % interval {low:.3f} to {high:.3f})")
print(f"its strongest control there: {again.strongest_control()[0][best]:.3f}")

# %% [markdown]
# How many demonstrations share its vote, and how much of its attention is on their labels?

# %%
for score in (ikl.scores.effective_demos(fresh), ikl.scores.label_attention(fresh)):
    print(f"{score.title}: {score.mean()[best]:.2f} {score.unit}")

# %% [markdown]
# Figures are values: shown inline by a notebook, or saved.

# %%
figure = again.figure()
tokens = fresh.token_view([best])
print(figure)
print(tokens)
