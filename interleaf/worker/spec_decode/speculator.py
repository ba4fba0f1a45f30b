"""Asks the proposer for drafts where they are allowed and worth their time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from interleaf.config import EngineConfig
from interleaf.messages import NewRequest, SchedulerOutput, StepOutput
from interleaf.worker.batch import Batch
from interleaf.worker.spec_decode.draft_model import DraftModel, DraftModelProposer
from interleaf.worker.spec_decode.ngram import NgramProposer
from interleaf.worker.spec_decode.pace import Pace, StepTimes
from interleaf.worker.spec_decode.proposer import Proposer, StepView
from interleaf.worker.spec_decode.rejection import DraftDistributions
from interleaf.worker.spec_decode.suffix import SuffixProposer


class Speculator:
    """Follows the sequences that may have drafts, by batch row.

    Args:
        distributions: where the proposer leaves what it has sampled drafts from; None where it does not.
    """

    def __init__(
        self, config: EngineConfig, proposer: Proposer, distributions: DraftDistributions | None = None
    ) -> None:
        assert config.speculative is not None
        self.distributions = distributions
        self._config = config.speculative
        self._proposer = proposer
        longest = config.scheduler.max_model_len
        if config.draft_model is not None:
            longest = min(longest, config.speculative.max_model_len or config.draft_model.max_position_embeddings)
        self._longest = longest
        self._paces: dict[int, Pace] = {}
        self._times = StepTimes()

    def add(self, row: int, request: NewRequest) -> None:
        """A sequence has come into the batch."""
        self._proposer.add(row, request)
        if request.pooling is None and request.params.speculative is not False:
            self._paces[row] = Pace()

    def remove(self, row: int) -> None:
        """A sequence has left the batch."""
        self._proposer.remove(row)
        self._paces.pop(row, None)

    def propose(self, step: StepView, scheduled: SchedulerOutput, output: StepOutput) -> dict[str, list[int]]:
        """Drafts for the next step, by sequence: what may follow the tokens that this one has sampled."""
        self._times.note(step.size.num_tokens, step.seconds)
        row_of = step.batch.row_of
        for name, drafts in scheduled.draft_token_ids.items():
            pace = self._paces.get(row_of[name])
            if pace is not None:
                pace.learn(len(drafts), len(output.sampled_token_ids[name]) - 1)
        self._proposer.observe(step)
        num_sequences = max(len(output.sampled_token_ids), len(scheduled.num_scheduled_tokens))
        if num_sequences > self._config.disable_by_batch_size:
            return {}
        names = [name for name in output.sampled_token_ids if row_of[name] in self._paces]
        wanted = self._wanted(step.batch, [row_of[name] for name in names], num_sequences)
        asked = [(name, *want) for name, want in zip(names, wanted, strict=True) if want[1] > 0]
        found = self._proposer.propose(step.batch, [(row, count) for _, row, count in asked]) if asked else []
        return {name: drafts for (name, _, _), drafts in zip(asked, found, strict=True) if drafts}

    def _wanted(self, batch: Batch, rows: Sequence[int], num_sequences: int) -> Iterable[tuple[int, int]]:
        """(row, most drafts) of each."""
        for row in rows:
            room = self._longest - int(batch.num_tokens[row]) - 1
            most = min(self._config.num_speculative_tokens, room)
            yield row, self._paces[row].num_drafts(most, num_sequences, self._times) if most > 0 else 0


def make_speculator(config: EngineConfig, make_draft_model: Callable[[], DraftModel]) -> Speculator | None:
    """What the configuration asks for; None for no speculation.

    Args:
        make_draft_model: loads it; called where it is used.
    """
    speculative = config.speculative
    if speculative is None:
        return None
    if speculative.method == "ngram":
        return Speculator(config, NgramProposer(speculative.prompt_lookup_min, speculative.prompt_lookup_max))
    if speculative.method == "suffix":
        return Speculator(config, SuffixProposer(speculative))
    distributions = DraftDistributions() if speculative.rejection_sample_method == "standard" else None
    return Speculator(config, DraftModelProposer(config, make_draft_model(), distributions), distributions)
