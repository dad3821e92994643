"""Where tokenizers come from, and what identifies one.

`gpt2` (tiktoken's), `bytes` (nothing to learn or download), a byte-level BPE trained on the corpus, a local path or a
Hub id: each becomes a `PreTrainedTokenizerFast`. So saving it beside a model is `save_pretrained`, and a bare
`AutoTokenizer.from_pretrained` loads it without this package.

The one idea: a tokenizer *is* its content, the JSON of its `tokenizers` backend, whatever its name and wherever it was
loaded from. The fingerprint is a hash of that content. Encoding a corpus belongs to encoding.py.
"""

import functools
import hashlib
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import HubError, UserError
from ..loading import quiet
from ..network import hub_requests
from ..recipe import TrainTokenizerRecipe
from ..storage import local_path, read_json, write_bytes, write_json
from .cache import cache_get, cache_put
from .cutting import cut, repair_surrogates

if TYPE_CHECKING:  # imported where they are used: `hf-gpt --help` needs none of them
    import tiktoken
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.json",
    "vocab.txt",
    "vocab.bpe",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)
"""Names, as `fnmatch` patterns, of the files that make up a tokenizer in a folder or a repository."""

_FAST_OPTIONS = {
    "clean_up_tokenization_spaces": False,  # or decoding would drop spaces that the text had
    "model_input_names": ["input_ids", "attention_mask"],  # a GPT takes no token_type_ids
}
_CHOICES = "use gpt2, bytes, a tokenizer.json, a directory that holds one, a Hub id, or train: {vocab_size: 4096}"


def load_tokenizer(name_or_path: str, revision: str | None = None) -> "PreTrainedTokenizerFast":
    """The tokenizer called `name_or_path`.

    - `"gpt2"`: tiktoken's encoding, downloaded unless tiktoken's cache has it, and then kept in ours.
    - `"bytes"`: one token per byte, whose id is the byte; then `<|endoftext|>`, id 256.
    - Anything else: a `tokenizer.json`, a directory as `save_pretrained` writes it, or the id of a Hub repository (at
      `revision`). `./gpt2` means a directory of that name. Code that comes with a tokenizer is never run.

    In `gpt2`, `bytes` and trained tokenizers, `<|endoftext|>` is the last id and both BOS and EOS, nothing is added to
    a text, and no padding token is set: GPT-2's conventions. (Common collators mask a padding token out of the labels.
    If EOS were the padding token, the model would never learn to stop. For batches of prompts set it yourself:
    `tokenizer.pad_token = tokenizer.eos_token`, or train a tokenizer with a padding token of its own.)

    Raises:
        UserError: there is no such tokenizer, it cannot be reached, or it has no fast version.
    """
    name = str(name_or_path)
    path = local_path(name, "tokenizer.name")
    is_remote = name not in ("gpt2", "bytes") and not path.exists()
    if revision is not None and not is_remote:
        raise UserError(f"tokenizer '{name}' has no revisions (got {revision!r}): only a Hub id does")
    if name == "gpt2":
        return _as_fast_tokenizer(_gpt2_backend())
    if name == "bytes":
        return _as_fast_tokenizer(_byte_level_bpe(bytes([byte]) for byte in range(256)))
    if path.is_file():
        return _load_file(path)
    if path.is_dir():
        return _load_pretrained(name, path)
    if not name or name[0] in "./~" or name.count("/") > 1 or "\\" in name or name.endswith(".json"):
        raise UserError(f"tokenizer '{name}': no such file or directory; {_CHOICES}")
    return _load_pretrained(name, _download(name, revision))


