"""Several runs side by side, aligned by steps, tokens and time."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median_high
from typing import Any

from .html import escaped, grid, legend, page, section, swatch, table, view_chooser
from .overfitting import course
from .pictures import loss_views, run_labels, training_pictures
from .records import RunRecord, is_number, short
from .wording import duration, perplexity_of, tokens_of


def comparison_page(runs: Sequence[RunRecord]) -> str:
    """The page that compares runs, aligned by steps, tokens and time."""
    labels = run_labels(runs)
    head = ("run", "lowest validation loss", "bits per byte", "over-fits", "steps", "tokens", "time", "tokens/s")
    names = [f"{swatch(number)} {escaped(label, 100)}" for number, label in enumerate(labels)]
    rows = [(name, *_figures(run)) for name, run in zip(names, runs)]
    sections = [
        section("The runs", [*_what_compares(runs), table(head, rows)]),
        section("Loss and perplexity", view_chooser(loss_views(runs), legend(runs))),
        section("While training", [legend(runs), *grid(training_pictures(runs))]),
        section("Where their recipes differ", _recipe_differences(runs, labels)),
    ]
    return page(f"{len(runs)} runs compared", ", ".join(labels), sections)


def _figures(run: RunRecord) -> Iterator[str]:
    """A run's cells of the table."""
    found = course(run.metrics)
    if found is None:
        yield from ("not validated", "", "")
    else:
        yield f"{found.validation_loss:.3f} at step {found.step:,} (perplexity {perplexity_of(found.validation_loss)})"
        bits = next((line.get("bits_per_byte") for line in run.evaluated if line["step"] == found.step), None)
        yield f"{bits:.3f}" if is_number(bits) else ""
        yield {
            "over-fits": f"from step {found.step:,}",
            "diverges": f"diverges from step {found.step:,}",
            "unsettled": "perhaps",
            "too early": "too early to tell",
            "falls": "not seen",
        }[found.trend]
    yield f"{run.last.get('step', 0):,}"
    yield short(tokens_of(run.last))
    yield duration(run.last.get("seconds", 0))
    speeds = [line["tokens_per_second"] for line in run.trained if is_number(line.get("tokens_per_second"))]
    yield f"{median_high(speeds):,.0f}" if speeds else ""


def _what_compares(runs: Sequence[RunRecord]) -> Iterator[str]:
    """A warning where losses of different things stand beside each other."""
    texts, tokenizers = set(), set()
    for run in runs:
        sources = run.environment.get("sources")
        sources = sources if isinstance(sources, dict) else {}
        model = run.recipe.get("model")
        if isinstance(text := sources.get("validation"), dict):
            texts.add(repr([text.get(key) for key in ("source", "characters", "part")]))
        tokenizers.add(repr([sources.get("tokenizer"), model.get("vocab_size") if isinstance(model, dict) else None]))
    if len(texts) > 1:
        yield "<p>They were validated on different texts: their losses do not compare.</p>"
    elif len(tokenizers) > 1:
        yield (
            "<p>Their tokenizers differ, and with them what a token is: compare bits per byte, not losses and"
            " perplexities.</p>"
        )


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
