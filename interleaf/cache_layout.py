"""How layers share the KV cache's pages: layers that keep the same keys are grouped, and each group has block tables.

A page holds one block of tokens for a fixed number of layers. A model whose layers all keep the same keys is one group:
a page holds all of its layers, and a page is what is called a block elsewhere. Where some layers have a window, groups
take pages from one pool, and those with a window give theirs back as the window moves on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

MOST_PADDING = 0.03
"""Share of the pages' memory that may lie idle because a kind's layers do not fill its last group."""


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """
    Fields:
        windows: of each group, the keys that its layers see; 0 is all. Groups that see all come first.
        places: of each layer, its group and its place in the group's pages.
        step_tokens: most tokens of one sequence in a step.
    """

    windows: tuple[int, ...] = (0,)
    places: tuple[tuple[int, int], ...] = ()
    step_tokens: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether all layers keep all keys."""
        return self.windows == (0,)

    @property
    def layers_per_page(self) -> int:
        return 1 + max(place for _, place in self.places)

    def peak_pages(self, num_tokens: int, block_size: int) -> int:
        """Most pages that a sequence with so many tokens holds at any time."""
        blocks = -(-num_tokens // block_size)
        return sum(min(blocks, self._peak_of(window, block_size)) if window else blocks for window in self.windows)

    def capacity(self, num_pages: int, block_size: int) -> int:
        """Tokens of one sequence for which so many pages suffice."""
        low, high = 0, num_pages
        while self.peak_pages(high * block_size, block_size) <= num_pages and high < 1 << 30:
            low, high = high, 2 * high + 1
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.peak_pages(middle * block_size, block_size) <= num_pages
            low, high = (middle, high) if fits else (low, middle - 1)
        return low * block_size

    def _peak_of(self, window: int, block_size: int) -> int:
        """A window and a step, which begin and end within blocks; and a page that is taken as another is given back."""
        return -(-(window + self.step_tokens) // block_size) + 2


PLAIN = CacheLayout()
"""All layers keep all keys."""


def group_layers(windows: Sequence[int], step_tokens: int) -> CacheLayout:
    """Group layers by window, with as few groups as fill their pages.

    Args:
        windows: of each layer; 0 is none.
        step_tokens: as in `CacheLayout`.
    """
    counts = Counter(windows)
    total = len(windows)

    def groups(layers: int) -> int:
        return sum(-(-count // layers) for count in counts.values())

    sizes = range(1, max(counts.values()) + 1)
    fitting = [size for size in sizes if groups(size) * size - total <= MOST_PADDING * total]
    layers_per_page = min(fitting, key=lambda size: (groups(size), size))
    group_windows: list[int] = []
    places: dict[int, tuple[int, int]] = {}
    for kind in sorted(counts):
        members = [layer for layer, window in enumerate(windows) if window == kind]
        for index, layer in enumerate(members):
            if index % layers_per_page == 0:
                group_windows.append(kind)
            places[layer] = len(group_windows) - 1, index % layers_per_page
    return CacheLayout(tuple(group_windows), tuple(places[layer] for layer in range(total)), step_tokens)
