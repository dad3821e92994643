"""`report.html`: a run, or several side by side, as one page that opens from disk.

The page is a single file: style and pictures are inside it, nothing is fetched, and nothing runs. Which axis the
losses are drawn over is chosen by radio buttons, that is by CSS. It is made from the files of a run alone, so it can
be written while the run goes on, after it died, and on another machine.

Samples, prompts, names and recipes are nobody's word: all of it goes through `_text`, which escapes HTML and spells
out characters that do not show.
"""

import dataclasses
import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import name_of
from ..errors import UserError
from ..report import RunRecord, has_losses, is_number, loss_plot, read_run, short
from ..storage import write_text
from ..untrusted import visible
from .overfitting import Turn, turning_point
from .report_figures import COLOURS, DASHES, NUM_RUN_COLOURS, Curve, Picture, averaged, can_show, png, svg

REPORT = "report.html"

_MOST_PROMPTS = 6
_MOST_SAMPLES = 5  # of a prompt, side by side
_SAMPLE_LENGTH = 1500  # characters
_MOST_EVENTS = 100
_RECIPE_LENGTH = 20_000
_MANY = 200  # points, beyond which their mean is drawn
_MOST_RUNS = 28  # that colours and dashes tell apart


@dataclass(frozen=True)
class _Axis:
    """What losses are drawn over."""

    key: str
    name: str
    label: str
    unit: float = 1.0


@dataclass(frozen=True)
class _Quantity:
    """What is written down while a run trains."""

    key: str
    title: str
    label: str
    unit: float = 1.0
    floor: float | None = 0.0
    wobbles: bool = True


_WATCHED = (
    _Quantity("lr", "Learning rate", "learning rate (1)", wobbles=False),
    _Quantity("grad_norm", "Gradient norm, before clipping", "norm of the gradient (1)"),
    _Quantity("tokens_per_second", "Speed", "tokens per second"),
    _Quantity("mfu", "Model FLOPs utilisation", "% of the measured peak", unit=0.01),
    _Quantity("peak_memory_bytes", "Peak memory so far", "memory (MiB)", unit=2**20, wobbles=False),
)


def write_report(run_dir: str | Path, path: str | Path | None = None) -> Path:
    """Write the report of a run into `path` (`<run_dir>/report.html`), and return that.

    Raises:
        UserError: the directory holds no run, or its metrics.jsonl is damaged.
    """
    run = read_run(run_dir)
    path = Path(path or Path(run_dir) / REPORT)
    write_text(path, run_page(run))
    return path


def plot(run_dirs: Sequence[str | Path], output: str | Path | None = None) -> list[Path]:
    """Write a report of one run, or one that compares several, and pictures for papers. Returns the files.

    Args:
        output: the folder to write into; by default the run's own, or `comparison` for several.

    Raises:
        UserError: a directory holds no run, or one that has written no loss yet.
    """
    runs = [read_run(run_dir) for run_dir in run_dirs]
    for run in runs:
        if not has_losses(run.metrics):
            raise UserError(f"{run.run_dir}: metrics.jsonl holds no loss yet")
    folders = [run.run_dir.resolve() for run in runs]
    if len(set(folders)) < len(folders):
        twice = next(folder for folder in folders if folders.count(folder) > 1)
        raise UserError(f"{twice}: is named twice; name each run once")
    if len(runs) > _MOST_RUNS:
        raise UserError(f"{len(runs)} runs: at most {_MOST_RUNS} can be told apart in one report")
    if output is not None and Path(output).exists() and not Path(output).is_dir():
        raise UserError(f"--output {output}: is a file; name a folder")
    if len(runs) == 1:
        (run,) = runs
        folder = Path(output or run.run_dir)
        page = run_page(run)
        figures = {"perplexity.png": [_loss_views([run])[0][1]], "training.png": _training_pictures([run])[:3]}
    else:
        folder = Path(output or "comparison")
        page = comparison_page(runs)
        views = _loss_views(runs)
        figures = {"loss.png": [view[0] for view in views[::2]], "loss-by-step.png": [*views[0]]}
        figures["training.png"] = _training_pictures(runs)[:3]
    write_text(folder / REPORT, page)
    written = [folder / REPORT]
    if len(runs) == 1:
        written.append(loss_plot(runs[0].run_dir, folder / "loss.png", dpi=300))
    written += [png(folder / name, pictures) for name, pictures in figures.items() if pictures]
    return written


