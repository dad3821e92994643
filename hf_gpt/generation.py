"""Prompt -> text.

Decoding itself is transformers' `generate()`. This file turns a prompt and the settings that the book teaches
(temperature, top-k, top-p) into one call of it, draws from a random stream of its own, and returns text.
"""

import contextlib
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList, TextIteratorStreamer

from .configuration_gpt import GPTConfig
from .data.tokenizer import begin_id
from .errors import UserError
from .loading import num_positions, reading_model
from .probing import evaluating, plain_attention
from .recipe import MAX_TEMPERATURE, MIN_TEMPERATURE, MOST_NEW_TOKENS
from .structure import position_tables


def generate_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_new_tokens: int = 50,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 123,
) -> str:
    """The prompt and its continuation, up to `max_new_tokens` tokens or the end of the text.

    Greedy at temperature 0 or without any setting; otherwise sampled, at temperature 1 unless one is given, from a
    random stream of its own: torch's global one is left as it was.

    Raises:
        UserError: an empty prompt, or a sampling value that cannot work.
    """
    settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    input_ids, options = _request(model, tokenizer, prompt, seed=seed, **settings)
    with evaluating(model), own_random_stream(seed, model.device):
        output = generate(model, input_ids, **options)
    return prompt + _continuation(tokenizer, output[0], input_ids.shape[1])


@dataclass(frozen=True)
class Piece:
    """A continuation so far: all of its text, and how many tokens were drawn for it."""

    text: str
    num_tokens: int


def stream_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    seed: int = 123,
    stop: threading.Event | None = None,
    **settings: Any,
) -> Iterator[Piece]:
    """The continuation of `generate_text`, piece by piece as it is generated; the last piece has all of it.

    `settings` are those of `generate_text`. Text comes in whole words and characters (`TextIteratorStreamer`). Setting
    the event `stop`, or closing the iterator, ends it after the current token. `generate()` runs in a thread of its
    own and draws from torch's global stream, which all threads share. So a lock lets one continuation run at a time in
    a process; other code that draws meanwhile changes its numbers, and gets different ones itself.

    Raises:
        UserError: as `generate_text`, at the first piece.
    """
    input_ids, options = _request(model, tokenizer, prompt, seed=seed, **settings)
    stop, closed = stop or threading.Event(), threading.Event()
    streamer = _CountingStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    result: list[torch.Tensor | BaseException] = []

    def stops(ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.full((len(ids),), stop.is_set() or closed.is_set(), device=ids.device)

    def work() -> None:
        try:
            with _ONE_STREAM, evaluating(model), own_random_stream(seed, model.device):
                result.append(
                    generate(
                        model, input_ids, streamer=streamer, stopping_criteria=StoppingCriteriaList([stops]), **options
                    )
                )
        except BaseException as error:  # raised again in the thread that reads the pieces
            result.append(error)
            streamer.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        text = ""
        for new in streamer:
            if new:
                text += new
                yield Piece(text, streamer.num_tokens)
    finally:
        closed.set()
        thread.join()
    if isinstance(result[0], BaseException):
        raise result[0]
    num_prompt, ids = input_ids.shape[1], result[0][0]
    yield Piece(_continuation(tokenizer, ids, num_prompt), len(ids) - num_prompt)


_ONE_STREAM = threading.Lock()


class _CountingStreamer(TextIteratorStreamer):
    """Counts the tokens of the continuation, and decodes them after the last one of the prompt (`_continuation`)."""

    num_tokens = 0

    def put(self, value: torch.Tensor) -> None:
        if self.next_tokens_are_prompt:
            self.token_cache = value.flatten()[-1:].tolist()
            self.print_len = len(self.tokenizer.decode(self.token_cache, **self.decode_kwargs))
        else:
            self.num_tokens += value.numel()
        super().put(value)


def _continuation(tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor, num_prompt: int) -> str:
    """The text of the tokens after a prompt's. Decoded alone, SentencePiece's would lose the space before a word."""
    before, whole = (tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:num_prompt], ids))
    alone = tokenizer.decode(ids[num_prompt:], skip_special_tokens=True)
    return whole[len(before) :] if whole.startswith(before) else alone


