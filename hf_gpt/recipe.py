"""A run, as typed dataclasses <-> YAML <-> command line.

A :class:`Recipe` is the one source of truth for a run: its fields give the types, the defaults, the YAML keys, the
`--section.key VALUE` flags and the text of `hf-gpt train --help`. pydantic validates; this file says what the fields
are and turns pydantic's reports into one line a person can act on. Nothing here looks at a corpus, a tokenizer or the
hardware: `auto` stays `auto` until the loop resolves it, once, by a rule.

Two conveniences over plain YAML: floats may be written `4e-4` (YAML 1.1 reads that as a string), and an unquoted `no`,
`off`, `yes` or `on`, which YAML reads as a boolean, still means what it says.
"""

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from .errors import UserError, did_you_mean


def _no_boolean(value: Any) -> Any:
    """Python counts `True` as 1; a recipe does not."""
    if isinstance(value, bool):
        raise ValueError(f"expected a number, found {str(value).lower()}")
    return value


def _yaml_no(value: Any) -> Any:
    """YAML 1.1 reads an unquoted `no` or `off` as a boolean."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


_Number = BeforeValidator(_no_boolean)
Count = Annotated[int, Field(ge=0), _Number]
Seed = Annotated[int, Field(ge=0, lt=2**63), _Number]
PositiveInt = Annotated[int, Field(ge=1), _Number]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), _Number]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), _Number]
Fraction = Annotated[float, Field(gt=0, lt=1), _Number]
Ratio = Annotated[float, Field(ge=0, le=1), _Number]
Beta = Annotated[float, Field(ge=0, lt=1), _Number]
AutoOrBool = Literal["auto"] | bool

_BRANCH = re.compile(r"\w[\w./-]*")
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def _section(cls: type) -> type:
    """A dataclass whose constructor validates, refuses unknown fields and reports as :class:`UserError`."""
    cls = dataclass(kw_only=True, config=ConfigDict(extra="forbid"))(cls)
    validate = cls.__init__

    @functools.wraps(validate)
    def __init__(self, **fields):
        try:
            validate(self, **fields)
        except ValidationError as error:
            raise UserError(_one_line(cls, error)) from None

    cls.__init__ = __init__
    return cls


def _doc(default: Any, text: str, **kwargs) -> Any:
    """A dataclass field with its line of help."""
    if isinstance(default, (list, dict)) or callable(default):
        kwargs["default_factory"] = default if callable(default) else lambda: default.copy()
    else:
        kwargs["default"] = default
    return field(metadata={"help": text}, **kwargs)


@_section
class ModelRecipe:
    """Where the model comes from. Every other key is a `GPTConfig` field, or the book's name for one."""

    preset: str | None = _doc(None, "gpt2-124m, gpt2-355m, gpt2-774m or gpt2-1558m; the other keys then change it")
    from_pretrained: str | None = _doc(None, "directory or Hub id of a model to continue")
    revision: str | None = _doc(None, "branch, tag or commit of that Hub id")
    config: dict[str, Any] = _doc(dict, "GPTConfig fields; in YAML they stand directly in the section")

    @model_validator(mode="before")
    @classmethod
    def _gather_config_fields(cls, values: Any) -> Any:
        values = getattr(values, "kwargs", values) or {}
        if not isinstance(values, Mapping):
            return values
        own = {f.name for f in dataclasses.fields(cls)}
        config = {**(values.get("config") or {}), **{k: v for k, v in values.items() if k not in own}}
        return {**{k: v for k, v in values.items() if k in own}, "config": config}

    def __post_init__(self) -> None:
        if self.preset and self.from_pretrained:
            raise ValueError("give 'preset' or 'from_pretrained', not both")
        if self.revision and not self.from_pretrained:
            raise ValueError("'revision' goes with 'from_pretrained'")


