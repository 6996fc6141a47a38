"""Optimisers, whose rates and decays the loop sets at every step, and gradient clipping."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from timm.optim import Lars, param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

# LARS scales the update of each matrix by 0.001 |w| / |gradient| (You et al., 2017); DINO uses it for ResNets.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, fused=True),
    "sgd": partial(torch.optim.SGD, lr=0.0, momentum=0.9, nesterov=True, fused=True),
    "lars": partial(Lars, lr=0.0, momentum=0.9),
}


def check_optimizer(name: str) -> None:
    """Raise ``ValueError`` unless ``OPTIMIZERS`` has the name."""
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer: got {name!r}, accepts {', '.join(OPTIMIZERS)}")


def make_optimizer(learner: nn.Module, name: str = "adamw") -> torch.optim.Optimizer:
    """The optimiser of a name in ``OPTIMIZERS``, with weight decay on matrices only."""
    trainable = [p for p in learner.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "decays": True},
        {"params": [p for p in trainable if p.ndim <= 1], "decays": False},
    ]
    return OPTIMIZERS[name](groups)


def layerwise_optimizer(network: nn.Module, decay: float, *heads: nn.Module) -> torch.optim.Optimizer:
    """AdamW whose rate decreases by the factor ``decay`` from each layer of a timm network to the layer below it (BEiT: Bao et al., ICLR 2022,
    appendix). The last layer has the full rate; with heads on top of the network, these have it, and the last layer one factor less.
    """
    groups = param_groups_layer_decay(network, weight_decay=1.0, layer_decay=decay)
    if heads:
        last = max(group["lr_scale"] for group in groups)  # the last layers may have nothing to learn
        for group in groups:
            group["lr_scale"] *= decay / last
    for head in heads:
        groups += [group | {"lr_scale": 1.0} for group in param_groups_weight_decay(head, weight_decay=1.0)]
    for group in groups:
        group["decays"] = group["weight_decay"] > 0
    return torch.optim.AdamW([group for group in groups if group["params"]], fused=True)


def clip_each(parameters: Iterable[Tensor], limit: float) -> None:
    """Bound the norm of each parameter's gradient on its own (DINO, iBOT), in place."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch._foreach_norm(gradients)
    torch._foreach_add_(norms, 1e-6)
    factors = torch._foreach_reciprocal(norms)
    torch._foreach_mul_(factors, limit)
    torch._foreach_clamp_max_(factors, 1.0)
    torch._foreach_mul_(gradients, factors)