def train_tokenizer(texts: Iterable[str], vocab_size: int, pad_token: str | None = None) -> "PreTrainedTokenizerFast":
    """A byte-level BPE with GPT-2's split pattern, trained on `texts`: about a second per megabyte.

    `vocab_size` counts the 256 bytes, the merges and `<|endoftext|>`, which gets the last id. Pairs that occur once
    are not merged, so a small corpus gives fewer ids than asked for. The result depends on the texts alone, not on
    their order or on the number of threads. `texts` is read once and never held in memory as a whole. A word of more
    than 1,000 characters (DNA, one letter for ever) counts as several words: the trainer's time grows with the square
    of a word's length.

    `pad_token`, such as `<pad>`, becomes the very last id. It is for batches of texts of several lengths: no text has
    it, also not where it is written in one, and collators leave its labels out of the loss, those of EOS not.

    Raises:
        UserError: `vocab_size` has no room for the bytes and the special tokens, or `pad_token` may be ordinary text.
    """
    if pad_token is not None:
        TrainTokenizerRecipe(pad_token=pad_token)  # which refuses what is none
    special = [END_OF_TEXT] if pad_token is None else [END_OF_TEXT, pad_token]
    if vocab_size < 256 + len(special):
        what = f"256 bytes and {' and '.join(special)} make at least {256 + len(special)}"
        raise UserError(f"vocab_size {vocab_size} is too small for a tokenizer: {what}")
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The trainer counts the words of many pieces in parallel. The cuts change no word, hence no count.
    pieces = (repair_surrogates(piece) for text in texts for piece in cut([text], 2**16, "before_whitespace"))
    backend.train_from_iterator(chain.from_iterable(map(_cut_long_words, pieces)), trainer)
    return _as_fast_tokenizer(backend, pad_token)


def save_tokenizer(tokenizer: "PreTrainedTokenizerFast", folder: str | Path) -> None:
    """Write a tokenizer's files, so that transformers 4 too loads them, with the same ids. Every one is saved here.

    `save_pretrained` of transformers 5 writes names that only 5 knows: the class `TokenizersBackend`, which both call
    `PreTrainedTokenizerFast`, and a list under `extra_special_tokens`. Tokenizers of a class of their own keep it, and
    with it what 5 leaves out: whether it adds BOS and EOS, which 4 does not read from `tokenizer.json`, and `legacy`.
    """
    # Several chat templates would go into a folder of their own, which neither 4 nor what is downloaded knows.
    tokenizer.save_pretrained(folder, save_jinja_files=not isinstance(tokenizer.chat_template, dict))
    file = Path(folder, "tokenizer_config.json")
    config = read_json(file)
    if config["tokenizer_class"] == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    else:
        ids = tokenizer("a").input_ids
        config["add_bos_token"] = ids[:1] == [tokenizer.bos_token_id]
        config["add_eos_token"] = ids[-1:] == [tokenizer.eos_token_id]
        if hasattr(tokenizer, "legacy"):
            config["legacy"] = tokenizer.legacy
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    for key in ("auto_map", "backend", "is_local", "local_files_only"):  # of how it was loaded here
        config.pop(key, None)
    write_json(file, config)


_LONGEST_WORD = 1000
# Letters, digits or neither, nearly as the split pattern knows them: it only has to find where to look more closely.
_MAY_BE_LONG = re.compile(rf"[^\W\d_]{{{_LONGEST_WORD}}}|\d{{{_LONGEST_WORD}}}|[\W_]{{{_LONGEST_WORD}}}")


def _cut_long_words(text: str) -> Iterator[str]:
    """`text` in pieces, in which GPT-2's split pattern finds no word of more than `_LONGEST_WORD` characters."""
    done = 0
    if _MAY_BE_LONG.search(text):
        from tokenizers import pre_tokenizers

        for _, (start, end) in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text):
            for place in range(start + _LONGEST_WORD, end, _LONGEST_WORD):
                yield text[done:place]
                done = place
    yield text[done:]


def separator_id(tokenizer: "PreTrainedTokenizerFast") -> int | None:
    """The id that ends a document before the next: EOS, else `<|endoftext|>`, else None."""
    if tokenizer.eos_token_id is not None:
        return tokenizer.eos_token_id
    return tokenizer.backend_tokenizer.token_to_id(END_OF_TEXT)


