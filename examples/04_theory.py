# %% [markdown]
# # Does kernel regression over operators approach Bayesian prediction? On hidden Markov worlds both are computed exactly
#
# Shell: `python examples/04_theory.py`
#
# Theorem 1 of Han et al. (TMLR 2025) says so of the kernel K(x, x') = vec(T_x)ᵀ Σ⁻¹ vec(T_x'), with T_x the operator
# of an input. No language model here, and nothing trained: the world's parameters are known.

# %%
import icl_kernel_lens.theory as theory

world = theory.preset("han2025")
print(world.describe())

# %% [markdown]
# **Theorem 1 measured.** The distance to exact Bayes falls somewhat slower than n^(−1/2); the paper's printed numbers fall
# faster, then stay. `scored` is the share of prompts with a prediction: K can be negative, and a ratio that is noise is refused.

# %%
measured = theory.measure_theorem(world, trials=300)
print(measured)
print(measured.beside_paper().to_string(index=False, float_format="%.3f"))
print(measured.rate())

# %% [markdown]
# **The bound** that the theorem states is far from these numbers.

# %%
print(theory.theorem_terms(world))

# %% [markdown]
# **Which operator?** With infinitely many demonstrations, dividing T_x by P(x | p_pre), the moment of pre-training and the ratio of
# Eq. 6 give P(Y | x, θ) for every task; the operator as printed does not. (A world of condition 1e3, where float64 can tell.)

# %%
print(theory.compare_variants(theory.preset("wide")))

# %% [markdown]
# **Which kernel would softmax attention have?** exp(⟨v, v'⟩/τ) on the same features, τ chosen on one half of the trials and
# told of the other.

# %%
softmax = theory.softmax_kernels(world, trials=100)
print(softmax)

# %% [markdown]
# **Similar demonstrations**: less bias and more variance for a plain vote; nothing to gain for a kernel without bias.

# %%
print(theory.retrieve_similar(world, trials=30, draws=30))

# %% [markdown]
# Figures: shown inline by a notebook, or saved. `icl-kernel-lens theory --out theory` computes and writes all of it.

# %%
print(measured.figure(), softmax.figure())
