"""What a step sees: the same windows on any number of processes, in any order of asking, each once an epoch."""

import multiprocessing
import resource
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from hf_gpt.data.batches import IGNORED, BatchPlan, Windows, permuted
from hf_gpt.data.token_store import TokenStore
from hf_gpt.errors import UserError

SEPARATOR = 60_000


def store_of(tokens: np.ndarray) -> TokenStore:
    counts = {"num_characters": 0, "num_bytes": 0, "num_documents": 1, "num_words": 0, "words": None}
    return TokenStore("a corpus", Path("nowhere"), tokens, SEPARATOR, **counts)


def windows_of(num_tokens: int, context_length: int = 4, **options) -> Windows:
    return Windows(store_of(np.arange(num_tokens, dtype=np.uint16)), context_length, **options)


def rows(batches) -> list[list[int]]:
    """The inputs that have targets, in the order they are run."""
    real = [batch["input_ids"][batch["shift_labels"][:, 0] != IGNORED] for batch in batches]
    return torch.cat(real).tolist()


@given(st.integers(2, 60), st.integers(1, 9), st.integers(1, 12))
def test_windows_are_the_books(num_tokens, context_length, stride):
    starts = range(0, num_tokens - context_length, stride)
    if not starts:
        return
    windows = windows_of(num_tokens, context_length, stride=stride)
    assert len(windows) == len(starts)
    batch = windows.batch(np.arange(len(windows)))
    for index, start in enumerate(starts):
        inputs, targets = windows.window(index)
        assert inputs.tolist() == list(range(start, start + context_length)) == batch["input_ids"][index].tolist()
        assert targets.tolist() == batch["shift_labels"][index].tolist()
        assert targets.tolist() == list(range(start + 1, start + context_length + 1))
    assert inputs.base is not None  # a view: no copy of the tokens
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


@pytest.mark.parametrize("isolate", [False, True])
def test_windows_are_a_dataset_for_torch(isolate):
    windows = windows_of(30, 4, isolate_documents=isolate)
    assert len(windows) == 7
    for number, batch in enumerate(DataLoader(windows, batch_size=3)):
        expected = windows.batch(np.arange(3 * number, min(3 * number + 3, 7)))
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in expected)
    assert number == 2
    assert windows[-1]["input_ids"].tolist() == [24, 25, 26, 27]
    assert sum(1 for _ in windows) == 7  # it ends
    for index in (7, -8):
        with pytest.raises(IndexError):
            windows[index]


def test_a_store_shorter_than_a_window_says_what_to_lower():
    with pytest.raises(UserError, match=r"a corpus: 256 tokens, and a window takes 257; lower data.context_length"):
        windows_of(256, 256)
    with pytest.raises(UserError, match=r"data.context_length or give more text$"):  # it may be the training text
        windows_of(256, 256)
    with pytest.raises(UserError, match=r"or raise data\.validation_fraction$"):
        windows_of(256, 256, remedy="raise data.validation_fraction")
    assert len(windows_of(257, 256)) == 1


def test_positions_begin_again_at_each_separator_and_each_window():
    tokens = [1, 2, SEPARATOR, 3, 4, 5, SEPARATOR, SEPARATOR, 6]
    batch = Windows(store_of(np.array(tokens, np.uint16)), 4, isolate_documents=True).batch(np.arange(2))
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1], [0, 1, 0, 0]]
    assert batch["shift_labels"].tolist() == [[2, SEPARATOR, 3, 4], [5, SEPARATOR, SEPARATOR, 6]]
    assert "position_ids" not in windows_of(9).batch(np.arange(2))


plans = st.fixed_dictionaries(
    {
        "num_windows": st.integers(4, 90),
        "seed": st.integers(0, 2**70),
        "shuffle": st.booleans(),
        "drop_last": st.booleans(),
    }
)


@settings(max_examples=30)
@given(plans)
def test_the_global_batch_is_the_same_on_any_number_of_processes(options):
    windows = windows_of(options.pop("num_windows") * 4 + 1)
    layouts = [(1, 1, 4), (1, 2, 2), (1, 4, 1), (2, 1, 2), (2, 2, 1), (4, 1, 1)]
    seen = []
    for batch_size, world_size, accumulation in layouts:
        plan = BatchPlan(windows, batch_size, world_size, accumulation, **options)
        steps = []
        for step in range(1, 2 * plan.steps_per_epoch + 1):
            ranks = [plan.micro_batches(step, rank) for rank in range(world_size)]
            # Every process runs as many micro-batches as the others, all of one shape.
            assert len({len(batches) for batches in ranks}) == 1
            assert {batch["input_ids"].shape for batches in ranks for batch in batches} == {(batch_size, 4)}
            in_order = [batch for micro_step in zip(*ranks) for batch in micro_step]
            steps.append(rows(in_order))
            labels = sum((batch["shift_labels"] != IGNORED).sum().item() for batch in in_order)
            assert plan.num_targets(step) == labels == 4 * len(plan.indices(step))
        seen.append(steps)
    assert all(steps == seen[0] for steps in seen)


