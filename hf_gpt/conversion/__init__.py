"""Models of other kinds into this package's kind, and back to stock GPT-2.

`table.py` has the names of every weight in each layout, side by side. A conversion computes the source's logits, moves
the weights along the table one by one, so that there is never a second copy of the model in memory, and writes
the result; then it loads the result as anybody would and keeps it only if the logits agree. Nothing that is read is
executed: safetensors, JSON, and torch's own files with `weights_only=True`.

Weights keep their dtype and their bits. There and back is bit-exact; the one difference is that GPT-2 always has
query, key and value biases: where ours has none they become zeros, and come back as zeros.
"""

from .book import from_book
from .gpt2 import convert_into_cache, from_gpt2, to_gpt2
from .openai import from_openai
from .result import Conversion

__all__ = ["Conversion", "convert_into_cache", "from_book", "from_gpt2", "from_openai", "to_gpt2"]
