"""What the texts of a run are called.

A run is evaluated on `eval_train`, which is its training text, on `validation`, which `data.validation_*` names, and
on `validation/<name>`, which `evaluation.datasets` names. Under these names they stand in metrics and in
environment.json (where the first is `training`).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

TRAINING, VALIDATION = "eval_train", "validation"


def text_of(name: str) -> str:
    """The text that `evaluation.datasets` calls `name`."""
    return f"{VALIDATION}/{name}"


def loss_of(text: str) -> str:
    """The metric that is the loss on a text."""
    return f"{text}_loss"


def bits_of(text: str) -> str:
    """The metric that is the bits per byte of a text."""
    return "bits_per_byte" if text == VALIDATION else f"{text}_bits_per_byte"


def recorded_as(text: str) -> str:
    """Its name in environment.json's `sources`."""
    return "training" if text == TRAINING else text


def label_of(text: str) -> str:
    """What people read: `training text`, `validation text`, or the text's own name."""
    return text.partition("/")[2] or f"{recorded_as(text)} text"


def loss_label(text: str) -> str:
    """What people read of its loss: `training loss`, `validation loss`, or `loss on` and the text's own name."""
    return f"loss on {label_of(text)}" if is_further(text) else label_of(text).replace("text", "loss")


def judging(texts: Iterable[str], best_on: str | None = None) -> str | None:
    """The validation text that `best` follows: the one that `best_on` names, else the first; None if there is none."""
    found = [text for text in texts if text != TRAINING]
    return text_of(best_on) if best_on is not None else next(iter(found), None)


def evaluated_in(metrics: Iterable[Mapping[str, Any]]) -> list[str]:
    """The texts whose losses stand in lines of metrics: the validation text first, then the named ones."""
    named = dict.fromkeys(found[1] for line in metrics for key in line if (found := _LOSS.fullmatch(key)))
    return sorted(named, key=lambda text: "/" in text)


def is_further(name: str) -> bool:
    """Whether a text, or what a metric is of, is one that `evaluation.datasets` names."""
    return name.startswith(text_of(""))


_LOSS = re.compile(rf"({VALIDATION}(?:/.+)?)_loss")
