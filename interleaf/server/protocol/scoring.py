"""`/pooling`, `/score` and `/rerank`, in vLLM's form; the latter is also Jina's and Cohere's."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import Field

from interleaf.params import PoolingParams
from interleaf.server.clock import now
from interleaf.server.errors import bad_request
from interleaf.server.protocol.common import MAX_PROMPTS, ApiModel, FirstMistake, Texts
from interleaf.server.protocol.embeddings import EmbeddingUsage, PoolingFields

PAIRS = (("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"), ("queries", "items"))
"""Names under which a request may bring its two sides."""


class ScoringFields(PoolingFields):
    """What requests for scores have in common."""

    without_effect: ClassVar[dict[str, str]] = {
        "use_activation": "scores are cosines as they are",
        "activation": "scores are cosines as they are",
        "user": "users are not told apart",
    }

    def pooling_params(self) -> PoolingParams:
        """
        Raises:
            ParameterError: a value is out of range.
        """
        return PoolingParams(self.pooling, None, True, self.truncate_prompt_tokens)


class ScoreRequest(ScoringFields):
    text_1: str | Texts | None = None
    text_2: str | Texts | None = None
    data_1: str | Texts | None = None
    data_2: str | Texts | None = None
    queries: str | Texts | None = None
    documents: str | Texts | None = None
    items: str | Texts | None = None

    def sides(self) -> tuple[list[str], list[str]]:
        """The texts to compare, of both sides equally many.

        Raises:
            ApiError: there is not one pair of fields, or their lengths do not go together.
        """
        given = [pair for pair in PAIRS if all(getattr(self, name) is not None for name in pair)]
        if len(given) != 1:
            raise bad_request(f"A score needs two sides: {' and '.join(PAIRS[0])}, or queries and documents.", "text_1")
        first, second = ([one] if isinstance(one, str) else one for one in (getattr(self, name) for name in given[0]))
        if len(first) == 1:
            first = first * len(second)
        if not second or len(first) != len(second):
            raise bad_request(f"{given[0][0]} must be one text, or as many as {given[0][1]} has.", given[0][0])
        if len(second) > MAX_PROMPTS:
            raise bad_request(f"{given[0][1]} has more than {MAX_PROMPTS} texts.", given[0][1])
        return first, second


class RerankText(ApiModel):
    text: str


class RerankRequest(ScoringFields):
    query: str
    documents: Annotated[list[str | RerankText], FirstMistake()] = Field(min_length=1, max_length=MAX_PROMPTS)
    top_n: int | None = Field(None, ge=0)
    return_documents: bool | None = True

    def texts(self) -> list[str]:
        return [one if isinstance(one, str) else one.text for one in self.documents]


class Score(msgspec.Struct):
    index: int
    score: float
    object: str = "score"


class ScoreResponse(msgspec.Struct):
    id: str
    model: str
    data: list[Score]
    usage: EmbeddingUsage
    created: int = msgspec.field(default_factory=now)
    object: str = "list"


class RankedDocument(msgspec.Struct):
    text: str


class Ranked(msgspec.Struct):
    index: int
    relevance_score: float
    document: RankedDocument | UnsetType = UNSET


class RerankResponse(msgspec.Struct):
    id: str
    model: str
    usage: EmbeddingUsage
    results: list[Ranked]


class Pooled(msgspec.Struct):
    index: int
    data: list[float] | str
    object: str = "pooling"


class PoolingResponse(msgspec.Struct):
    id: str
    model: str
    data: list[Pooled]
    usage: EmbeddingUsage
    created: int = msgspec.field(default_factory=now)
    object: str = "list"
