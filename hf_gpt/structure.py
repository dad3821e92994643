"""What a causal language model consists of, read from its modules: matrices, attention and tables of positions.

Each of transformers' types has its own names for parameters. What a parameter is for, its module says. So the groups
of the optimizer, the operations that a token takes and the table of parameters are made from these functions, and the
loss asks what the head is.
"""

from collections.abc import Iterator

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .loading import num_positions


def matrices(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    """The parameters that hidden states are multiplied by, each with its module, in the order of the modules.

    These are the weights of linear layers, among them GPT-2's `Conv1D` and the output head; routers of a mixture of
    experts that are no linear layers; and stacks of matrices, such as experts: what has three dimensions and is in no
    convolution. A tied head's weight is that of the input embeddings.
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            yield module, module.weight
        elif not isinstance(module, _ConvNd):
            for name, parameter in module.named_parameters(recurse=False):
                is_router = parameter.ndim == 2 and hasattr(module, "num_experts")
                is_stack = parameter.ndim == 3 and min(parameter.shape[1:]) > 1
                if (is_router or is_stack) and not is_bias_or_state(name):
                    yield module, parameter


def is_bias_or_state(name: str) -> bool:
    """Whether a parameter called so is a bias, of any dimension, or one of Mamba's that its authors spare decay."""
    name = name.rpartition(".")[2]
    return name.endswith("bias") or name in ("A_log", "D")


def is_plain_linear(head: nn.Module) -> bool:
    """Whether calling `head` multiplies by its weight and does nothing else, so that it need not be called.

    Not so for LoRA and quantised layers, nor where the weight is sharded, or brought by a hook.
    """
    return (
        type(head) is nn.Linear
        and type(head.weight) in (nn.Parameter, Tensor, FakeTensor)
        and head.bias is None
        and "forward" not in vars(head)
        and not (head._forward_hooks or head._forward_pre_hooks)
        and not (head._backward_hooks or head._backward_pre_hooks)
    )


def attention_classes(model: PreTrainedModel) -> tuple[type[nn.Module], ...]:
    """The classes of modules whose attention weights transformers captures; where it captures none, by their names."""
    classes = []
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and (found := (part._can_record_outputs or {}).get("attentions")):
            recorders = found if isinstance(found, list) else [found]
            classes += [getattr(recorder, "target_class", recorder) for recorder in recorders]
    by_name = (module for module in model.modules() if "Attention" in type(module).__name__)
    projecting = (m for m in by_name if any(isinstance(child, (nn.Linear, Conv1D)) for child in m.children()))
    return tuple(classes) or tuple({type(module) for module in projecting})


def position_tables(model: PreTrainedModel) -> list[Tensor]:
    """Where positions are looked up, so that there are none after the last row; RoPE and ALiBi compute them.

    A table is an embedding of as many rows, or two more (OPT's), or a buffer of some dimensions (GPT-J's sines).
    """
    if (positions := num_positions(model.config)) is None:
        return []
    lengths, words = range(positions, positions + 3), model.get_input_embeddings()
    embeddings = (one for one in model.modules() if isinstance(one, nn.Embedding) and one is not words)
    tables = [one.weight for one in embeddings if one.num_embeddings in lengths]
    return tables + [one for one in model.buffers() if one.ndim > 1 and any(size in lengths for size in one.shape)]
