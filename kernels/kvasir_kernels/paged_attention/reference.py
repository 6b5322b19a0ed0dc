"""Attention over paged keys and values in plain torch.

No slot outside a sequence's context is ever read: padding reads the sequence's own first visible token and is masked,
so that NaN in free pages can't reach a result by way of 0 * NaN. Idea: PagedAttention (Kwon et al., 2023).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from kvasir_kernels.paged_cache import AttentionBatch, LayerCache, PaddedDecodes, ScoreChanges, StepAttention


def paged_attention(
    query: Tensor,
    cache: LayerCache,
    batch: StepAttention,
    scale: float,
    window: int | None,
    changes: ScoreChanges | None = None,
) -> Tensor:
    """Return the causal attention of each sequence's new tokens over its pages: [T, H, D].

    query: [T, H, D], rows packed in the order of `batch`; H is a multiple of the cache's K (grouped queries).
    The new tokens' own keys and values must be in the pages already.
    window: a token sees itself and the window - 1 tokens before it; None for all of them.
    changes: of the scores, for models that have any. Of padded decodes the real rows come first.
    """
    output = torch.empty_like(query)
    if isinstance(batch, PaddedDecodes):
        lengths = batch.context_lens[batch.context_lens > 0].tolist()
        real = AttentionBatch((1,) * len(lengths), tuple(lengths), batch.page_tables[: len(lengths)], len(lengths))
        output[: len(lengths)] = paged_attention(query[: len(lengths)], cache, real, scale, window, changes)
        return output
    num_decodes = batch.num_decodes if changes is None else 0
    if num_decodes:
        output[:num_decodes] = _attend_decodes(query[:num_decodes], cache, batch, scale, window)
    row = num_decodes
    for index in range(num_decodes, len(batch.query_lens)):
        end = row + batch.query_lens[index]
        pages, context_len = batch.page_tables[index], batch.context_lens[index]
        output[row:end] = _attend_chunk(query[row:end], cache, pages, context_len, scale, window, changes)
        row = end
    return output


def _attend_decodes(
    query: Tensor, cache: LayerCache, batch: AttentionBatch, scale: float, window: int | None
) -> Tensor:
    """Attend for all one-token sequences in one padded operation; query: [S, H, D]."""
    num_decodes, num_heads, head_dim = query.shape
    context_lens = batch.context_lens[:num_decodes]
    longest = max(context_lens)
    span = longest if window is None else min(longest, window)
    # Contexts lie flush right: the last column is the new token and the first the window's edge, which needs no mask.
    #   context 5, span 4:   1 2 3 4        context 2, span 4:   - - 0 1
    ends = torch.tensor(context_lens, device=query.device).unsqueeze(1)
    positions = torch.arange(-span, 0, device=query.device) + ends
    keys, values = _gather(cache, batch.page_tables[:num_decodes], positions.clamp(min=0), query.dtype)
    # The query heads of one key head stand in the place of query positions: grouped queries without repeated keys.
    grouped = query.view(num_decodes, keys.shape[2], -1, head_dim)
    mask = (positions >= 0)[:, None, None, :]
    attended = F.scaled_dot_product_attention(
        grouped, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask, scale=scale
    )
    return attended.reshape(num_decodes, num_heads, head_dim)


def _attend_chunk(
    query: Tensor,
    cache: LayerCache,
    pages: Tensor,
    context_len: int,
    scale: float,
    window: int | None,
    changes: ScoreChanges | None,
) -> Tensor:
    """Attend for the last tokens of one sequence; query: [T, H, D], pages: [M]."""
    num_queries, num_heads, head_dim = query.shape
    start = context_len - num_queries
    first = 0 if window is None else max(0, start - window + 1)
    positions = torch.arange(first, context_len, device=query.device)
    keys, values = _gather(cache, pages.unsqueeze(0), positions.unsqueeze(0), query.dtype)
    num_kv_heads = keys.shape[2]
    # One key head is one batch entry with its group of query heads: expand repeats keys without copying them.
    grouped = query.view(num_queries, num_kv_heads, -1, head_dim).permute(1, 2, 0, 3)
    keys, values = (x.permute(2, 0, 1, 3).expand(-1, grouped.shape[1], -1, -1) for x in (keys, values))
    if changes is not None:
        mask = _visible(positions, start, context_len, window)
        attended = _attend_changed(grouped, keys, values, mask, scale, changes)
    elif start == 0 and (window is None or window >= context_len):
        attended = F.scaled_dot_product_attention(grouped, keys, values, is_causal=True, scale=scale)
    else:
        mask = _visible(positions, start, context_len, window)
        attended = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
    return attended.permute(2, 0, 1, 3).reshape(num_queries, num_heads, head_dim)


def _attend_changed(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, changes: ScoreChanges
) -> Tensor:
    """query: [K, G, T, D], keys, values: [K, G, L, D], mask: [T, L]; in float32 inside."""
    scores = query.float() @ keys.float().transpose(-1, -2) * scale
    if changes.soft_cap is not None:
        scores = changes.soft_cap * torch.tanh(scores / changes.soft_cap)
    scores = scores.masked_fill(~mask, -torch.inf)
    if changes.sinks is not None:
        sinks = changes.sinks.float().view(*scores.shape[:2], 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.softmax(torch.cat((scores, sinks), -1), -1)[..., :-1]
    else:
        weights = torch.softmax(scores, -1)
    return (weights @ values.float()).to(query.dtype)


def _gather(cache: LayerCache, page_tables: Tensor, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the keys and values at positions [S, L] of the sequences with page_tables [S, M]: each [S, L, K, D]."""
    page_size = cache.key.shape[1]
    slots = page_tables.gather(1, positions // page_size) * page_size + positions % page_size
    keys, values = (
        _read(pages, scale, slots.flatten(), dtype).view(*slots.shape, *pages.shape[2:])
        for pages, scale in zip((cache.key, cache.value), cache.scale_tensors, strict=True)
    )
    return keys, values


def _read(pages: Tensor, scale: Tensor | None, slots: Tensor, dtype: torch.dtype) -> Tensor:
    """What a cache holds at the slots [L], in the model's dtype: [L, K, D]."""
    if scale is None:
        return pages.view(-1, *pages.shape[2:]).index_select(0, slots)
    bits = pages.view(torch.uint8).view(-1, *pages.shape[2:]).index_select(0, slots)
    scale = scale.view(-1, pages.shape[2]).index_select(0, slots) if scale.dim() == 3 else scale
    return (bits.view(pages.dtype).float() * scale.unsqueeze(-1)).to(dtype)


def _visible(positions: Tensor, start: int, context_len: int, window: int | None) -> Tensor:
    """Return which key positions [L] the queries at start..context_len may see: [T, L] bool."""
    queries = torch.arange(start, context_len, device=positions.device).unsqueeze(1)
    visible = positions <= queries
    return visible if window is None else visible & (positions > queries - window)
