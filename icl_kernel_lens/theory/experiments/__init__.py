"""What Han et al. (2025, section 4.2) draw from Theorem 1, each as an experiment on a world.

    chosen_demos         similar demonstrations: a smaller bandwidth, less bias, more variance;
                         demonstrations near to pre-training, and far from it
    labels               labels from outside the label space, and wrong labels
    attention_kernels    exp(⟨v, v'⟩ / τ) beside the dot product: which kernel would attention have?

Predictions are compared with exact ones: with P(Y | x, θ*), the answer of one who knows the task, or with exact
Bayes. Does not show: anything about a language model; and what holds in one world need not hold in the next.
"""
