"""Text to token ids and back: one kind of tokenizer, wherever it came from.

`gpt2` (tiktoken's), `bytes` (no vocabulary to learn or download), a byte-level BPE trained on the corpus, a local path
or a Hub id: all become a `PreTrainedTokenizerFast`, so that saving it beside a model is `save_pretrained`, and a bare
`AutoTokenizer.from_pretrained` loads it without this package.

The one idea: what a tokenizer *is* is read from its content, the JSON of its `tokenizers` backend, never from its name
or from a marker left in a file. The content gives the fingerprint, where a text may be cut, and whether tiktoken
computes the same ids, several times faster than the backend (`_as_tiktoken` holds the proof). So a tokenizer that was
saved, published and downloaded again is as fast as on the day it was made, and one that was edited is never mistaken
for what it used to be.

The store of token ids, the order of documents and the separators between them are left to `hf_gpt.data`.
"""

import functools
import hashlib
import itertools
import json
import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import UserError

if TYPE_CHECKING:  # imported where they are used: `hf-gpt --help` needs none of them
    import tiktoken
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"

SafeCuts = Literal["anywhere", "before_whitespace", "never"]


def load_tokenizer(name_or_path: str, revision: str | None = None) -> "PreTrainedTokenizerFast":
    """The tokenizer called `name_or_path`.

    `"gpt2"` is tiktoken's encoding, which tiktoken downloads unless its cache has it. `"bytes"` has one token per
    byte, whose id is the byte, then `<|endoftext|>`, id 256. Anything else is a `tokenizer.json`, a directory as
    `save_pretrained` writes it, or the id of a Hub repository (at `revision`). The two names win over directories of
    the same name (`./gpt2` means the directory). Code that comes with a tokenizer is never run.

    In `gpt2`, `bytes` and trained tokenizers `<|endoftext|>` is the last id and both BOS and EOS, nothing is added to
    a text, and no padding token is set: GPT-2's conventions, which every tool that meets GPT-2 already handles. (A
    padding token equal to EOS would be masked out of the labels by common collators, and the model would never learn
    to stop; set one for batches of prompts: `tokenizer.pad_token = tokenizer.eos_token`.)

    Raises:
        UserError: there is no such tokenizer, it cannot be reached, or it has no fast version.
    """
    name = str(name_or_path)
    path = Path(name).expanduser()
    is_remote = name not in ("gpt2", "bytes") and not path.exists()
    if revision is not None and not is_remote:
        raise UserError(f"tokenizer {name!r} has no revisions (got {revision!r}): only a Hub id does")
    if name == "gpt2":
        return _wrap(_backend_from_tiktoken(_gpt2_encoding()))
    if name == "bytes":
        return _wrap(_backend_from_tiktoken(_bytes_encoding()))
    if path.is_file():
        return _load_file(path)
    if path.is_dir():
        return _load_pretrained(name, path)
    if not name or name[0] in "./~" or name.count("/") > 1 or "\\" in name or name.endswith(".json"):
        raise UserError(f"tokenizer {name!r}: no such file or directory; {_CHOICES}")
    return _load_pretrained(name, _download(name, revision))


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """A byte-level BPE with GPT-2's split pattern, learned from `texts`: about a second per megabyte.

    `vocab_size` counts the 256 bytes, the merges and `<|endoftext|>`, which gets the last id. Pairs that occur once
    are not merged, so a small corpus gives fewer ids than asked. The result depends on the texts alone, not on their
    order or on the number of threads; `texts` is read once and never held whole.

    Raises:
        UserError: `vocab_size` has no room for the bytes and `<|endoftext|>`.
    """
    if vocab_size < 257:
        raise UserError(
            f"vocab_size {vocab_size} is too small for a tokenizer: 256 bytes and {END_OF_TEXT} make at least 257"
        )
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The trainer counts words of many pieces in parallel; the cuts leave the words, hence the counts, as they are.
    pieces = (_valid_unicode(piece) for text in texts for piece in _cut_before_whitespace([text], _PIECE))
    backend.train_from_iterator(pieces, trainer)
    return _wrap(backend)


