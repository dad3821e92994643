"""OpenAI's own release of GPT-2 into our model: the folder that their `download_model.py` makes.

    model.ckpt.index  model.ckpt.data-00000-of-00001      the weights
    hparams.json                                          the sizes
    encoder.json  vocab.bpe                               the tokenizer

TensorFlow reads the weights, one at a time; its graph (`.meta`) is not read. Under other names they are the weights of
stock GPT-2, and gpt2.py does the rest. The names are those of `src/model.py` in https://github.com/openai/gpt-2.
"""

import json
import os
import re
from pathlib import Path

import torch
from tokenizers.models import BPE
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer, PreTrainedTokenizerBase

from ..errors import UserError
from ..modeling_gpt import GPTForCausalLM
from ..storage import local_path, new_directory
from .gpt2 import convert_model, fields_from_gpt2, load
from .result import Conversion, Source, choose_tokenizer, our_config
from .table import StateDict

_FILES = (
    "OpenAI's files (hparams.json, encoder.json, vocab.bpe and model.ckpt.*) are in"
    " https://openaipublic.blob.core.windows.net/gpt-2/models/124M/ and, likewise, 355M/, 774M/ and 1558M/"
)


def from_openai(source: str, out: str, tokenizer: str | None = None) -> Conversion:
    """Convert the folder `source` of OpenAI's release into our model in the new directory `out`.

    `tokenizer`: instead of the folder's encoder.json and vocab.bpe (see `load_tokenizer`), or `"none"`.

    Raises:
        UserError: tensorflow is not installed, a file is missing or damaged, or weights are missing or unknown.
    """
    folder = local_path(source)
    if not folder.is_dir():
        raise UserError(f"{source}: no such directory; {_FILES}")
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
    """The weights under GPT-2's names. TensorFlow's convolutions (1, in, out) become matrices (in, out)."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # its notes about the machine
    try:
        import tensorflow
    except ImportError:
        raise UserError(f"{folder}: reading it needs TensorFlow: pip install tensorflow-cpu") from None
    prefix, weights = folder / "model.ckpt", {}
    try:
        reader = tensorflow.train.load_checkpoint(str(prefix))
        for name in sorted(reader.get_variable_to_shape_map()):
            if name.startswith("model/"):  # others are the counters of training scripts
                weight = torch.from_numpy(reader.get_tensor(name))
                weights[_gpt2_name(name)] = weight.squeeze(0) if weight.dim() == 3 else weight
    except Exception as error:  # TensorFlow's many kinds, and IndexError for a file that is cut off
        where = "" if (folder / "model.ckpt.index").is_file() else f"; {_FILES}"
        raise UserError(f"{prefix}: not a complete TensorFlow checkpoint: {error}{where}") from None
    return weights


def _present(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: no such file; {_FILES}")
    return path


def _config(folder: Path) -> GPT2Config:
    path = _present(folder / "hparams.json")
    try:
        hparams = json.loads(path.read_text(encoding="utf-8"))
        sizes = {name: hparams[name] for name in ("n_embd", "n_head", "n_layer")}
        return GPT2Config(vocab_size=hparams["n_vocab"], n_positions=hparams["n_ctx"], **sizes)
    except Exception as error:  # transformers raises many kinds for impossible sizes
        needed = "it must hold the sizes n_vocab, n_ctx, n_embd, n_head and n_layer"
        raise UserError(f"{path}: cannot be used ({error!r}); {needed}") from None


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """GPT-2's tokenizer from encoder.json (token: id) and vocab.bpe (a line of version, then a merge per line)."""
    files = [str(_present(folder / name)) for name in ("encoder.json", "vocab.bpe")]
    try:
        vocab, merges = BPE.read_file(*files)
        return GPT2Tokenizer(vocab=vocab, merges=merges)
    except Exception as error:  # the only kind that `tokenizers` raises
        raise UserError(f"{folder}: encoder.json and vocab.bpe do not make a tokenizer: {error}") from None
