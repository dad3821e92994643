"""Losses are means over exactly the tokens they claim."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from hf_gpt import GPTConfig, GPTForCausalLM, load_tokenizer
from hf_gpt.data.batches import Windows
from hf_gpt.data.corpus import load_corpora
from hf_gpt.data.token_store import tokenize
from hf_gpt.evaluation import evaluate_tokens, loss_on_windows, perplexity
from hf_gpt.loss import CausalLMLoss
from hf_gpt.recipe import DataRecipe

CONTEXT = 8


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=257, context_length=CONTEXT, emb_dim=16, n_layers=1, n_heads=2, initializer_range=0.3
    )
    return GPTForCausalLM(config)


@torch.no_grad()
def token_loss(model, tokens: np.ndarray, start: int, target: int) -> float:
    """Loss of one target token, given the tokens from `start` up to it."""
    model.eval()
    context = torch.from_numpy(tokens[start:target].astype(np.int64))[None]
    return cross_entropy(model(context).logits[0, -1:], torch.tensor([int(tokens[target])])).item()


@pytest.mark.parametrize("length", [2, 5, 9, 10, 17, 40])
@pytest.mark.parametrize("stride", [1, 3, CONTEXT, 100])
def test_every_token_but_the_first_is_scored_once(model, length, stride):
    tokens = np.random.default_rng(length).integers(0, 257, length).astype(np.uint16)
    result = evaluate_tokens(model, tokens, num_bytes=length - 1, stride=stride)
    # Each target is scored by the first window that reaches it; windows end at CONTEXT, then every `stride` further.
    step, expected = min(stride, CONTEXT), []
    for target in range(1, length):
        end = CONTEXT if target <= CONTEXT else CONTEXT + math.ceil((target - CONTEXT) / step) * step
        start = max(0, min(end, length - 1) - CONTEXT)
        expected.append(token_loss(model, tokens, start, target))
    assert result.loss == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert (result.tokens, result.scored_tokens) == (length, length - 1)
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert result.bits_per_byte == pytest.approx(result.loss / math.log(2))


def test_windows_are_averaged_whole_and_from_the_beginning(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_GPT_CACHE", str(tmp_path))
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog." * 20)
    corpus, _ = load_corpora(DataRecipe(source=str(tmp_path / "text.txt")))
    windows = Windows(tokenize(corpus, load_tokenizer("bytes")), CONTEXT)
    loss = CausalLMLoss(model)
    model.train()
    for tokens, count in ((None, len(windows)), (3 * CONTEXT, 3), (3 * CONTEXT + 5, 3), (1, 1)):
        losses = []
        for index in range(count):
            inputs, targets = (torch.from_numpy(part.astype(np.int64)) for part in windows.window(index))
            with torch.no_grad():
                losses.append(cross_entropy(model.eval()(inputs[None]).logits[0], targets).item())
        model.train()
        assert loss_on_windows(loss, windows, tokens) == pytest.approx(sum(losses) / count, rel=1e-5)
        assert model.training  # as it was


def test_perplexity_of_a_hopeless_loss_is_infinite():
    assert perplexity(1e6) == math.inf