# One run ------------------------------------------------------------------------------------------------------------


def run_page(run: RunRecord) -> str:
    """The page of one run."""
    turn = turning_point(run.metrics)
    sections = [
        _section("Where it stands", [_verdict(run, turn), *_facts(run)]),
        _section("Loss and perplexity", _views(_loss_views([run], turn), _legend([run]))),
        _section("While training", _grid(_training_pictures([run]))),
        _section("What it wrote", _samples(run, turn)),
        _section("What happened", _history(run)),
        _section("The recipe", _recipe(run)),
    ]
    return _page(run.name, _status(run), sections)


def _status(run: RunRecord) -> str:
    last = run.last
    train = run.recipe.get("train") if isinstance(run.recipe.get("train"), dict) else {}
    step, length = last.get("step", 0), train.get("max_steps")
    how_far = f"{step:,} of {length:,} steps" if isinstance(length, int) and length > step else f"{step:,} steps"
    ended = next((event for event in reversed(run.events) if event["step"] >= step), {})
    if ended.get("event") == "not finite":
        how_far += "; ended by a loss or gradient that was not finite"
    return f"{how_far}, {_tokens(last):,} tokens in {_duration(last.get('seconds', 0))}"


def _verdict(run: RunRecord, turn: Turn | None) -> str:
    """Which weights to use, and why."""
    validated = [line for line in run.evaluated if is_number(line.get("validation_loss"))]
    if turn is not None:
        return (
            f'<p class="verdict turned"><strong>Over-fitting begins at step {turn.step:,}.</strong> Validation loss'
            f" was lowest there, {turn.validation_loss:.3f} (perplexity {_perplexity(turn.validation_loss)}), and has"
            f" risen by {turn.rise:.3f} since, while the loss on the training text still fell."
            f" {_to_use(run, turn.step)}</p>"
        )
    if not validated:
        why = "No text was held out" if run.evaluated else "Nothing was evaluated yet"
        return f'<p class="verdict">{why}, so where over-fitting begins cannot be told.</p>'
    lowest = min(validated, key=lambda line: line["validation_loss"])
    return (
        f'<p class="verdict"><strong>No over-fitting is to be seen.</strong> Validation loss is lowest at step'
        f" {lowest['step']:,}, {lowest['validation_loss']:.3f} (perplexity {_perplexity(lowest['validation_loss'])});"
        f" {len(validated):,} evaluation{'s' * (len(validated) != 1)} so far. {_to_use(run, lowest['step'])}</p>"
    )


def _to_use(run: RunRecord, step: int) -> str:
    """The checkpoint of a step, or the best of those that were kept."""
    if step in run.checkpoints:
        same = " (<code>checkpoints/best</code>)" if run.best == step else ""
        return f"The checkpoint to use: <code>checkpoints/{name_of(step)}</code>{same}."
    none = f"No checkpoint was kept at step {step:,}"
    if run.best is not None:
        loss = next((x.get("validation_loss") for x in run.evaluated if x["step"] == run.best), None)
        told = f", validation loss {loss:.3f}" if is_number(loss) else ""
        return f"{none}; the best one kept is <code>checkpoints/{name_of(run.best)}</code>{told}."
    return f"{none}, so none can be named; a <code>checkpoint.every</code> that meets evaluations keeps one."