def encode_ordinary(
    tokenizer: "PreTrainedTokenizerFast", texts: list[str], num_threads: int | None = None
) -> list[np.ndarray]:
    """The token ids of each text, as if special tokens were plain text; nothing is added before, between or after.

    The ids are those of `tokenizer(text, add_special_tokens=False, split_special_tokens=True)`, in new arrays of
    :func:`token_dtype`. Runs in `num_threads` threads (default: the CPUs this process may use), dividing long texts
    where that changes nothing; tokenizers that tiktoken cannot repeat run in the backend's own threads instead
    (`RAYON_NUM_THREADS`). Surrogates, which no UTF-8 text can hold, are joined if they are a pair and else become
    U+FFFD, as tiktoken does it.
    """
    encoder = _encoder(tokenizer)
    num_threads = num_threads or _num_cpus()
    pieces, owners = [], []
    for index, text in enumerate(texts):
        for piece in [text] if 0 < len(text) <= _PIECE else _cut(encoder.safe_cuts, [text], _PIECE):
            pieces.append(piece)
            owners.append(index)
    jobs = _grouped(pieces, _PIECE if not encoder.has_own_threads else 16 * _PIECE)
    if encoder.has_own_threads or num_threads == 1 or len(jobs) < 2:
        encoded = map(encoder.encode, jobs)
        ids_of_pieces = [ids for job in encoded for ids in job]
    else:
        with ThreadPoolExecutor(num_threads) as pool:
            ids_of_pieces = [ids for job in pool.map(encoder.encode, jobs) for ids in job]

    ids_of_texts: list[list[np.ndarray]] = [[] for _ in texts]
    for owner, ids in zip(owners, ids_of_pieces):
        ids_of_texts[owner].append(ids)
    return [parts[0] if len(parts) == 1 else _concatenated(parts, encoder.dtype) for parts in ids_of_texts]


def safe_cuts(tokenizer: "PreTrainedTokenizerFast") -> SafeCuts:
    """Where a text may be cut so that the ids of its pieces, one after the other, are the ids of the whole.

    `"anywhere"`: every byte is a token. `"before_whitespace"`: GPT-2's split pattern, at any place between a character
    that is not whitespace and one that is. `"never"`: no place is known.

    Proof for GPT-2's pattern, `'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+`, and a
    text AB where A ends in a character that is not whitespace and B starts with one that is. A match is either all
    whitespace or, after at most one leading space, free of it; so none has the end of A followed by the start of B
    inside, and as matches cover the text, one ends where A ends. Matches within A are the same when B is missing: what
    they see to their right is where a run stops, and B's first character stops every run without whitespace just as
    the end of the text does, while the runs of whitespace in A, and the lookahead after them, end before A's last
    character. Matches within B are the same when A is missing: nothing in the pattern looks to the left. Merges happen
    inside a match. (`encode_ordinary` sees no special tokens, and a tokenizer with other added tokens is `"never"`.)
    """
    return _encoder(tokenizer).safe_cuts


def cut_exactly(tokenizer: "PreTrainedTokenizerFast", texts: Iterable[str], size: int) -> Iterator[str]:
    """Divides the text that `texts` make when joined into pieces of about `size` characters without changing its ids.

    Pieces are as long as it takes to reach the next safe cut (see :func:`safe_cuts`) at or after `size` characters;
    the last may be shorter, none is empty. Memory holds one piece and one of `texts`, or all of it if no cut is safe.
    """
    return _cut(safe_cuts(tokenizer), texts, size)


def separator_id(tokenizer: "PreTrainedTokenizerFast") -> int | None:
    """The id that goes between documents: `<|endoftext|>`, else EOS, else None."""
    end_of_text = tokenizer.backend_tokenizer.token_to_id(END_OF_TEXT)
    return tokenizer.eos_token_id if end_of_text is None else end_of_text


def vocab_size(tokenizer: "PreTrainedTokenizerFast") -> int:
    """The number of embeddings a model needs: the highest id, added tokens included, plus one."""
    return _encoder(tokenizer).vocab_size


