"""A run, as typed dataclasses <-> YAML <-> command line.

A :class:`Recipe` is the one source of truth for a run: its fields give the types, the defaults, the YAML keys, the
`--section.key VALUE` flags and the text of `hf-gpt train --help`. pydantic validates; this file says what the fields
are and turns pydantic's reports into one line a person can act on. Nothing here looks at a corpus, a tokenizer or the
hardware: `auto` stays `auto` until the loop resolves it, once, by a rule.

A value is checked twice: `_refuse_unusable` looks at all of a recipe at once, for what no field can use (text that is
not UTF-8, numbers of more than 63 bits); the type of a field then says what that field takes. Fields that exclude each
other are listed with their section (`one_of`); of two such fields the one on the command line wins over the file's.

Three conveniences over plain YAML: counts may be written `10M`, floats `4e-4` (YAML 1.1 reads that as a string), and
an unquoted `no`, `off`, `yes` or `on`, which YAML reads as a boolean, still means what it says.
"""

import dataclasses
import functools
import itertools
import math
import os
import re
import string
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from .display import whole_number
from .errors import UserError, did_you_mean
from .storage import local_path
from .yaml_text import load_yaml

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# What torch and numpy take as a size, a seed or a number of steps.
_TOO_LARGE = 2**63
# Between these temperatures no model's logits become infinite or all equal when they are divided.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-4, 1e6
MOST_NEW_TOKENS = 1_000_000
# What a milestone can be named by: its step, what was asked for, and that as `7M`.
MILESTONE_PLACEHOLDERS = ("step", "tokens", "words", "tokens_short", "words_short")


def _number(value: Any) -> Any:
    """Python counts `True` as 1; a recipe does not."""
    if isinstance(value, bool):
        raise ValueError(f"must be a number, found {str(value).lower()}")
    return value


def _whole(value: Any) -> Any:
    """`10M` is a whole number."""
    if isinstance(value, str):
        try:
            return whole_number(value)
        except ValueError:
            return value  # refused by the type
    return _number(value)


