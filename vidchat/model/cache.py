"""Preallocated key/value caches for generation."""

from __future__ import annotations

import torch
from torch import Tensor


class Cache:
    """Keys and values of all layers, appended up to a capacity; each is visible to all later tokens.

    Args:
        layers: Number of layers.
        capacity: Largest number of tokens.
    """

    def __init__(self, layers: int, capacity: int) -> None:
        self.capacity = capacity
        self.written = 0  # tokens, evicted ones included; kept on the host, so nothing here waits for a device
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * layers

    def _span(self, tokens: int) -> slice:
        """Slots of the next tokens."""
        if self.written + tokens > self.capacity:
            raise ValueError(f"the cache has room for {self.capacity} tokens, not for {self.written + tokens}")
        return slice(self.written, self.written + tokens)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores one layer's keys and values (B, heads, n, head_dim); returns all that the new tokens may see."""
        span = self._span(keys.shape[2])
        stored = self._layers[layer]
        if stored is None:
            shape = (*keys.shape[:2], self.capacity, keys.shape[3])
            stored = (keys.new_zeros(shape), values.new_zeros(shape))
            self._layers[layer] = stored
        stored[0][:, :, span] = keys
        stored[1][:, :, span] = values
        visible = min(self.written + keys.shape[2], self.capacity)
        return stored[0][:, :, :visible], stored[1][:, :, :visible]

    def key_mask(self, tokens: int) -> Tensor | None:
        """Returns the mask (B, 1, 1, visible) of the keys for the next tokens, or `None` if all of them are visible."""
        return None

    def advance(self, tokens: int) -> None:
        """Counts tokens as written; called once, after all layers have stored them."""
        self.written += tokens


class KeyValueCache(Cache):
    """Keys and values of all layers: a pinned prefix that is never evicted, followed by a ring of chunks.

    The pinned prefix holds the conditions and the reference. The ring has `window + 1` slots of one chunk each, one of
    them for the current chunk, so writing a chunk never overwrites a key that this chunk may still read. Keys are
    stored after rotation, so the order of the slots does not matter to attention.

    Args:
        layers: Number of layers.
        pinned: Number of tokens that are never evicted.
        chunk: Number of tokens written at a time after the pinned ones.
        window: Number of earlier chunks that a chunk sees, besides the pinned tokens.
        key_mask: (B, pinned) bool, False where a pinned token is padding, or `None` if none is.
    """

    def __init__(self, layers: int, pinned: int, chunk: int, window: int, key_mask: Tensor | None = None) -> None:
        super().__init__(layers, capacity=pinned + (window + 1) * chunk)
        self.pinned, self.chunk, self.slots = pinned, chunk, window + 1
        self._visible: Tensor | None = None  # (B, capacity); `None` if nothing is hidden
        if key_mask is not None:
            self._visible = torch.nn.functional.pad(key_mask, (0, self.capacity - pinned), value=True)

    def _span(self, tokens: int) -> slice:
        """Slots of the next tokens."""
        if self.written == 0:
            if tokens != self.pinned:
                raise ValueError(f"the cache was made for {self.pinned} pinned tokens, and {tokens} came first")
            return slice(0, tokens)
        if tokens != self.chunk:
            raise ValueError(f"the cache takes {self.chunk} tokens at a time, not {tokens}")
        start = self.pinned + (self.written - self.pinned) % (self.slots * self.chunk)
        return slice(start, start + tokens)

    def key_mask(self, tokens: int) -> Tensor | None:
        """Returns the mask (B, 1, 1, visible) of the keys for the next tokens, or `None` if all of them are visible."""
        if self._visible is None:
            return None
        if self.written:
            self._visible[:, self._span(tokens)] = True  # a slot that is written again is visible again
        return self._visible[:, None, None, : min(self.written + tokens, self.capacity)]

    def forget(self, samples: slice) -> None:
        """Hides from some samples all they have read after the pinned prefix."""
        if self._visible is None:
            stored = self._layers[0]
            assert stored is not None, "nothing has been written yet"
            size = stored[0].shape[0]
            self._visible = torch.ones(size, self.capacity, dtype=torch.bool, device=stored[0].device)
        self._visible[samples, self.pinned :] = False
