"""Figures as people read them in a report."""

import math
from collections.abc import Mapping
from typing import Any

from .records import is_number


def perplexity_of(loss: float) -> str:
    return f"{math.exp(loss):,.1f}" if loss < 15 else f"{math.exp(loss):.1e}" if loss < 700 else "beyond measure"


def tokens_of(line: Mapping[str, Any]) -> int:
    return round(line["tokens"]) if is_number(line.get("tokens")) else 0


def figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: Any) -> str:
    if not is_number(seconds):
        return "unknown time"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
