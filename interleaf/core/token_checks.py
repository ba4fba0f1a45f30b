"""Which tokens the grammars of a step's sequences let through.

A mask of the whole vocabulary takes the grammar library ten to a hundred times as long as the check of one token, and
the processors that would fill masks beside the forward pass are the ones that compute it. So nothing is done
beforehand: the worker asks about the tokens that it has sampled, and for masks where it needs them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from interleaf.core.structured import GrammarState
from interleaf.messages import Misfit
from interleaf.reasoning import Phase

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

FEW_MASKS = 4
"""Fewer are filled by the thread that asks: the library's own take longer to wake up."""


@dataclass(frozen=True, slots=True)
class HeldSequence:
    """A sequence that is about to sample, with the drafts that it tries."""

    sequence_id: str
    state: GrammarState
    drafts: list[int]


class TokenChecker:
    """Knows the library's threads.

    Args:
        num_threads: among which masks are divided where there are many.
    """

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._executor: LLExecutor | None = None

    def compute(self, wanted: list[tuple[LLMatcher, int]], masks: bytearray, row_bytes: int) -> None:
        """Fill row i of `masks` with what a matcher lets through, for each (matcher, i); no matcher twice."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(masks))
        if len(wanted) < FEW_MASKS or self._num_threads == 1:
            for matcher, row in wanted:
                matcher.unsafe_compute_mask_ptr(address + row * row_bytes, row_bytes)
            return
        if self._executor is None:
            from llguidance import LLExecutor

            self._executor = LLExecutor(self._num_threads)
        self._executor.unsafe_compute_mask_ptr(wanted, address, row_bytes, len(masks) // row_bytes)


class StepGrammars:
    """The grammars of one step's sequences; see `interleaf.messages.TokenGrammars`. Leaves the states as they are.

    Args:
        held: at least one sequence; all are of the same vocabulary.
    """

    def __init__(self, held: Iterable[HeldSequence], checker: TokenChecker) -> None:
        self._held = {one.sequence_id: one for one in held}
        self._checker = checker
        vocab_size = next(iter(self._held.values())).state.vocab_size
        self.row_bytes = (vocab_size + 31) // 32 * 4

    def __contains__(self, sequence_id: str) -> bool:
        return sequence_id in self._held

    def first_misfit(self, sequence_id: str, place: int, token_ids: list[int]) -> Misfit | None:
        one = self._held[sequence_id]
        if one.state.phase is Phase.UNDECIDED:
            mask = self.fill([(sequence_id, 0)])
            return None if mask[token_ids[0] // 8] >> token_ids[0] % 8 & 1 else Misfit(0)
        matcher, drafts = one.state.matcher, one.drafts
        num_taken = 0
        misfit = None
        for number in range(one.state.num_free(drafts), place + len(token_ids)):
            if number >= place:
                misfit = _misfit(one.state, number - place, token_ids[number - place])
                if misfit is not None or drafts[number : number + 1] != [token_ids[number - place]]:
                    break
            if not matcher.try_consume_tokens([drafts[number]]):
                break
            num_taken += 1
        if num_taken:
            matcher.rollback(num_taken)
        return misfit

    def fill(self, places: list[tuple[str, int]]) -> bytearray:
        masks = bytearray(b"\xff") * (len(places) * self.row_bytes)
        wanted: list[tuple[LLMatcher, int]] = []
        taken: list[tuple[LLMatcher, int]] = []
        for row, (sequence_id, number) in enumerate(places):
            one = self._held[sequence_id]
            state, num_free = one.state, one.state.num_free(one.drafts)
            if state.phase is Phase.UNDECIDED:
                self._set(masks, row, _mask_of_undecided(state))
                self._allow(masks, row, state.reasoning_start[len(state.undecided)])
            elif number >= num_free:
                drafts = one.drafts[num_free:number]
                num_taken = state.matcher.try_consume_tokens(drafts)
                taken.append((state.matcher, num_taken))
                # What stands behind a draft that ends its sequence is of no interest.
                if num_taken == len(drafts):
                    wanted.append((state.matcher, row))
        self._checker.compute(wanted, masks, self.row_bytes)
        for matcher, row in wanted:
            stop_token_ids = self._held[places[row][0]].state.stop_token_ids
            if stop_token_ids and matcher.is_accepting():
                for token_id in stop_token_ids:
                    self._allow(masks, row, token_id)
        for matcher, num_taken in taken:
            if num_taken:
                matcher.rollback(num_taken)
        return masks

    def _set(self, masks: bytearray, row: int, mask: bytes) -> None:
        masks[row * self.row_bytes : (row + 1) * self.row_bytes] = mask[: self.row_bytes].ljust(self.row_bytes, b"\0")

    def _allow(self, masks: bytearray, row: int, token_id: int) -> None:
        masks[row * self.row_bytes + token_id // 8] |= 1 << token_id % 8


def _misfit(state: GrammarState, offset: int, token_id: int) -> Misfit | None:
    """Whether a token is wrong where the matcher stands, as its mask would tell."""
    forced = state.matcher.compute_ff_tokens()
    if forced:
        return None if token_id == forced[0] else Misfit(offset, forced[0])
    if state.matcher.validate_tokens([token_id]):
        return None
    if state.matcher.is_accepting() and (token_id in state.eos_token_ids or token_id in state.stop_token_ids):
        return None
    return Misfit(offset)


def _mask_of_undecided(state: GrammarState) -> bytes:
    """What the grammar lets through behind tokens that may yet be the beginning of reasoning."""
    undecided = state.undecided
    if state.matcher.validate_tokens(undecided) < len(undecided):
        return b""
    state.matcher.consume_tokens(undecided)
    mask = state.matcher.compute_bitmask()
    if undecided:
        state.matcher.rollback(len(undecided))
    return mask
