"""A finished model on a whole text: one that a person names, or those that its run was validated on."""

import sys

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .checkpoint import find_device, load_model
from .data.byte_counts import scored_bytes
from .data.corpus import Corpus, load_corpora
from .data.progress import WorkProgress
from .data.token_store import TokenStore, tokenize
from .errors import UserError, one_line
from .evaluation import Evaluation, evaluate_tokens
from .loading import context_length
from .recipe import DataRecipe
from .storage import is_there, local_path
from .texts import label_of
from .training.data import load_texts
from .training.resume import earlier_recipe, read_environment


def evaluate_corpus(
    model: str,
    source: str,
    *,
    config: str | None = None,
    split: str = "train",
    text_column: str | None = None,
    drop_blank_lines: bool = False,
    stride: int | None = None,
    tokens: int | None = None,
    device: str = "auto",
) -> Evaluation:
    """How well a model (directory or Hub id) predicts a corpus, named as in a recipe's `data.source`.

    `tokens`: take only so many of the text's first tokens. `device`: see `checkpoint.find_device`.

    Raises:
        UserError: the model or the corpus is not there, or the text is shorter than two tokens.
    """
    device = _checked(stride, tokens, device)
    how = {"train_split": split, "text_column": text_column, "drop_blank_lines": drop_blank_lines}
    try:
        corpus, _ = load_corpora(DataRecipe(source=source, config=config, **how))
    except UserError as error:  # which names the recipe's fields
        names = {"data.source": "source", "data.train_split": "split", "data.config": "config"}
        raise error.renamed({**names, "data.text_column": "text_column"}) from None
    for note in corpus.notes:
        print(one_line(f"note: {note}"), file=sys.stderr)
    loaded, tokenizer = load_model(model, device)
    return _evaluate(loaded, tokenizer, corpus, _tokenize(corpus, tokenizer), stride, tokens)


def evaluate_run(
    run: str, *, stride: int | None = None, tokens: int | None = None, device: str = "auto"
) -> dict[str, Evaluation]:
    """How well the model of a run predicts each text that the run is validated on, by the names of the texts.

    `run`: its directory, for its best checkpoint, or a checkpoint in it. The texts are taken whole, where the run
    looked at their first `evaluation.tokens`.

    Raises:
        UserError: there is no run, it is validated on no text, or the text is another than the run's.
    """
    device = _checked(stride, tokens, device)
    path = local_path(run)
    run_dir = path.absolute().parents[1] if path.absolute().parent.name == "checkpoints" else path
    if not is_there(run_dir / "recipe.yaml"):
        raise UserError(f"{run}: is not a run, whose validation text would be known; name a text")
    _, corpora = load_texts(earlier_recipe(run_dir))
    if not corpora:
        raise UserError(f"{run}: is validated on no text; name one")
    loaded, tokenizer = load_model(run, device)
    stores = {text: _tokenize(corpus, tokenizer) for text, corpus in corpora.items()}
    sources = read_environment(run_dir / "environment.json").get("sources", {})
    for text, store in stores.items():
        facts = {"tokens": store.num_tokens, "characters": store.num_characters, **store.origin}
        if any(sources.get(text, {}).get(name, fact) != fact for name, fact in facts.items()):
            raise UserError(f"{run}: {store.name} is no longer the {label_of(text)} of this run; name a text")
    return {text: _evaluate(loaded, tokenizer, corpora[text], stores[text], stride, tokens) for text in corpora}


def _checked(stride: int | None, tokens: int | None, device: str) -> str:
    """The device, and everything else that can be refused before text is read."""
    if stride is not None and stride < 1:
        raise UserError("must be 1 or more", field="stride", value=stride)
    if tokens is not None and tokens < 2:
        raise UserError("must be 2 or more: the second is predicted from the first", field="tokens", value=tokens)
    return find_device(device)


def _tokenize(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> TokenStore:
    with WorkProgress(f"tokenising {corpus.name}") as progress:
        return tokenize(corpus, tokenizer, progress=progress)


def _evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    store: TokenStore,
    stride: int | None,
    tokens: int | None,
) -> Evaluation:
    taken = store.tokens[:tokens]
    if len(taken) < 2:
        raise UserError(f"{corpus.name}: {len(taken)} tokens; at least 2 are needed, one to predict from")
    num_bytes = scored_bytes(store, corpus, tokenizer, len(taken))
    window = context_length(model.config, tokenizer)
    with WorkProgress(f"evaluating on {corpus.name}", "tokens", len(taken) - 1) as progress:
        return evaluate_tokens(model, taken, num_bytes, stride, progress, window)
