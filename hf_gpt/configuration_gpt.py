"""What a GPT is: its sizes, its rates and how it starts.

`GPTConfig` is a transformers configuration whose fields carry the Hub's names. The names of Raschka's *Build a Large
Language Model From Scratch* (`emb_dim`, `n_layers`, `n_heads`, `context_length`, `drop_rate`), and two that readers of
it write (`embedding_dim`, `vocabulary_size`), mean the same fields wherever a configuration is written or read, so
`GPTConfig(**GPT_CONFIG_124M)` works with the book's dictionary.

transformers would apply such aliases after everything else: `emb_dim=64` would keep the feed-forward width that goes
with 768, and no check would see it. Here they are translated first. Two values for one field are refused.

transformers would also keep any other name, and nobody would notice that it means nothing. The constructor refuses it,
unless every configuration of transformers has it, or `to_dict()` wrote it. An override of `from_pretrained` may be for
whatever else transformers loads, and is refused if it looks like a misspelling of one of ours. Unknown keys of a file
are kept: a newer version or another tool may have written them.

Saving a configuration also puts the model's code beside it: `configuration_gpt.py`, `modeling_gpt.py`, and the
`auto_map` by which transformers finds the classes in them. With `trust_remote_code=True` such a directory loads where
this package is not installed. So this file imports nothing of `hf_gpt`, and no torch.
"""

import difflib
import functools
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import transformers

TRANSFORMERS = "5.18"  # the first version that has all that this model's code uses; earlier ones fail with riddles
if [*map(int, transformers.__version__.split(".")[:2])] < [*map(int, TRANSFORMERS.split("."))]:
    raise ImportError(
        f"this model's code needs transformers {TRANSFORMERS} or later, and this is {transformers.__version__}:"
        " pip install -U transformers"
    )

from huggingface_hub.dataclasses import strict  # noqa: E402
from huggingface_hub.errors import StrictDataclassError  # noqa: E402
from transformers.configuration_utils import PreTrainedConfig  # noqa: E402
from transformers.generation import GenerationConfig  # noqa: E402

# The GPT-2 family as released: https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
# (section 2.3; the paper's parameter counts are off, the names here carry those of the released weights).
_GPT2 = {
    "vocab_size": 50257,
    "max_position_embeddings": 1024,
    "qkv_bias": True,
    "tie_word_embeddings": True,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}
