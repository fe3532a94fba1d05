"""Preallocated key/value caches for generation."""

from __future__ import annotations

import torch
from torch import Tensor

from vidchat.model.rotary import rotate


class Cache:
    """Keys and values of all layers, appended up to a capacity; each is visible to all later tokens.

    Args:
        layers: Number of layers.
        capacity: Largest number of tokens.
    """

    def __init__(self, layers: int, capacity: int) -> None:
        self.capacity = capacity
        self.written = 0  # tokens; kept on the host, so nothing here waits for a device
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
        visible = self._visible_keys(keys.shape[2])
        return stored[0][:, :, :visible], stored[1][:, :, :visible]

    def _visible_keys(self, tokens: int) -> int:
        """Number of keys that the next tokens may see, their own included."""
        return self.written + tokens

    def key_mask(self, tokens: int) -> Tensor | None:
        """Returns the mask (B, 1, 1, keys) of the keys for the next tokens, or `None` if all of them are visible."""
        return None

    def advance(self, tokens: int) -> None:
        """Counts tokens as written; called once, after all layers have stored them."""
        self.written += tokens


class KeyValueCache(Cache):
    """Keys and values of all layers: a pinned prefix that is never evicted, followed by a ring of steps.

    The pinned prefix holds the conditions and step 0. A slot of the ring has room for the heard and for the said chunk
    of one step; what a step does not fill is hidden. A step sees the pinned tokens, itself and `window` earlier steps;
    `undo` further slots are kept, so that as many steps can be taken back exactly. Keys are stored after rotation, so
    the order of the slots does not matter to attention.

    Args:
        layers: Number of layers.
        visible: (B, P) bool, False where a pinned token is padding or dropped.
        heard: Number of tokens of a heard chunk; 0 if nothing is heard.
        said: Number of tokens of a said chunk.
        window: Number of earlier steps that a step sees, 1 or more.
        undo: Number of steps that can be taken back.
    """

    def __init__(self, layers: int, visible: Tensor, heard: int, said: int, window: int, undo: int) -> None:
        self.pinned, self.heard, self.slot = visible.shape[1], heard, heard + said
        self.window, self.undo, self.slots = window, undo, window + 1 + undo
        super().__init__(layers, capacity=self.pinned + self.slots * self.slot)
        self._visible = torch.nn.functional.pad(visible, (0, self.slots * self.slot))  # what the next tokens may see
        self._present = self._visible.clone()  # what is stored, whether or not it is inside the window
        self._place, self._extent = slice(0, self.pinned), self.pinned
        self._undoable = 0  # steps that can be taken back
        self._rotated: list[Tensor] | None = None  # pinned keys as they were written, once they have been moved

    def open_step(self, step: int, heard: Tensor | None, said: bool) -> None:
        """Makes room for the tokens of a step, which `write` then stores.

        Args:
            step: The step, 1 or more, one after the step before.
            heard: (B, tokens) bool, which of the heard chunk's tokens are visible; `None` if there is no heard chunk.
                There may be fewer than `self.heard`: a talker may be unseen.
            said: Whether there is a said chunk or a still.
        """
        slot = self._slot(step)
        present = self._present[:, slot]
        present[:] = False
        first = self.heard
        if heard is not None:
            first -= heard.shape[1]
            present[:, first : self.heard] = heard
        present[:, self.heard :] = said
        self._visible[:, slot] = present
        if self.undo and step > self.window + 1:  # else this step has taken its slot
            self._visible[:, self._slot(step - self.window - 1)] = False
        self._place = slice(slot.start + first, slot.stop if said else slot.start + self.heard)
        self._extent = max(self._extent, slot.stop)
        self._undoable = min(self._undoable + 1, self.undo)

    def take_back(self, step: int, count: int) -> None:
        """Forgets the last `count` steps, `step` being the last of all.

        Raises:
            ValueError: The cache has not kept what these steps saw.
        """
        if not 0 < count <= min(step, self._undoable):
            raise ValueError(f"{count} steps cannot be taken back, only 1 to {min(step, self._undoable)}")
        self._undoable -= count
        for forgotten in range(step - count + 1, step + 1):
            self._present[:, self._slot(forgotten)] = False
            self._visible[:, self._slot(forgotten)] = False
        if step <= self.slots:  # the ring has not been full, so that as many keys are read as if nothing had happened
            self._extent = self.pinned + (step - count) * self.slot
        for seen in range(max(1, step - count - self.window), min(step - self.window, step - count + 1)):
            self._visible[:, self._slot(seen)] = self._present[:, self._slot(seen)]

    def move_pinned(self, angles: tuple[Tensor, Tensor]) -> None:
        """Turns the pinned keys by rotary angles (1, 1, 1, head_dim) from where they were written."""
        stored = [layer[0] for layer in self._layers if layer is not None]
        if self._rotated is None:
            self._rotated = [keys[:, :, : self.pinned].clone() for keys in stored]
        for keys, rotated in zip(stored, self._rotated, strict=True):
            keys[:, :, : self.pinned] = rotate(rotated, angles)

    @property
    def moved(self) -> bool:
        """Whether the pinned keys have been moved."""
        return self._rotated is not None

    def _slot(self, step: int) -> slice:
        start = self.pinned + (step - 1) % self.slots * self.slot
        return slice(start, start + self.slot)

    def _span(self, tokens: int) -> slice:
        if tokens != self._place.stop - self._place.start:
            raise ValueError(f"the cache has room for {self._place.stop - self._place.start} tokens, not for {tokens}")
        return self._place

    def _visible_keys(self, tokens: int) -> int:
        return self._extent

    def key_mask(self, tokens: int) -> Tensor:
        """Returns the mask (B, 1, 1, keys) of the keys that the tokens of the open step see."""
        return self._visible[:, None, None, : self._extent]
