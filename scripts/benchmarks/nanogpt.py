"""The peer of `time-to-loss`: nanoGPT's published recipe for a CPU, as a plain loop that needs nothing but torch.

4 layers, 4 heads, width 128, no biases, no dropout; batches of 12 windows of 64 characters, drawn at random; 2000
steps of AdamW, 1e-3 to 1e-4 by a cosine after 100 steps of warmup, betas 0.9 and 0.99, weight decay 0.1, clipped at
1.0; every 250 steps the losses on 20 batches of the training and of the validation text.
(https://github.com/karpathy/nanoGPT, README, "I only have a macbook")

    python scripts/benchmarks/nanogpt.py TEXT [STEPS]
"""

import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

LAYERS, HEADS, WIDTH, CONTEXT, BATCH = 4, 4, 128, 64, 12


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        query, key, value = (
            part.view(batch, length, HEADS, WIDTH // HEADS).transpose(1, 2)
            for part in self.qkv(self.norm_1(x)).split(WIDTH, dim=2)
        )
        context = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(context.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.down(functional.gelu(self.up(self.norm_2(x))))


class GPT(nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim >= 2:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * LAYERS) if residual else 0.02)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        logits = functional.linear(self.norm(self.blocks(x)), self.tokens.weight)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def learning_rate(step: int, steps: int) -> float:
    if step < 100:
        return 1e-3 * (step + 1) / 101
    return 1e-4 + 0.5 * (1 + math.cos(math.pi * (step - 100) / (steps - 100))) * 9e-4


def draw(text: Tensor) -> tuple[Tensor, Tensor]:
    starts = torch.randint(len(text) - CONTEXT, (BATCH,)).tolist()
    return (
        torch.stack([text[start : start + CONTEXT] for start in starts]),
        torch.stack([text[start + 1 : start + CONTEXT + 1] for start in starts]),
    )


@torch.no_grad()
def estimated(model: GPT, text: Tensor) -> float:
    return sum(model(*draw(text)).item() for _ in range(20)) / 20


@torch.no_grad()
def whole(model: GPT, text: Tensor) -> float:
    """The mean loss over the whole text, in windows that do not overlap."""
    windows = (len(text) - 1) // CONTEXT
    ids, targets = (text[at : windows * CONTEXT + at].view(windows, CONTEXT) for at in (0, 1))
    losses = [model(*pair).item() * len(pair[0]) for pair in zip(ids.split(256), targets.split(256))]
    return sum(losses) / windows


def main(path: str, steps: int = 2000) -> None:
    torch.manual_seed(1337)
    text = Path(path).read_text(encoding="utf-8")
    number_of = {character: number for number, character in enumerate(sorted(set(text)))}
    ids = torch.tensor([number_of[character] for character in text])
    training, validation = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]
    model = GPT(len(number_of))
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    for step in range(steps + 1):
        if step % 250 == 0:
            print(f"step {step}: {estimated(model, training):.4f} {estimated(model, validation):.4f}", flush=True)
        if step == steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        model(*draw(training)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    print("trained", time.time(), flush=True)  # what follows is not part of the recipe
    print("validation", whole(model, validation), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
