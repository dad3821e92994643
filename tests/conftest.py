"""What all tests share: no network, caches of their own, small models, and the way to the real data."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Before any Hugging Face library reads them: nothing of the user's, no token and no model that was once downloaded.
for name in [name for name in os.environ if name.startswith("HF_") and not name.startswith("HF_GPT_")]:
    del os.environ[name]
_home = tempfile.TemporaryDirectory(prefix="hf-home-", ignore_cleanup_errors=True)
os.environ["HF_HOME"] = _home.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import pytest  # noqa: E402
from forking import ForkServer  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# The same examples each time, however slow the machine.
settings.register_profile(
    "tests", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Token stores are cached for this session only, so that each run of the tests makes them anew."""
    os.environ["HF_GPT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def data_dir(monkeypatch) -> Path:
    """The folder of real data; without it the test is skipped."""
    folder = os.environ.get("HF_GPT_TEST_DATA")
    if not folder:
        pytest.skip("needs real data: set HF_GPT_TEST_DATA to its folder")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(Path(folder) / "tiktoken"))
    return Path(folder)


@pytest.fixture
def tiny(tmp_path) -> dict:
    """A recipe that trains in a second: 2 layers, bytes, twelve steps, with dropout and accumulation."""
    text = tmp_path / "text.txt"
    if not text.exists():
        text.write_text("".join(f"Line {i}: the quick brown fox jumps over {i * i} lazy dogs.\n" for i in range(200)))
    return {
        "output_dir": str(tmp_path / "run"),
        "model": {"context_length": 32, "emb_dim": 32, "n_layers": 2, "n_heads": 2, "drop_rate": 0.1},
        "tokenizer": {"name": "bytes"},
        "data": {"source": str(text), "validation_fraction": 0.1},
        "optimizer": {"lr": 3e-3},
        "schedule": {"warmup_steps": 2},
        "train": {"max_steps": 12, "batch_size": 2, "gradient_accumulation_steps": 2, "log_every": 1, "device": "cpu"},
        "evaluation": {"every": 4, "tokens": 512, "prompts": ["Line"], "sample_tokens": 8, "temperature": 1.0},
        "checkpoint": {"every": 4, "keep": 2},
    }


@pytest.fixture(scope="session")
def transformers_4(tmp_path_factory) -> str:
    """A folder with transformers 4.51.3, for the PYTHONPATH of another process (three wheels, 15 MB)."""
    folder = str(tmp_path_factory.mktemp("packages"))
    wheels = ["transformers==4.51.3", "tokenizers<0.22", "huggingface_hub<1.0"]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, *wheels]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot install transformers 4.51.3 here: {done.stderr.strip()[-200:]}")
    return folder


@pytest.fixture(scope="session")
def forks():
    """Runs `hf-gpt` commands in processes of their own (see `forking.py`)."""
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def parts():
    """A small random model whose logits differ much, and the bytes' tokenizer."""
    import torch

    from hf_gpt import GPTConfig, GPTForCausalLM, load_tokenizer

    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=257, context_length=16, emb_dim=16, n_layers=1, n_heads=2, initializer_range=0.5, drop_rate=0.5
    )
    return GPTForCausalLM(config).eval(), load_tokenizer("bytes")


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory) -> str:
    """`parts`, saved."""
    folder = tmp_path_factory.mktemp("model")
    for part in parts:
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def hub(shared_hub):
    """The Hub that a file of tests has, without the faults of the test before."""
    shared_hub.mend()
    shared_hub.requests.clear()
    return shared_hub


@pytest.fixture
def one_thread():
    """Small models: more threads would only get in each other's way."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
