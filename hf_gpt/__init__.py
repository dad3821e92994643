"""Train your own GPT and have the whole Hugging Face ecosystem accept it.

    import hf_gpt

    run = hf_gpt.train(hf_gpt.Recipe.from_yaml("configs/quickstart.yaml"))
    print(hf_gpt.generate_text(run.model, run.tokenizer, "A function is"))

Importing this package registers GPT with transformers' Auto classes and loads nothing heavier than a model class; the
rest is imported when it is first used.
"""

import importlib
import logging
import os as _os
import sys as _sys
from typing import Any

_level = logging.root.manager.disable
logging.disable(logging.WARNING)  # what torchao, where it is installed, says of itself when transformers imports it
try:
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForQuestionAnswering,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )

    from .configuration_gpt import GPTConfig
    from .modeling_gpt import (
        GPTForCausalLM,
        GPTForQuestionAnswering,
        GPTForSequenceClassification,
        GPTForTokenClassification,
        GPTModel,
    )
except KeyboardInterrupt:
    if _sys.argv[0] != "-m" and not _sys.argv[0].endswith(("hf-gpt", "hf-gpt.exe")):
        raise
    # Loading takes seconds, in which people change their mind. cli.main, which handles what follows, is not there yet.
    print("hf-gpt: interrupted; nothing was done", file=_sys.stderr, flush=True)
    _os._exit(130)  # at once: half-loaded libraries may end the process otherwise
finally:
    logging.disable(_level)

__version__ = "0.2.0"

_DEFINED_IN = {
    "Batches": "batch",
    "benchmark": "benchmarks",
    "CausalLMLoss": "loss",
    "Evaluation": "evaluation",
    "HubError": "errors",
    "Observer": "training.observers",
    "Recipe": "recipe",
    "Run": "run",
    "RunPreempted": "errors",
    "RunStopped": "errors",
    "TrainingResult": "run",
    "UserError": "errors",
    "evaluate_corpus": "text_evaluation",
    "evaluate_run": "text_evaluation",
    "from_book": "conversion",
    "from_gpt2": "conversion",
    "from_openai": "conversion",
    "generate_text": "generation",
    "load_tokenizer": "data.tokenizer",
    "loss_plot": "report.plots",
    "plot": "report.page",
    "push": "hub.push",
    "read_run": "report.records",
    "stream_text": "generation",
    "to_gpt2": "conversion",
    "train": "run",
    "train_tokenizer": "data.tokenizer",
}

__all__ = [
    "GPTConfig",
    "GPTForCausalLM",
    "GPTForQuestionAnswering",
    "GPTForSequenceClassification",
    "GPTForTokenClassification",
    "GPTModel",
    *_DEFINED_IN,
]

AutoConfig.register(GPTConfig.model_type, GPTConfig)
AutoModel.register(GPTConfig, GPTModel)
AutoModelForCausalLM.register(GPTConfig, GPTForCausalLM)
AutoModelForSequenceClassification.register(GPTConfig, GPTForSequenceClassification)
AutoModelForTokenClassification.register(GPTConfig, GPTForTokenClassification)
AutoModelForQuestionAnswering.register(GPTConfig, GPTForQuestionAnswering)


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_DEFINED_IN[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