@given(plans)
def test_every_window_once_an_epoch(options):
    num_windows = options.pop("num_windows")
    plan = BatchPlan(windows_of(num_windows * 4 + 1), 2, 1, 2, **options)
    for epoch in range(3):
        steps = range(epoch * plan.steps_per_epoch + 1, (epoch + 1) * plan.steps_per_epoch + 1)
        assert {plan.epoch(step) for step in steps} == {epoch}
        found = Counter(np.concatenate([plan.indices(step) for step in steps]).tolist())
        if plan.drop_last:
            assert set(found.values()) == {1}
            assert len(found) == num_windows // 4 * 4
        else:
            assert found == Counter(range(num_windows))
        if not plan.shuffle:
            assert [i for step in steps for i in plan.indices(step)] == list(range(len(found)))


def test_a_step_does_not_depend_on_what_was_asked_before():
    def plan():
        return BatchPlan(windows_of(401), 3, seed=7)

    in_order = [rows(plan().micro_batches(step)) for step in range(1, 100)]
    asked = plan()
    assert [rows(asked.micro_batches(step)) for step in reversed(range(1, 100))] == in_order[::-1]
    assert in_order[:34] != in_order[34:68]  # another epoch, another order
    assert in_order != [rows(BatchPlan(windows_of(401), 3, seed=8).micro_batches(step)) for step in range(1, 100)]


def test_fewer_windows_than_a_step_with_drop_last_is_refused():
    with pytest.raises(UserError, match=r"has 3 windows, fewer than the 8 of a step; lower train\.batch_size"):
        BatchPlan(windows_of(13), 8, drop_last=True)
    with pytest.raises(IndexError):
        BatchPlan(windows_of(13), 8).indices(0)


@given(st.integers(1, 3000), st.text(max_size=5))
def test_the_order_is_a_permutation(size, key):
    assert sorted(permuted(np.arange(size), size, key).tolist()) == list(range(size))


def test_the_order_is_a_permutation_of_any_part_computed_alone():
    size = 100_003
    whole = permuted(np.arange(size), size, "1/0")
    assert np.array_equal(np.sort(whole), np.arange(size))
    assert np.array_equal(permuted(np.arange(500, 600), size, "1/0"), whole[500:600])


def test_the_order_is_the_same_everywhere_and_for_ever():
    assert permuted(np.arange(5), 10, "123/0").tolist() == ORDERS[0]
    assert permuted(np.arange(5), 10**10, "123/0").tolist() == ORDERS[1]
    assert permuted(np.arange(5), 10**10, "123/1").tolist() == ORDERS[2]


ORDERS = [
    [1, 0, 9, 5, 4],
    [628195739, 6494614545, 6129703570, 6993474411, 7332778946],
    [3162746985, 9099585519, 8421450491, 6539568778, 4751699384],
]


def test_the_order_shows_no_pattern():
    """Chi-square: where places go, which places follow each other, and which of the orders of four come up."""

    def chi_square(counts):
        expected = counts.sum() / counts.size
        return ((counts - expected) ** 2 / expected).sum()

    size, num_keys, bins = 1000, 80, 10
    places, steps = np.zeros((bins, bins)), np.zeros(size - 1)
    for key in range(num_keys):
        order = permuted(np.arange(size), size, f"{key}/0")
        np.add.at(places, (np.arange(size) * bins // size, order * bins // size), 1)
        np.add.at(steps, (order[1:] - order[:-1]) % size - 1, 1)
    # 99.99% of chi-square: about df + 3.7 * sqrt(2 * df) + 9
    assert chi_square(places) < 81 + 3.7 * 12.7 + 9
    assert chi_square(steps) < 998 + 3.7 * 44.7 + 9
    orders = Counter(tuple(permuted(np.arange(4), 4, f"{key}/0").tolist()) for key in range(480))
    assert len(orders) == 24
    assert chi_square(np.array(list(orders.values()))) < 23 + 3.7 * 6.8 + 9


NUM_WINDOWS, CONTEXT_LENGTH = 10**10, 4


def _resident() -> float:
    """The most memory this process has had so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _set_up_epochs(path: Path, results) -> None:
    small = windows_of(99, CONTEXT_LENGTH)
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


def test_an_epoch_of_ten_billion_windows_of_a_real_file_needs_no_list(tmp_path):
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