def begin_id(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The id of BOS where the tokenizer puts it before a text, as Llama's does, else None."""
    begin = tokenizer.bos_token_id
    if tokenizer("")["input_ids"][:1] != [begin]:
        return None
    return begin if tokenizer("a")["input_ids"][:1] == [begin] else None  # an EOS after the text may be the same token


def vocab_size(tokenizer: "PreTrainedTokenizerFast") -> int:
    """The number of embeddings a model needs: the highest id, added tokens included, plus one."""
    return max(tokenizer.get_vocab().values()) + 1


def fingerprint(tokenizer: "PreTrainedTokenizerFast") -> str:
    """SHA-256 (hex) of what determines the ids of a corpus: the tokenizer's content and the separator.

    It is the same in every process and after saving and loading. Padding, truncation, decoding, `model_max_length` and
    what is added around a text (BOS, EOS) are left out: they do not affect the ids of ordinary text.
    """
    separator, backend_json = separator_id(tokenizer), tokenizer.backend_tokenizer.to_str()
    key = f"fingerprint-1-{hashlib.sha256(f'{separator} {backend_json}'.encode()).hexdigest()}"
    known = cache_get(key)
    if known is None:  # parsing GPT-2's takes a third of a second
        known = {"sha256": hashlib.sha256(f"{separator} {content_of(tokenizer)}".encode()).hexdigest()}
        cache_put(key, known)
    return known["sha256"]


def content_of(tokenizer: "PreTrainedTokenizerFast") -> str:
    """The JSON of the backend without the parts that do not affect the ids of ordinary text."""
    return _content(tokenizer.backend_tokenizer.to_str())


@functools.lru_cache(maxsize=4)
def _content(backend_json: str) -> str:
    content = json.loads(backend_json)
    content.update(dict.fromkeys(("truncation", "padding", "post_processor", "decoder")))
    return json.dumps(content, sort_keys=True)


# Byte-level BPE -----------------------------------------------------------------------------------------------------


@functools.cache
def byte_characters() -> tuple[str, ...]:
    """The printable character that stands for each byte in a byte-level vocabulary, as GPT-2 chose them.

    Bytes that Latin-1 shows stand for themselves; the others, in order, for the characters from 256 on.
    """
    from tokenizers import pre_tokenizers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    substitutes = iter(sorted(char for char in alphabet if ord(char) > 255))
    return tuple(chr(byte) if chr(byte) in alphabet else next(substitutes) for byte in range(256))


@functools.lru_cache(maxsize=2)  # `gpt2` asks twice: to build the backend, and to recognise it
def last_merges(tokens: tuple[bytes, ...]) -> list[tuple[bytes, bytes] | None]:
    """For each token of several bytes, the two parts that BPE joins last when the token is tokenised alone.

    `tokens` come in the order of their ids. A token that BPE does not reach has None. 0.4 s for GPT-2.
    """
    ranks, none = {token: rank for rank, token in enumerate(tokens)}, len(tokens)
    merges: list[tuple[bytes, bytes] | None] = []
    for token in tokens:
        if len(token) < 2:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        joined = [ranks.get(left + right, none) for left, right in itertools.pairwise(parts)]
        while len(parts) > 2 and (best := min(joined)) < none:
            at = joined.index(best)
            parts[at : at + 2] = [tokens[best]]
            del joined[at]
            for pair in range(max(0, at - 1), min(at + 1, len(joined))):  # the two with the new part in them
                joined[pair] = ranks.get(parts[pair] + parts[pair + 1], none)
        merges.append((parts[0], parts[1]) if len(parts) == 2 else None)
    return merges


def _byte_level_bpe(tokens: Iterable[bytes]) -> "Tokenizer":
    """The backend in which the place of a token is its id. The merges follow from the order of the tokens.

    For `gpt2` they come out as the list that OpenAI published. (transformers' `TikTokenConverter` instead lists every
    pair of tokens that makes a token: about six times as many, most of which can never apply.)
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokens, characters = tuple(tokens), "".join(byte_characters())

    def as_text(token: bytes) -> str:
        return token.decode("latin-1").translate(characters)

    vocab = {as_text(token): rank for rank, token in enumerate(tokens)}
    merges = [(as_text(left), as_text(right)) for left, right in last_merges(tokens)]
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=bool(merges))
    return backend


def _gpt2_backend() -> "Tokenizer":
    """From the cache, since the vocabulary takes a second to read and to find the merges of."""
    from tokenizers import Tokenizer, __version__

    key = f"gpt2-backend-{__version__}"  # which writes the JSON
    known = cache_get(key)
    if known is not None:
        return Tokenizer.from_str(known["json"])
    encoding = _gpt2_encoding()
    backend = _byte_level_bpe(map(encoding.decode_single_token_bytes, range(encoding.eot_token)))
    cache_put(key, {"json": backend.to_str()})
    return backend


def _as_fast_tokenizer(backend: "Tokenizer", pad_token: str | None = None) -> "PreTrainedTokenizerFast":
    """The transformers tokenizer around a byte-level `backend`, with `<|endoftext|>` and padding as its last ids."""
    from tokenizers import AddedToken, decoders, processors
    from transformers import PreTrainedTokenizerFast

    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    names = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, **({"pad_token": pad_token} if pad_token else {})}
    special = dict.fromkeys(names.values())
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names, **_FAST_OPTIONS)


# Loading ------------------------------------------------------------------------------------------------------------

_GPT2_FILES = [
    f"https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{name}" for name in ("vocab.bpe", "encoder.json")
]


def _gpt2_encoding() -> "tiktoken.Encoding":
    """tiktoken's `gpt2`, from its cache or, unless the Hub is switched off too, from the network."""
    import tiktoken
    from huggingface_hub import is_offline_mode

    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if folder is None:
        folder = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    try:
        for url in _GPT2_FILES:
            file = Path(folder, hashlib.sha1(url.encode()).hexdigest())  # as tiktoken names it
            if folder and file.exists():
                continue
            if is_offline_mode():
                raise OSError("HF_HUB_OFFLINE is set")
            # tiktoken's own download has no time limit, here it is 10 s until the first or next bytes.
            import requests

            answer = requests.get(url, timeout=10)
            answer.raise_for_status()
            if folder:
                write_bytes(file, answer.content)
        return tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:  # requests' exceptions are OSErrors, a wrong hash is a ValueError
        raise UserError(
            f"tokenizer 'gpt2' is not in tiktoken's cache and cannot be downloaded ({str(error)[:200]}): set "
            "TIKTOKEN_CACHE_DIR to a folder where tiktoken has cached it, or use another tokenizer: "
            "bytes, or train: {vocab_size: 4096}"
        ) from error


def _load_file(path: Path) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), **_FAST_OPTIONS)
    except Exception as error:  # what `tokenizers` raises on a file it cannot read is a plain Exception
        raise UserError(f"tokenizer '{path}' is not a tokenizer.json ({str(error)[:200]})") from error
    if tokenizer.backend_tokenizer.token_to_id(END_OF_TEXT) is not None:
        tokenizer.bos_token = tokenizer.eos_token = END_OF_TEXT
    return tokenizer


def _load_pretrained(name: str, folder: Path) -> "PreTrainedTokenizerFast":
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # dozens of tokenizer classes each fail in their own way on files that are not theirs
        raise UserError(f"tokenizer '{name}' cannot be loaded ({str(error)[:200]}); {_CHOICES}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        kind = type(tokenizer).__name__
        raise UserError(f"tokenizer '{name}' is a {kind}, which has no fast version (no tokenizer.json)")
    # From a folder with nothing but a config.json comes a tokenizer of the model's class without a vocabulary.
    if tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False) == 0:
        raise UserError(f"tokenizer '{name}' has no vocabulary: there is no tokenizer.json; {_CHOICES}")
    return tokenizer


def _download(repo_id: str, revision: str | None) -> Path:
    """The folder of the Hub's cache with a repository's tokenizer files.

    After this one look-up AutoTokenizer needs no network.
    """
    from huggingface_hub import snapshot_download

    problem = f"tokenizer '{repo_id}': no such file or directory, and it cannot be downloaded from the Hub"
    try:
        with hub_requests(problem):
            patterns = ["config.json", *TOKENIZER_FILES]
            return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns))
    except (HubError, UserError) as error:
        raise UserError(f"{error}; {_CHOICES}") from None
