"""Whether a token's logits depend on earlier tokens alone, and where it is asked for on those of its document alone.

Bidirectional models are in transformers' map of causal ones too. Trained here they would copy the next token from
their own input, to a loss near zero. So it is tried out, on four tokens: one is changed, and some logits must stay.
"""

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel

from ..errors import UserError
from ..generation import plain_attention
from ..loading import reading_model
from ..loss import evaluating

# Of the largest logit. Rounding is a hundred times smaller; a new BERT's logits change by a hundred times more.
_TOLERANCE = 1e-5


def refuse_unfit(model: PreTrainedModel, isolates_documents: bool) -> None:
    """Refuse a model that sees later tokens, or other documents where these are to be isolated by their positions.

    Nothing is drawn, and the model is left as it was.

    Raises:
        UserError: it does.
    """
    kind = model.config.model_type
    fails = f"a {kind} model fails with this configuration"
    with reading_model("model", fails), evaluating(model), plain_attention(model):
        if _change(model, changed=3, looked_at=slice(0, 3)) > _TOLERANCE:
            raise UserError(f"model: what a {kind} model makes of a token depends on later ones; it is not causal")
        if not isolates_documents:
            return
        positions = torch.tensor([[0, 1, 0, 1]], device=model.device)
        takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        if (
            not takes_positions
            or _change(model, changed=0, looked_at=slice(2, 4), position_ids=positions) > _TOLERANCE
        ):
            what = f"the positions of a {kind} model do not keep documents apart; set it to false"
            raise UserError(what, field="data.isolate_documents", value=True)


def _change(model: PreTrainedModel, changed: int, looked_at: slice, **inputs: Any) -> float:
    """By how much some of four tokens' logits change with the token at `changed`, relative to the largest logit."""
    ids = torch.arange(4, device=model.device).unsqueeze(0) % model.get_input_embeddings().weight.shape[0]
    others = ids.clone()
    others[0, changed] = ids[0, (changed + 1) % 4]
    logits, changed_logits = (model(input_ids=i, use_cache=False, **inputs).logits[0].float() for i in (ids, others))
    return ((logits - changed_logits)[looked_at].abs().max() / logits.abs().max().clamp_min(1e-30)).item()
