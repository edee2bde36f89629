"""The loop of a training: steps are shown, and the loss is recorded and must stay finite."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

LOSS_EVERY = 50  # steps averaged into one entry of the loss history


def looped(
    advance: Callable[[Any], tuple[Any, Array]], state: Any, count: int, *, remedy: str,
    progress: bool, after: Callable[[int, Any], None] = lambda step, state: None,
) -> tuple[Any, np.ndarray]:  # fmt: skip
    """The state after `count` steps of `advance`, each told to `after`, and the mean over each 50
    of the loss, or of the parts `[P]` that add up to it.

    Raises:
        FloatingPointError: if the loss stops being finite, with the remedy for it.
    """
    losses, recent = [], []
    for step in _shown(count, progress, losses):
        state, loss = advance(state)
        recent.append(loss)
        after(step, state)
        if len(recent) == LOSS_EVERY or step == count:
            losses.append(np.mean(jax.device_get(recent), axis=0).tolist())
            if not np.isfinite(total := float(np.sum(losses[-1]))):
                raise FloatingPointError(f"the loss became {total} by step {step}: {remedy}")
            recent = []
    return state, np.array(losses)


def _shown(count: int, progress: bool, losses: list[Any]) -> Iterable[int]:
    """Yields the steps from 1, showing how fast they go and the latest loss."""
    if not progress:
        yield from range(1, count + 1)
        return
    from tqdm import tqdm

    with tqdm(total=count, desc="training", unit="step") as bar:
        for step in range(1, count + 1):
            yield step
            bar.update()
            if losses and step % LOSS_EVERY == 0:
                bar.set_postfix(loss=f"{np.ravel(losses[-1])[0]:.4f}", refresh=False)