@_section
class TrainTokenizerRecipe:
    vocab_size: Annotated[int, Field(ge=257), _Number] = _doc(4096, "entries, with <|endoftext|> and the 256 bytes")


@_section
class TokenizerRecipe:
    name: str | None = _doc(
        None, "gpt2, bytes, a path or a Hub id; if nothing is said, that of model.from_pretrained, else gpt2"
    )
    revision: str | None = _doc(None, "branch, tag or commit of that Hub id")
    train: TrainTokenizerRecipe | None = _doc(None, "train a byte-level BPE on the training text instead")

    def __post_init__(self) -> None:
        if self.name and self.train:
            raise ValueError("give 'name' or 'train', not both")


@_section
class DataRecipe:
    source: str = _doc("builtin:python-docs", "builtin:python-docs, a file, directory or glob, or a Hub dataset id")
    config: str | None = _doc(None, "configuration of a dataset that has several, such as wikitext-2-raw-v1")
    revision: str | None = _doc(None, "branch, tag or commit of a Hub dataset")
    streaming: bool = _doc(False, "read a Hub dataset as it arrives, without keeping a copy of it")
    text_column: str | None = _doc(None, "column that holds the text; 'text', or the only column of strings")
    train_split: str = _doc("train", "split to train on")
    validation_split: str | None = _doc(None, "split to validate on")
    validation_source: str | None = _doc(None, "validate on another source, such as a second file or folder")
    validation_fraction: Fraction | None = _doc(None, "or cut this fraction of the characters off the end")
    separator: AutoOrBool = _doc("auto", "<|endoftext|> between rows; auto: unless rows are lines of one text")
    drop_blank_lines: bool = _doc(False, "leave lines without a visible character out")
    isolate_documents: bool = _doc(False, "stop attention and positions at document boundaries")
    stride: PositiveInt | None = _doc(None, "distance between window starts, in tokens; default: the context length")
    shuffle: bool = _doc(True, "a new order of windows each epoch; false: in the order of the text")
    drop_last: bool = _doc(False, "leave out an epoch's last global batch when it is short")

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("'source' is empty; name a file, a folder, a dataset, or builtin:python-docs")
        given = [k for k in ("validation_split", "validation_source", "validation_fraction") if getattr(self, k)]
        if len(given) > 1 and set(given) != {"validation_split", "validation_source"}:
            raise ValueError(f"give one of {' and '.join(repr(k) for k in given)}")


@_section
class OptimizerRecipe:
    name: Literal["adamw", "muon"] = _doc(
        "adamw", "muon: orthogonal updates of the blocks' matrices, AdamW for the rest"
    )
    lr: Positive = _doc(4e-4, "peak learning rate")
    muon_lr: Positive | None = _doc(None, "muon: peak learning rate of the blocks' matrices; default: lr")
    muon_momentum: Beta = _doc(0.95, "muon: decay of the running average of the gradient")
    betas: tuple[Beta, Beta] = _doc((0.9, 0.95), "decay of the running averages of gradient and squared gradient")
    eps: Positive = _doc(1e-8, "added to the denominator")
    weight_decay: NonNegative = _doc(0.1, "decoupled weight decay")
    decay: Literal["matrices", "all"] = _doc("matrices", "what decays: weights of 2 dimensions or more, or everything")

    def __post_init__(self) -> None:
        if self.muon_lr is not None and self.name != "muon":
            raise ValueError("'muon_lr' goes with name: muon")


@_section
class ScheduleRecipe:
    name: Literal["cosine", "linear", "constant", "wsd"] = _doc("cosine", "wsd: stable, then a linear decay")
    warmup_steps: Count = _doc(0, "steps of linear warmup")
    min_lr_ratio: Ratio = _doc(0.1, "the last learning rate as a part of the peak")
    decay_fraction: Fraction = _doc(0.2, "wsd: the part of the run that decays")


