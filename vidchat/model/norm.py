"""RMSNorm (arXiv 1910.07467) with a custom backward pass on CPUs.

On CPUs, PyTorch composes it of single operations, whose backward pass takes ten times as long as that of a layer norm,
and every block has four of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """`nn.RMSNorm` over the last axis, with the same parameters and results."""

    def forward(self, x: Tensor) -> Tensor:
        needs_grad = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if (
            needs_grad
            and not torch.compiler.is_compiling()
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype
            and x.dtype in (torch.float, torch.double)
        ):
            return _Normalise.apply(x, self.weight, self.eps)
        return super().forward(x)


class _Normalise(torch.autograd.Function):
    """y = w n with n = x / sqrt(mean(x^2) + eps), so dx = (w dy - n mean(w dy n)) / sqrt(...) and dw = sum(dy n)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square()
        scale = (square / x.shape[-1] + eps).rsqrt()
        normal = x * scale
        ctx.save_for_backward(normal, scale, weight)
        return normal * weight

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        normal, scale, weight = ctx.saved_tensors
        weighted, product = gradient * weight, gradient * normal
        along = (product @ weight).unsqueeze(-1) / -product.shape[-1]
        to_x = torch.addcmul(weighted, normal, along).mul_(scale)
        return to_x, product.sum(tuple(range(product.dim() - 1))), None