def _facts(run: RunRecord) -> Iterator[str]:
    """The figures of a run, as a row of tiles."""
    tiles: list[tuple[str, str, str]] = []
    for key, name in (
        ("validation_loss", "lowest validation loss"),
        ("eval_train_loss", "lowest loss, training text"),
    ):
        lines = [line for line in run.evaluated if is_number(line.get(key))]
        if lines:
            best = min(lines, key=lambda line: line[key])
            tiles.append((name, f"{best[key]:.3f}", f"perplexity {_perplexity(best[key])}, step {best['step']:,}"))
    bits = [line["bits_per_byte"] for line in run.evaluated if is_number(line.get("bits_per_byte"))]
    if bits:
        tiles.append(("bits per byte", f"{min(bits):.3f}", "validation text"))
    for key, name, show in (
        ("tokens_per_second", "tokens per second", lambda value: f"{value:,.0f}"),
        ("mfu", "model FLOPs utilisation", lambda value: f"{value:.1%}"),
    ):
        values = sorted(line[key] for line in run.trained if is_number(line.get(key)))
        if values:
            tiles.append((name, show(values[len(values) // 2]), "median"))
    if memory := [x["peak_memory_bytes"] for x in run.trained if is_number(x.get("peak_memory_bytes"))]:
        tiles.append(("peak memory", f"{max(memory) / 2**20:,.0f} MiB", "of the main process"))
    for problem in run.problems:
        yield f'<p class="problem">Could not be read: {_text(problem, 300)}</p>'
    if tiles:
        shown = "".join(
            f"<div><dt>{name}</dt><dd>{value}</dd><dd class='note'>{note}</dd></div>" for name, value, note in tiles
        )
        yield f'<dl class="tiles">{shown}</dl>'


def _samples(run: RunRecord, turn: Turn | None) -> Iterator[str]:
    """For each prompt some samples side by side, from the first to the newest, and the one at the turn."""
    prompts = list(dict.fromkeys(str(line.get("prompt", "")) for line in run.samples))
    if not prompts:
        yield "<p>No samples; <code>evaluation.prompts</code> asks for some.</p>"
    for prompt in prompts[:_MOST_PROMPTS]:
        texts = {line["step"]: str(line["text"]) for line in run.samples if str(line.get("prompt", "")) == prompt}
        steps = sorted(texts)
        chosen = {steps[round(i * (len(steps) - 1) / (_MOST_SAMPLES - 1))] for i in range(_MOST_SAMPLES)}
        if turn is not None and turn.step in texts and turn.step not in chosen:
            inner = sorted(chosen)[1:-1]
            if inner:
                chosen.remove(min(inner, key=lambda step: abs(step - turn.step)))
            chosen.add(turn.step)
        few = f" &middot; {len(chosen)} of {len(steps)} samples" if len(steps) > len(chosen) else ""
        yield f"<h3>Prompt: <q>{_text(prompt, 200)}</q>{few}</h3>"
        cards = []
        for step in sorted(chosen):
            mark = " <em>lowest validation loss</em>" if turn is not None and step == turn.step else ""
            begins = texts[step].startswith(prompt) and len(prompt) < _SAMPLE_LENGTH
            rest = texts[step][len(prompt) :] if begins else texts[step]
            start = f"<b>{_text(prompt)}</b>" if begins else ""
            title = f"step {step:,}" if step else "before training"
            cards.append(f"<figure><figcaption>{title}{mark}</figcaption><pre>{start}{_text(rest, _SAMPLE_LENGTH)}")
            cards.append("</pre></figure>")
        yield f'<div class="samples">{"".join(cards)}</div>'
    if len(prompts) > _MOST_PROMPTS:
        yield f"<p>{len(prompts) - _MOST_PROMPTS} more prompts are in <code>samples.jsonl</code>.</p>"


def _history(run: RunRecord) -> Iterator[str]:
    """events.jsonl, in words."""
    skipped = sum(event.get("event") == "skipped" for event in run.events)
    went_on = sum(event.get("event") == "resumed" for event in run.events)
    if not run.events:
        yield "<p>Nothing: it went from its beginning without a stop.</p>"
        return
    yield (
        f"<p>Gone on with {_times(went_on)}; {skipped:,} update{'s' * (skipped != 1)} skipped;"
        f" {len(run.events):,} event{'s' * (len(run.events) != 1)} in all.</p>"
    )
    rows = [(f"{event['step']:,}", _event(event)) for event in run.events[-_MOST_EVENTS:]]
    if len(run.events) > _MOST_EVENTS:
        yield f"<p>The last {_MOST_EVENTS}; the others are in <code>events.jsonl</code>.</p>"
    yield _table(("step", "what"), rows)


def _event(event: Mapping[str, Any]) -> str:
    kind = event.get("event")
    if kind == "resumed":
        return f"went on from <code>{_text(event.get('checkpoint'), 100)}</code>{_processes(event)}"
    if kind == "restarted":
        return f"began again from the start{_processes(event)}"
    if kind == "changed":
        return f"changed: <code>{_text(event.get('what'), 300)}</code>"
    if kind == "damaged checkpoint":
        return f"<code>{_text(event.get('checkpoint'), 100)}</code> was damaged: {_text(event.get('problem'), 400)}"
    if kind in ("skipped", "not finite"):
        windows = event.get("windows")
        windows = windows if isinstance(windows, list) else []
        seen = ", ".join(_text(window, 20) for window in windows[:8]) + (", …" if len(windows) > 8 else "")
        what = "update skipped" if kind == "skipped" else "the run ended: loss or gradient not finite"
        return f"{what}; gradient norm {_text(event.get('grad_norm'), 40)}; windows {seen or 'not recorded'}"
    rest = ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("event", "step"))
    return _text(f"{kind}: {rest}" if rest else kind, 400)


def _processes(event: Mapping[str, Any]) -> str:
    count = event.get("processes")
    return f" on {_text(count, 20)} process{'es' * (count != 1)}" if count is not None else ""


def _recipe(run: RunRecord) -> Iterator[str]:
    """recipe.yaml as it is, and where it ran."""
    rows = [*_environment(run.environment)]
    if rows:
        yield _table(("where it ran", ""), rows)
    if run.recipe_text:
        yield f'<pre class="recipe">{_text(run.recipe_text, _RECIPE_LENGTH)}</pre>'
    else:
        yield "<p>There is no <code>recipe.yaml</code>.</p>"


def _environment(environment: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if device := environment.get("device"):
        name = environment.get("device_name")
        threads = f", {_text(environment.get('cpu_threads'), 20)} threads" if device == "cpu" else ""
        named = f" ({_text(name, 100)})" if name else ""
        yield "hardware", f"{_text(environment.get('processes', 1), 20)} x {_text(device, 40)}{named}{threads}"
    if is_number(peak := environment.get("peak_flops")):
        yield "peak of a device", f"{peak / 1e9:,.1f} GFLOP/s in matrix products, measured when the run began"
    sources = environment.get("sources")
    for kind in ("training", "validation"):
        text = sources.get(kind) if isinstance(sources, dict) else None
        if isinstance(text, dict) and text.get("source"):
            size = f": {text['tokens']:,} tokens" if isinstance(text.get("tokens"), int) else ""
            yield f"{kind} text", _text(text["source"], 200) + size
    if isinstance(parent := environment.get("parent"), dict):
        yield "branched off", f"from step {_text(parent.get('step'), 20)} of {_text(parent.get('run'), 300)}"
    versions = environment.get("versions")
    if isinstance(versions, dict):
        yield "versions", _text(", ".join(f"{name} {version}" for name, version in versions.items() if version), 400)


# Several runs -------------------------------------------------------------------------------------------------------


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
            lowest = f"{loss:.3f} at step {best['step']:,} (perplexity {_perplexity(loss)})"
        speeds = sorted(x["tokens_per_second"] for x in run.trained if is_number(x.get("tokens_per_second")))
        rows.append(
            (
                f"{_swatch(number)} {_text(labels[number], 100)}",
                lowest,
                f"from step {turn.step:,}" if turn else "not seen",
                f"{run.last.get('step', 0):,}",
                short(_tokens(run.last)),
                _duration(run.last.get("seconds", 0)),
                f"{speeds[len(speeds) // 2]:,.0f}" if speeds else "",
            )
        )
    head = ("run", "lowest validation loss", "over-fits", "steps", "tokens", "time", "tokens/s")
    sections = [
        _section("The runs", [_table(head, rows)]),
        _section("Loss and perplexity", _views(_loss_views(runs), _legend(runs))),
        _section("While training", [_legend(runs), *_grid(_training_pictures(runs))]),
        _section("Where their recipes differ", _recipe_differences(runs, labels)),
    ]
    return _page(f"{len(runs)} runs compared", ", ".join(labels), sections)


def run_labels(runs: Sequence[RunRecord]) -> list[str]:
    """A number for each run and as much of its path as tells it from the others."""
    parts = [run.run_dir.absolute().parts for run in runs]
    names = []
    for own in parts:
        length = 1
        while length < len(own) and sum(other[-length:] == own[-length:] for other in parts) > 1:
            length += 1
        names.append("/".join(own[-length:]))
    return [f"{number}. {visible(name, one_line=True, limit=60)}" for number, name in enumerate(names, start=1)]


def picture_labels(runs: Sequence[RunRecord]) -> list[str]:
    """The same for the legend of a PNG: a number alone where this machine's fonts lack a character."""
    return [
        label if label.isascii() or can_show(label) else f"{number}."
        for number, label in enumerate(run_labels(runs), start=1)
    ]


def _recipe_differences(runs: Sequence[RunRecord], labels: Sequence[str]) -> Iterator[str]:
    recipes = [dict(_flat(run.recipe)) for run in runs]
    keys = list(dict.fromkeys(key for recipe in recipes for key in recipe if key != "output_dir"))
    missing = object()
    rows = []
    for key in keys:
        values = [recipe.get(key, missing) for recipe in recipes]
        if any(value != values[0] for value in values):
            rows.append((_text(key, 80), *("" if v is missing else _text(_value(v), 200) for v in values)))
    if rows:
        yield _table(("field", *(_text(label, 100) for label in labels)), rows)
    else:
        yield "<p>They have the same recipe.</p>"


def _flat(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# Pictures -----------------------------------------------------------------------------------------------------------


def _axes(runs: Sequence[RunRecord]) -> list[_Axis]:
    longest = max((float(at[-1]) for run in runs if len(at := run.points("seconds", "step")[0])), default=0.0)
    units = ((86400, "days", 3), (3600, "hours", 2), (60, "minutes", 3), (1, "seconds", 0))
    unit, name, _ = next(u for u in units if longest >= u[0] * u[2])
    return [
        _Axis("step", "steps", "steps"),
        _Axis("tokens", "tokens", "tokens seen"),
        _Axis("seconds", "time", f"time ({name})", unit),
    ]


def _loss_views(runs: Sequence[RunRecord], turn: Turn | None = None) -> list[list[Picture]]:
    """Loss and perplexity over steps, tokens and time, each linear and logarithmic: six views of two pictures."""
    views = []
    for axis in _axes(runs):
        kinds = ("validation_loss", "eval_train_loss", "train_loss")
        curves = [*(_loss_curves(runs[0], axis) if len(runs) == 1 else _first_of(runs, axis, kinds))]
        marks = []
        if turn is not None and len(runs) == 1:
            at = next((x for x in runs[0].evaluated if x["step"] == turn.step and is_number(x.get(axis.key))), None)
            if at is not None:
                marks = [(at[axis.key] / axis.unit, f"lowest validation loss: step {turn.step:,}")]
        told = _told(runs, axis)
        for log in (False, True):
            loss = Picture("Loss", axis.label, "loss (nats per token)", curves, log, marks, told)
            in_perplexity = [_as_perplexity(curve) for curve in curves if not curve.faint] or [
                _as_perplexity(curve) for curve in curves
            ]
            roof = None if log else _roof(in_perplexity)
            title = "Perplexity" if roof is None else "Perplexity (its beginning lies above)"
            perplexity = dataclasses.replace(
                loss, title=title, y_label="perplexity (1)", curves=in_perplexity, roof=roof
            )
            if len(runs) == 1:
                views.append([loss, perplexity])
                continue
            validated = all(len(run.points(axis.key, "validation_loss")[0]) for run in runs)
            shown = "Loss on validation text" if validated else "Loss on validation text, or training text without one"
            of_what = "validation loss" if validated else "loss"
            training = dataclasses.replace(
                loss,
                title="Loss on training text",
                y_label="training loss (nats per token)",
                curves=[*_first_of(runs, axis, kinds[1:])],
            )
            named = dataclasses.replace(loss, title=shown, y_label=f"{of_what} (nats per token)")
            three = [named, perplexity, training]
            views.append([dataclasses.replace(picture, width=380) for picture in three])
    return views


def _loss_curves(run: RunRecord, axis: _Axis) -> Iterator[Curve]:
    """Of a single run: the batches it was trained on, and both texts."""
    for key, label, colour, faint, marker in (
        ("train_loss", "training batch", "training", True, "o"),
        ("eval_train_loss", "training text", "training", False, "o"),
        ("validation_loss", "validation text", "validation", False, "s"),
    ):
        x, y = run.points(axis.key, key)
        if len(x):
            yield Curve(label, x / axis.unit, y, colour, faint, "solid", marker)


def _first_of(runs: Sequence[RunRecord], axis: _Axis, keys: Sequence[str]) -> Iterator[Curve]:
    """Of each of several runs the first of these losses that it has."""
    for number, (run, label) in enumerate(zip(runs, picture_labels(runs))):
        for key in keys:
            x, y = run.points(axis.key, key)
            if len(x):
                colour = f"run{number % NUM_RUN_COLOURS}"
                yield Curve(label, x / axis.unit, y, colour, dash=_dash(number))
                break


def _dash(number: int) -> Any:
    return DASHES[(number + number // NUM_RUN_COLOURS) % len(DASHES)]


def _roof(curves: Sequence[Curve]) -> float | None:
    """Where a linear axis should end, if the beginning would make everything else flat."""
    highest = max((float(np.max(curve.y)) for curve in curves if len(curve.y)), default=0.0)
    last = max((float(curve.x[-1]) for curve in curves if len(curve.x)), default=0.0)
    later = [curve.y[curve.x >= 0.15 * last] for curve in curves]
    roof = max((float(np.max(y)) for y in later if len(y)), default=highest)
    return 1.1 * roof if 2.5 * roof < highest else None


def _as_perplexity(curve: Curve) -> Curve:
    drawable = np.asarray(curve.y) < 100
    return dataclasses.replace(curve, x=np.asarray(curve.x)[drawable], y=np.exp(np.asarray(curve.y)[drawable]))


def _told(runs: Sequence[RunRecord], axis: _Axis) -> list[tuple[float, str]]:
    """What is told on hover: of each evaluation (or, where there is none, each train line) its step and losses."""
    told = []
    names = run_labels(runs) if len(runs) > 1 else [""]
    for run, name in zip(runs, names):
        lines = run.evaluated or run.trained
        for line in lines[:: max(1, len(lines) // 64)]:
            if not is_number(line.get(axis.key)):
                continue
            words = [f"{name}, step {line['step']:,}" if name else f"step {line['step']:,}"]
            for key, what in (
                ("train_loss", "training batch"),
                ("eval_train_loss", "training text"),
                ("validation_loss", "validation text"),
            ):
                if is_number(line.get(key)):
                    words.append(f"{what}: loss {line[key]:.3f}, perplexity {_perplexity(line[key])}")
            words.append(f"{short(_tokens(line))} tokens, {_duration(line.get('seconds', 0))}")
            told.append((line[axis.key] / axis.unit, "\n".join(words)))
    return sorted(told)


def _training_pictures(runs: Sequence[RunRecord]) -> list[Picture]:
    pictures, names = [], picture_labels(runs)
    for quantity in _WATCHED:
        curves, told = [], []
        for number, run in enumerate(runs):
            x, y = run.points("step", quantity.key)
            y = y / quantity.unit
            colour, dash = ("training", "solid") if len(runs) == 1 else (f"run{number % NUM_RUN_COLOURS}", "solid")
            if len(x):
                dash = dash if len(runs) == 1 else _dash(number)
                label = names[number]
                if quantity.wobbles and len(x) > _MANY:
                    if len(runs) == 1:
                        curves.append(Curve(label, x, y, colour, faint=True))
                    curves.append(Curve(label, *averaged(x, y), colour, dash=dash, marker="None"))
                else:
                    curves.append(Curve(label, x, y, colour, dash=dash, marker="None"))
                who = f"run {number + 1}, " if len(runs) > 1 else ""
                every = max(1, len(x) // 48)
                told += [(at, f"{who}step {at:,.0f}: {_figure(v)}") for at, v in zip(x[::every], y[::every])]
        if curves:
            pictures.append(
                Picture(
                    quantity.title, "steps", quantity.label, curves, told=sorted(told), floor=quantity.floor, width=380
                )
            )
    return pictures


def _grid(pictures: Sequence[Picture], prefix: str = "t") -> Iterator[str]:
    figures = []
    for number, picture in enumerate(pictures):
        drawn = svg(dataclasses.replace(picture, ids=f"{prefix}{number}"))
        figures.append(f"<figure><figcaption>{html.escape(picture.title)}</figcaption>{drawn}</figure>")
    yield f'<div class="grid">{"".join(figures)}</div>' if figures else "<p>Nothing was written down yet.</p>"


def _views(views: Sequence[Sequence[Picture]], legend: str) -> Iterator[str]:
    """The six views, one of which is shown: which one, two rows of radio buttons say."""
    if not any(picture.curves for view in views for picture in view):
        yield "<p>No loss was written down yet.</p>"
        return
    names = [(axis, scale) for axis in ("steps", "tokens", "time") for scale in ("linear", "log")]
    buttons = ""
    for group, choices in (("axis", ("steps", "tokens", "time")), ("scale", ("linear", "log"))):
        for choice in choices:
            checked = " checked" if choice in ("steps", "linear") else ""
            words = {"log": "logarithmic", "linear": "linear"}.get(choice, f"over {choice}")
            buttons += f'<input type="radio" name="{group}" id="{group}-{choice}"{checked}>'
            buttons += f'<label for="{group}-{choice}">{words}</label>'
        buttons += '<span class="gap"></span>'
    shown = ""
    for (axis, scale), pictures in zip(names, views):
        grid = "".join(_grid(pictures, prefix=f"{axis}-{scale}-"))
        pair = " pair" * (len(pictures) == 2)
        shown += f'<div class="view {axis}-{scale}{pair}">{grid}</div>'
    yield f'<div class="views">{buttons}{legend}{shown}</div>'


def _legend(runs: Sequence[RunRecord]) -> str:
    if len(runs) > 1:
        entries = [f"{_swatch(n)} {_text(label, 100)}" for n, label in enumerate(run_labels(runs))]
    else:
        (run,) = runs
        kinds = (
            ("train_loss", "training", True, "training batch"),
            ("eval_train_loss", "training", False, "training text"),
        )
        kinds += (("validation_loss", "validation", False, "validation text"),)
        entries = [
            f"{_line(colour, 'solid', faint)} {name}"
            for key, colour, faint, name in kinds
            if any(is_number(line.get(key)) for line in run.metrics)
        ]
    return f'<ul class="legend">{"".join(f"<li>{entry}</li>" for entry in entries)}</ul>'


def _swatch(number: int) -> str:
    return _line(f"run{number % NUM_RUN_COLOURS}", _dash(number), False)


def _line(colour: str, dash: Any, faint: bool) -> str:
    dashes = "" if dash == "solid" else f' stroke-dasharray="{" ".join(f"{2 * part:g}" for part in dash[1])}"'
    opacity = ' stroke-opacity="0.45"' if faint else ""
    return (
        '<svg class="swatch" viewBox="0 0 34 10" aria-hidden="true">'
        f'<line x1="0" y1="5" x2="34" y2="5" style="stroke: var(--{colour})" stroke-width="3"{dashes}{opacity}/></svg>'
    )


# HTML ---------------------------------------------------------------------------------------------------------------


def _page(title: str, subtitle: str, sections: Iterable[str]) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="generator" content="hf_gpt">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>{_text(title, 100)}</title>\n<style>{_style()}</style>\n</head>\n<body>\n"
        f"<header><h1>{_text(title, 100)}</h1><p>{_text(subtitle, 600)}</p></header>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(title: str, parts: Iterable[str]) -> str:
    return f"<section><h2>{title}</h2>\n{''.join(parts)}\n</section>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(text: Any, limit: int | None = None) -> str:
    """Text that nobody vouches for, as HTML."""
    return html.escape(visible(str(text), limit=limit))


def _value(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):,.1f}" if loss < 15 else f"{math.exp(loss):.1e}" if loss < 700 else "beyond measure"


def _tokens(line: Mapping[str, Any]) -> int:
    return round(line["tokens"]) if is_number(line.get("tokens")) else 0


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _duration(seconds: Any) -> str:
    if not is_number(seconds):
        return "unknown time"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count:,} times")


def _style() -> str:
    light = "".join(f"--{name}:{light};" for name, (light, _) in COLOURS.items())
    dark = "".join(f"--{name}:{dark};" for name, (_, dark) in COLOURS.items())
    views = ",".join(
        f"#axis-{axis}:checked~#scale-{scale}:checked~.{axis}-{scale}"
        for axis in ("steps", "tokens", "time")
        for scale in ("linear", "log")
    )
    return _CSS.replace("@LIGHT", light).replace("@DARK", dark).replace("@VIEWS", views)


_CSS = """
:root{@LIGHT--page:#fff;--panel:#f5f6f8;--edge:#dadde2;
--sans:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"Noto Sans","PingFang SC","Hiragino Sans GB",
"Microsoft YaHei","Noto Sans CJK SC","Noto Sans SC","Source Han Sans SC","WenQuanYi Zen Hei","WenQuanYi Micro Hei",
sans-serif;
--mono:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono","Liberation Mono","PingFang SC","Microsoft YaHei",
"Noto Sans Mono CJK SC","Noto Sans CJK SC","WenQuanYi Zen Hei",monospace}
@media screen and (prefers-color-scheme:dark){:root{@DARK--page:#15181c;--panel:#1e2329;--edge:#3a4049}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);font:16px/1.5 var(--sans)}
header,main{max-width:1240px;margin:0 auto;padding:0 24px}
h1{margin:28px 0 2px;font-size:28px;line-height:1.2;overflow-wrap:anywhere}
header p{margin:0;color:var(--faint)}
section{margin:28px 0 0}
h2{margin:0 0 10px;font-size:20px;border-bottom:1px solid var(--edge);padding-bottom:4px}
h3{margin:16px 0 8px;font-size:16px;font-weight:600;overflow-wrap:anywhere}
code,pre{font-family:var(--mono);font-size:14px}
.verdict{padding:12px 16px;background:var(--panel);border-left:4px solid var(--training)}
.verdict.turned{border-left-color:var(--mark)}
.problem{color:var(--validation)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:12px;margin:0}
.tiles>div{background:var(--panel);padding:10px 14px;border-radius:6px}
.tiles dt{font-size:14px;color:var(--faint)}
.tiles dd{margin:0;font-size:22px;font-variant-numeric:tabular-nums}
.tiles dd.note{font-size:14px;color:var(--faint)}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(360px,100%),1fr));gap:16px 24px}
.pair .grid{grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr))}
.grid figure{margin:0;min-width:0}
figcaption{font-size:15px;font-weight:600}
.grid svg{display:block;width:100%;max-width:620px;height:auto}
.grid svg text{font-family:var(--sans)!important;font-size:11.5px;fill:var(--text)}
.grid svg text.label{font-size:12px}
.gridlines,.frame{fill:none;stroke:var(--grid);stroke-width:.7}
.frame{stroke:var(--faint)}
.told rect{fill:transparent;pointer-events:all}
.told rect:hover{fill:var(--faint);fill-opacity:.16}
.views>input{position:absolute;opacity:0}
.views>label{display:inline-block;padding:4px 12px;margin:0 6px 10px 0;border:1px solid var(--edge);border-radius:16px;
cursor:pointer;font-size:15px}
.views>input:checked+label{background:var(--training);border-color:var(--training);color:var(--page)}
.views>input:focus-visible+label{outline:2px solid var(--mark);outline-offset:2px}
.gap{display:inline-block;width:18px}
.view{display:none}
@VIEWS{display:block}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 22px;margin:0 0 10px;padding:0;font-size:15px}
.legend li{overflow-wrap:anywhere}
.swatch{width:34px;height:10px;vertical-align:middle}
.samples{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(210px,100%),1fr));gap:12px}
.samples figure{margin:0;background:var(--panel);border-radius:6px;padding:10px 12px;min-width:0}
.samples figcaption{color:var(--faint);font-weight:400;font-size:14px}
.samples em{color:var(--mark);font-style:normal;font-weight:600}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:6px 0 0;unicode-bidi:isolate;line-height:1.45}
pre.recipe{background:var(--panel);padding:12px 16px;border-radius:6px;columns:3 300px;column-gap:32px}
.wide{overflow-x:auto;margin:0 0 14px}
table{border-collapse:collapse;font-size:15px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:5px 18px 5px 0;border-bottom:1px solid var(--edge);vertical-align:top;
overflow-wrap:anywhere}
th{color:var(--faint);font-weight:600;white-space:nowrap}
main{padding-bottom:48px}
@media print{@page{margin:14mm}body{font-size:11pt}header,main{max-width:none;padding:0}.views>label,.gap{display:none}
.grid,.pair .grid{grid-template-columns:1fr 1fr}
h2,h3{break-after:avoid}figure,table,.verdict,.tiles>div{break-inside:avoid}
.verdict,.tiles>div,.samples figure,pre.recipe{border:1px solid var(--edge)}code,pre{font-size:9pt}
.samples{grid-template-columns:repeat(3,1fr)}pre.recipe{columns:2}}
"""
