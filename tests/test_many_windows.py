"""A corpus larger than anything one would keep in a list: ten billion windows, set up in no time and no memory."""

import multiprocessing
import resource
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from hf_gpt.data.batches import BatchPlan, Windows
from hf_gpt.data.token_store import TokenStore

NUM_WINDOWS, CONTEXT_LENGTH = 10**10, 4


def store_of(tokens: np.ndarray) -> TokenStore:
    counts = {"num_characters": 0, "num_bytes": 0, "num_documents": 1}
    return TokenStore("a corpus", Path("nowhere"), tokens, separator_id=None, **counts, from_cache=True)


def _resident() -> float:
    """The most memory this process has had so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _set_up_epochs(path: Path, results) -> None:
    small = Windows(store_of(np.arange(99)), CONTEXT_LENGTH)
    BatchPlan(small, 2).micro_batches(1)  # what any first batch costs
    before = _resident()
    tracemalloc.start()
    windows = Windows(store_of(np.memmap(path, np.uint16, "r")), CONTEXT_LENGTH)
    plan = BatchPlan(windows, 8, world_size=64, accumulation=2)
    first = plan.micro_batches(1, rank=63)
    found = {"windows": len(windows)}
    last = plan.micro_batches(plan.steps_per_epoch, rank=0)
    found["rows"] = [len(batch["input_ids"]) for batch in [*first, *last]]
    found["second_epoch"] = plan.indices(plan.steps_per_epoch + 1)
    found["python_mebibytes"] = tracemalloc.get_traced_memory()[1] / 2**20
    found["mebibytes"] = _resident() - before
    results.put(found)


def test_an_epoch_of_ten_billion_windows_of_a_real_file_is_set_up_at_once(tmp_path):
    path = tmp_path / "tokens.bin"
    try:
        with open(path, "wb") as file:
            file.truncate(2 * (NUM_WINDOWS * CONTEXT_LENGTH + 1))  # 80 GB that take no space: a hole
    except OSError:
        pytest.skip("this file system takes no file of 80 GB with a hole in it")
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    worker = context.Process(target=_set_up_epochs, args=(path, results))
    worker.start()
    found = results.get(timeout=300)
    worker.join()
    path.unlink()
    assert found["windows"] == NUM_WINDOWS
    assert set(found["rows"]) == {8}
    order = found["second_epoch"]
    assert len(set(order.tolist())) == 1024
    assert order.max() - order.min() > 0.95 * NUM_WINDOWS  # of the whole corpus, not of a buffer
    assert found["python_mebibytes"] < 5
    assert found["mebibytes"] < 50
