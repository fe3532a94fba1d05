"""The preallocated key/value caches of cached generation."""

from __future__ import annotations

import torch
from torch import Tensor


class Cache:
    """Keys and values of all layers, one after another up to a capacity, each visible to all that come later.

    Args:
        layers: Number of layers.
        capacity: Tokens that have room.
    """

    def __init__(self, layers: int, capacity: int) -> None:
        self.capacity = capacity
        self.written = 0  # tokens, the evicted ones included; on the host, so nothing here waits for a device
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * layers

    def _span(self, tokens: int) -> slice:
        """Where the next tokens go."""
        if self.written + tokens > self.capacity:
            raise ValueError(f"the cache has room for {self.capacity} tokens, not for {self.written + tokens}")
        return slice(self.written, self.written + tokens)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's (B, heads, n, head_dim) keys and values; return all that the new tokens may see."""
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
        """(B, 1, 1, visible) bool for the next tokens, or `None` where everything cached is visible."""
        return None

    def advance(self, tokens: int) -> None:
        """Count tokens as written; called once after every layer has stored them."""
        self.written += tokens


class KeyValueCache(Cache):
    """Keys and values of all layers: a pinned head that stays for ever and a ring of chunks behind it.

    The pinned head holds the condition and the reference. Behind it lie `window + 1` slots of one chunk each, the
    current chunk's among them, so writing a chunk never overwrites a key that this chunk may still read. Keys are
    stored after rotation, hence the order of the slots does not matter to attention.

    Args:
        layers: Number of layers.
        pinned: Tokens that are never evicted.
        chunk: Tokens written at a time after the pinned ones.
        window: Earlier chunks that a chunk sees, besides the pinned tokens.
        key_mask: (B, pinned) bool, False where a pinned token is padding, or `None` if none is.
    """

    def __init__(self, layers: int, pinned: int, chunk: int, window: int, key_mask: Tensor | None = None) -> None:
        super().__init__(layers, capacity=pinned + (window + 1) * chunk)
        self.pinned, self.chunk, self.slots = pinned, chunk, window + 1
        self._visible: Tensor | None = None  # (B, capacity), where anything is hidden at all
        if key_mask is not None:
            self._visible = torch.nn.functional.pad(key_mask, (0, self.capacity - pinned), value=True)

    def _span(self, tokens: int) -> slice:
        """Where the next tokens go."""
        if self.written == 0:
            if tokens != self.pinned:
                raise ValueError(f"the cache was made for {self.pinned} pinned tokens, and {tokens} came first")
            return slice(0, tokens)
        if tokens != self.chunk:
            raise ValueError(f"the cache takes {self.chunk} tokens at a time, not {tokens}")
        start = self.pinned + (self.written - self.pinned) % (self.slots * self.chunk)
        return slice(start, start + tokens)

    def key_mask(self, tokens: int) -> Tensor | None:
        """(B, 1, 1, visible) bool for the next tokens, or `None` where everything cached is visible."""
        if self._visible is None:
            return None
        if self.written:
            self._visible[:, self._span(tokens)] = True  # a slot that is written anew is no longer forgotten
        return self._visible[:, None, None, : min(self.written + tokens, self.capacity)]

    def forget(self, samples: slice) -> None:
        """Hide from some samples all that they have read behind the pinned head."""
        if self._visible is None:
            stored = self._layers[0]
            assert stored is not None, "nothing has been read yet"
            size = stored[0].shape[0]
            self._visible = torch.ones(size, self.capacity, dtype=torch.bool, device=stored[0].device)
        self._visible[samples, self.pinned :] = False