def _request(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_new_tokens: int = 50,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The prompt's ids, (1, time), and the other arguments of `model.generate`."""
    check_request(prompt, max_new_tokens, temperature, top_k, top_p, seed)
    input_ids = encode_prompt(model, tokenizer, prompt)
    refuse_past_window(model, input_ids.shape[1] + max_new_tokens)
    decoding = {"do_sample": False}
    if temperature or (temperature is None and (top_k or top_p)):
        decoding = {"do_sample": True, "temperature": temperature or 1.0, "top_k": top_k or 0, "top_p": top_p or 1.0}
    return input_ids, {**plain_options(tokenizer, input_ids), "max_new_tokens": max_new_tokens, **decoding}


def generate(model: PreTrainedModel, input_ids: torch.Tensor, **options: Any) -> Any:
    """`model.generate`. What it refuses is in `options`, or came with the model as its generation config.

    Raises:
        UserError: it fails.
    """
    with reading_model("generate()", "fails with this model and its generation config"):
        return model.generate(input_ids, **options)


def try_out(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], seed: int, **settings: Any
) -> None:
    """Refuse, before a model is trained, what `generate_text` would refuse of it later.

    Every prompt is encoded. For the first one `generate()` chooses a token, with attention that runs on any device.

    Raises:
        UserError: as `generate_text`.
    """
    requests = [_request(model, tokenizer, prompt, seed=seed, **settings) for prompt in prompts]
    for input_ids, options in requests[:1]:
        one = {**options, "max_new_tokens": 1, "attention_mask": options["attention_mask"][:, -1:]}
        with (
            plain_attention(model),
            evaluating(model),
            own_random_stream(seed, model.device),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # that one token is fewer than the model wants to write
            generate(model, input_ids[:, -1:], **one)


def plain_options(tokenizer: PreTrainedTokenizerBase, input_ids: torch.Tensor) -> dict[str, Any]:
    """Arguments of `model.generate` for one continuation, decoded by the settings given here and no others.

    Of the model's own generation config only what forbids or weights tokens stays (a repetition penalty, bad words).
    """
    return {
        "attention_mask": torch.ones_like(input_ids),
        "pad_token_id": tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tokenizer": tokenizer,  # for stop strings
        "num_beams": 1,
        "num_return_sequences": 1,
        "max_length": None,  # older models have one; max_new_tokens is what counts
        **dict.fromkeys(("min_p", "typical_p", "top_h", "epsilon_cutoff", "eta_cutoff")),
        **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id")),
    }


def check_request(
    prompt: str,
    max_new_tokens: int,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 123,
) -> None:
    """Refuse arguments of `generate_text` that cannot work, without a model."""
    check_prompt(prompt)
    if not 1 <= max_new_tokens <= MOST_NEW_TOKENS:
        raise UserError(f"must be 1 to {MOST_NEW_TOKENS:,}", field="max_new_tokens", value=max_new_tokens)
    check_sampling(temperature, top_k, top_p)
    check_seed(seed)


def check_prompt(prompt: str) -> None:
    """Refuse an empty prompt, and one that is not UTF-8."""
    if not prompt:
        raise UserError("it is empty; give at least one character to continue", field="prompt")
    refuse_broken_text("prompt", prompt)


def check_sampling(temperature: float | None = None, top_k: int | None = None, top_p: float | None = None) -> None:
    """Refuse values that define no distribution."""
    if temperature is not None and temperature != 0 and not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        what_works = f"must be 0 (greedy), or {MIN_TEMPERATURE} to {MAX_TEMPERATURE:,.0f}"
        raise UserError(what_works, field="temperature", value=temperature)
    if top_k is not None and top_k < 1:
        raise UserError("must be 1 or more", field="top_k", value=top_k)
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError("must be above 0 and at most 1", field="top_p", value=top_p)


def check_seed(seed: int) -> None:
    """Refuse what torch does not take as a seed."""
    if not 0 <= seed < 2**63:
        raise UserError("must be at least 0 and below 2**63", field="seed", value=seed)


def refuse_broken_text(field: str, text: str) -> None:
    """Refuse text that is not UTF-8: a shell passes on any bytes, and no tokenizer takes them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError("it is not UTF-8; give it as UTF-8 text", field=field) from None


def encode_prompt(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> torch.Tensor:
    """The ids of a prompt, (1, time), where the model is.

    Raises:
        UserError: the tokenizer makes no token of it, or tokens that the model does not have.
    """
    ids = token_ids(model, tokenizer, prompt)
    if not ids:
        raise UserError("the model's tokenizer makes no token of it; give other text", field="prompt")
    return torch.tensor([ids], device=model.device)


def token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a text, as those of a document begin: after the BOS, where the tokenizer adds one. No EOS follows.

    Raises:
        UserError: the model does not have some of them.
    """
    # Not verbose: a prompt longer than the window needs no warning.
    with reading_model("the model's tokenizer", "cannot read this text"):
        ids, begin = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], begin_id(tokenizer)
    if ids and begin not in (None, ids[0]):
        ids = [begin, *ids]
    num_known = model.get_input_embeddings().num_embeddings
    if max(ids, default=0) >= num_known:
        raise UserError(
            f"the tokenizer gives token {max(ids)}, and the model has {num_known:,}: they do not belong together"
        )
    return ids


def refuse_past_window(
    model: PreTrainedModel,
    num_tokens: int,
    field: str = "max_new_tokens",
    what: str = "prompt and continuation make",
) -> None:
    """Refuse more tokens than a model has positions for. What it can compute beyond its window it may."""
    window = num_positions(model.config)
    if window_slides(model) or not position_tables(model):
        return
    if num_tokens > window + 1:  # the last token is generated, and not read
        raise UserError(
            f"{what} {num_tokens:,} tokens, and this {model.config.model_type} model has {window:,} positions, for up"
            f" to {window + 1:,}",
            field=field,
        )


def window_slides(model: PreTrainedModel) -> bool:
    """Whether `generate()` goes on with the end of the text once the window is full, as our GPT's does."""
    return model.config.model_type == GPTConfig.model_type


@contextlib.contextmanager
def own_random_stream(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch draws from a stream that starts at `seed`; outside, nothing has been drawn."""
    devices = [device] if device.type != "cpu" else []
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(seed)
        yield
