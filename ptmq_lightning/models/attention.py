"""Attention as torch.nn has it, written out as its products and softmax, so that tracing sees and quantizes them."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmq_lightning.runtime.errors import ModelError

# modules of torch.nn that are looked into; every other one is a layer by itself
OPEN_MODULES = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """F.scaled_dot_product_attention in eval mode; (..., T, C), (..., S, C), (..., S, D) -> (..., T, D)."""
    if is_causal or enable_gqa or (attn_mask is not None and attn_mask.dtype == torch.bool):
        raise ModelError(
            "found scaled_dot_product_attention with is_causal, enable_gqa or a mask of truth values; expected none, "
            "or a mask that is added. Write this attention out as matrix products and a softmax."
        )
    scores = torch.matmul(query * (scale or 1 / math.sqrt(query.shape[-1])), key.transpose(-2, -1))
    if attn_mask is not None:
        scores = scores + attn_mask
    return torch.matmul(F.softmax(scores, dim=-1), value)


def multi_head(
    layer: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, None]:
    """nn.MultiheadAttention in eval mode without the attention weights; (B, T, C), or (T, B, C) where the layer is not
    batch_first."""
    if key_padding_mask is not None or is_causal or layer.bias_k is not None or layer.add_zero_attn:
        raise ModelError(
            "found a MultiheadAttention with key_padding_mask, is_causal, add_bias_kv or add_zero_attn; expected none "
            "of them in a vision network. Write this attention out as matrix products and a softmax."
        )
    given = (query, key, value)
    if not layer.batch_first:
        given = tuple(x.transpose(0, 1) for x in given)  # type: ignore[assignment]
    q, k, v = [_heads(F.linear(x, *own), layer) for x, own in zip(given, _projections(layer), strict=True)]
    made = attend(q, k, v, attn_mask=attn_mask).transpose(1, 2).flatten(2)
    made = F.linear(made, layer.out_proj.weight, layer.out_proj.bias)
    return (made if layer.batch_first else made.transpose(0, 1)), None


def _heads(x: Tensor, layer: nn.MultiheadAttention) -> Tensor:
    """(B, T, C) -> (B, heads, T, C / heads)."""
    return x.reshape(x.shape[0], x.shape[1], layer.num_heads, layer.head_dim).transpose(1, 2)


def _projections(layer: nn.MultiheadAttention) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of query, key and value."""
    size = layer.embed_dim
    weights: list[Any] = [layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight]
    if layer._qkv_same_embed_dim:
        weights = [layer.in_proj_weight[i * size : (i + 1) * size] for i in range(3)]
    whole = layer.in_proj_bias
    return [(w, None if whole is None else whole[i * size : (i + 1) * size]) for i, w in enumerate(weights)]
