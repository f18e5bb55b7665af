"""What a pass of a language model costs, counted on its matrices.

A multiply-add counts as two FLOPs. Norms, activations and softmax are left out: they are a few
percent. A "pair" is a query with one key that it sees: a sequence of T tokens has T(T+1)/2.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from instructrec.policies.kv_cache import attention_widths
from instructrec.policies.trunk import Trunk, base_causal_lm, leading_frozen_layers


@dataclass(frozen=True)
class Layers:
    """A stack of layers."""

    num: int
    """How many."""
    weights: int
    """Weights of all their matrices."""
    trained: int
    """Those of them that train."""


@dataclass(frozen=True)
class ModelCost:
    """The matrices of a model with causal attention, cut at its first trained layer."""

    lower: Layers
    """Layers below the cut: frozen; all, where only what stands on the last one trains."""
    upper: Layers
    """Layers from the cut on."""
    head: Layers
    """The output layer; none in a model that reads alone."""
    num_weights: int
    """All weights, embeddings and norms included."""
    num_trained: int
    """All weights that train."""
    query_width: int
    """Heads times head size."""
    cache_width: int
    """Numbers that the cache holds for one token in one layer."""
    shapes: tuple[tuple[int, int, int], ...]
    """(outputs, inputs, how many) of the trunk's matrices and of the output layer."""
    passed: Layers = Layers(0, 0, 0)
    """Those of the upper layers below the first trained one: no gradient reaches them. There are
    some where passes cannot start at the cut, so that there is none: GPT-2 and others whose
    layers have another name, or that add positions at the bottom."""

    def forward(self, tokens: float, pairs: float, outputs: float, *, upper: bool = False) -> float:
        """FLOPs of a forward pass.

        Args:
            tokens: Tokens that pass through the layers.
            pairs: Queries with the keys that they see.
            outputs: Tokens whose logits are computed.
            upper: Leave out the layers below the cut.
        """
        stacks = [self.upper] if upper else [self.lower, self.upper]
        layers = sum(2 * tokens * s.weights + 4 * self.query_width * pairs * s.num for s in stacks)
        return layers + 2 * outputs * self.head.weights

    def backward(self, tokens: float, pairs: float, outputs: float) -> float:
        """FLOPs of a backward pass: of inputs down to the first trained layer, and of weights."""
        upper = 2 * tokens * (self.upper.weights - self.passed.weights + self.upper.trained)
        upper += 8 * self.query_width * pairs * (self.upper.num - self.passed.num)
        return upper + 2 * outputs * (self.head.weights + self.head.trained)

    @property
    def matrix_weights(self) -> int:
        """Weights that the decoding of one token reads."""
        return self.lower.weights + self.upper.weights + self.head.weights

    @property
    def num_layers(self) -> int:
        """Layers of the whole model."""
        return self.lower.num + self.upper.num


def model_cost(trunk: Trunk) -> ModelCost:
    """Counts the matrices of a language model as it is now, adapters and frozen layers included."""
    return _cost(trunk.model, trunk.base, trunk.num_frozen, [trunk.lm_head])


def reader_cost(model: nn.Module) -> ModelCost | None:
    """Counts a model that reads texts: its layers, without what stands on the last one.

    Args:
        model: A sequence classifier, a trunk alone, or a language model whose output layer is not
            used; or a PEFT model around one of them.

    Returns:
        The count; None where tokens see those behind them, as in encoders, or nothing says so.
    """
    base: Any = base_causal_lm(model).base_model
    causal = [module.is_causal for module in base.modules() if hasattr(module, "is_causal")]
    if not causal or not all(causal):
        return None
    return _cost(model, base, leading_frozen_layers(base), [])


def _cost(model: nn.Module, base: Any, cut: int, heads: list[Any]) -> ModelCost:
    """Counts a model whose layers below ``cut`` are frozen."""
    config: Any = base.config.get_text_config()
    query_width, cache_width = attention_widths(config)
    everything = [m for m in _matrices(base) if m not in heads]
    whole = _layers(int(config.num_hidden_layers), everything)
    below = list(base.layers)[:cut] if cut else []
    lower = _layers(cut, [m for layer in below for m in _matrices(layer)])
    passed = _passed(base, whole.num)[cut:]
    if not any(p.requires_grad for p in base.parameters()):
        lower = whole  # what trains stands on the last layer
    shapes = Counter(_shape(m) for m in [*everything, *heads])
    weights = list(model.parameters())
    return ModelCost(
        lower=lower,
        upper=Layers(
            whole.num - lower.num, whole.weights - lower.weights, whole.trained - lower.trained
        ),
        head=_layers(len(heads), heads),
        num_weights=sum(p.numel() for p in weights),
        num_trained=sum(p.numel() for p in weights if p.requires_grad),
        query_width=query_width,
        cache_width=cache_width,
        shapes=tuple((*shape, count) for shape, count in sorted(shapes.items())),
        passed=_layers(len(passed), [m for layer in passed for m in _matrices(layer)]),
    )


def _passed(base: nn.Module, depth: int) -> list[nn.Module]:
    """The layers below the first trained weight; none where embeddings train, or no layer does."""
    stacks = (m for m in base.modules() if isinstance(m, nn.ModuleList) and len(m) == depth)
    layers = list(next(stacks, []))
    embeddings = [m for m in base.modules() if isinstance(m, nn.Embedding)]
    trains = [any(p.requires_grad for p in layer.parameters()) for layer in layers]
    if True not in trains or any(m.weight.requires_grad for m in embeddings):
        return []
    return layers[: trains.index(True)]


def _matrices(module: nn.Module) -> list[Any]:
    return [m for m in module.modules() if isinstance(m, nn.Linear | Conv1D)]


def _layers(num: int, matrices: list[Any]) -> Layers:
    sizes = [(prod(_shape(m)), m.weight.requires_grad) for m in matrices]
    return Layers(num, sum(n for n, _ in sizes), sum(n for n, trains in sizes if trains))


def _shape(matrix: Any) -> tuple[int, int]:
    """Outputs and inputs, as the layer says: a quantised weight is stored in another shape."""
    if isinstance(matrix, Conv1D):
        return int(matrix.nf), int(matrix.nx)
    return int(matrix.out_features), int(matrix.in_features)
