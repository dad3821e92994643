"""The figures that Raschka's *Build a Large Language Model From Scratch* prints are this model's figures too.

The book's model is drawn under seed 123, run, decoded and trained with the book's own plain loop and PyTorch's
`DataLoader`. Token ids stand for the texts, so that only the training needs data: The Verdict and the tokenizer's
files, in the folder that HF_GPT_TEST_DATA names.
"""

import os
from pathlib import Path

import pytest
import torch
from figures import assert_printed, published
from torch.utils.data import DataLoader

from hf_gpt.configuration_gpt import GPTConfig
from hf_gpt.modeling_gpt import GPTForCausalLM

pytestmark = pytest.mark.figures

GPT_CONFIG_124M = {  # as printed in the book
    "vocab_size": 50257,
    "context_length": 1024,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
# Of the targets of ("every effort moves", " effort moves you") and ("I really like", " really like chocolate").
PROBABILITIES = ["7.4541e-05", "3.1061e-05", "1.1563e-05", "1.0337e-05", "5.6776e-05", "4.7559e-06"]
README = Path(__file__).parent.parent / "scripts" / "README.md"
START_CONTEXT = "Every effort moves you"
START_IDS = [6109, 3626, 6100, 345]
GREEDY_IDS = [34245, 5139, 2492, 25405, 17434, 17853, 5308, 3398, 13174, 43071, 45446, 26653, 3505]
GREEDY_IDS += [16985, 23054, 29569, 18672, 6379, 46073, 47238, 47686, 45576, 41775, 9252, 8479]
GREEDY_TEXT = (  # the character in "wasn\u0645" is an Arabic meem
    " rentingetic wasn\u0645 refres RexMeCHicular stren Mortgage TT remember gard ACTIONSussedOND Land "
    "Engeleddedemate breaths proxies GalaxyForm"
)
SAMPLED_IDS = [6109, 4797, 14508, 21512, 12255, 34934, 11025, 6740, 6362, 4065, 7374, 48798, 9577, 30898, 13748]
SAMPLED_TEXT = "Everyiliaralso stabbed OrleansAllowsean 52anche crime winter unbeaten quoteembedreportprint earning"
# step: (training loss on up to 5 batches, validation loss)
TRACE = {
    1: (9.740, 10.112),
    6: (8.000, 8.506),
    11: (6.736, 7.205),
    16: (6.030, 6.752),
    21: (5.533, 6.569),
    26: (5.650, 6.600),
    31: (5.404, 6.535),
    36: (5.087, 6.441),
    41: (4.627, 6.431),
    46: (3.983, 6.328),
    51: (3.694, 6.323),
    56: (3.181, 6.330),
    61: (2.893, 6.181),
    66: (2.440, 6.329),
    71: (2.139, 6.173),
    76: (1.712, 6.211),
    81: (1.509, 6.201),
    86: (1.153, 6.271),
}
TRAINED_TEXT = (
    'Every effort moves you know," was one of the ax.  "I had the last word.    "I didn\'t about the you. '
    "\"I was _not_ his pictures--the him up his ease--because he didn't want"
)


def book_model(**changes) -> GPTForCausalLM:
    """The book's model, drawn under its seed. The global random stream is left where the book's is."""
    config = GPTConfig(**{**GPT_CONFIG_124M, **changes}, tie_word_embeddings=False, initialization="pytorch")
    torch.manual_seed(123)
    return GPTForCausalLM(config)


@pytest.fixture(scope="module")
def model() -> GPTForCausalLM:
    """The untrained model of chapter 5, dropout off. Tests must leave it as it is."""
    return book_model(context_length=256).eval()


@pytest.fixture(scope="module")
def data_folder() -> Path:
    folder = os.environ.get("HF_GPT_TEST_DATA")
    if folder is None or not Path(folder, "the-verdict.txt").exists():
        pytest.skip("HF_GPT_TEST_DATA names no folder with the-verdict.txt")
    return Path(folder)


@pytest.fixture(scope="module")
def tokenizer(data_folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(data_folder / "tiktoken"))
        import tiktoken

        return tiktoken.get_encoding("gpt2")


def test_model_repeats_the_books_probabilities_and_loss(model):
    inputs = torch.tensor([[16833, 3626, 6100], [40, 1107, 588]])
    targets = torch.tensor([[3626, 6100, 345], [1107, 588, 11311]])
    with torch.no_grad():
        outputs = model(inputs, shift_labels=targets)
        other_loss = model(torch.tensor([[16822, 3626, 6100], [40, 1107, 588]]), shift_labels=targets).loss
    probabilities = outputs.logits.softmax(dim=-1)
    of_targets = probabilities.gather(2, targets.unsqueeze(-1)).flatten().tolist()
    assert probabilities.argmax(dim=-1).tolist() == [[16657, 339, 42826], [49906, 29669, 41751]]
    assert of_targets == [published(probability) for probability in PROBABILITIES]
    assert outputs.loss.item() == published("10.7940")
    assert outputs.loss.exp().item() == published("48725.82")
    assert other_loss.item() == published("10.8449")


def test_model_repeats_the_books_losses_with_the_long_context():
    model = book_model().train()
    inputs = torch.tensor([[16833, 3626, 6100], [40, 1107, 588]])
    with torch.no_grad():  # dropout on, its first draws after the parameters
        loss = model(inputs, shift_labels=torch.tensor([[3626, 6100, 345], [588, 428, 11311]])).loss
    assert loss.item() == published("11.0318")

    inputs = torch.tensor([[10603, 1810, 314, 393], [1810, 314, 393, 262]])
    targets = torch.tensor([[1810, 314, 393, 262], [314, 393, 262, 3274]])
    with torch.no_grad():
        outputs = model.eval()(inputs, shift_labels=targets)
    assert outputs.logits.argmax(dim=-1).tolist() == [[38491, 2448, 36069, 24862], [36397, 15489, 10460, 18747]]
    assert outputs.loss.item() == published("11.0641")


def test_generate_repeats_the_books_greedy_and_sampled_texts(model):
    prompt = torch.tensor([START_IDS])
    greedy = model.generate(prompt, max_new_tokens=25, do_sample=False)
    assert greedy.tolist() == [START_IDS + GREEDY_IDS]
    torch.manual_seed(123)
    sampled = model.generate(prompt, max_new_tokens=15, do_sample=True, top_k=25, temperature=1.4)
    assert sampled.tolist() == [START_IDS + SAMPLED_IDS]


def test_the_ids_in_this_file_spell_the_books_texts(tokenizer):
    assert tokenizer.encode(START_CONTEXT) == START_IDS
    assert tokenizer.decode(GREEDY_IDS) == GREEDY_TEXT
    assert tokenizer.decode(SAMPLED_IDS) == SAMPLED_TEXT


# The book's training, chapter 5, around our model. Every new iterator over a DataLoader draws one int64 from the
# global random stream, so these loaders are PyTorch's own and are iterated exactly when the book iterates them.


def book_loaders(data_folder: Path, tokenizer) -> tuple[DataLoader, DataLoader]:
    """Training and validation windows of 256 tokens with as much stride, in order, in batches of 2."""
    text = (data_folder / "the-verdict.txt").read_text(encoding="utf-8")
    split = int(0.9 * len(text))
    loaders = []
    for part in (text[:split], text[split:]):
        ids = torch.tensor(tokenizer.encode(part))
        windows = [(ids[i : i + 256], ids[i + 1 : i + 257]) for i in range(0, len(ids) - 256, 256)]
        loaders.append(DataLoader(windows, batch_size=2, shuffle=False, drop_last=False))
    return loaders[0], loaders[1]


@torch.no_grad()
def mean_loss(model: GPTForCausalLM, loader: DataLoader, num_batches: int | None = None) -> float:
    """The book's calc_loss_loader."""
    num_batches = min(num_batches or len(loader), len(loader))
    total = 0.0
    for i, (inputs, targets) in enumerate(loader):
        if i == num_batches:
            break
        total += model(inputs, shift_labels=targets).loss.item()
    return total / num_batches


def train_as_the_book_does(train_loader: DataLoader, validation_loader: DataLoader, num_epochs: int = 10):
    """The book's train_model_simple: yields ("evaluation", step, losses) and, after epochs, ("sample", step, ids)."""
    model = book_model(context_length=256)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0004, weight_decay=0.1)
    step = 0
    for _ in range(num_epochs):
        model.train()
        for inputs, targets in train_loader:
            optimizer.zero_grad()
            model(inputs, shift_labels=targets).loss.backward()
            optimizer.step()
            step += 1
            if step % 5 == 1:
                model.eval()
                losses = mean_loss(model, train_loader, 5), mean_loss(model, validation_loader, 5)
                model.train()
                yield "evaluation", step, losses
        model.eval()
        yield "sample", step, model.generate(torch.tensor([START_IDS]), max_new_tokens=50, do_sample=False)[0].tolist()


