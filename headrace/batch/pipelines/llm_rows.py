"""The keys and values of several requests in one tensor each, of different lengths, padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

_TRIM = 64
"""Columns of padding that all rows have in common before they are cut off."""


class Rows:
    """What a model remembers of one or more texts, and how they are continued together.

    Only plain caches can be put together; models with others (sliding windows, recurrent states) keep each
    request in rows of its own.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache = _empty(model)
        self._device: torch.device = model.device
        self._mask = torch.ones((1, 0), dtype=torch.long, device=self._device)
        """1 where a row has a token, 0 for padding: [rows, columns]."""

    def __len__(self) -> int:
        return int(self._mask.shape[0])

    @property
    def columns(self) -> int:
        return int(self._mask.shape[1])

    def extend(self, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """Continue every row by as many tokens; the logits after the last of each, [rows, vocabulary]."""
        ids = torch.tensor(tokens, dtype=torch.long, device=self._device)
        before = self._mask.sum(-1, keepdim=True)
        positions = before + torch.arange(ids.shape[1], device=self._device)
        self._mask = torch.cat([self._mask, torch.ones_like(ids)], dim=-1)
        answer = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = answer.logits[:, -1]
        return logits

    def can_join(self, other: Rows) -> bool:
        """Whether `join` is possible: every layer keeps its keys and values and nothing else."""
        layers = [*self._cache.layers, *other._cache.layers]
        return all(map(_is_plain, layers))

    def join(self, other: Rows) -> None:
        """Take over the rows of ``other``, behind one's own."""
        columns = max(self.columns, other.columns)
        for mine, theirs in zip(self._cache.layers, other._cache.layers, strict=True):
            mine.keys = torch.cat([_padded(mine.keys, columns), _padded(theirs.keys, columns)])
            mine.values = torch.cat([_padded(mine.values, columns), _padded(theirs.values, columns)])
        masks = [
            torch.nn.functional.pad(mask, (columns - mask.shape[1], 0)) for mask in (self._mask, other._mask)
        ]
        self._mask = torch.cat(masks)

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these, and the padding that nobody needs any more."""
        if not rows:
            self._cache = _empty(self._model)
            self._mask = self._mask[:0]
            return
        index = torch.tensor(rows, dtype=torch.long, device=self._device)
        self._mask = self._mask.index_select(0, index)
        spare = int((self._mask.cumsum(-1) == 0).sum(-1).min())
        cut = spare if spare >= _TRIM or len(rows) == 1 else 0
        self._mask = self._mask[:, cut:]
        for layer in self._cache.layers:
            if _is_plain(layer):
                layer.keys = layer.keys.index_select(0, index)[:, :, cut:]
                layer.values = layer.values.index_select(0, index)[:, :, cut:]


def _padded(states: torch.Tensor, columns: int) -> torch.Tensor:
    """[rows, heads, columns, size] with zeros on the left."""
    return torch.nn.functional.pad(states, (0, 0, columns - states.shape[2], 0))


def _empty(model: Any) -> Any:
    # Not at the module's head: transformers takes seconds, and is there when a model is.
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


def _is_plain(layer: object) -> bool:
    from transformers.cache_utils import DynamicLayer

    return type(layer) is DynamicLayer