PRESETS: dict[str, dict[str, Any]] = {
    "gpt2-124m": {**_GPT2, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "gpt2-355m": {**_GPT2, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "gpt2-774m": {**_GPT2, "hidden_size": 1280, "num_hidden_layers": 36, "num_attention_heads": 20},
    "gpt2-1558m": {**_GPT2, "hidden_size": 1600, "num_hidden_layers": 48, "num_attention_heads": 25},
}

# Which of our classes each of transformers' Auto classes takes, by the file beside a checkpoint that defines it.
AUTO_MAP = {
    "AutoConfig": "configuration_gpt.GPTConfig",
    "AutoModel": "modeling_gpt.GPTModel",
    "AutoModelForCausalLM": "modeling_gpt.GPTForCausalLM",
    "AutoModelForSequenceClassification": "modeling_gpt.GPTForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_gpt.GPTForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_gpt.GPTForQuestionAnswering",
}

# What every configuration of transformers takes beside its fields and properties, now or in earlier versions. (It also
# takes settings of `generate()`, and forgets them.)
_TRANSFORMERS_NAMES = """
add_cross_attention attn_implementation auto_map cross_attention_hidden_size experts_implementation finetuning_task
is_decoder name_or_path num_labels output_attentions per_layer_config prefix pruned_heads quantization_config
task_specific_params tf_legacy_loss tie_encoder_decoder tokenizer_class torch_dtype torchscript use_bfloat16
"""
_NAMES_OF_ALL = {*_TRANSFORMERS_NAMES.split(), *GenerationConfig._get_default_generation_params()}

# Where `to_dict()` says which names it wrote that are none of these. So the constructor takes them back.
_EXTRA_NAMES = "_extra_names"

# What other GPTs call our fields. Spelling alone would not lead from one to the other.
_FOREIGN_NAMES = {
    "activation_function": "hidden_act",
    "attn_pdrop": "attention_dropout",
    "block_size": "max_position_embeddings",
    "d_ff": "intermediate_size",
    "d_model": "hidden_size",
    "embd_pdrop": "embedding_dropout",
    "n_ctx": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "num_heads": "num_attention_heads",
    "num_layers": "num_hidden_layers",
    "resid_pdrop": "dropout",
}


WRAPPERS = r"^(?:(?:_orig_mod|module)\.)+"
"""What torch.compile and DistributedDataParallel put before every name of a state dict: for `key_mapping`."""


def forget_wrappers(model: Any) -> None:
    """Say that `WRAPPERS` were left out when `model` was loaded; without this, saving it would put them back."""
    used = getattr(model, "_weight_conversions", None) or []
    others = [conversion for conversion in used if WRAPPERS not in conversion.source_patterns]
    if len(others) < len(used):
        model._weight_conversions = others
        text = "the weights of %s are from a compiled or distributed model: the prefix of their names is left out"
        logging.getLogger(__name__).warning(text, model.name_or_path)


class ImpossibleConfigError(ValueError, NotImplementedError):
    """A configuration that no model can have, in one line that names the field.

    A `ValueError` for whoever wrote it. Also a `NotImplementedError`, because that is what transformers' own
    configuration tests expect of a model that cannot take a value they try (they try `hidden_size=0`).
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def _checks_names_first(config_class: type) -> type:
    """Let `config_class(...)` translate aliases and refuse unknown names before anything is validated or derived."""
    validated_init = config_class.__init__

    @functools.wraps(validated_init)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        extra = kwargs.pop(_EXTRA_NAMES, ())
        config_class._refuse_unknown(name for name in kwargs if name not in extra)
        values = config_class._to_field_names(kwargs)
        try:
            validated_init(self, *args, **values)
        except StrictDataclassError as error:  # two lines that name the validator; its cause names the field
            text = str(error.__cause__ or error)
            name = text.split("'")[1] if text.startswith("Field '") else None
            if name in values:
                kind = config_class.__dataclass_fields__[name].type
                text = f"{name} must be {_in_words(kind)}, got {values[name]!r}"
            raise ImpossibleConfigError(text) from error

    config_class.__init__ = __init__
    return config_class


def _in_words(kind: Any) -> str:
    """What a field of this type takes."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    kinds = get_args(kind) or (kind,)
    return " or ".join(words.get(one, str(one)) for one in kinds if one is not int or float not in kinds)


@_checks_names_first
@strict
class GPTConfig(PreTrainedConfig):
    """Configuration of a GPT. `GPTConfig()` is GPT-2's smallest model (124M parameters, tied head, biased q/k/v).

    The book's model is the book's dictionary with `tie_word_embeddings=False, initialization="pytorch"`, the two
    things that its dictionary does not say.

    Args:
        vocab_size: number of token ids (`vocabulary_size`).
        max_position_embeddings: longest input, in tokens (`context_length`).
        hidden_size: width of the residual stream (`emb_dim`, `embedding_dim`).
        num_hidden_layers: number of blocks (`n_layers`).
        num_attention_heads: heads per block; they divide `hidden_size` (`n_heads`).
        intermediate_size: width inside the feed-forward layers; `None` means 4 * `hidden_size`.
        hidden_act: activation of the feed-forward layers, a name of `transformers.activations.ACT2FN`. The default is
            the tanh approximation of GELU written out as GPT-2 and the book have it, which repeats the book's figures
            to the last digit; "gelu_pytorch_tanh" is the same function in one kernel, and "gelu" what both
            approximate, fastest on a CPU.
        dropout: rate after the summed embeddings, on attention weights and at the end of both halves of a block
            (`drop_rate`).
        attention_dropout: rate on attention weights where it differs; `None` means `dropout`.
        embedding_dropout: rate after the summed embeddings where it differs; `None` means `dropout`.
        layer_norm_eps: added to the variance in every LayerNorm.
        qkv_bias: whether the query, key and value projections have a bias.
        tie_word_embeddings: whether the output head is the token embedding.
        initialization: `"gpt2"`: normal draws with `initializer_range`, those into the residual stream scaled by
            1/sqrt(2 * layers), zero biases. `"pytorch"`: what each torch module draws for itself, as in the book.
        initializer_range: standard deviation of the `"gpt2"` draws.
        use_cache: whether a forward pass returns keys and values for the next one.
        bos_token_id, eos_token_id, pad_token_id: the tokenizer's ids of these tokens, if it has them.

    Raises:
        ImpossibleConfigError: (a `ValueError`) a value of the wrong type or out of range, heads that do not divide
            the width, a misspelt name, or two values for one field. One line that names the field.
    """

    model_type = "hf_gpt"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - Trainer adds a list to it
    attribute_map = {  # noqa: RUF012 - transformers' own protocol
        "context_length": "max_position_embeddings",
        "emb_dim": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "drop_rate": "dropout",
        "embedding_dim": "hidden_size",
        "vocabulary_size": "vocab_size",
    }
    base_model_tp_plan = {  # noqa: RUF012
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {  # noqa: RUF012
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "embed_positions": (["position_ids"], ["position_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 50257
    max_position_embeddings: int = 1024
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    hidden_act: str = "gelu_new"
    dropout: float | int = 0.1
    attention_dropout: float | int | None = None
    embedding_dropout: float | int | None = None
    layer_norm_eps: float = 1e-5
    qkv_bias: bool = True
    tie_word_embeddings: bool = True
    initialization: Literal["gpt2", "pytorch"] = "gpt2"
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "GPTConfig":
        """One of `PRESETS`, with any field replaced: `from_preset("gpt2-124m", context_length=256)`.

        Raises:
            ImpossibleConfigError: (a `ValueError`) no preset has this name, or an override is refused.
        """
        if name not in PRESETS:
            raise ImpossibleConfigError(f"unknown preset {name!r}; presets: {', '.join(map(repr, PRESETS))}")
        return cls(**{**PRESETS[name], **cls._to_field_names(overrides)})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        """As transformers': `config_dict` is what a file holds, `kwargs` are overrides that somebody typed.

        They are merged before the configuration is made and checked. Unknown keys of the file become attributes.
        """
        cls._refuse_misspellings(kwargs)
        overrides = {name: kwargs.pop(name) for name in list(kwargs) if name in cls._own_names()}
        in_file = cls._to_field_names(config_dict)
        in_file.pop(_EXTRA_NAMES, None)
        unknown = {name: in_file.pop(name) for name in list(in_file) if not cls._takes(name)}
        result = super().from_dict({**in_file, **cls._to_field_names(overrides)}, **kwargs)
        for name, value in unknown.items():
            setattr(result[0] if isinstance(result, tuple) else result, name, value)
        return result

    @classmethod
    def from_json_file(cls, json_file) -> "GPTConfig":
        """The configuration in a JSON file, whose unknown keys are kept (see `from_dict`)."""
        return cls.from_dict(cls._dict_from_json_file(json_file))

    def to_dict(self) -> dict[str, Any]:
        """As transformers': `GPTConfig(**config.to_dict())` is this configuration again, with whatever it holds."""
        written = super().to_dict()
        if extra := sorted(name for name in written if not self._takes(name)):
            written[_EXTRA_NAMES] = extra
        return written

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """As transformers', with the model's code beside `config.json` (see `AUTO_MAP`).

        transformers copies the code of classes registered with an Auto class. That would name in `auto_map` only the
        class that is saved, and copy torch's code instead of ours for a model that FSDP2 wrapped.
        """
        os.makedirs(save_directory, exist_ok=True)
        auto_map = {}
        for auto_class, reference in AUTO_MAP.items():
            file_name = reference.split(".")[0] + ".py"
            beside_this, saved = Path(__file__).with_name(file_name), Path(save_directory) / file_name
            if beside_this.is_file():
                shutil.copyfile(beside_this, saved)
            # A configuration that came as remote code has the model's code beside it only once a model was saved.
            if saved.is_file():
                auto_map[auto_class] = reference
        self.auto_map = auto_map
        super().save_pretrained(save_directory, **kwargs)

    def __post_init__(self, **kwargs: Any) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Part of `@strict`: run when a configuration is made and when it is saved."""
        if self.is_heterogeneous:  # each layer has its own configuration, and this method is called on each
            return super().validate_architecture()
        for name in (
            "vocab_size",
            "max_position_embeddings",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must divide hidden_size ({self.hidden_size})"
            )
        for name in ("dropout", "attention_dropout", "embedding_dropout"):
            rate = getattr(self, name)
            if rate is not None and not 0 <= rate < 1:
                raise ValueError(f"{name} must be at least 0 and less than 1, got {rate}")
        for name in ("layer_norm_eps", "initializer_range"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0, got {getattr(self, name)}")

    @classmethod
    def _own_names(cls) -> set[str]:
        """Every name this class gives a meaning of its own: fields and aliases, not what all configurations share."""
        return (set(cls.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__)) | set(cls.attribute_map)

    @classmethod
    def _to_field_names(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """`values` with aliases replaced by the fields they stand for."""
        translated: dict[str, Any] = {}
        written_as: dict[str, str] = {}
        for name, value in values.items():
            field = cls.attribute_map.get(name, name)
            if field in translated and translated[field] != value:
                raise ImpossibleConfigError(
                    f"{written_as[field]}={translated[field]!r} and {name}={value!r} are two values for one field; "
                    f"give {field} once"
                )
            translated[field], written_as[field] = value, name
        return translated

    @classmethod
    def _takes(cls, name: str) -> bool:
        """Whether a name means something here, or may stand in any configuration of transformers."""
        return (
            name in cls._own_names()
            or name in cls.__dataclass_fields__
            or isinstance(getattr(cls, name, None), property)
            or name in _NAMES_OF_ALL
            or name.startswith("_")
            or name.endswith("_token_id")  # a tokenizer may have special tokens of any name
        )

    @classmethod
    def _nearest(cls, name: str, cutoff: float) -> str | None:
        """The name of ours that `name` probably stands for."""
        near = difflib.get_close_matches(name, cls._own_names(), n=1, cutoff=cutoff)
        return _FOREIGN_NAMES.get(name) or (near[0] if near else None)

    @classmethod
    def _refuse_unknown(cls, names: Iterable[str]) -> None:
        for name in names:
            if not cls._takes(name):
                meant = cls._nearest(name, cutoff=0.6)
                what_works = f"did you mean {meant!r}?" if meant else f"fields: {', '.join(sorted(cls._own_names()))}"
                raise ImpossibleConfigError(f"GPTConfig has no field {name!r}; {what_works}")

    @classmethod
    def _meant(cls, name: str) -> str | None:
        """The name of ours that `name` seems to misspell; None if it is a good name or like none of ours."""
        if cls._takes(name) or hasattr(cls, name):
            return None
        # A word before one of our names, as in moe_intermediate_size, makes it another model's field.
        if any("_" in own and name.endswith(f"_{own}") for own in cls._own_names()):
            return None
        # 0.82 separates emb_dims, n_layer and dropout_rate from what transformers and its tools pass, such as
        # initializer_factor or vocab_file: tests/test_configuration.py lists both kinds.
        return cls._nearest(name, cutoff=0.82)

    @classmethod
    def _refuse_misspellings(cls, names: Iterable[str]) -> None:
        for name in names:
            if meant := cls._meant(name):
                raise ImpossibleConfigError(f"GPTConfig has no field {name!r}; did you mean {meant!r}?")


__all__ = ["AUTO_MAP", "PRESETS", "GPTConfig", "ImpossibleConfigError"]