@_section
class TrainRecipe:
    max_steps: Count | None = _doc(None, "global batches to train on; 0 evaluates and saves the untrained model")
    epochs: Positive | None = _doc(None, "or passes over the training windows")
    batch_size: PositiveInt = _doc(8, "windows a process takes at once")
    global_batch_size: PositiveInt | None = _doc(
        None, "windows of a step over all processes; batches are accumulated until they are together"
    )
    gradient_accumulation_steps: PositiveInt | None = _doc(
        None, "or batches a process takes before an update; default: 1"
    )
    max_grad_norm: Positive | None = _doc(1.0, "gradients are clipped to this norm; null: never")
    mixed_precision: Annotated[Literal["auto", "no", "bf16", "fp16"], BeforeValidator(_yaml_no)] = _doc(
        "auto", "auto: bf16 where the accelerator has it, else no"
    )
    compile: AutoOrBool = _doc("auto", "torch.compile the model; auto: where the run is long enough for it to pay")
    device: Literal["auto", "cuda", "mps", "cpu"] = _doc("auto", "auto: cuda, else mps, else cpu")
    attn_implementation: str = _doc("sdpa", "eager, sdpa, flash_attention_2, flex_attention")
    gradient_checkpointing: bool = _doc(False, "recompute activations in the backward pass to save memory")
    log_every: PositiveInt = _doc(10, "steps between train lines in metrics.jsonl")
    skip_nonfinite: Count = _doc(0, "updates to skip, not stop at, when the gradient is not finite; waits each step")

    def __post_init__(self) -> None:
        if self.max_steps is not None and self.epochs is not None:
            raise ValueError("give 'max_steps' or 'epochs', not both")
        if self.max_steps is None and self.epochs is None:
            self.max_steps = 1000


@_section
class EvaluationRecipe:
    first: Count = _doc(0, "first step to evaluate at; 0 is before training")
    every: PositiveInt = _doc(100, "steps between evaluations; the last step is always evaluated")
    at_epoch_end: bool = _doc(False, "evaluate at each epoch's end too")
    tokens: PositiveInt | None = _doc(100_000, "tokens of each set to evaluate on, from its beginning; null: all")
    prompts: list[Annotated[str, Field(min_length=1)]] = _doc(
        ["Every effort moves you"], "continued at each evaluation"
    )
    sample_tokens: PositiveInt = _doc(50, "tokens of each continuation")
    temperature: NonNegative | None = _doc(None, "of the continuations; 0 or null with no top_k: greedy")
    top_k: PositiveInt | None = _doc(None, "sample among the k most likely tokens")


@_section
class CheckpointRecipe:
    every: PositiveInt | None = _doc(500, "steps between checkpoints; null: only at the end")
    keep: PositiveInt | None = _doc(3, "newest checkpoints kept, beside the best one; null: all")
    resume: Literal["auto", "never", "hub"] = _doc(
        "auto", "auto resumes from the newest checkpoint in output_dir; hub: from hub.repo_id, where that is newer"
    )


@_section
class TrackingRecipe:
    to: list[str] = _doc(list, "accelerate's trackers: tensorboard, wandb, trackio ...")


@_section
class HubRecipe:
    repo_id: str | None = _doc(None, "OWNER/NAME to publish to while training; the best checkpoint becomes its main")
    push_every: PositiveInt | None = _doc(None, "steps between pushes; null: each checkpoint")
    private: bool = _doc(False, "make the repository a private one")
    branch: str = _doc("training", "branch of all pushed checkpoints, each with a tag such as step-00000500")
    with_training_state: bool = _doc(False, "push what resuming needs too: three times the size")
    license: str | None = _doc(None, "licence of the model as the Hub names it, such as mit or cc-by-sa-4.0")

    def __post_init__(self) -> None:
        if self.branch == "main":
            raise ValueError("'branch' takes every checkpoint and main the best one; name another branch")
        if not _BRANCH.fullmatch(self.branch):
            raise ValueError(f"'branch' is a name such as training, found {self.branch!r}")
        if self.repo_id is not None and (not _REPO_ID.fullmatch(self.repo_id) or re.search(r"--|\.\.", self.repo_id)):
            raise ValueError(f"'repo_id' is OWNER/NAME, such as someone/my-gpt, found {self.repo_id!r}")


