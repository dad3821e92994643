"""Data: from raw text to the first batch, and again."""

import os
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

from .timing import Result, in_turn, process, seconds
from .training import ROOT, real_text

CONTEXT, BATCH = 1024, 8
COPIES, FEWER = 84, 8  # of WikiText's rows: 200 MB, so that what is paid once does not count; and for what is slow
PIECE = 2**17  # characters


def tokens(runs: int = 3) -> Result:
    """MB of text a second: ours from rows of WikiText to the first batch, the peer tiktoken alone.

    The peer has the text in memory, in pieces, and two threads; it reads, checks and writes nothing.
    `second_run_seconds` is what ours takes in a new process once everything is imported, `run_clm` the rate of
    transformers' example, on a tenth.
    """
    import datasets

    of_each = datasets.load_dataset(str(real_text("wikitext")), "wikitext-2-v1")
    once = datasets.concatenate_datasets([of_each[split] for split in of_each])
    rows = datasets.concatenate_datasets([once] * COPIES)
    text = "".join(once["text"])
    size, text = len(text.encode()) / 1e6, text * COPIES
    again = []
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ):
        corpus, smaller = Path(folder, "rows.parquet"), Path(folder, "fewer.parquet")
        rows.to_parquet(corpus)
        datasets.concatenate_datasets([once] * FEWER).to_parquet(smaller)

        def ours() -> float:
            with tempfile.TemporaryDirectory() as cache:
                os.environ["HF_GPT_CACHE"] = cache
                took = seconds(lambda: _our_first_batch(corpus))
                second = process(sys.executable, "-c", _SECOND_RUN, corpus, env={"PYTHONPATH": str(ROOT / "scripts")})
                again.append(float(second.printed[-1]))
            return COPIES * size / took

        def run_clm() -> float:
            with tempfile.TemporaryDirectory() as cache:
                return FEWER * size / seconds(lambda: _first_batch_of_run_clm(smaller, cache))

        mine, theirs = in_turn(ours, lambda: COPIES * size / seconds(lambda: _tiktoken_alone(text)), runs)
        more = {"megabytes": round(COPIES * size, 1), "second_run_seconds": round(statistics.median(again), 3)}
        more["run_clm"] = round(run_clm(), 2)
    return Result("tokens", mine, theirs, "MB/s", "at least 0.9; second run 0.4 s", more)


_SECOND_RUN = """
import sys
import hf_gpt.training.data
from benchmarks.data import _our_first_batch, seconds
print(seconds(lambda: _our_first_batch(sys.argv[1])))
"""


def _tiktoken_alone(text: str) -> int:
    import tiktoken

    encoding = tiktoken.get_encoding("gpt2")
    with ThreadPoolExecutor(2) as pool:
        pieces = (text[at : at + PIECE] for at in range(0, len(text), PIECE))
        return sum(map(len, pool.map(encoding.encode_to_numpy, pieces)))


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