def _written_number(text: str) -> Any:
    """The number that a text is, where the field's type is not known; else the text."""
    value = _whole(text)
    return float(text) if value is text and re.fullmatch(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", text, re.I) else value


def _yaml_no(value: Any) -> Any:
    """YAML 1.1 reads an unquoted `no` or `off` as a boolean."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


def _temperature(value: float) -> float:
    if value != 0 and not MIN_TEMPERATURE <= value <= MAX_TEMPERATURE:
        raise ValueError(f"must be 0 (greedy), or {MIN_TEMPERATURE} to {MAX_TEMPERATURE:,.0f}, found {value:g}")
    return value


def _repo_id(value: str) -> str:
    pattern = r"(?=.{1,96}$)(?!.*(--|\.\.))[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
    if not re.fullmatch(pattern, value.replace(_SEED, "1"), re.ASCII):
        raise ValueError(f"must be OWNER/NAME, such as someone/my-gpt, found {_shown(value)}")
    return value


def is_branch_name(text: str) -> bool:
    """Whether a branch or a tag of the Hub can have this name."""
    pattern = r"(?!refs/|HEAD$)(?!.*(\.\.|//|/\.|\./|\.lock/))\w[\w./-]{0,99}(?<![./])(?<!\.lock)"
    return re.fullmatch(pattern, text) is not None


def _branch(value: str) -> str:
    if value == "main":
        raise ValueError("takes every checkpoint, and main the best one; name another branch")
    if not is_branch_name(value):
        raise ValueError(f"must be a name such as training, found {_shown(value)}")
    return value


def placeholders(template: str) -> set[str]:
    """The names in the {brackets} of a text; a `ValueError` where there is something else in them."""
    parts = [*string.Formatter().parse(template)]
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise ValueError("a {placeholder} is a name alone")
    return {name for _, name, _, _ in parts if name is not None}


def _milestone_name(value: str) -> str:
    try:
        unknown = sorted(placeholders(value) - set(MILESTONE_PLACEHOLDERS))
    except ValueError as error:
        raise ValueError(f"must be a name such as step{{step}}, found {_shown(value)}: {error}") from None
    if unknown:
        raise ValueError(f"{{{unknown[0]}}} is no placeholder; there are {{{'}, {'.join(MILESTONE_PLACEHOLDERS)}}}")
    if not is_branch_name(value.format(**dict.fromkeys(MILESTONE_PLACEHOLDERS, "1"))):
        raise ValueError(f"must make the name of a branch, such as step{{step}}, found {_shown(value)}")
    return value


def _license(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,49}", value):
        raise ValueError(f"must be a name such as mit or cc-by-sa-4.0, found {_shown(value)}")
    return value


def _padding_token(value: str) -> str:
    """One that no byte-level BPE makes of text: GPT-2's split pattern takes brackets and letters apart."""
    if not re.fullmatch(r"(?=.{1,64}$)(<[!-~]*[A-Za-z0-9][!-~]*>|\[[!-~]*[A-Za-z0-9][!-~]*\])", value):
        raise ValueError(f"must stand in < > or [ ], such as <pad>, found {_shown(value)}")
    if value == "<|endoftext|>":
        raise ValueError("is the end of a text, whose labels are trained on; give another, such as <pad>")
    return value


def _text_name(value: Any) -> Any:
    """A part of the names of metrics."""
    value = str(_yaml_no(value)) if isinstance(value, int) else value
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", value):
        what = "a text's name has letters, digits, '.', '_' and '-', and begins with one of the first two"
        raise ValueError(f"{what}, such as dialogue; found {_shown(value)}")
    return value


def _only_source(value: Any) -> Any:
    """A text may be its source alone."""
    return value if isinstance(value, Mapping) or dataclasses.is_dataclass(value) else {"source": value}


def _path(value: Any) -> Any:
    """In Python a path is a text too."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _one_or_more(value: Any) -> Any:
    """A single text or number is a list of one."""
    return [value] if isinstance(value, (str, int)) else value


_Whole, _Real = BeforeValidator(_whole), BeforeValidator(_number)
Count = Annotated[int, Field(ge=0, lt=_TOO_LARGE), _Whole]
PositiveInt = Annotated[int, Field(ge=1, lt=_TOO_LARGE), _Whole]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), _Real]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), _Real]
Fraction = Annotated[float, Field(gt=0, lt=1), _Real]
Ratio = Annotated[float, Field(ge=0, le=1), _Real]
Beta = Annotated[float, Field(ge=0, lt=1), _Real]
Temperature = Annotated[float, AfterValidator(_temperature), _Real]
AutoOrBool = Literal["auto"] | bool
Name = Annotated[str, Field(min_length=1), BeforeValidator(_path)]
Texts = Annotated[list[Name], BeforeValidator(_one_or_more)]
Counts = Annotated[list[Count], BeforeValidator(_one_or_more)]
Source = Name | Annotated[list[Name], Field(min_length=1)]

_LARGEST_FILE = 1_000_000  # characters
_SEED = "{seed}"  # in the names of a run: its seed


def _section(*, one_of: Sequence[tuple[str, str]] = (), needs: Mapping[str, str] | None = None) -> Callable:
    """A dataclass whose constructor validates, refuses unknown fields and reports as :class:`UserError`.

    Args:
        one_of: pairs of fields of which one at most may be given.
        needs: a field that is for something only with another, by its name.
    """

    def decorate(cls: type) -> type:
        cls = dataclass(kw_only=True, config=ConfigDict(extra="forbid"))(cls)
        cls.one_of, cls.needs = tuple(one_of), dict(needs or {})
        validate = cls.__init__

        @functools.wraps(validate)
        def __init__(self, /, **fields):
            try:
                _refuse_unusable(fields)
                # What the constructor that pydantic made does, for keys of any name, such as `self`.
                cls.__pydantic_validator__.validate_python(ArgsKwargs((), fields), self_instance=self)
            except ValidationError as error:
                raise UserError(_one_line(cls, error)) from None

        cls.__init__ = __init__
        return cls

    return decorate


def _refuse_unusable(value: Any, path: str = "") -> None:
    """Refuse what no field of a recipe can use; `path` is where in it the value stands.

    Raises:
        UserError: text that is not UTF-8 or holds a NUL, a number that is not finite or has more than 63 bits.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_unusable(key, path)
            _refuse_unusable(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            _refuse_unusable(item, f"{path}.{number}")
    elif isinstance(value, str):
        if "\0" in value or (not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value)):
            raise UserError(f"{path}: is not text: it contains a NUL, or half of a character")
    elif isinstance(value, int) and not -_TOO_LARGE < value < _TOO_LARGE:
        raise UserError(f"{path}: must be below 2**63, found a number of {value.bit_length()} bits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path}: must be a finite number, found {value}")


def _refuse_both(section: Any) -> None:
    """Refuse fields that exclude each other, and a field without the one that it needs."""
    for one, other in section.one_of:
        if getattr(section, one) is not None and getattr(section, other) is not None:
            raise ValueError(f"give {one!r} or {other!r}, not both")
    for dependent, needed in section.needs.items():
        if getattr(section, dependent) is not None and getattr(section, needed) is None:
            raise ValueError(f"{dependent!r} goes with {needed!r}")


def _doc(default: Any, text: str, **kwargs) -> Any:
    """A dataclass field with its line of help."""
    if isinstance(default, (list, dict)) or callable(default):
        kwargs["default_factory"] = default if callable(default) else lambda: default.copy()
    else:
        kwargs["default"] = default
    return field(metadata={"help": text}, **kwargs)


@_section(
    one_of=[("preset", "from_pretrained"), ("preset", "model_type"), ("model_type", "from_pretrained")],
    needs={"revision": "from_pretrained"},
)
class ModelRecipe:
    """Where the model comes from. Every other key is a field of its configuration, such as `GPTConfig`'s."""

    preset: Name | None = _doc(None, "gpt2-124m, gpt2-355m, gpt2-774m or gpt2-1558m; the other keys then change it")
    model_type: Name | None = _doc(None, "llama, qwen3, gpt2 or any other of transformers; default: our GPT")
    from_pretrained: Name | None = _doc(None, "directory or Hub id of a causal language model to continue")
    revision: Name | None = _doc(None, "branch, tag or commit of that Hub id")
    seed: Count | None = _doc(None, "of new weights and of dropout; default: seed")
    config: dict[str, Any] = _doc(dict, "fields of its configuration; in YAML they stand directly in the section")

    @model_validator(mode="before")
    @classmethod
    def _gather_config_fields(cls, values: Any) -> Any:
        values = getattr(values, "kwargs", values) or {}
        if not isinstance(values, Mapping):
            return values
        own = {f.name for f in dataclasses.fields(cls)}
        config = values.get("config") or {}
        if not isinstance(config, Mapping):
            return values  # refused by its type
        for key in config.keys() & own:
            raise ValueError(f"'{key}' is a field of the section, and cannot be given in its 'config'")
        beside = {k: v for k, v in values.items() if k not in own}
        for key in beside:
            if key in config and config[key] != beside[key]:
                raise ValueError(f"'{key}' is given twice, in the section and in its 'config'")
        config = {**config, **beside}
        config = {str(k): _written_number(v) if isinstance(v, str) else v for k, v in config.items()}
        return {**{k: v for k, v in values.items() if k in own}, "config": config}

    def __post_init__(self) -> None:
        _refuse_both(self)


def config_class(model_type: str | None) -> "type[PreTrainedConfig]":
    """The configuration of a type of transformers, by its name, or that of our GPT.

    Raises:
        UserError: transformers has no causal language model of this name.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    from .configuration_gpt import GPTConfig

    if model_type is None:
        return GPTConfig
    if model_type in CONFIG_MAPPING and CONFIG_MAPPING[model_type] in MODEL_FOR_CAUSAL_LM_MAPPING:
        return CONFIG_MAPPING[model_type]
    near = "" if model_type in CONFIG_MAPPING else did_you_mean(model_type, CONFIG_MAPPING)
    raise UserError(f"model.model_type: transformers has no causal language model {_shown(model_type)}{near}")


@_section()
class TrainTokenizerRecipe:
    vocab_size: Annotated[int, Field(ge=257, le=10_000_000), _Whole] = _doc(
        4096, "entries, with <|endoftext|>, the padding token if there is one, and the 256 bytes"
    )
    pad_token: Annotated[str, AfterValidator(_padding_token)] | None = _doc(
        None, "a padding token of its own, such as <pad>"
    )

    def __post_init__(self) -> None:
        if self.pad_token is not None and self.vocab_size < 258:
            raise ValueError("'vocab_size' must be at least 258 with a 'pad_token', found 257")


@_section(one_of=[("name", "train")], needs={"revision": "name"})
class TokenizerRecipe:
    name: Name | None = _doc(
        None, "gpt2, bytes, a path or a Hub id; if nothing is said, that of model.from_pretrained, else gpt2"
    )
    revision: Name | None = _doc(None, "branch, tag or commit of that Hub id")
    train: TrainTokenizerRecipe | None = _doc(
        None, "train a byte-level BPE on the training text instead: {vocab_size: 4096, pad_token: null}"
    )

    def __post_init__(self) -> None:
        _refuse_both(self)


@_section(
    one_of=[("validation_split", "validation_fraction"), ("validation_source", "validation_fraction")],
)
class DataRecipe:
    source: Source = _doc(
        "builtin:python-docs", "builtin:python-docs, a file, directory or glob, or a Hub dataset id; or a list of them"
    )
    config: Name | None = _doc(None, "configuration of a dataset that has several, such as wikitext-2-raw-v1")
    revision: Name | None = _doc(None, "branch, tag or commit of a Hub dataset")
    streaming: bool = _doc(False, "read a Hub dataset as it arrives, without keeping a copy of it")
    text_column: Name | None = _doc(None, "column that holds the text; 'text', or the only column of strings")
    train_split: Name = _doc("train", "split to train on")
    validation_split: Name | None = _doc(None, "split to validate on")
    validation_source: Source | None = _doc(None, "validate on another source, such as a second file or folder")
    validation_fraction: Fraction | None = _doc(None, "or cut this fraction of the characters off the end")
    separator: AutoOrBool = _doc("auto", "EOS (<|endoftext|>) between rows; auto: unless rows are lines of one text")
    drop_blank_lines: bool = _doc(False, "leave lines without a visible character out")
    isolate_documents: bool = _doc(False, "stop attention and positions at document boundaries")
    context_length: PositiveInt | None = _doc(None, "length of a window, in tokens; default: the model's positions")
    stride: PositiveInt | None = _doc(None, "distance between window starts, in tokens; default: the context length")
    shuffle: bool = _doc(True, "a new order of windows each epoch; false: in the order of the text")
    seed: Count | None = _doc(None, "of that order; default: seed")
    drop_last: bool = _doc(False, "leave out an epoch's last global batch when it is short")

    def __post_init__(self) -> None:
        _refuse_both(self)


@_section()
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


@_section()
class ScheduleRecipe:
    name: Literal["cosine", "linear", "constant", "wsd"] = _doc("cosine", "wsd: stable, then a linear decay")
    warmup_steps: Count = _doc(0, "steps of linear warmup")
    min_lr_ratio: Ratio = _doc(0.1, "the last learning rate as a part of the peak")
    decay_fraction: Fraction = _doc(0.2, "wsd: the part of the run that decays")


LENGTHS = ("max_steps", "epochs", "max_tokens", "max_words")


@_section(one_of=[*itertools.combinations(LENGTHS, 2), ("global_batch_size", "gradient_accumulation_steps")])
class TrainRecipe:
    max_steps: Count | None = _doc(None, "global batches to train on; 0 evaluates and saves the untrained model")
    epochs: Annotated[Positive, Field(le=1e9)] | None = _doc(None, "or passes over the training windows")
    max_tokens: PositiveInt | None = _doc(
        None, "or tokens to train on, such as 10M; the last step is the first at or past them"
    )
    max_words: PositiveInt | None = _doc(None, "or words; each is counted as often as it is trained on")
    batch_size: PositiveInt = _doc(8, "windows a process takes at once")
    global_batch_size: PositiveInt | None = _doc(
        None, "windows of a step over all processes; batches are accumulated until they are together"
    )
    gradient_accumulation_steps: PositiveInt | None = _doc(
        None, "or batches a process takes before an update; default: 1"
    )
    max_grad_norm: Positive | None = _doc(1.0, "gradients are clipped to this norm; null: never")
    mixed_precision: Annotated[Literal["auto", "no", "bf16", "fp16"], BeforeValidator(_yaml_no)] = _doc(
        "auto", "auto: bf16 where a GPU has it, or a CPU if hidden_size is 256 or more, else no"
    )
    compile: AutoOrBool = _doc("auto", "torch.compile the model; auto: where the run is long enough for it to pay")
    device: Literal["auto", "cuda", "mps", "cpu"] = _doc("auto", "auto: cuda, else mps, else cpu")
    deterministic: bool = _doc(True, "on a GPU, torch's deterministic algorithms; without them no run repeats itself")
    attn_implementation: Name = _doc("auto", "eager, sdpa, flash_attention_2, flex_attention; auto: sdpa if it can")
    gradient_checkpointing: bool = _doc(False, "recompute activations in the backward pass to save memory")
    log_every: PositiveInt = _doc(10, "steps between train lines in metrics.jsonl")
    skip_nonfinite: Count = _doc(0, "updates to skip, not stop at, when the gradient is not finite; waits each step")

    def __post_init__(self) -> None:
        _refuse_both(self)
        if all(getattr(self, length) is None for length in LENGTHS):
            self.max_steps = 1000


@_section()
class TextRecipe:
    """A further text to evaluate. In YAML its source alone may stand in its place."""

    source: Source = _doc(dataclasses.MISSING, "as data.source")
    config: Name | None = _doc(None, "configuration of a dataset that has several")
    revision: Name | None = _doc(None, "branch, tag or commit of a Hub dataset")
    text_column: Name | None = _doc(None, "column that holds the text; 'text', or the only column of strings")
    split: Name | None = _doc(None, "its split; default: the only one, else validation")
    separator: AutoOrBool = _doc("auto", "EOS (<|endoftext|>) between rows; auto: unless rows are lines of one text")


NamedTexts = Annotated[
    dict[Annotated[str, BeforeValidator(_text_name)], Annotated[TextRecipe, BeforeValidator(_only_source)]],
    BeforeValidator(lambda value: {} if value is None else value),  # YAML's `datasets:` with nothing below it
]


@_section()
class EvaluationRecipe:
    first: Count = _doc(0, "first step to evaluate at; 0 is before training")
    every: PositiveInt = _doc(100, "steps between evaluations; the last step is always evaluated")
    at_epoch_end: bool = _doc(False, "evaluate at each epoch's end too")
    tokens: PositiveInt | None = _doc(100_000, "tokens of each set to evaluate on, from its beginning; null: all")
    prompts: Texts = _doc(["Every effort moves you"], "continued at each evaluation")
    sample_tokens: Annotated[PositiveInt, Field(le=MOST_NEW_TOKENS)] = _doc(50, "tokens of each continuation")
    temperature: Temperature | None = _doc(None, "of the continuations; 0 or null with no top_k: greedy")
    top_k: PositiveInt | None = _doc(None, "sample among the k most likely tokens")
    datasets: NamedTexts = _doc(
        dict,
        "further texts to validate on, {NAME: SOURCE} or {NAME: {source: ..., config: ..., split: ...}}",
    )
    best_on: Name | None = _doc(None, "which of them `best` follows; default: data's validation text, else the first")

    def __post_init__(self) -> None:
        if self.best_on is not None and self.best_on not in self.datasets:
            near = did_you_mean(self.best_on, self.datasets)
            raise ValueError(f"'best_on' is none of 'datasets', found {_shown(self.best_on)}{near}")


@_section()
class MilestonesRecipe:
    """Which checkpoints stay for ever. Several fields may be given; milestones of one step are one checkpoint."""

    steps: Counts = _doc(list, "checkpoints that stay for ever: at these steps; 0 is before training")
    every_steps: PositiveInt | None = _doc(None, "after every so many steps")
    powers_of_two_until: PositiveInt | None = _doc(None, "at steps 0, 1, 2, 4, 8 and so on up to this one")
    tokens: Counts = _doc(list, "at the first step at or past so many tokens, such as [1M, 10M]")
    words: Counts = _doc(list, "at the first step at or past so many words")
    training_state: bool = _doc(False, "keep what resuming needs too: three times the size")


@_section()
class CheckpointRecipe:
    every: PositiveInt | None = _doc(500, "steps between checkpoints; null: only at the end")
    keep: PositiveInt | None = _doc(3, "newest checkpoints kept, beside the best one; null: all")
    at_epoch_end: bool = _doc(False, "a checkpoint at each epoch's end too")
    milestones: MilestonesRecipe = _doc(MilestonesRecipe, "")
    resume: Literal["auto", "never", "hub"] = _doc(
        "auto", "auto resumes from the newest checkpoint in output_dir; hub: from hub.repo_id, where that is newer"
    )


@_section()
class TrackingRecipe:
    to: Texts = _doc(list, "accelerate's trackers: tensorboard, wandb, trackio ...")


@_section()
class HubRecipe:
    repo_id: Annotated[str, AfterValidator(_repo_id)] | None = _doc(
        None, "OWNER/NAME to publish to while training; {seed} is the seed"
    )
    main: Literal["best", "last"] = _doc("best", "checkpoint that main shows: best on the validation text, or newest")
    push_every: PositiveInt | None = _doc(None, "steps between pushes; null: each checkpoint")
    private: bool = _doc(False, "make the repository a private one")
    branch: Annotated[str, AfterValidator(_branch)] = _doc(
        "training", "branch of all pushed checkpoints, each with a tag such as step-00000500"
    )
    milestones: Literal["tags", "branches", "none"] = _doc("tags", "each milestone becomes a tag or a branch")
    milestone_name: Annotated[str, AfterValidator(_milestone_name)] = _doc(
        "step{step}", "its name, with {step}, or {tokens} or {words} as asked for, or as 7M: {words_short}"
    )
    format: Literal["hf_gpt", "gpt2"] = _doc(
        "hf_gpt", "gpt2: our GPT is published as a stock GPT-2, which needs no code of this package"
    )
    with_training_state: bool = _doc(False, "push what resuming needs too: three times the size")
    license: Annotated[str, AfterValidator(_license)] | None = _doc(
        None, "licence of the model as the Hub names it, such as mit or cc-by-sa-4.0"
    )

    def __post_init__(self) -> None:
        if self.format == "gpt2" and self.with_training_state:
            raise ValueError("'with_training_state' goes with format: hf_gpt; a stock GPT-2 cannot be resumed")


@_section()
class Recipe:
    """A run: what is trained, on what, how, and where it is kept. Sections may be given as dictionaries.

    Raises :class:`UserError` (one line: the field, what was found, the nearest valid name) for unknown keys, wrong
    types and impossible values.
    """

    seed: Count = _doc(123, "of the weights, dropout, the order of windows and samples")
    output_dir: Name = _doc("runs/gpt", "folder of the run; {seed} in it is the seed")
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
        if self.checkpoint.resume == "hub" and self.hub.format == "gpt2":
            raise ValueError("'checkpoint.resume: hub' goes with 'hub.format: hf_gpt'; a GPT-2 cannot be resumed")
        every, push_every = self.checkpoint.every, self.hub.push_every
        if push_every is not None and (every is None or push_every % every):
            raise ValueError(f"'hub.push_every' is a multiple of 'checkpoint.every', which is {every}")
        self.output_dir = self.output_dir.replace(_SEED, str(self.seed))
        if _SEED in (self.hub.repo_id or ""):
            self.hub = dataclasses.replace(self.hub, repo_id=self.hub.repo_id.replace(_SEED, str(self.seed)))

    @property
    def model_seed(self) -> int:
        """The seed of the weights and of dropout."""
        return self.seed if self.model.seed is None else self.model.seed

    @property
    def data_seed(self) -> int:
        """The seed of the order of windows."""
        return self.seed if self.data.seed is None else self.data.seed

    def __repr__(self) -> str:
        changed = differences(Recipe(), self).items()
        return f"Recipe({', '.join(f'{field}={_shown(value)}' for field, (_, value) in changed)})"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """The recipe of a nested dictionary, such as `to_dict` gives."""
        if not isinstance(values, Mapping):
            raise UserError(f"a recipe is a mapping of sections, found {_shown(values)}")
        # YAML's `data:` with nothing below it is an empty section, not a missing one.
        return cls(**{str(key): {} if value is None and key in _SECTIONS else value for key, value in values.items()})

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
        """The recipe of a YAML file, changed by flags: `["--train.max_steps", "100", "--optimizer.lr=1e-3"]`.

        Of two fields that exclude each other, the one among the flags stays.
        """
        values, changed = _read_yaml(path), list(parse_overrides(overrides))
        model = values.get("model")
        if (
            isinstance(model, dict)
            and isinstance(config := model.get("config"), dict)
            and not config.keys() & model.keys()
        ):
            values["model"] = {**{key: value for key, value in model.items() if key != "config"}, **config}
        _let_flags_win(values, [(keys, value) for keys, value in changed if value is not None])
        for keys, value in changed:
            _set(values, keys, value)
        try:
            return cls.from_dict(values)
        except UserError as error:
            field = str(error).partition(": ")[0]
            if any(  # the file is not to blame
                f"{field}.".startswith(".".join([*keys, ""])) or (keys[0] == field and field not in _SECTIONS)
                for keys, _ in changed
            ):
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


def fields_help(section: Any = None, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """`("section.key", default, help)` of every recipe field, for `--help`; those of a section, if one is given."""
    for f in dataclasses.fields(section or Recipe):
        default, name = f.default if f.default is not dataclasses.MISSING else f.default_factory(), f"{prefix}{f.name}"
        if dataclasses.is_dataclass(default):
            yield from fields_help(default, f"{name}.")
        elif name != "model.config":
            yield name, _shown(default), f.metadata["help"]


def parse_overrides(arguments: Sequence[str]) -> Iterator[tuple[list[str], Any]]:
    """`(["section", "key"], value)` of `--section.key VALUE` and `--section.key=VALUE`; values are YAML."""
    arguments = list(arguments)
    while arguments:
        flag = arguments.pop(0)
        if not flag.startswith("--") or flag == "--":
            raise UserError(f"unexpected argument '{flag}'; recipe fields are given as --section.key VALUE")
        name, equals, text = flag[2:].partition("=")
        if not equals:
            if not arguments or arguments[0].startswith("--"):
                raise UserError(f"--{name} needs a value, as in --{name} VALUE (null unsets it)")
            text = arguments.pop(0)
        keys = name.replace("model.config.", "model.", 1).split(".")
        # Text is taken as it stands, so that a path may hold " #" or be a number; only null unsets. Of texts there
        # may be a list.
        annotation = _annotation(keys)
        is_list = _takes_list(annotation) and text.startswith("[") and text.endswith("]")
        takes_text = _is_text(annotation)
        if not takes_text and not text.strip():
            raise UserError(f"--{name} has an empty value; null unsets it")
        yield keys, text if takes_text and not is_list and text != "null" else load_yaml(text, f"--{name}")


def _is_text(annotation: Any) -> bool:
    """Whether a field of this type holds text, or a list of texts."""
    inner = typing.get_args(annotation) if typing.get_origin(annotation) is not dict else ()
    return annotation is str or (len(inner) > 0 and _is_text(inner[0]))


def _takes_list(annotation: Any) -> bool:
    """Whether a field of this type may be a list."""
    return typing.get_origin(annotation) is list or any(map(_takes_list, typing.get_args(annotation)))


def _annotation(keys: Sequence[str]) -> Any:
    """The type of the field that flags name by `keys`; None if there is none."""
    return functools.reduce(_type_within, keys, Recipe)


def _let_flags_win(values: dict[str, Any], given: Sequence[tuple[Sequence[str], Any]]) -> None:
    """Remove from `values` what excludes a field that flags give, `given` by their keys and values.

    Raises:
        UserError: two flags exclude each other.
    """
    flags = {tuple(keys[:2]): value for keys, value in given if len(keys) > 1 and keys[0] in _SECTIONS}
    in_file = values["model"].get("model_type") if isinstance(values.get("model"), dict) else None
    model_type = flags.get(("model", "model_type"), in_file if isinstance(in_file, str) else None)
    if flags.get(("optimizer", "name"), "muon") != "muon" and isinstance(values.get("optimizer"), dict):
        values["optimizer"].pop("muon_lr", None)
    for section, key in sorted(flags):
        for other in sorted(_excluded_by(section, key, model_type)):
            if (section, other) in flags:
                raise UserError(f"--{section}.{key} and --{section}.{other} exclude each other; give one")
            if isinstance(values.get(section), dict) and values[section].pop(other, None) is not None:
                for dependent, needed in _SECTIONS[section].needs.items():
                    if needed == other:
                        values[section].pop(dependent, None)


def _excluded_by(section: str, key: str, model_type: Any) -> set[str]:
    """The other fields of the section that must not be given beside `key`."""
    others = {other for pair in _SECTIONS[section].one_of if key in pair for other in pair}
    if section == "model":  # the names of one field
        alias_of = config_class(model_type).attribute_map
        names = {*alias_of, *alias_of.values()}
        others |= {name for name in names if alias_of.get(name, name) == alias_of.get(key, key)}
    return others - {key}


def _set(values: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set a field, or take it out of `values` if `value` is None and the field has no such value."""
    annotation = _annotation(keys)
    takes_null = type(None) in typing.get_args(annotation)
    unsets = value is None and not takes_null and (annotation is not None or keys[0] == "model")
    for depth, key in enumerate(keys[:-1]):
        if values.get(key) is None:
            if unsets:
                return  # nothing is there to be unset
            values[key] = {}
        values = values[key]
        if not isinstance(values, dict):
            raise UserError(f"--{'.'.join(keys)}: {'.'.join(keys[: depth + 1])} is not a section")
    if unsets:
        values.pop(keys[-1], None)
    else:
        values[keys[-1]] = value


def _read_yaml(path: str | Path) -> dict[str, Any]:
    try:
        with open(local_path(path), encoding="utf-8") as file:
            text = file.read(_LARGEST_FILE + 1)
        if len(text) > _LARGEST_FILE:
            raise UserError(f"{path}: is too large for a recipe")
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe; configs/ holds some to start from") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder and no recipe; text to train on is data.source") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no recipe: it is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a recipe: {error.strerror}") from None
    values = load_yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: a recipe is a mapping of sections, found {_shown(values)}; text to train on is data.source"
        )
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
    error = min(errors, key=lambda error: error["type"] == "missing")  # perhaps misspelt, which is another error
    # A location names the fields down to the place, and below it the member of a union that refused the value.
    path, here = [], cls
    for part in error["loc"]:
        names, within = [f.name for f in dataclasses.fields(_dataclass_in(here) or cls)], _type_within(here, part)
        if within is not None or isinstance(part, int) or error["type"] == "unexpected_keyword_argument":
            path.append(str(part))
            here = within
    at = f"{'.'.join(path)}: " if path else ""
    if error["type"] == "unexpected_keyword_argument":
        return f"{at}unknown key{did_you_mean(path[-1], names)}"
    if error["type"] == "value_error":
        return f"{at}{error['ctx']['error']}"
    if error["type"] == "missing" and isinstance(error["loc"][-1], str):
        return f"{at}is missing"
    context = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in error.get("ctx", {}).items()}
    if any(e["type"] == "bool_parsing" for e in errors):
        what = "must be auto, true or false"
    elif error["type"] in _EXPECTED:
        what = _EXPECTED[error["type"]].format(**context)
    else:
        what = error["msg"].replace("Input should be", "must be").replace("a valid", "a")
    return f"{at}{what}, found {_shown(error['input'])}"


# What a field needs, by the type of pydantic's error.
_EXPECTED = {
    "dataclass_type": "must be a section with keys",
    "dict_type": "must be a section with keys",
    "mapping_type": "must be a section with keys",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "too_short": "must be a list of at least {min_length}",
    "too_long": "must be a list of at most {max_length}",
    "missing": "must be a list of more",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be greater than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "literal_error": "must be {expected}",
}


def _type_within(annotation: Any, key: Any) -> Any:
    """The type of what stands under `key` in a value of this type; None if nothing can."""
    if (section := _dataclass_in(annotation)) is not None:
        return next((f.type for f in dataclasses.fields(section) if f.name == key), None)
    kinds = (annotation, *typing.get_args(annotation))
    return next((typing.get_args(kind)[1] for kind in kinds if typing.get_origin(kind) is dict), None)


def _dataclass_in(annotation: Any) -> Any:
    """The dataclass of `Section`, `Section | None` or `Annotated[Section, ...]`."""
    kinds = (annotation, *typing.get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)), None)
