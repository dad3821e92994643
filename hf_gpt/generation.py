"""Prompt -> text.

Decoding itself is transformers' `generate()`: this file turns a prompt and the few knobs the book teaches
(temperature, top-k, top-p) into one call of it, keeps its random draws away from everyone else's, and gives back text.
"""

import contextlib
import math
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
    check_request(prompt, max_new_tokens, temperature, top_k, top_p)
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed {seed}: must be at least 0 and below 2**63")
    input_ids = encode_prompt(model, tokenizer, prompt)
    refuse_past_window(model, input_ids.shape[1] + max_new_tokens)
    # Everything is said, so that a model's own generation defaults (top_k 50 in transformers) add nothing.
    decoding = {"do_sample": False}
    if temperature or (temperature is None and (top_k or top_p)):
        decoding = {"do_sample": True, "temperature": temperature or 1.0, "top_k": top_k or 0, "top_p": top_p or 1.0}
    with evaluating(model), own_random_stream(seed, model.device):
        output = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **decoding,
        )
    continuation = tokenizer.decode(output[0, input_ids.shape[1] :], skip_special_tokens=True)
    return prompt + continuation


def check_request(
    prompt: str,
    max_new_tokens: int,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
) -> None:
    """Refuse, in one line, what cannot be continued or what no distribution can be made of."""
    if not prompt:
        raise UserError("--prompt: it is empty; give at least one character to go on from")
    refuse_broken_text("--prompt", prompt)
    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {max_new_tokens}: must be 1 or more")
    if temperature is not None and temperature != 0 and not 1e-4 <= temperature < math.inf:
        raise UserError(f"--temperature {temperature:g}: must be 0 (greedy) or at least 0.0001")
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
    """The ids of a prompt, (1, time), where the model is."""
    # Not verbose: a prompt longer than the window is nothing to warn of, the window slides.
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False, verbose=False)["input_ids"]
    return ids.to(model.device)


def refuse_past_window(
    model: PreTrainedModel, num_tokens: int, what: str = "--max-new-tokens: prompt and continuation make"
) -> None:
    """Our GPT slides its window; a stock GPT-2 would end in an IndexError."""
    window = getattr(model.config, "n_positions", None)
    if window is not None and num_tokens > window:
        raise UserError(
            f"{what} {num_tokens} tokens, and this {model.config.model_type} model has no more than {window} positions"
        )


@contextlib.contextmanager
def own_random_stream(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch draws from a stream that starts at `seed`; outside, nothing has been drawn."""
    devices = [device] if device.type != "cpu" else []
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(seed)
        yield