def token_dtype(tokenizer: "PreTrainedTokenizerFast") -> np.dtype:
    """The smallest integer type that holds every id: uint16 up to 65,536 ids (`gpt2`, `bytes`), else uint32."""
    return _encoder(tokenizer).dtype


def fingerprint(tokenizer: "PreTrainedTokenizerFast") -> str:
    """SHA-256 (hex) of what determines the ids and the separator.

    The same in every process and after saving and loading. Padding, truncation, decoding, `model_max_length` and what
    is wrapped around a text (BOS, EOS) are left out: `encode_ordinary` knows none of them.
    """
    separator = separator_id(tokenizer)
    return hashlib.sha256(f"{separator} {_encoder(tokenizer).content}".encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Where tokenizers come from

_CHOICES = "use gpt2, bytes, a tokenizer.json, a directory that holds one, a Hub id, or train: {vocab_size: 4096}"

_WRAPPING = {
    "clean_up_tokenization_spaces": False,  # or decoding would drop spaces that the text had
    "model_input_names": ["input_ids", "attention_mask"],  # a GPT takes no token_type_ids
}

_GPT2_FILES = [
    f"https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{name}" for name in ("vocab.bpe", "encoder.json")
]


def _gpt2_encoding() -> "tiktoken.Encoding":
    """tiktoken's `gpt2`, from its cache or, unless the Hub is switched off too, from the network."""
    import tiktoken
    from huggingface_hub import is_offline_mode

    try:
        if not _tiktoken_has_cached(_GPT2_FILES):
            if is_offline_mode():
                raise OSError("HF_HUB_OFFLINE is set")
            # tiktoken downloads without a time limit; a network that swallows packets shows itself here instead.
            import requests

            requests.head(_GPT2_FILES[0], timeout=10)
        return tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:  # requests' exceptions are OSErrors, a wrong hash is a ValueError
        raise UserError(
            f"tokenizer 'gpt2' is not in tiktoken's cache and cannot be downloaded ({_in_brief(error)}): set "
            "TIKTOKEN_CACHE_DIR to a folder where tiktoken has cached it, or use another tokenizer: "
            "bytes, or train: {vocab_size: 4096}"
        ) from error


def _tiktoken_has_cached(urls: list[str]) -> bool:
    """Whether tiktoken will find the files without the network: its names for them are SHA-1s of the addresses."""
    import tempfile

    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if folder is None:
        folder = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    names = [hashlib.sha1(url.encode()).hexdigest() for url in urls]
    return folder != "" and all(os.path.exists(os.path.join(folder, name)) for name in names)


def _bytes_encoding() -> "tiktoken.Encoding":
    import tiktoken

    return tiktoken.Encoding(
        "bytes",
        pat_str=r"[\s\S]",
        mergeable_ranks={bytes([byte]): byte for byte in range(256)},
        special_tokens={END_OF_TEXT: 256},
    )


def _backend_from_tiktoken(encoding: "tiktoken.Encoding") -> "Tokenizer":
    """The `tokenizers` backend with the ids of `encoding`, whose pattern is GPT-2's or, without merges, irrelevant.

    For `gpt2` the merges come out as the list that OpenAI published. (transformers' `TikTokenConverter` instead lists
    every pair of tokens that makes a token, about six times as many, most of which can never apply.)
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    ranks = {token: encoding.encode_single_token(token) for token in encoding.token_byte_values()}
    merges = _merges(_by_rank(ranks))
    characters = "".join(byte_characters())

    def as_text(token: bytes) -> str:
        return token.decode("latin-1").translate(characters)

    vocab = {as_text(token): rank for token, rank in ranks.items()}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[(as_text(left), as_text(right)) for left, right in merges]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=bool(merges))
    return backend


def _wrap(backend: "Tokenizer") -> "PreTrainedTokenizerFast":
    """The transformers tokenizer around a byte-level `backend`, with `<|endoftext|>` as its last id."""
    from tokenizers import AddedToken, decoders, processors
    from transformers import PreTrainedTokenizerFast

    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        **_WRAPPING,
    )


def _load_file(path: Path) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), **_WRAPPING)
    except Exception as error:  # what `tokenizers` raises on a file it cannot read is a plain Exception
        raise UserError(f"tokenizer {str(path)!r} is not a tokenizer.json ({_in_brief(error)})") from error
    if tokenizer.backend_tokenizer.token_to_id(END_OF_TEXT) is not None:
        tokenizer.bos_token = tokenizer.eos_token = END_OF_TEXT
    return tokenizer


def _load_pretrained(name: str, folder: Path) -> "PreTrainedTokenizerFast":
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # dozens of tokenizer classes fail in their own ways on files that are not theirs
        raise UserError(f"tokenizer {name!r} cannot be loaded ({_in_brief(error)}); {_CHOICES}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"tokenizer {name!r} is a {type(tokenizer).__name__}, which has no fast version (no tokenizer.json)"
        )
    # A folder with nothing but a config.json gives a tokenizer of the model's class without a vocabulary.
    if tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False) == 0:
        raise UserError(f"tokenizer {name!r} has no vocabulary: there is no tokenizer.json; {_CHOICES}")
    return tokenizer


def _download(repo_id: str, revision: str | None) -> Path:
    """The folder of the Hub's cache with a repository's tokenizer files.

    One look-up, and AutoTokenizer needs no network: left to itself without one, it retries for nearly a minute.
    """
    from huggingface_hub import snapshot_download

    patterns = ["config.json", "tokenizer*", "vocab*", "merges*", "special_tokens_map.json", "added_tokens.json"]
    try:
        patterns += ["*.model", "chat_template*"]
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise UserError(
            f"tokenizer {repo_id!r} is neither here nor to be had from the Hub ({_in_brief(error)}); {_CHOICES}"
        ) from error


def _in_brief(error: Exception) -> str:
    """What `error` says, in at most 200 characters of one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


# ---------------------------------------------------------------------------------------------------------------------
# What a tokenizer is, read from its content


@dataclass(frozen=True)
class _Encoder:
    """What the content of a tokenizer says: how its ordinary ids are computed, and what they look like."""

    content: str
    encode: Callable[[list[str]], list[np.ndarray]]
    has_own_threads: bool
    safe_cuts: SafeCuts
    vocab_size: int
    dtype: np.dtype


_ENCODERS: "weakref.WeakKeyDictionary[PreTrainedTokenizerFast, tuple[tuple, _Encoder]]" = weakref.WeakKeyDictionary()


def _encoder(tokenizer: "PreTrainedTokenizerFast") -> _Encoder:
    """The encoder of what `tokenizer` is now.

    Reading 50,000 tokens takes a fifth of a second, so what was read is kept for as long as everything that is cheap
    to look at stays the same: added tokens, normalizer, pre-tokenizer, the model's kind, size and options.
    """
    backend = tokenizer.backend_tokenizer
    model = backend.model
    options = ("dropout", "unk_token", "ignore_merges", "fuse_unk", "byte_fallback")
    state = (
        backend.get_vocab_size(with_added_tokens=False),
        repr(sorted(backend.get_added_tokens_decoder().items())),
        backend.normalizer and backend.normalizer.__getstate__(),
        backend.pre_tokenizer and backend.pre_tokenizer.__getstate__(),
        (type(model).__name__, *(getattr(model, option, None) for option in options)),
    )
    known = _ENCODERS.get(tokenizer)
    if known is None or known[0] != state:
        known = _ENCODERS[tokenizer] = (state, _encoder_of_content(_content(tokenizer)))
    return known[1]


def _content(tokenizer: "PreTrainedTokenizerFast") -> str:
    """The backend's JSON without what has no say in the ids of a bare text."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content.update(dict.fromkeys(("truncation", "padding", "post_processor", "decoder")))
    return json.dumps(content, sort_keys=True)


@functools.lru_cache(maxsize=4)
def _encoder_of_content(content: str) -> _Encoder:
    from tokenizers import Tokenizer

    described = json.loads(content)
    backend = Tokenizer.from_str(content)
    backend.encode_special_tokens = True
    size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    dtype = np.dtype(np.uint16 if size <= 2**16 else np.uint32)
    cuts = _cuts_of_content(described)

    if cuts == "anywhere":
        id_of_byte = np.array([described["model"]["vocab"][char] for char in byte_characters()], dtype)
        return _Encoder(content, functools.partial(_encode_bytes, id_of_byte), False, cuts, size, dtype)
    encoding = _as_tiktoken(described) if cuts == "before_whitespace" else None
    if encoding is not None:
        return _Encoder(content, functools.partial(_encode_with_tiktoken, encoding, dtype), False, cuts, size, dtype)
    return _Encoder(content, functools.partial(_encode_with_backend, backend, dtype), True, cuts, size, dtype)


def _cuts_of_content(described: dict[str, Any]) -> SafeCuts:
    """:func:`safe_cuts` from the backend's JSON."""
    pre_tokenizer, model = described["pre_tokenizer"] or {}, described["model"]
    is_plain_byte_level_bpe = (
        described["normalizer"] is None
        and pre_tokenizer.get("type") == "ByteLevel"
        and not pre_tokenizer["add_prefix_space"]
        and model.get("type") == "BPE"
        and not any(model.get(k) for k in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
        and not model.get("ignore_merges")
        and all(char in model["vocab"] for char in byte_characters())
        and all(token["special"] for token in described["added_tokens"])  # others are found in ordinary text too
    )
    if not is_plain_byte_level_bpe:
        return "never"
    if not model["merges"]:
        return "anywhere"
    return "before_whitespace" if pre_tokenizer["use_regex"] else "never"


def _as_tiktoken(described: dict[str, Any]) -> "tiktoken.Encoding | None":
    """The tiktoken encoding with the ids of this byte-level BPE (JSON of the backend), or None if there is no proof.

    Both start from bytes. The backend joins the pair that comes first in its list of merges; tiktoken joins the pair
    whose token has the lowest id, whatever pair makes it; both take the leftmost of equals. They do the same if every
    token, in the order of the ids, has exactly the merge that :func:`_merges` derives: Suppose that up to some point
    they did, and that tiktoken now joins x and y to the token t. All earlier joins inside the bytes of t were chosen
    as they would have been with t alone, because what is best in the whole text is best in any part that contains it,
    and because no join crossed the ends of t. So x and y are the last two parts of t tokenised alone: t's one merge.
    It is in the backend's list, the list has the order of the ids, and each pair in the list is open to tiktoken too:
    the backend joins x and y as well. tiktoken also looks up whole words first, with the same result, since each
    token tokenised alone is itself.
    """
    model = described["model"]
    special = {token["content"]: token["id"] for token in described["added_tokens"]}
    byte_of = {char: byte for byte, char in enumerate(byte_characters())}
    try:
        ranks = {
            bytes(byte_of[char] for char in token): rank
            for token, rank in model["vocab"].items()
            if token not in special
        }
        merges = [tuple(bytes(byte_of[char] for char in half) for half in merge) for merge in model["merges"]]
    except KeyError:  # a token that no bytes spell
        return None
    if len(set(ranks.values())) < len(ranks) or _merges(_by_rank(ranks)) != merges:
        return None

    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str  # GPT-2's pattern, written so that it runs faster

    return tiktoken.Encoding("byte-level BPE", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)


def _by_rank(ranks: dict[bytes, int]) -> tuple[bytes, ...]:
    return tuple(sorted(ranks, key=ranks.__getitem__))


@functools.lru_cache(maxsize=2)  # `gpt2` asks twice: to build the backend, and to recognise it
def _merges(tokens: tuple[bytes, ...]) -> list[tuple[bytes, bytes] | None]:
    """For each token of several bytes the two parts that BPE joins last when the token is tokenised alone.

    `tokens` come in the order of their ranks; None is in place of a token that BPE does not reach. 0.6 s for GPT-2.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges: list[tuple[bytes, bytes] | None] = []
    for token in tokens:
        if len(token) < 2:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            joined = [ranks.get(left + right) for left, right in itertools.pairwise(parts)]
            best = min((rank for rank in joined if rank is not None), default=None)
            if best is None:
                break
            at = joined.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        merges.append((parts[0], parts[1]) if len(parts) == 2 else None)
    return merges


@functools.cache
def byte_characters() -> tuple[str, ...]:
    """The printable character that stands for each byte in a byte-level vocabulary, as GPT-2 chose them.

    Bytes that Latin-1 shows stand for themselves; the others, in order, for the characters from 256 on.
    """
    from tokenizers import pre_tokenizers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    substitutes = iter(sorted(char for char in alphabet if ord(char) > 255))
    return tuple(chr(byte) if chr(byte) in alphabet else next(substitutes) for byte in range(256))


# ---------------------------------------------------------------------------------------------------------------------
# Encoding: each takes texts and returns one new array of ids per text


def _encode_bytes(id_of_byte: np.ndarray, texts: list[str]) -> list[np.ndarray]:
    return [id_of_byte[np.frombuffer(_valid_unicode(text).encode(), np.uint8)] for text in texts]


def _encode_with_tiktoken(encoding: "tiktoken.Encoding", dtype: np.dtype, texts: list[str]) -> list[np.ndarray]:
    def encode(text: str) -> np.ndarray:
        try:
            return encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:
            return encoding.encode_to_numpy(_valid_unicode(text), disallowed_special=())

    return [encode(text).astype(dtype) for text in texts]


def _encode_with_backend(backend: "Tokenizer", dtype: np.dtype, texts: list[str]) -> list[np.ndarray]:
    encodings = backend.encode_batch_fast([_valid_unicode(text) for text in texts], add_special_tokens=False)
    return [np.array(encoding.ids, dtype) for encoding in encodings]


def _concatenated(parts: list[np.ndarray], dtype: np.dtype) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _valid_unicode(text: str) -> str:
    """`text` with surrogates joined to the character they mean or replaced by U+FFFD."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---------------------------------------------------------------------------------------------------------------------
# Cutting text

_PIECE = 2**16  # characters to a job: 5 ms of work for a thread, small beside a corpus

# Python counts U+001C to U+001F as whitespace and the split pattern does not. A character that Python calls
# whitespace never stands before a cut, and none of these four after it, so both agree on every cut.
_LAST_BEFORE_CUT = re.compile(r"\S(?=[^\S\x1c-\x1f])")


def _cut(cuts: SafeCuts, texts: Iterable[str], size: int) -> Iterator[str]:
    if cuts == "anywhere":
        return _cut_anywhere(texts, size)
    if cuts == "before_whitespace":
        return _cut_before_whitespace(texts, size)
    return (text for text in ["".join(texts)] if text)


def _cut_anywhere(texts: Iterable[str], size: int) -> Iterator[str]:
    rest = ""
    for text in texts:
        rest += text
        start = 0
        # One character more than `size` must be there, to see that it is not the second half of a surrogate pair.
        while len(rest) - start > size:
            end = start + size + ("\udc00" <= rest[start + size] <= "\udfff")
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def _cut_before_whitespace(texts: Iterable[str], size: int) -> Iterator[str]:
    waiting: list[str] = []  # what belongs to the next piece, with no safe cut at or after `size`
    length = 0
    for text in texts:
        if not text:
            continue
        if waiting and length >= size and _LAST_BEFORE_CUT.match(waiting[-1][-1] + text[0]):
            yield "".join(waiting)
            waiting, length = [], 0
        start = 0  # of the part of `text` that is not in a piece yet
        while found := _LAST_BEFORE_CUT.search(text, start + max(size - length - 1, 0)):
            yield "".join(waiting) + text[start : found.end()]
            waiting, length, start = [], 0, found.end()
        if start < len(text):
            waiting.append(text[start:])
            length += len(text) - start
    if waiting:
        yield "".join(waiting)


def _grouped(pieces: list[str], size: int) -> list[list[str]]:
    """Consecutive pieces in lists of at least `size` characters: many short texts are one job."""
    groups: list[list[str]] = []
    room = 0
    for piece in pieces:
        if room <= 0:
            groups.append([])
            room = size
        groups[-1].append(piece)
        room -= len(piece)
    return groups
