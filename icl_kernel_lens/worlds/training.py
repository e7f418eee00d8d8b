"""Training a model from nothing on a world: one loop, its evaluation curve and its record.

What the loss is and what is measured is the world's to say. The same seed and number of threads give the same weights
on the same machine and library versions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long and how fast a model is trained; a world adds what it needs."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int
    weight_decay: float = 0.01
    measure_every: int = 100
    threads: int = 1
    seed: int = 0


def train(
    model: torch.nn.Module,
    settings: Training,
    losses: Callable[[], tuple[Tensor, Tensor]],
    measure: Callable[[], Mapping[str, float]],
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a model in place by AdamW, and return the record: settings, time, versions, evaluation curve.

    Each step draws a batch by `losses()`: what is minimised, and the part of it that the curve shows. The learning
    rate rises over `warmup` steps and falls as √(1 − step/steps). `measure()` is called after the first and every
    `measure_every`-th step; its last number stands in the progress bar.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / settings.warmup, max(0.0, 1 - step / settings.steps) ** 0.5),
    )
    curve: list[dict[str, float]] = []
    started = time.perf_counter()
    with _threads(settings.threads), tqdm(total=settings.steps, disable=not progress, unit="step") as bar:
        for step in range(1, settings.steps + 1):
            minimised, shown = losses()
            minimised.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if step % settings.measure_every == 0 or step == 1:
                curve.append({"step": step, "loss": shown.item(), **measure()})
                name, value = list(curve[-1].items())[-1]
                bar.set_postfix({"loss": f"{shown.item():.3f}", name: f"{value:.3f}"})
            bar.update()
    return {
        "plan": asdict(settings),
        "seconds": round(time.perf_counter() - started, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
        "curve": curve,
    }


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
