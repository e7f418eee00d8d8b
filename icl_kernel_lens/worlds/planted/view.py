"""What a planted model's closed form knows of a prompt: the features of its inputs, its labels, its test input's class."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot, pad

from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.worlds.planted.world import PlantedWorld


class View(NamedTuple):
    """Prompts as the closed form takes them, one a row."""

    tokens: Int[Tensor, "prompt pos"]
    x: Float[Tensor, "prompt feature"]
    """φ of the test input."""
    shown: Float[Tensor, "prompt demo feature"]
    """φ of the demonstrations' inputs."""
    labels: Float[Tensor, "prompt demo label"]
    """The demonstrations' labels, one-hot."""
    test: Int[Tensor, " prompt"]
    """The class of the test input."""
    size: Float[Tensor, " prompt"]
    """How large the test input's token stands in the stream."""

    @property
    def alike(self) -> Float[Tensor, "prompt demo"]:
        """φ(x)·φ(x_i)."""
        return (self.shown @ self.x[..., None]).squeeze(-1)

    @property
    def before(self) -> Float[Tensor, "prompt demo feature"]:
        """φ of the input of the demonstration before; 0 for the first."""
        return pad(self.shown[:, :-1], (0, 0, 1, 0))

    def repeated(self, times: int) -> View:
        """Every prompt so many times, one behind another."""
        return View(*(field.repeat_interleave(times, 0) for field in self))


def view_of(world: PlantedWorld, prompts: PromptSet) -> View:
    """The view of a planted world's own prompts, corrupted ones too.

    Raises: PromptError: prompts of another world.
    """
    width, at = world.length(prompts.demos), world.label_positions(prompts.demos)
    if prompts.tokens.shape[1] < width or int(prompts.tokens.max()) >= world.vocab:
        raise PromptError(
            "the closed form speaks of a planted model's own prompts; draw them with .prompts().",
            code="prompts-differ",
        )
    tokens = prompts.tokens[:, :width]
    phi, test = world.features[tokens], width - 1 - world.trailing
    labels = one_hot(prompts.demo_labels, world.labels).double()
    asked = tokens[:, test]
    return View(tokens, phi[:, test], phi[:, at - 1], labels, world.classes[asked], world.sizes[asked])
