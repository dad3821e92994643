"""Models of other kinds into this package's kind, and back to stock GPT-2.

Each layout has a file, and in it a table that reads like the two models side by side: their name of a weight, ours,
and whether theirs lies on its side (`weights.Row`). Everything else is common:

- `weights.py` reads. Opening a file tells names, shapes and types; one weight after the other is then read into memory
  of its own, renamed, turned, split or joined. A file that stays mapped counts as memory once it is read, so mappings
  are given up on the way: there is never a second copy of the model, not even in the form of a file. Nothing that
  is read is executed: safetensors, JSON, and torch's own files with `weights_only=True`.
- `destination.py` says where to: the result is there whole or not at all, and over nothing of anybody else's.
- `result.py` writes and then looks: source and result compute the logits of the same tokens, one
  after the other, never both in memory, and the result is kept only if they agree. What computes the source's
  logits is not what was converted: stock `GPT2LMHeadModel` where there is one, else a forward pass that is written in
  the source's own names and reads the source's own files.

Weights keep their dtype and their bits. There and back is bit-exact; the one difference is that GPT-2 always has
query, key and value biases: where ours has none they become zeros, and come back as zeros.
"""

from .book import from_book
from .gpt2 import from_gpt2, to_gpt2
from .openai import from_openai
from .result import Conversion

__all__ = ["Conversion", "from_book", "from_gpt2", "from_openai", "to_gpt2"]


def converted_once(folder):
    from filelock import FileLock

    from ..data.files import cache_folder, content_hash, digest

    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".bin"))
    content = digest("gpt2", *(f"{path.name} {content_hash(path, is_text=False)}" for path in files))
    kept = cache_folder() / "models" / f"gpt2-{content[:32]}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{kept}.lock"):
        if not (kept / "config.json").is_file():
            from_gpt2(str(folder), str(kept), tokenizer="none")
    return kept