def test_losses_before_training_are_the_books(model, data_folder, tokenizer):
    train_loader, validation_loader = book_loaders(data_folder, tokenizer)
    assert mean_loss(model, train_loader) == published("10.98758")
    assert mean_loss(model, validation_loader) == published("10.98111")


def test_the_readmes_loop_repeats_the_books_first_losses(data_folder, tmp_path, monkeypatch):
    """The code of scripts/README.md as it stands, stopped after step 1: the book's loop, loaders and evaluation."""
    code = README.read_text(encoding="utf-8").partition("PyTorch's `DataLoader`s")[2].split("```")[1]
    printed = []

    def print_once(line: str) -> None:
        printed.append(line)
        raise StopIteration

    (tmp_path / "the-verdict.txt").symlink_to(data_folder / "the-verdict.txt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StopIteration):
        exec(code.removeprefix("python"), {"print": print_once})
    assert_printed(printed[0], f"step 1: {TRACE[1][0]:.3f}/{TRACE[1][1]:.3f}")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_books_loop_repeats_its_whole_trace_and_its_text(data_folder, tokenizer):
    trace, text = {}, None
    for event, step, value in train_as_the_book_does(*book_loaders(data_folder, tokenizer)):
        print(event, step, value)
        if event == "evaluation":
            assert value == pytest.approx(TRACE[step], abs=0.005 if step <= 31 else 0.02)
            trace[step] = value
        else:
            text = tokenizer.decode(value).replace("\n", " ")
    assert list(trace) == list(TRACE)
    assert text == TRAINED_TEXT
