"""Label influence: the model's own kernel, measured without looking inside, and the heads that follow it."""
