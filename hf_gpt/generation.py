"""Prompt -> text.

Decoding itself is transformers' `generate()`: this file turns a prompt and the few knobs the book teaches
(temperature, top-k, top-p) into one call of it, keeps its random draws away from everyone else's, and gives back text.
"""

import contextlib
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList, TextIteratorStreamer

from .configuration_gpt import GPTConfig
from .errors import UserError
from .evaluation import evaluating


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

    Greedy at temperature 0 or when nothing is said; otherwise sampled, at temperature 1 unless one is given, with a
    random stream of its own: the global one is afterwards as it was.

    Raises:
        UserError: an empty prompt, or a sampling value that cannot work.
    """
    input_ids, options = _request(model, tokenizer, prompt, max_new_tokens, temperature, top_k, top_p, seed)
    with evaluating(model), own_random_stream(seed, model.device):
        output = model.generate(input_ids, **options)
    continuation = tokenizer.decode(output[0, input_ids.shape[1] :], skip_special_tokens=True)
    return prompt + continuation


@dataclass(frozen=True)
class Piece:
    """A continuation as far as it is written: all of its text, and how many tokens were drawn for it."""

    text: str
    num_tokens: int


def stream_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_new_tokens: int = 50,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 123,
    stop: threading.Event | None = None,
) -> Iterator[Piece]:
    """What `generate_text` writes after the prompt, while it is being written: the last piece has all of it.

    Text comes by whole words and whole characters (`TextIteratorStreamer`); an event `stop` that is set, or an
    iterator that is closed, ends it after the token at hand. `generate()` runs in a thread of its own and draws from
    torch's global stream, which all threads share: so it runs with a lock, one continuation at a time in a process.
    Whoever else draws meanwhile without that lock gets, and disturbs, its numbers.

    Raises:
        UserError: as `generate_text`, at the first piece.
    """
    input_ids, options = _request(model, tokenizer, prompt, max_new_tokens, temperature, top_k, top_p, seed)
    stop, closed = stop or threading.Event(), threading.Event()
    streamer = _CountingStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    result: list[torch.Tensor | BaseException] = []

    def stops(ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.full((len(ids),), stop.is_set() or closed.is_set(), device=ids.device)

    def generate() -> None:
        try:
            with _ONE_STREAM, evaluating(model), own_random_stream(seed, model.device):
                result.append(
                    model.generate(
                        input_ids, streamer=streamer, stopping_criteria=StoppingCriteriaList([stops]), **options
                    )
                )
        except BaseException as error:  # which the reader of the pieces is to see, in its own thread
            result.append(error)
            streamer.end()

    thread = threading.Thread(target=generate, daemon=True)
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
    new_ids = result[0][0, input_ids.shape[1] :]
    yield Piece(tokenizer.decode(new_ids, skip_special_tokens=True), len(new_ids))


_ONE_STREAM = threading.Lock()


class _CountingStreamer(TextIteratorStreamer):
    """Knows how many tokens of the continuation it was given."""

    num_tokens = 0

    def put(self, value: torch.Tensor) -> None:
        if not self.next_tokens_are_prompt:
            self.num_tokens += value.numel()
        super().put(value)


def _request(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    max_new_tokens: int,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The prompt's ids, (1, time), and what `model.generate` is to be told beside them."""
    check_request(prompt, max_new_tokens, temperature, top_k, top_p)
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed {seed}: must be at least 0 and below 2**63")
    input_ids = encode_prompt(model, tokenizer, prompt)
    refuse_past_window(model, input_ids.shape[1] + max_new_tokens)
    decoding = {"do_sample": False}
    if temperature or (temperature is None and (top_k or top_p)):
        decoding = {"do_sample": True, "temperature": temperature or 1.0, "top_k": top_k or 0, "top_p": top_p or 1.0}
    return input_ids, {**plain_options(tokenizer, input_ids), "max_new_tokens": max_new_tokens, **decoding}


