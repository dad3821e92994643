"""A GPT that transformers takes for one of its own.

Read it from top to bottom: attention, feed-forward, block, the stack of blocks (`GPTModel`), and the stack with an
output head (`GPTForCausalLM`) and with three other heads. The mathematics is that of Raschka's *Build a Large Language
Model From Scratch*: learned positions, LayerNorm before each half of a block, causal multi-head attention, GELU,
residual connections, and dropout after the embeddings, on attention weights and at the end of each half.

Everything around the mathematics is transformers' contract and nothing else: attention goes through its attention
interface (so eager, sdpa, flash and flex all serve), masks come from `create_causal_mask`, keys and values are kept in
its `Cache`, outputs are captured by its hooks. That is what lets its tools use this model without knowing it.

Two promises are kept here that transformers alone does not give. The draws of `initialization="pytorch"` are those of
the module constructors, in their order, as the book's figures need them. And `generate()` continues when the context
window is full: the window slides, as in the book's loop.

This file travels with checkpoints as remote code: it imports nothing of `hf_gpt` but its configuration.
"""

import math
from itertools import islice

import torch
from torch import nn
from transformers import AutoModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin, MaxLengthCriteria, StoppingCriteriaList
from transformers.generation.configuration_utils import GenerationMode
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_gpt import WRAPPERS, GPTConfig, forget_wrappers

try:
    from transformers.modeling_utils import slice_logits_to_keep
