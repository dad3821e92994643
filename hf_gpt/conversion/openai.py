"""OpenAI's own release of GPT-2 into our model: the folder that their `download_model.py` makes.

    checkpoint  model.ckpt.index  model.ckpt.meta  model.ckpt.data-00000-of-00001      TensorFlow's
    hparams.json                                                                       the sizes
    encoder.json  vocab.bpe                                                            the tokenizer

TensorFlow reads the checkpoint, one weight at a time; nothing else of it is used, its graph (`.meta`) is not read.
With their names respelled the weights are those of stock GPT-2, and all else is `gpt2.py`. The names are those of
`src/model.py` in https://github.com/openai/gpt-2.
"""

import json
import os
import re
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer, PreTrainedTokenizerBase

from ..data.tokenizer import END_OF_TEXT
from ..errors import UserError
from ..modeling_gpt import GPTForCausalLM
from ..storage import new_directory
from .gpt2 import convert_model, fields_from_gpt2, load
from .result import Conversion, Source, choose_tokenizer, our_config
from .table import StateDict

_HPARAMS = ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")


def from_openai(source: str, out: str, tokenizer: str | None = None) -> Conversion:
    """Convert the folder `source` of OpenAI's release into our model in the new directory `out`.

    `tokenizer`: instead of the folder's encoder.json and vocab.bpe (see `load_tokenizer`), or `"none"`.

    Raises:
        UserError: tensorflow is not installed, a file is missing or damaged, or weights are missing or unknown.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise UserError(
            f"{source}: no such directory; OpenAI's release is a folder with hparams.json and model.ckpt.*"
        )
    with new_directory(out) as directory:
        config = _config(folder)
        chosen = choose_tokenizer(tokenizer, lambda: _tokenizer(folder), config.vocab_size)
        config.bos_token_id = config.eos_token_id = chosen[0].eos_token_id if chosen[0] is not None else None
        ours = our_config(source, fields_from_gpt2(config))

        def load_release() -> GPT2LMHeadModel:
            weights = _read_checkpoint(folder)
            return load(GPT2LMHeadModel, None, source, config=config, state_dict=weights, dtype=torch.float32)

        release = Source(source, load_release, is_mapped=False, tokenizer=chosen)
        return convert_model(release, ("gpt2", "ours"), GPTForCausalLM, ours, directory, out)


def _gpt2_name(name: str) -> str:
    """`model/h0/attn/c_attn/w` -> `transformer.h.0.attn.c_attn.weight`"""
    name = re.sub(r"^model/", "transformer/", name)
    name = re.sub(r"/h(\d+)/", r"/h/\1/", name)
    name = re.sub(r"/(g|w)$", "/weight", re.sub(r"/b$", "/bias", re.sub(r"/(wte|wpe)$", r"/\1/weight", name)))
    return name.replace("/", ".")


def _read_checkpoint(folder: Path) -> StateDict:
    """The weights under GPT-2's names; what TensorFlow has as a convolution (1, in, out) is the matrix (in, out)."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # its notes about the machine
    try:
        import tensorflow
    except ImportError:
        raise UserError(
            f"{folder}: OpenAI's checkpoints are TensorFlow's, which is not installed: pip install tensorflow-cpu"
        ) from None
    prefix = _checkpoint_prefix(folder)
    weights = {}
    try:
        reader = tensorflow.train.load_checkpoint(str(prefix))
        for name in sorted(reader.get_variable_to_shape_map()):
            if name.startswith("model/"):  # beside it there may be the counter of a training script
                weight = torch.from_numpy(reader.get_tensor(name))
                weights[_gpt2_name(name)] = weight.squeeze(0) if weight.dim() == 3 else weight
    except Exception as error:  # TensorFlow's own kinds, and IndexError for a file that is cut off
        raise UserError(f"{prefix}: not a whole TensorFlow checkpoint: {_first_line(error)}") from None
    return weights


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


def _config(folder: Path) -> GPT2Config:
    path = folder / "hparams.json"
    try:
        hparams = json.loads(path.read_text(encoding="utf-8"))
        vocab_size, n_positions, *sizes = (hparams[name] for name in _HPARAMS)
        return GPT2Config(vocab_size=vocab_size, n_positions=n_positions, **dict(zip(_HPARAMS[2:], sizes)))
    except KeyError as error:
        raise UserError(f"{path}: lacks {error.args[0]}; it holds {', '.join(_HPARAMS)}") from None
    except Exception as error:  # transformers has many kinds for sizes that are none
        raise UserError(
            f"{path}: cannot be used ({_first_line(error)}); it holds the sizes {', '.join(_HPARAMS)}"
        ) from None


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """GPT-2's tokenizer from encoder.json (token: id) and vocab.bpe (a line of version, then a merge per line)."""
    try:
        vocab = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        lines = (folder / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:]
        merges = [tuple(line.split(" ")) for line in lines if line]
        tokenizer = GPT2Tokenizer(vocab=vocab, merges=merges)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read; tokenizer 'gpt2' or 'none' does without") from None
    except Exception as error:  # what `tokenizers` raises on a vocabulary and merges that do not match is one
        raise UserError(f"{folder}: encoder.json and vocab.bpe are no tokenizer: {_first_line(error)}") from None
    if END_OF_TEXT not in vocab:
        raise UserError(f"{folder / 'encoder.json'}: lacks {END_OF_TEXT}")
    return tokenizer


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
