"""The page that compares runs: their figures, their curves over one axis, and where their recipes differ."""

from collections.abc import Iterator, Sequence
from statistics import median_high
from typing import Any

from ..display import duration, perplexity, short_number
from ..texts import TRAINING, VALIDATION, bits_of, loss_label, loss_of
from .html import render
from .overfitting import loss_trend
from .plots import as_image, curve_names, loss_plots, run_labels, training_plots
from .records import RunRecord, common_texts, is_number
from .seeds import over_seeds, recipe_fields

_OVERFITS = {
    "overfitting": "from step {:,}",
    "diverging": "diverges from step {:,}",
    "unclear": "perhaps",
    "too early": "too early to tell",
    "falling": "not so far",
}


def comparison_page(runs: Sequence[RunRecord], x: str = "steps", log: bool = False) -> str:
    labels, names = run_labels(runs), curve_names(runs)
    texts = common_texts(runs)
    compared = texts[0] if texts else TRAINING
    losses = [_by_step(run, loss_of(compared)) for run in runs]
    steps = sorted({step for found in losses for step in found})
    return render(
        "report/templates/comparison.html",
        title=f"{len(runs)} runs compared",
        subtitle=", ".join(labels),
        runs=[
            {"label": label, "style": style, "figures": [*_figures(run, *texts[:1])]}
            for run, label, (_, style) in zip(runs, labels, names)
        ],
        over_seeds=[(dict(names)[figure.label], figure) for figure in over_seeds(runs, [name for name, _ in names])],
        different_texts=any(len({_text(run, text) for run in runs} - {None}) > 1 for text in texts or [VALIDATION]),
        different_tokenizers=len({_tokenizer(run) for run in runs}) > 1,
        loss_images=[(plot, as_image(plot, legend=False)) for plot in loss_plots(runs, x, log)],
        compared_loss=loss_label(compared) if texts else "loss on training text",
        judged=loss_label(texts[0] if texts else VALIDATION),
        evaluations=[(step, [found.get(step, "") for found in losses]) for step in steps],
        training_images=[(plot, as_image(plot, legend=False)) for plot in training_plots(runs, x)],
        differences=[*_recipe_differences(runs)],
    )


def _figures(run: RunRecord, text: str = VALIDATION) -> Iterator[str]:
    """A run's cells of the table; `text` is the one to validate on."""
    trend = loss_trend(run.metrics, text)
    if trend is None:
        yield from ("not validated", "", "")
    else:
        yield f"{trend.validation_loss:.3f} at step {trend.step:,} (perplexity {perplexity(trend.validation_loss)})"
        bits = next((line.get(bits_of(text)) for line in run.evaluated if line["step"] == trend.step), None)
        yield f"{bits:.3f}" if is_number(bits) else ""
        yield _OVERFITS[trend.kind].format(trend.step)
    tokens, seconds = run.last.get("tokens"), run.last.get("seconds")
    yield f"{run.last.get('step', 0):,}"
    yield short_number(tokens) if is_number(tokens) else ""
    yield duration(seconds) if is_number(seconds) else ""
    speeds = [line["tokens_per_second"] for line in run.trained if is_number(line.get("tokens_per_second"))]
    yield f"{median_high(speeds):,.0f}" if speeds else ""


def _by_step(run: RunRecord, key: str) -> dict[int, str]:
    return {line["step"]: f"{line[key]:.3f}" for line in run.evaluated if is_number(line.get(key))}


def _text(run: RunRecord, name: str) -> str | None:
    """What tells one validation text from another; None where it is not known."""
    text = _sources(run).get(name)
    return repr([text.get(key) for key in ("source", "characters", "part")]) if isinstance(text, dict) else None


def _tokenizer(run: RunRecord) -> str:
    model = run.recipe.get("model")
    return repr([_sources(run).get("tokenizer"), model.get("vocab_size") if isinstance(model, dict) else None])


def _sources(run: RunRecord) -> dict[str, Any]:
    found = run.environment.get("sources")
    return found if isinstance(found, dict) else {}


def _recipe_differences(runs: Sequence[RunRecord]) -> Iterator[tuple[str, list[str]]]:
    recipes = [dict(recipe_fields(run.recipe)) for run in runs]
    for key in dict.fromkeys(key for recipe in recipes for key in recipe if key != "output_dir"):
        values = ["" if key not in recipe else _yaml(recipe[key]) for recipe in recipes]
        if len(set(values)) > 1:
            yield key, values


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