@_section
class Recipe:
    """A run: what is trained, on what, how, and where it is kept. Sections may be given as dictionaries.

    Raises :class:`UserError` (one line: the field, what was found, the nearest valid name) for unknown keys, wrong
    types and impossible values.
    """

    seed: Seed = _doc(123, "of the weights, dropout and the order of windows")
    output_dir: str = _doc("runs/gpt", "folder of the run")
    model: ModelRecipe = _doc(ModelRecipe, "")
    tokenizer: TokenizerRecipe = _doc(TokenizerRecipe, "")
    data: DataRecipe = _doc(DataRecipe, "")
    optimizer: OptimizerRecipe = _doc(OptimizerRecipe, "")
    schedule: ScheduleRecipe = _doc(ScheduleRecipe, "")
    train: TrainRecipe = _doc(TrainRecipe, "")
    evaluation: EvaluationRecipe = _doc(EvaluationRecipe, "")
    checkpoint: CheckpointRecipe = _doc(CheckpointRecipe, "")
    tracking: TrackingRecipe = _doc(TrackingRecipe, "")
    hub: HubRecipe = _doc(HubRecipe, "")

    def __post_init__(self) -> None:
        if self.checkpoint.resume == "hub" and self.hub.repo_id is None:
            raise ValueError("'checkpoint.resume: hub' needs 'hub.repo_id', from where the run is resumed")
        every, push_every = self.checkpoint.every, self.hub.push_every
        if push_every is not None and (every is None or push_every % every):
            raise ValueError(f"'hub.push_every' is a multiple of 'checkpoint.every', which is {every}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """The recipe of a nested dictionary, such as `to_dict` gives."""
        # YAML's `data:` with nothing below it is an empty section, not a missing one.
        return cls(**{str(key): {} if value is None and key in _SECTIONS else value for key, value in values.items()})

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
        """The recipe of a YAML file, changed by flags: `["--train.max_steps", "100", "--optimizer.lr=1e-3"]`."""
        values, changed = _read_yaml(path), list(parse_overrides(overrides))
        for keys, value in changed:
            _set(values, keys, value)
        try:
            return cls.from_dict(values)
        except UserError as error:
            field = str(error).partition(": ")[0]
            if field in {".".join(keys) for keys, _ in changed}:  # the file is not to blame
                raise UserError(f"--{error}") from None
            raise UserError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries of plain YAML values; `from_dict` of it is equal to this recipe."""
        values = _plain(self)
        values["model"] |= values["model"].pop("config")
        return values

    def to_yaml(self) -> str:
        """The YAML text of the recipe, every field written out."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


_SECTIONS = {f.name: f.type for f in dataclasses.fields(Recipe) if dataclasses.is_dataclass(f.type)}


def differences(old: Recipe, new: Recipe) -> dict[str, tuple[Any, Any]]:
    """`{"section.key": (old value, new value)}` for every field in which two recipes differ."""
    before, after = dict(flat(old)), dict(flat(new))
    changed = [key for key in before | after if before.get(key) != after.get(key)]
    return {key: (before.get(key), after.get(key)) for key in changed}


def flat(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """`("section.key", value)` of every field, `None` and lists included."""

    def walk(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, Mapping):
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return walk(recipe.to_dict(), "")


def fields_help() -> Iterator[tuple[str, str, str]]:
    """`("section.key", default, help)` of every recipe field, for `--help`."""
    for top in dataclasses.fields(Recipe):
        section = _SECTIONS.get(top.name)
        for f in dataclasses.fields(section) if section else [top]:
            default = f.default if f.default is not dataclasses.MISSING else f.default_factory()
            name = f"{top.name}.{f.name}" if section else f.name
            if name != "model.config":
                yield name, _shown(default), f.metadata["help"]


def parse_overrides(arguments: Sequence[str]) -> Iterator[tuple[list[str], Any]]:
    """`(["section", "key"], value)` of `--section.key VALUE` and `--section.key=VALUE`; values are YAML."""
    arguments = list(arguments)
    while arguments:
        flag = arguments.pop(0)
        if not flag.startswith("--") or flag == "--":
            raise UserError(f"unexpected argument {flag!r}; recipe fields are given as --section.key VALUE")
        name, equals, text = flag[2:].partition("=")
        if not equals:
            if not arguments:
                raise UserError(f"--{name} needs a value, as in --{name} VALUE (null unsets it)")
            text = arguments.pop(0)
        keys = name.split(".")
        try:
            # Text is taken as it stands, so that a path may hold " #" or be a number; only null unsets.
            yield keys, text if _is_text(keys) and text != "null" else yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--{name}: not valid YAML: {error}") from None


def _is_text(keys: Sequence[str]) -> bool:
    """Whether the field that flags name by `keys` holds a string."""
    section: Any = Recipe
    for key in keys:
        fields = {f.name: f.type for f in dataclasses.fields(section)} if section else {}
        annotation = fields.get(key)
        section = _dataclass_in(annotation)
    return annotation is str or (isinstance(annotation, types.UnionType) and str in typing.get_args(annotation))


def _set(values: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for depth, key in enumerate(keys[:-1]):
        if values.get(key) is None:
            values[key] = {}
        values = values[key]
        if not isinstance(values, dict):
            raise UserError(f"--{'.'.join(keys)}: {'.'.join(keys[: depth + 1])} is not a section")
    values[keys[-1]] = value


def _read_yaml(path: str | Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe; configs/ holds some to start from") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a recipe: {error}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections, found {_shown(values)}")
    return values


def _shown(value: Any) -> str:
    """A value as it would stand in YAML, cut to a readable length."""
    text = yaml.safe_dump(_plain(value), default_flow_style=True, width=1 << 16, allow_unicode=True)
    text = text.removesuffix("\n").removesuffix("\n...")
    return text if len(text) <= 60 else text[:57] + "..."


def _plain(value: Any) -> Any:
    """A value in YAML's own types."""
    if dataclasses.is_dataclass(value):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _one_line(cls: type, report: ValidationError) -> str:
    """The first thing that is wrong, as `section.key: what it is, and what would work`."""
    errors = report.errors(include_url=False)
    error = errors[0]
    # A location names the fields down to the place, and below it the member of a union that refused the value.
    path, names, here = [], {}, cls
    for part in error["loc"]:
        names = {f.name: f.type for f in dataclasses.fields(here)} if dataclasses.is_dataclass(here) else names
        if part in names or isinstance(part, int) or error["type"] == "unexpected_keyword_argument":
            path.append(str(part))
            here = _dataclass_in(names.get(part))
    at = f"{'.'.join(path)}: " if path else ""
    if error["type"] == "unexpected_keyword_argument":
        return f"{at}unknown key{did_you_mean(path[-1], names)}"
    if error["type"] == "value_error":
        return f"{at}{error['ctx']['error']}"
    if error["type"] == "dataclass_type":
        what = "expected a section with keys"
    elif any(e["type"] == "bool_parsing" for e in errors):
        what = "expected auto, true or false"
    else:
        what = re.sub("Input should be|String should have", "expected", error["msg"])
        what = what.replace("a valid i", "an i").replace("a valid", "a")
    return f"{at}{what}, found {_shown(error['input'])}"


def _dataclass_in(annotation: Any) -> Any:
    """The dataclass of `Section` or of `Section | None`."""
    return next((t for t in (annotation, *typing.get_args(annotation)) if dataclasses.is_dataclass(t)), None)