def plain_options(tokenizer: PreTrainedTokenizerBase, input_ids: torch.Tensor) -> dict[str, Any]:
    """What `model.generate` is told so that it draws one continuation by what is asked for here and nothing else.

    Of the model's own generation config only what forbids or weighs tokens stays (a repetition penalty, bad words).
    """
    return {
        "attention_mask": torch.ones_like(input_ids),
        "pad_token_id": tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tokenizer": tokenizer,  # for stop strings
        "num_beams": 1,
        "num_return_sequences": 1,
        **dict.fromkeys(_NOT_ASKED_FOR),
    }


_NOT_ASKED_FOR = (
    *("min_p", "typical_p", "top_h", "epsilon_cutoff", "eta_cutoff"),
    *("forced_bos_token_id", "forced_eos_token_id"),
)


def check_request(
    prompt: str,
    max_new_tokens: int,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
) -> None:
    """Refuse, in one line, what cannot be continued or what no distribution can be made of."""
    check_prompt(prompt)
    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {max_new_tokens}: must be 1 or more")
    check_sampling(temperature, top_k, top_p)


def check_prompt(prompt: str) -> None:
    """Refuse, in one line, what nothing can go on from."""
    if not prompt:
        raise UserError("--prompt: it is empty; give at least one character to go on from")
    refuse_broken_text("--prompt", prompt)


def check_sampling(temperature: float | None = None, top_k: int | None = None, top_p: float | None = None) -> None:
    """Refuse, in one line, what no distribution can be made with."""
    if temperature is not None and temperature != 0 and not 1e-4 <= temperature < math.inf:
        raise UserError(f"--temperature {temperature:g}: must be 0 (greedy) or a finite number of at least 0.0001")
    if top_k is not None and top_k < 1:
        raise UserError(f"--top-k {top_k}: must be 1 or more")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"--top-p {top_p:g}: must be above 0 and at most 1")


def refuse_broken_text(flag: str, text: str) -> None:
    """A shell hands on whatever bytes it has; no tokenizer takes what is no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{flag}: it is not UTF-8; give it as UTF-8 text") from None


def encode_prompt(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> torch.Tensor:
    """The ids of a prompt, (1, time), where the model is.

    Raises:
        UserError: the tokenizer makes nothing of it, or tokens that the model does not have.
    """
    ids = token_ids(model, tokenizer, prompt)
    if not ids:
        raise UserError("--prompt: the model's tokenizer makes no token of it; give other text")
    return torch.tensor([ids], device=model.device)


def token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a text.

    Raises:
        UserError: some of them are none that the model has.
    """
    # Not verbose: a prompt longer than the window is nothing to warn of, the window slides.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    num_known = model.get_input_embeddings().num_embeddings
    if max(ids, default=0) >= num_known:
        raise UserError(
            f"the tokenizer gives token {max(ids)}, and the model has {num_known:,}: they do not belong together"
        )
    return ids


def context_length(model: PreTrainedModel) -> int | None:
    """In tokens; nothing for a model that has no limit, such as a Mamba or a BLOOM."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def window_slides(model: PreTrainedModel) -> bool:
    """Whether the model goes on when its window is full, as ours does; others end in an error or lose their way."""
    return model.config.model_type == GPTConfig.model_type


def refuse_past_window(
    model: PreTrainedModel, num_tokens: int, what: str = "--max-new-tokens: prompt and continuation make"
) -> None:
    """Refuse, in one line, more than a window that does not slide can hold."""
    window = context_length(model)
    if window is None or window_slides(model):
        return
    if num_tokens > window + 1:  # the last token is made, and not read
        raise UserError(
            f"{what} {num_tokens:,} tokens, and this {model.config.model_type} model has {window:,} positions, for up"
            f" to {window + 1:,}"
        )


@contextlib.contextmanager
def own_random_stream(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch draws from a stream that starts at `seed`; outside, nothing has been drawn."""
    devices = [device] if device.type != "cpu" else []
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(seed)
        yield
