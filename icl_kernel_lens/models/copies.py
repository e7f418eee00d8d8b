"""Copies a Hugging Face model without its weights, so that what TransformerLens builds into the copy leaves the user's alone.

Also: which of a model's weights are no plain floats, and a short digest that tells two models of one name apart.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from icl_kernel_lens.errors import LoadError

SAMPLED = 256
"""Numbers of each weight that enter a digest."""


def copy_of(
    model: Any,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    apart: Iterable[nn.Module] = (),
) -> Any:
    """A copy of a model's modules and configuration over the same weights, in evaluation mode, with eager attention.

    Weights that must be on another device or of another type are copied, and so are those of the modules `apart`. Hooks
    of the user's are in the copy, too: the same functions, in places of their own.

    Raises: LoadError: the model cannot be copied, or not to this device.
    """
    own = {id(tensor) for module in apart for tensor in _tensors(module)}
    try:
        memo: dict[int, Any] = {
            id(tensor): _placed(tensor, device, dtype) for tensor in _tensors(model) if id(tensor) not in own
        }
    except (RuntimeError, AssertionError) as error:
        raise LoadError(
            f"the model cannot be moved to device {str(device)!r}: {error}", code="device"
        ) from error
    memo |= {id(hook): hook for hook in _hooks(model)}
    try:
        copied = deepcopy(model, memo)
    except Exception as error:  # what a user has put on a model may refuse in any way
        raise LoadError(
            f"a model must be copied before it is put under TransformerLens, so that yours stays as it is; this "
            f"{type(model).__name__} cannot be: {type(error).__name__}: {error}. Take off what you put on it, or save it "
            "with save_pretrained(folder) and load the folder.",
            code="model-kind",
        ) from error
    base = copied.get_base_model() if hasattr(copied, "get_base_model") else copied
    base.set_attn_implementation("eager")
    return copied.eval()


def _placed(tensor: Tensor, device: torch.device | str | None, dtype: torch.dtype | None) -> Tensor:
    """A tensor itself where it is as asked for, else a copy that is."""
    to = dtype if tensor.is_floating_point() else None
    if (device is None or _is_on(tensor, torch.device(device))) and to in (None, tensor.dtype):
        return tensor  # what holds packed numbers may not allow even a move to where it is
    with torch.no_grad():
        moved = tensor.to(device=device, dtype=to)
    if moved is tensor or not isinstance(tensor, nn.Parameter):
        return moved
    return nn.Parameter(moved, requires_grad=tensor.requires_grad)


def _is_on(tensor: Tensor, device: torch.device) -> bool:
    """Whether it is there; "cuda" is any."""
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _hooks(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        for name, held in vars(module).items():
            if name.endswith("_hooks") and isinstance(held, dict):
                yield from held.values()


def quantised_parts(hf: nn.Module) -> dict[str, str]:
    """Modules whose weights are no plain floats, and what they are: 8-bit and 4-bit numbers beside their scales."""
    found = {}
    for name, module in hf.named_modules():
        held = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for key, tensor in held:
            plain = type(tensor) in (Tensor, nn.Parameter)
            if "weight" in key and not (plain and tensor.is_floating_point() and tensor.element_size() > 1):
                found[name] = str(tensor.dtype).removeprefix("torch.") if plain else type(tensor).__name__
    return found


def quantisation_of(hf: Any) -> tuple[str, str] | None:
    """How a model's weights are quantised, in a word and in words; None where they are floats."""
    kinds = Counter(quantised_parts(hf).values())
    if not kinds:
        return None
    settings = getattr(hf.config, "quantization_config", None)
    settings = settings if isinstance(settings, dict) or settings is None else settings.to_dict()
    method = (settings or {}).get("quant_method")
    method = getattr(method, "value", method)
    most = kinds.most_common(1)[0][0]
    counted = " and ".join(f"{kind} weights in {count} modules" for kind, count in kinds.most_common())
    return most, counted + (f", by {method}" if method else "")


def digest_of(hf: nn.Module) -> str:
    """Six digits that differ where weights do: of some numbers of each, evenly spread, its name and shape."""
    found = hashlib.sha256()
    for name, tensor in (*hf.named_parameters(), *hf.named_buffers()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        for held in parts_of(tensor):
            if held.device.type == "meta" or not held.numel():
                continue
            numbers = held.detach().reshape(-1)
            some = numbers[:: max(1, len(numbers) // SAMPLED)][:SAMPLED]
            found.update(some.double().cpu().numpy().tobytes())
    return found.hexdigest()[:6]


def parts_of(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that a packed one, such as torchao's, consists of; a plain one is itself."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:  # pyright: ignore[reportAttributeAccessIssue]
        yield from parts_of(getattr(tensor, name))
