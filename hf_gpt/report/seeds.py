"""Runs that differ in their seeds alone: which of some runs do, their mean, and how far they spread.

Such runs are one experiment repeated. A curve of theirs is the mean at each step that all of them have, with a band of
one standard deviation (of a sample: n - 1) around it. Where a run is kept is no difference; everything else in its
recipe is, and so are its text and the step that it branched off from.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from ..display import escape_unprintable
from ..texts import VALIDATION, loss_of
from .records import RunRecord, is_number

_SEEDS = ("seed", "model.seed", "data.seed")
_WHERE_KEPT = ("output_dir", "hub.", "checkpoint.", "tracking.")
_POSITION = ("step", "tokens", "words", "epoch", "seconds")


@dataclass(frozen=True)
class Figure:
    """A figure of an evaluation over the seeds of `label`: the mean, the standard deviation, of how many runs."""

    label: str
    name: str
    step: int
    mean: float
    deviation: float
    num_runs: int

    def __str__(self) -> str:
        return f"{self.label}: {self.name} {self.mean:.4f} ± {self.deviation:.4f} at step {self.step:,}"


def seed_groups(runs: Sequence[RunRecord]) -> list[list[int]]:
    """The places in `runs` of those that differ in their seeds alone, group by group; most are alone.

    A run whose seeds another one has too is no further draw, and begins a group of its own.
    """
    groups: list[tuple[dict[str, Any], list[Any], list[int]]] = []
    for place, run in enumerate(runs):
        what, seeds = _what(run), _seeds(run)
        for other, taken, places in groups:
            if run.recipe and other == what and seeds not in taken:
                taken.append(seeds)
                places.append(place)
                break
        else:
            groups.append((what, [seeds], [place]))
    return [places for _, _, places in groups]


def group_labels(runs: Sequence[RunRecord], names: Sequence[str]) -> list[str]:
    """For each run its name, or where it is one of several that differ in seeds alone, what those have in common."""
    labels, groups = list(names), seed_groups(runs)
    what = [_what(runs[places[0]]) for places in groups]
    differing = [key for key in dict.fromkeys(key for one in what for key in one) if _differ(what, key)]
    for places, fields in zip(groups, what):
        if len(places) > 1:
            common = ", ".join(f"{key} {fields.get(key)}" for key in differing if not key.startswith("text of "))
            text = f"mean of {len(places)} seeds{': ' if common else ''}{common}"
            label = f"{_numbers(places)}. {escape_unprintable(text, one_line=True, limit=60)}"
            for place in places:
                labels[place] = label
    return labels


def over_seeds(runs: Sequence[RunRecord], labels: Sequence[str]) -> Iterator[Figure]:
    """Each figure of the last evaluation that all runs of a group have, and the lowest loss that `best` follows."""
    for places in seed_groups(runs):
        by_step = [{line["step"]: line for line in runs[place].evaluated} for place in places]
        common = set.intersection(*map(set, by_step)) if len(places) > 1 else ()
        if not common:
            continue
        step, label = max(common), labels[places[0]]
        lines = [lines[step] for lines in by_step]
        for name in lines[0]:
            found = [line.get(name) for line in lines]
            if name not in _POSITION and all(map(is_number, found)):
                yield Figure(label, name, step, mean(found), stdev(found), len(found))
        key = loss_of(runs[places[0]].judge or VALIDATION)
        losses = [[line.get(key) for at, line in lines.items() if at <= step] for lines in by_step]
        if all(any(map(is_number, found)) for found in losses):
            lowest = [min(filter(is_number, found)) for found in losses]
            yield Figure(label, f"lowest {key}", step, mean(lowest), stdev(lowest), len(lowest))


def recipe_fields(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`("section.key", value)` of a recipe as it is read from a file."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from recipe_fields(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _what(run: RunRecord) -> dict[str, Any]:
    """What a run is, apart from its seeds and from where it is kept."""
    fields = {
        key: repr(value) if isinstance(value, list) else value
        for key, value in recipe_fields(run.recipe)
        if value is not None and key not in _SEEDS and not key.startswith(_WHERE_KEPT)
    }
    texts = run.environment.get("text")
    for name, digest in texts.items() if isinstance(texts, dict) else ():
        fields[f"text of {name}"] = digest
    parent = run.environment.get("parent")
    return fields | ({"branched off at step": parent.get("step")} if isinstance(parent, dict) else {})


def _seeds(run: RunRecord) -> list[Any]:
    fields = dict(recipe_fields(run.recipe))
    return [fields.get("seed") if (own := fields.get(key)) is None else own for key in _SEEDS[1:]]


def _differ(fields: Sequence[dict[str, Any]], key: str) -> bool:
    return any(one.get(key) != fields[0].get(key) for one in fields)


def _numbers(places: Sequence[int]) -> str:
    """`1-3` or `1, 3, 5`."""
    if places[-1] - places[0] == len(places) - 1:
        return f"{places[0] + 1}-{places[-1] + 1}"
    return ", ".join(str(place + 1) for place in places)
