"""OpenAI's own release of GPT-2 into our model: the folder that their `download_model.py` makes.

    checkpoint  model.ckpt.index  model.ckpt.meta  model.ckpt.data-00000-of-00001      TensorFlow's
    hparams.json                                                                       the sizes
    encoder.json  vocab.bpe                                                            the tokenizer

The matrices are one-wide convolutions of shape (1, in, out). TensorFlow reads the checkpoint, one weight at a time;
nothing else of it is used, its graph (`.meta`) is not read. Names: `src/model.py` of https://github.com/openai/gpt-2.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import GPT2Tokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..data.tokenizer import END_OF_TEXT
from ..errors import UserError
from ..modeling_gpt import GPTForCausalLM
from .destination import Destination
from .result import Conversion, Logits, gpt_config, ids_of, made_of, shapes_of, token_ids, tokenizer_for, write
from .weights import Row, Weights, as_ours, check, check_num_layers, expanded, freeing_at_once, their_shapes

_QKV = ("q_proj", "k_proj", "v_proj")
_TABLE = (
    Row("model/wte", ("model.embed_tokens.weight",)),
    Row("model/wpe", ("model.embed_positions.weight",)),
    Row("model/h{}/ln_1/g", ("model.layers.{}.input_layernorm.weight",)),
    Row("model/h{}/ln_1/b", ("model.layers.{}.input_layernorm.bias",)),
    Row("model/h{}/attn/c_attn/w", tuple(f"model.layers.{{}}.self_attn.{part}.weight" for part in _QKV), True),
    Row("model/h{}/attn/c_attn/b", tuple(f"model.layers.{{}}.self_attn.{part}.bias" for part in _QKV)),
    Row("model/h{}/attn/c_proj/w", ("model.layers.{}.self_attn.o_proj.weight",), True),
    Row("model/h{}/attn/c_proj/b", ("model.layers.{}.self_attn.o_proj.bias",)),
    Row("model/h{}/ln_2/g", ("model.layers.{}.post_attention_layernorm.weight",)),
    Row("model/h{}/ln_2/b", ("model.layers.{}.post_attention_layernorm.bias",)),
    Row("model/h{}/mlp/c_fc/w", ("model.layers.{}.mlp.up_proj.weight",), True),
    Row("model/h{}/mlp/c_fc/b", ("model.layers.{}.mlp.up_proj.bias",)),
    Row("model/h{}/mlp/c_proj/w", ("model.layers.{}.mlp.down_proj.weight",), True),
    Row("model/h{}/mlp/c_proj/b", ("model.layers.{}.mlp.down_proj.bias",)),
    Row("model/ln_f/g", ("model.norm.weight",)),
    Row("model/ln_f/b", ("model.norm.bias",)),
)
_HPARAMS = {
    "n_vocab": "vocab_size",
    "n_ctx": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
}


@freeing_at_once()
def from_openai(source: str, out: str, tokenizer: str | None = None) -> Conversion:
    """Convert the folder `source` of OpenAI's release into our model in the new directory `out`.

    `tokenizer`: instead of the folder's encoder.json and vocab.bpe (see `load_tokenizer`), or `"none"`.

    Raises:
        UserError: tensorflow is not installed, a file is missing or damaged, or weights are missing or unknown.
    """
    destination = Destination.of(out)
    folder = Path(source)
    if not folder.is_dir():
        raise UserError(
            f"{source}: no such directory; OpenAI's release is a folder with hparams.json and model.ckpt.*"
        )
    fields = _hparams(folder) | {"tie_word_embeddings": True, "qkv_bias": True, "initialization": "gpt2"}
    checkpoint = _TensorFlow(folder)
    # Beside the model there may be the counter of a training script.
    weights = Weights(source, {key: (checkpoint, key) for key in checkpoint.shapes if key.startswith("model/")})
    config = gpt_config(f"{source}: hparams.json", fields)
    check_num_layers(weights, "model/h{}/", config.num_hidden_layers, "hparams.json has n_layer=")
    rows = expanded(_TABLE, config.num_hidden_layers)
    check(weights, their_shapes(rows, shapes_of(source, GPTForCausalLM, config)))

    if tokenizer is None:
        chosen = _tokenizer(folder)
        tokenizer_note = f"the source's, {ids_of(chosen, fields['vocab_size'])}"
    else:
        chosen, tokenizer_note = tokenizer_for(tokenizer, None, fields["vocab_size"])
    if chosen is not None:
        fields |= {"bos_token_id": chosen.bos_token_id, "eos_token_id": chosen.eos_token_id}
    ids = token_ids(fields["vocab_size"], fields["max_position_embeddings"])
    logits = _openai_logits(weights, fields["num_hidden_layers"], fields["num_attention_heads"], ids)

    def make_model() -> PreTrainedModel:
        return made_of(GPTForCausalLM, gpt_config(source, fields), as_ours(weights, rows))

    return write(
        destination,
        make_model,
        source=source,
        source_logits=Logits(ids, logits),
        tokenizer=chosen,
        tokenizer_note=tokenizer_note,
    )


class _TensorFlow:
    """A TensorFlow checkpoint as a `weights.File`: what TensorFlow gives as (1, in, out) is the matrix (in, out)."""

    def __init__(self, folder: Path):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # its notes about the machine
        try:
            import tensorflow
        except ImportError:
            raise UserError(
                f"{folder}: OpenAI's checkpoints are TensorFlow's, which is not installed: pip install tensorflow-cpu"
            ) from None
        prefix = _checkpoint_prefix(folder)
        try:
            self._reader = tensorflow.train.load_checkpoint(str(prefix))
            shapes = self._reader.get_variable_to_shape_map()
            dtypes = self._reader.get_variable_to_dtype_map()
        except (tensorflow.errors.OpError, ValueError, RuntimeError) as error:
            raise UserError(f"{prefix}: not a whole TensorFlow checkpoint: {_first_line(error)}") from None
        self._prefix = prefix
        self.others: dict[str, Any] = {}
        self.shapes = {
            key: tuple(shape[1:] if len(shape) == 3 and shape[0] == 1 else shape)
            for key, shape in sorted(shapes.items())
        }
        self.dtypes = {key: getattr(torch, dtype.name, dtype.name) for key, dtype in dtypes.items()}

    def read(self, key: str) -> torch.Tensor:
        try:
            return torch.from_numpy(self._reader.get_tensor(key)).reshape(self.shapes[key])
        except Exception as error:  # TensorFlow's own kinds, and IndexError for a file that is cut off
            raise UserError(f"{self._prefix}: {key} cannot be read: {_first_line(error)}") from None


def _checkpoint_prefix(folder: Path) -> Path:
    """`model.ckpt`, or what the file `checkpoint` names, wherever the folder was when that was written."""
    named = None
    if (folder / "checkpoint").is_file():
        first = (folder / "checkpoint").read_text(encoding="utf-8", errors="replace").partition("\n")[0]
        named = Path(first.partition(":")[2].strip().strip('"')).name
    for name in (named, "model.ckpt"):
        if name and (folder / f"{name}.index").is_file():
            return folder / name
    raise UserError(f"{folder}: no checkpoint in it: {named or 'model.ckpt'}.index is missing")


def _hparams(folder: Path) -> dict[str, Any]:
    """hparams.json in our words."""
    path = folder / "hparams.json"
    try:
        hparams = json.loads(path.read_text(encoding="utf-8"))
        fields = {ours: hparams[theirs] for theirs, ours in _HPARAMS.items()}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error.__class__.__name__}); it holds {', '.join(_HPARAMS)}"
        ) from None
    except KeyError as error:
        raise UserError(f"{path}: lacks {error.args[0]}; it holds {', '.join(_HPARAMS)}") from None
    return fields


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """GPT-2's tokenizer from encoder.json (token: id) and vocab.bpe (a line of version, then a merge per line)."""
    try:
        vocab = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        lines = (folder / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:]
        merges = [tuple(line.split(" ")) for line in lines if line]
        tokenizer = GPT2Tokenizer(vocab=vocab, merges=merges)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read; --tokenizer gpt2 or none does without") from None
    except Exception as error:  # what `tokenizers` raises on a vocabulary and merges that do not match is one
        raise UserError(f"{folder}: encoder.json and vocab.bpe are no tokenizer: {_first_line(error)}") from None
    if END_OF_TEXT not in vocab:
        raise UserError(f"{folder / 'encoder.json'}: lacks {END_OF_TEXT}")
    return tokenizer


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@torch.inference_mode()
def _openai_logits(weights: Weights, num_layers: int, num_heads: int, ids: torch.LongTensor) -> torch.Tensor:
    """The forward pass of OpenAI's `src/model.py` on the checkpoint's own weights, each read when it is needed.

    (1, time) -> (time * vocab), in the checkpoint's dtype.
    """
    read = weights.read

    def conv1d(x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.addmm(read(f"{name}/b"), x, read(f"{name}/w"))

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], read(f"{name}/g"), read(f"{name}/b"), eps=1e-5)

    time = ids.shape[1]
    x = read("model/wte")[ids[0]] + read("model/wpe")[:time]  # (time, n_embd)
    for block in (f"model/h{layer}" for layer in range(num_layers)):
        qkv = conv1d(norm(x, f"{block}/ln_1"), f"{block}/attn/c_attn").chunk(3, dim=-1)
        query, key, value = (part.view(1, time, num_heads, -1).transpose(1, 2) for part in qkv)
        context = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + conv1d(context.transpose(1, 2).reshape(time, -1), f"{block}/attn/c_proj")
        y = F.gelu(conv1d(norm(x, f"{block}/ln_2"), f"{block}/mlp/c_fc"), approximate="tanh")
        x = x + conv1d(y, f"{block}/mlp/c_proj")
    return (norm(x, "model/ln_f") @ read("model/wte").T).flatten()
