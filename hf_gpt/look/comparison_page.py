"""Several runs side by side, aligned by steps, tokens and time."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..report import RunRecord, is_number, short
from .overfitting import turning_point
from .report_html import escaped, grid, legend, page, section, swatch, table, view_chooser
from .run_pictures import loss_views, run_labels, training_pictures
from .wording import duration, perplexity_of, tokens_of


def comparison_page(runs: Sequence[RunRecord]) -> str:
    """The page that compares runs, aligned by steps, tokens and time."""
    labels = run_labels(runs)
    turns = [turning_point(run.metrics) for run in runs]
    rows = []
    for number, (run, turn) in enumerate(zip(runs, turns)):
        validated = [line for line in run.evaluated if is_number(line.get("validation_loss"))]
        best = min(validated, key=lambda line: line["validation_loss"], default=None)
        lowest = "not validated"
        if best is not None:
            loss = best["validation_loss"]
            lowest = f"{loss:.3f} at step {best['step']:,} (perplexity {perplexity_of(loss)})"
        speeds = sorted(x["tokens_per_second"] for x in run.trained if is_number(x.get("tokens_per_second")))
        rows.append(
            (
                f"{swatch(number)} {escaped(labels[number], 100)}",
                lowest,
                f"from step {turn.step:,}" if turn else "not seen",
                f"{run.last.get('step', 0):,}",
                short(tokens_of(run.last)),
                duration(run.last.get("seconds", 0)),
                f"{speeds[len(speeds) // 2]:,.0f}" if speeds else "",
            )
        )
    head = ("run", "lowest validation loss", "over-fits", "steps", "tokens", "time", "tokens/s")
    sections = [
        section("The runs", [table(head, rows)]),
        section("Loss and perplexity", view_chooser(loss_views(runs), legend(runs))),
        section("While training", [legend(runs), *grid(training_pictures(runs))]),
        section("Where their recipes differ", _recipe_differences(runs, labels)),
    ]
    return page(f"{len(runs)} runs compared", ", ".join(labels), sections)


def _recipe_differences(runs: Sequence[RunRecord], labels: Sequence[str]) -> Iterator[str]:
    recipes = [dict(_flat(run.recipe)) for run in runs]
    keys = list(dict.fromkeys(key for recipe in recipes for key in recipe if key != "output_dir"))
    missing = object()
    rows = []
    for key in keys:
        values = [recipe.get(key, missing) for recipe in recipes]
        if any(value != values[0] for value in values):
            rows.append((escaped(key, 80), *("" if v is missing else escaped(_value(v), 200) for v in values)))
    if rows:
        yield table(("field", *(escaped(label, 100) for label in labels)), rows)
    else:
        yield "<p>They have the same recipe.</p>"


def _flat(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
