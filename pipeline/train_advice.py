"""What the curves of a training say, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

# The validation loss of few clips trembles by some percent from epoch to epoch.
CLEAR_RISE: Final = 1.1
FEW_CLIPS: Final = 30


def advice(
    history: Sequence[Mapping[str, float]], best_epoch: int, validation_clips: int
) -> tuple[str, ...]:
    """Sentences for the owner of the data; none when there is nothing to say.

    Args:
        history: rows with `train_loss` and `validation_loss`, one per epoch.
        best_epoch: position of the row whose weights were kept.
    """
    said = []
    losses = [row["validation_loss"] for row in history]
    lowest = min(range(len(losses)), key=losses.__getitem__)
    learnt_on = history[-1]["train_loss"] < history[lowest]["train_loss"]
    if losses[-1] > CLEAR_RISE * losses[lowest] and learnt_on:
        said.append(
            f"The network overfits: after epoch {lowest + 1} it went on to learn its training "
            f"clips by heart (training loss {history[lowest]['train_loss']:.3g} to "
            f"{history[-1]['train_loss']:.3g}) and became worse on clips it had not seen "
            f"(validation loss {losses[lowest]:.3g} to {losses[-1]:.3g}). The weights of epoch "
            f"{best_epoch + 1} were kept. More clips help most, then more dropout or weight "
            "decay, then fewer clusters."
        )
    elif lowest == len(losses) - 1 and len(losses) > 1:
        said.append(
            "The validation loss was still falling in the last epoch: more epochs may help."
        )
    if validation_clips < FEW_CLIPS:
        said.append(
            f"Only {validation_clips} clips checked the result: its figures are rough, and so "
            "are the thresholds."
        )
    return tuple(said)