except ImportError:  # transformers before it had this, and before anything in it asked for more than this

    def slice_logits_to_keep(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return hidden_states[:, kept]


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention as the book writes it: masked scores, softmax, dropout, weighted values.

    Args:
        query: (batch, heads, time, head_dim).
        key, value: (batch, heads, past + time, head_dim).
        attention_mask: (batch or 1, 1, time, past + time), added to the scores: 0 where a query may look and the
            dtype's minimum where it may not. Or boolean, as a caller's own 4-D mask may be: True where it may look.

    Returns:
        The context vectors (batch, time, heads, head_dim) and the weights (batch, heads, time, past + time).
    """
    attention_scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        attention_scores = attention_scores.masked_fill(~attention_mask, torch.finfo(attention_scores.dtype).min)
    elif attention_mask is not None:
        attention_scores = attention_scores + attention_mask
    # fp32 for the sum of exponentials, whatever the model runs in
    attention_weights = nn.functional.softmax(attention_scores, dim=-1, dtype=torch.float32).to(query.dtype)
    attention_weights = nn.functional.dropout(attention_weights, p=dropout, training=module.training)
    context = attention_weights @ value
    return context.transpose(1, 2).contiguous(), attention_weights


def drop(dropout: nn.Dropout, hidden_states: torch.Tensor) -> torch.Tensor:
    """`dropout(hidden_states)`, not called where it changes nothing: for one token, calls are what takes time."""
    return dropout(hidden_states) if dropout.training else hidden_states


class GPTAttention(nn.Module):
    """Causal multi-head attention: `eager_attention_forward`, or what else `config._attn_implementation` names."""

    num_key_value_groups = 1  # every head has keys and values of its own; sdpa asks at each call, slow where unsaid

    def __init__(self, config: GPTConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.dropout if config.attention_dropout is None else config.attention_dropout
        self.is_causal = True

        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj.is_residual_projection = True  # read by _init_weights

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(batch, time, hidden) -> (batch, time, hidden), and the attention weights if the implementation has them."""
        batch_and_time = hidden_states.shape[:-1]
        per_head = (*batch_and_time, -1, self.head_dim)  # -1: under tensor parallelism a process has some of the heads
        # (batch, time, hidden) -> (batch, heads, time, head_dim)
        query = self.q_proj(hidden_states).view(per_head).transpose(1, 2)
        key = self.k_proj(hidden_states).view(per_head).transpose(1, 2)
        value = self.v_proj(hidden_states).view(per_head).transpose(1, 2)

        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        context, attention_weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        # (batch, time, heads, head_dim) -> (batch, time, hidden)
        context = context.reshape(*batch_and_time, -1).contiguous()
        return self.o_proj(context), attention_weights


class GPTMLP(nn.Module):
    """The feed-forward half of a block: wider, GELU, back."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        if config.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act {config.hidden_act!r} is unknown; GPT-2 has 'gelu_new'")
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act_fn = ACT2FN[config.hidden_act]
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.down_proj.is_residual_projection = True  # read by _init_weights

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch, time, hidden) -> (batch, time, hidden)."""
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


class GPTDecoderLayer(GradientCheckpointingLayer):
    """One block: attention and feed-forward, each normalised before and added to the residual stream after."""

    def __init__(self, config: GPTConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = GPTAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = GPTMLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """(batch, time, hidden) -> (batch, time, hidden)."""
        shortcut = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(
            hidden_states, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs
        )
        hidden_states = shortcut + drop(self.dropout, hidden_states)

        shortcut = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        return shortcut + drop(self.dropout, hidden_states)


class GPTPreTrainedModel(PreTrainedModel):
    """What all classes here share: what the model supports, and how its weights start."""

    config: GPTConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GPTDecoderLayer"]  # noqa: RUF012 - transformers' own protocol
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": GPTDecoderLayer, "attentions": GPTAttention}  # noqa: RUF012

    @classmethod
    def from_pretrained(cls, *args, key_mapping: dict[str, str] | None = None, **kwargs):
        """As transformers', also from weights that were saved out of a compiled or distributed model."""
        loaded = super().from_pretrained(*args, key_mapping={WRAPPERS: "", **(key_mapping or {})}, **kwargs)
        forget_wrappers(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    def post_init(self) -> None:
        # transformers now calls _init_weights for every module. Under "pytorch" the constructors have just drawn, in
        # the order that the book's figures need, so nothing is drawn again. Later calls are for what a checkpoint
        # lacks (it is loaded on the meta device, where constructors draw nothing), and then _init_weights draws.
        self._constructors_have_drawn = self.config.initialization == "pytorch"
        super().post_init()
        self._constructors_have_drawn = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw the parameters of one module as `config.initialization` says; loaded ones are left alone by `init`."""
        if self.config.initialization == "pytorch":
            if not self._constructors_have_drawn and hasattr(module, "reset_parameters"):
                module.reset_parameters()
        elif getattr(module, "is_residual_projection", False):
            # 2 * layers of these add up in the residual stream (GPT-2 paper, section 2.3). The mark is on the
            # projection itself: transformers skips modules without parameters of their own, such as the block.
            std = self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers)
            init.normal_(module.weight, mean=0.0, std=std)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)


class GPTModel(GPTPreTrainedModel):
    """Embeddings, blocks and the final LayerNorm, without a head.

    It returns hidden states; the book's class of this name returns logits, as `GPTForCausalLM` does.
    """

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout if config.embedding_dropout is None else config.embedding_dropout)
        self.layers = nn.ModuleList(GPTDecoderLayer(config, idx) for idx in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """
        Args:
            input_ids: (batch, time). Or `inputs_embeds`: (batch, time, hidden).
            attention_mask: (batch, past + time), 0 for padding on either side; or a finished (batch, 1, time,
                past + time) mask.
            position_ids: (batch or 1, time). By default each row counts its own tokens from 0, padding left out. Given
                without a mask and a cache, positions that start again at 0 start a new document, and documents in one
                row do not see each other.
            past_key_values: keys and values of the tokens before these.
            use_cache: whether to return them; `config.use_cache` by default.

        Returns:
            `last_hidden_state` (batch, time, hidden), `past_key_values`, on request `hidden_states` and `attentions`.

        Raises:
            ValueError: not exactly one of `input_ids` and `inputs_embeds`, or more tokens than there are positions (a
                longer `position_ids` is found on the CPU alone: elsewhere, looking at it would wait for the device).
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)

        # Before a cache is made: with one, even empty, transformers would not look for documents in position_ids.
        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        hidden_states = inputs_embeds
        # In a later stage of a pipeline the first blocks are nn.Identity and these are hidden states, not embeddings.
        if not isinstance(self.layers[0], nn.Identity):
            positions = position_ids
            if positions is None:
                positions = self._count_positions(inputs_embeds, attention_mask, past_key_values)
            elif positions.device.type == "cpu" and not torch.compiler.is_compiling():
                self._refuse_beyond_window(int(positions.max()) + 1)
            position_embeds = self.embed_positions(positions).to(inputs_embeds.device)
            hidden_states = drop(self.dropout, inputs_embeds + position_embeds)

        for layer in islice(self.layers, self.config.num_hidden_layers):  # fewer while generate() drafts
            hidden_states = layer(
                hidden_states,
                attention_mask=causal_mask,
                position_ids=position_ids,  # flash attention finds packed documents by them
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        hidden_states = self.norm(hidden_states)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=past_key_values)

    def _count_positions(
        self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, past_key_values: Cache | None
    ) -> torch.LongTensor:
        """Positions (batch or 1, time) of tokens that came without any."""
        num_past = past_key_values.get_seq_length() if past_key_values is not None else 0
        num_new = inputs_embeds.shape[1]
        # A static cache counts in a tensor, which cannot be read without waiting for the device.
        if not isinstance(num_past, torch.Tensor):
            self._refuse_beyond_window(num_past + num_new)
        columns = torch.arange(num_new, device=inputs_embeds.device) + num_past
        if attention_mask is not None and attention_mask.ndim == 2:
            own_tokens = attention_mask.to(inputs_embeds.device).long().cumsum(-1)
            return (own_tokens - 1).clamp(min=0)[:, columns]
        return columns.unsqueeze(0)

    def _refuse_beyond_window(self, num_tokens: int) -> None:
        if num_tokens > self.config.max_position_embeddings:
            raise ValueError(
                f"input of {num_tokens} tokens is longer than max_position_embeddings="
                f"{self.config.max_position_embeddings}; shorten it, or let generate() slide the window"
            )


class GPTForCausalLM(GPTPreTrainedModel, GenerationMixin):
    """The language model: `GPTModel` and a linear head over the vocabulary, tied to the token embedding or not."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # noqa: RUF012
    _fsdp_plan = {"lm_head": "keep_full_weight"}  # noqa: RUF012

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        self.model = GPTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """The arguments of `GPTModel`, and:

        Args:
            labels: (batch, time), the inputs themselves: the loss shifts them by one, -100 counts for nothing.
            shift_labels: (batch, time), targets already shifted, such as the book's: a window of T tokens trains T
                predictions. A keyword that is not in the signature, where Trainer would take it for a label column.
            num_items_in_batch: what the summed loss is divided by, instead of the number of targets here.
            logits_to_keep: compute logits for the last so many positions, or for these; 0 for all.

        Returns:
            `logits` (batch, time, vocab_size), `loss` (mean nats per target) if there are targets, and
            what `GPTModel` returns but its last hidden state.
        """
        shift_labels = kwargs.pop("shift_labels", None)
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
        logits = self.lm_head(hidden_states)
        loss = None
        if labels is not None or shift_labels is not None:
            if shift_labels is not None:
                shift_labels = shift_labels.contiguous()  # the loss views it flat; targets are often text[:, 1:]
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                shift_labels=shift_labels,
                vocab_size=self.config.vocab_size,
                **kwargs,
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def generate(self, *args, **kwargs):
        """As transformers', which changes the configuration to draft with the first layers; an error left it so."""
        num_layers = self.config.num_hidden_layers
        try:
            return super().generate(*args, **kwargs)
        finally:
            self.config.num_hidden_layers = num_layers

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs,
    ) -> dict:
        """What the next forward pass of `generate()` sees: as in transformers, until the context window is full.

        From then on it is the book's `idx[:, -context_length:]`: the last T tokens, counted from position 0 again.
        Every token is at another position than a step ago, so cached keys and values are of no use and each step is a
        full pass. In a padded row the window holds the row's own tokens.

        Raises:
            ValueError: the window would slide over tokens whose ids are not here (generation from `inputs_embeds`, or
                a cache continued with the new ids alone).
        """
        window = self.config.max_position_embeddings
        per_column = (input_ids, attention_mask, kwargs.get("position_ids"))  # longer than input_ids after a cache
        num_tokens = max(tensor.shape[-1] for tensor in per_column if tensor is not None)
        if num_tokens > window:
            if inputs_embeds is not None or input_ids.shape[1] < window:
                raise ValueError(
                    f"cannot generate past max_position_embeddings={window} without the ids of all tokens: "
                    "give the whole input_ids, or lower max_new_tokens"
                )
            input_ids = input_ids[:, -window:]
            if attention_mask is not None:
                attention_mask = attention_mask[:, -window:]  # forward() counts positions by it
            kwargs.update(position_ids=None, use_cache=False)
            past_key_values = next_sequence_length = None
        return super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )

    def _prepare_cache_for_generation(
        self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
    ):
        """Refuse, before any work, the ways of generating that cannot slide; and never cache more than a window."""
        window = self.config.max_position_embeddings
        # Several drafted tokens are checked in one pass, but past the window each has a window of its own.
        if generation_mode == GenerationMode.ASSISTED_GENERATION:
            if max_cache_length > window:
                raise ValueError(
                    f"assisted and prompt-lookup generation cannot go past max_position_embeddings={window}: "
                    f"{max_cache_length + 1} tokens were asked for; lower max_new_tokens, or generate without drafts"
                )
            layers, early_exit = self.config.num_hidden_layers, generation_config.assistant_early_exit
            if early_exit is not None and early_exit not in range(1, layers + 1):
                raise ValueError(f"assistant_early_exit must be 1 to {layers}, the model's layers, got {early_exit}")
            if generation_config.guidance_scale not in (None, 1):
                raise ValueError("guidance_scale needs generation without drafts: its own text could not follow them")
            if generation_config.prompt_lookup_num_tokens is not None:  # such drafts may run past what was asked for
                room = window - max_cache_length + 1
                generation_config.prompt_lookup_num_tokens = min(generation_config.prompt_lookup_num_tokens, room)
        per_column = (model_kwargs.get("position_ids"), model_kwargs.get("attention_mask"))
        prompt_length = max((tensor.shape[-1] for tensor in per_column if tensor is not None), default=0)
        if generation_config.prefill_chunk_size is not None and prompt_length > window:
            raise ValueError(
                f"prefill_chunk_size needs a prompt within max_position_embeddings={window}, got {prompt_length} "
                "tokens; leave it out and the window slides"
            )
        return super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, min(max_cache_length, window)
        )

    def _get_logits_processor(self, generation_config, input_ids_seq_length=None, **kwargs):
        """With a guidance whose own text, the negative prompt and what follows it, slides through the window too."""
        processors = super()._get_logits_processor(generation_config, input_ids_seq_length, **kwargs)
        window, negative_prompt = self.config.max_position_embeddings, kwargs.get("negative_prompt_ids")
        num_tokens = generation_config.max_length - (input_ids_seq_length or 0)
        num_tokens += 1 if negative_prompt is None else negative_prompt.shape[1]
        for processor in processors:
            if hasattr(processor, "unconditional_context") and num_tokens > window:
                processor.unconditional_context["use_cache"] = False  # so it passes on all of its text each time
                processor.model = lambda ids, attention_mask, **options: self(
                    ids[:, -window:], attention_mask=attention_mask[:, -window:], **options
                )
        return processors

    def _get_stopping_criteria(self, *args, **kwargs) -> StoppingCriteriaList:
        """Without the warning that going past the window may fail: here it is what `generate()` promises."""
        criteria = super()._get_stopping_criteria(*args, **kwargs)
        for criterion in criteria:
            if isinstance(criterion, MaxLengthCriteria):
                criterion.max_position_embeddings = None
        return criteria


class _BackboneIsGPTModel:
    """The three heads below are transformers' generic ones, which build their backbone with AutoModel.

    AutoModel must know the class of the configuration at hand for that. Where these files arrive as remote code it is
    not always the one imported above: each file of a checkpoint may be imported as a module of its own.
    """

    def __init__(self, config: GPTConfig):
        AutoModel.register(type(config), GPTModel, exist_ok=True)
        super().__init__(config)


class GPTForSequenceClassification(_BackboneIsGPTModel, GenericForSequenceClassification, GPTPreTrainedModel):
    """`GPTModel` and a linear layer that reads the last token of each row, padding left out."""


class GPTForTokenClassification(_BackboneIsGPTModel, GenericForTokenClassification, GPTPreTrainedModel):
    """`GPTModel` and a linear layer that reads every token."""


class GPTForQuestionAnswering(_BackboneIsGPTModel, GenericForQuestionAnswering, GPTPreTrainedModel):
    """`GPTModel` and a linear layer that scores every token as the start and as the end of an answer."""


__all__ = [
    "GPTForCausalLM",
    "GPTForQuestionAnswering",
    "GPTForSequenceClassification",
    "GPTForTokenClassification",
    "GPTModel",
    "GPTPreTrainedModel",
]
