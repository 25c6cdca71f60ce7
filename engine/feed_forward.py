"""The MLPs of a decoder: gated or plain, one for all tokens or a mixture of experts of which each token has a few.

A mixture goes expert by expert over the tokens that chose it, each expert's as one product. Knows no layer and no
sequence.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.families import Activation
from engine.model_config import ModelConfig
from kernels.ops import LinearWeight, Ops


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer whose weight is stored as the ops table wants it."""

    weight: LinearWeight
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Mlp:
    """down(activation(gate) * up), or down(activation(up)); of several ranks, one's part of the sum."""

    gate_up: Linear  # hidden -> 2 * intermediate: gate, up; -> intermediate where there is no gate
    down: Linear  # intermediate -> hidden


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of MLPs. Of several ranks, each has a part of every expert."""

    router: Linear  # hidden -> num_experts
    experts: list[Mlp]
    shared: Mlp | None  # computes every token
    shared_gate: Linear | None  # hidden -> 1


class FeedForward:
    """What MLPs of one model compute."""

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        self._ops, self._shape = ops, config.experts
        self._activate = _activation(config.activation, config.is_gated, ops)

    def __call__(self, x: Tensor, mlp: Mlp | Experts) -> Tensor:
        """x: [T, hidden] -> [T, hidden]"""
        return self._one(x, mlp) if isinstance(mlp, Mlp) else self._mixture(x, mlp)

    def _one(self, x: Tensor, mlp: Mlp) -> Tensor:
        return self._linear(self._activate(self._linear(x, mlp.gate_up)), mlp.down)

    def _mixture(self, x: Tensor, mixture: Experts) -> Tensor:
        """sum over the chosen experts e of p_e * e(x), plus the shared one's; p: softmax of the router's logits."""
        assert self._shape is not None, "a model with experts says how many"
        shares = self._linear(x, mixture.router).float().softmax(dim=-1)
        shares, chosen = shares.topk(self._shape.num_chosen, dim=-1)  # [T, num_chosen]
        if self._shape.is_normalized:
            shares = shares / shares.sum(dim=-1, keepdim=True)
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for expert in torch.unique(chosen).tolist():
            tokens, places = (chosen == expert).nonzero(as_tuple=True)
            computed = self._one(x[tokens], mixture.experts[expert])
            out.index_add_(0, tokens, computed * shares[tokens, places].unsqueeze(1))
        if mixture.shared is not None and mixture.shared_gate is not None:
            out += self._one(x, mixture.shared) * torch.sigmoid(self._linear(x, mixture.shared_gate))
        return out.to(x.dtype)

    def _linear(self, x: Tensor, linear: Linear) -> Tensor:
        return self._ops.linear(x, linear.weight, linear.bias)


_FUNCTIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.SILU: F.silu,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: partial(F.gelu, approximate="tanh"),
    Activation.RELU: F.relu,
}


def _activation(activation: Activation, is_gated: bool, ops: Ops) -> Callable[[Tensor], Tensor]:
    """What lies between the two products. [T, 2 * I] -> [T, I], or [T, I] -> [T, I] where there is no gate."""
    if activation is Activation.SILU and is_gated:
        return ops.silu_mul
    function = _FUNCTIONS[activation]

    def gated(gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return function(gate) * up

    return gated if is_gated else function
