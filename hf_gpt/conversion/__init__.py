"""Convert other models into this package's GPT, and this GPT into stock GPT-2.

`table.py` lists the names of every weight in each layout, side by side. A conversion computes the source's logits,
converts the weights one by one, so that memory never holds the model twice, and writes the result. Then it loads the
result as a user would, and keeps it only if the logits agree. Nothing that is read is executed: safetensors, JSON, and
torch's own files with `weights_only=True`.

Weights keep their dtype and their bits. The one difference: GPT-2 always has query, key and value biases, which become
zeros where our model has none.
"""

from .book import from_book
from .gpt2 import from_gpt2, to_gpt2
from .openai import from_openai
from .result import Conversion

__all__ = ["Conversion", "from_book", "from_gpt2", "from_openai", "to_gpt2"]
