"""Data: from raw text to the first batch, and again."""

import os
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

from .timing import Result, in_turn, seconds
from .training import real_text

CONTEXT, BATCH = 1024, 8
COPIES = 16  # of WikiText's rows, so that what is paid once does not count for much


def tokens(runs: int = 3) -> Result:
    """MB of text a second, from rows of WikiText to the first batch; and what the second run takes."""
    import datasets

    rows = datasets.load_dataset(str(real_text("wikitext")), "wikitext-2-v1")
    rows = datasets.concatenate_datasets([rows[split] for split in rows] * COPIES)
    size = sum(len(text.encode()) for text in rows["text"]) / 1e6
    again = []
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ):
        corpus = Path(folder, "rows.parquet")
        rows.to_parquet(corpus)

        def ours() -> float:
            with tempfile.TemporaryDirectory() as cache:
                os.environ["HF_GPT_CACHE"] = cache
                took = seconds(lambda: _our_first_batch(corpus))
                again.append(seconds(lambda: _our_first_batch(corpus)))
            return size / took

        def peer() -> float:
            with tempfile.TemporaryDirectory() as cache:
                return size / seconds(lambda: _first_batch_of_run_clm(corpus, cache))

        mine, theirs = in_turn(ours, peer, runs)
    more = {"megabytes": round(size, 1), "second_run_seconds": round(sorted(again)[len(again) // 2], 3)}
    return Result("tokens", mine, theirs, "MB/s", "at least 10", more)


def _our_first_batch(corpus: Path) -> Any:
    from hf_gpt.recipe import Recipe
    from hf_gpt.training.data import batch_plan, prepare_data

    recipe = Recipe(
        model={"preset": "gpt2-124m"}, data={"source": str(corpus)}, train={"batch_size": BATCH, "max_steps": 1}
    )
    data = prepare_data(recipe)
    (batch,) = batch_plan(data.recipe, data.windows).micro_batches(1, 0)
    assert batch["input_ids"].shape == (BATCH, CONTEXT)
    return batch


def _first_batch_of_run_clm(corpus: Path, cache: str) -> Any:
    """What transformers' run_clm.py does: tokenise the rows, join them, cut them into blocks, and take a batch."""
    import datasets
    from torch.utils.data import DataLoader
    from transformers import default_data_collator

    from hf_gpt.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer("gpt2")
    datasets.disable_progress_bars()
    rows = datasets.load_dataset("parquet", data_files=str(corpus), split="train", cache_dir=cache)
    rows = rows.map(lambda some: tokenizer(some["text"]), batched=True, remove_columns=rows.column_names)

    def group_texts(some: dict[str, list]) -> dict[str, list]:
        joined = {name: list(chain(*some[name])) for name in some}
        length = len(joined["input_ids"]) // CONTEXT * CONTEXT
        blocks = {name: [ids[at : at + CONTEXT] for at in range(0, length, CONTEXT)] for name, ids in joined.items()}
        return {**blocks, "labels": blocks["input_ids"].copy()}

    blocks = rows.map(group_texts, batched=True)
    batch = next(iter(DataLoader(blocks, batch_size=BATCH, shuffle=True, collate_fn=default_data_collator)))
    assert batch["input_ids"].shape == (BATCH, CONTEXT)
    return batch
