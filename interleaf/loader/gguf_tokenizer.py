"""Building a tokenizer from the vocabulary in a GGUF file's metadata.

Two kinds are known, by `tokenizer.ggml.model`: "gpt2", byte-level BPE, whose text is first split
by the expression that `tokenizer.ggml.pre` names; and "llama", SentencePiece with byte fallback.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from reprlib import repr as shortened
from typing import TYPE_CHECKING, Any

import numpy as np

from interleaf.errors import CorruptCheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    import tokenizers
    from tokenizers import pre_tokenizers

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
"""Values of `tokenizer.ggml.token_type` that matter here."""

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
SPLITS = {
    "llama-bpe": LLAMA3_SPLIT,
    "llama3": LLAMA3_SPLIT,
    "llama-v3": LLAMA3_SPLIT,
    "qwen2": QWEN2_SPLIT,
    "deepseek-r1-qwen": QWEN2_SPLIT,
}
"""Pre-tokenizers that split text by an expression of their own, as the models' own files have it."""

WHOLE_GPT2 = ("default", "gpt-2")
DIGITS_THEN_GPT2 = ("smollm", "starcoder")
SPECIAL_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
SPACE = "\u2581"


def build_tokenizer(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Build the tokenizer that the metadata describes.

    Raises:
        UnsupportedModelError: its kind is not known.
        CorruptCheckpointError: its arrays are missing or contradict each other.
    """
    vocabulary = _Vocabulary(metadata)
    kind = metadata.get("tokenizer.ggml.model")
    try:
        if kind == "gpt2":
            tokenizer = _byte_level(vocabulary)
        elif kind == "llama":
            tokenizer = _sentencepiece(vocabulary)
        else:
            raise UnsupportedModelError(
                f"The GGUF file's tokenizer {shortened(kind)} is not supported: give a directory with --tokenizer."
            )
        _add_special_tokens(tokenizer, vocabulary)
        _set_template(tokenizer, vocabulary, kind)
    except (CorruptCheckpointError, UnsupportedModelError):
        raise
    except Exception as error:
        # The tokenizers library has no exception type of its own.
        raise CorruptCheckpointError(f"The GGUF file's vocabulary is broken ({error}).") from None
    return tokenizer


def named_special_tokens(metadata: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token`, `eos_token`, `unk_token` and `pad_token`, where the file names them."""
    vocabulary = _Vocabulary(metadata)
    found = {name: vocabulary.special(key) for name, key in SPECIAL_TOKENS.items()}
    return {name: vocabulary.tokens[token] for name, token in found.items() if token is not None}


def chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Name -> template; the main one is "default"."""
    prefix = "tokenizer.chat_template"
    templates = {}
    for key, value in metadata.items():
        if isinstance(value, str) and (key == prefix or key.startswith(prefix + ".")):
            templates[key[len(prefix) + 1 :] or "default"] = value
    return templates


class _Vocabulary:
    """The metadata's arrays, checked against each other."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        tokens = metadata.get("tokenizer.ggml.tokens")
        if not _are_strings(tokens) or not tokens:
            raise CorruptCheckpointError("The GGUF file holds no vocabulary (tokenizer.ggml.tokens).")
        self.tokens: list[str] = tokens
        self.merges: list[str] | None = metadata.get("tokenizer.ggml.merges")
        if self.merges is not None and not _are_strings(self.merges):
            raise CorruptCheckpointError("The GGUF file's tokenizer.ggml.merges are not strings.")
        kinds = self._numbers("token_type")
        self.kinds: Sequence[int] = [NORMAL] * len(tokens) if kinds is None else kinds.tolist()

    def _numbers(self, name: str) -> np.ndarray | None:
        """An array with a number for each token, or None."""
        values = self.metadata.get(f"tokenizer.ggml.{name}")
        if values is None:
            return None
        if not isinstance(values, np.ndarray) or len(values) != len(self.tokens):
            raise CorruptCheckpointError(f"The GGUF file's tokenizer.ggml.{name} does not match its vocabulary.")
        return values

    def scores(self) -> list[float]:
        scores = self._numbers("scores")
        if scores is None:
            raise CorruptCheckpointError("The GGUF file's vocabulary has neither merges nor scores.")
        return [float(score) for score in scores]

    def flag(self, name: str, default: bool) -> bool:
        return bool(self.metadata.get(f"tokenizer.ggml.{name}", default))

    def special(self, name: str) -> int | None:
        token = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        return token if type(token) is int and 0 <= token < len(self.tokens) else None

    def of_kind(self, kind: int) -> list[str]:
        return [token for token, its_kind in zip(self.tokens, self.kinds, strict=True) if its_kind == kind]


def _are_strings(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _ids(tokens: Sequence[str]) -> dict[str, int]:
    """Token -> id. A token that occurs again gets a stand-in name, so that no id is lost."""
    ids: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if token in ids:
            token = f"[PAD{index}]"
        ids[token] = index
    return ids


def _byte_level(vocabulary: _Vocabulary) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    kind = vocabulary.metadata.get("tokenizer.ggml.pre", "default")
    if vocabulary.merges is None:
        raise CorruptCheckpointError("The GGUF file's vocabulary has no merges (tokenizer.ggml.merges).")
    merges = [_pair(merge) for merge in vocabulary.merges]
    tokenizer = Tokenizer(
        models.BPE(vocab=_ids(vocabulary.tokens), merges=merges, ignore_merges=SPLITS.get(kind) == LLAMA3_SPLIT)
    )
    if SPLITS.get(kind) == QWEN2_SPLIT:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(kind)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pre_tokenizer(kind: Any) -> pre_tokenizers.PreTokenizer:
    from tokenizers import Regex, pre_tokenizers

    if kind in SPLITS:
        split = pre_tokenizers.Split(Regex(SPLITS[kind]), behavior="isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind in WHOLE_GPT2:
        return gpt2
    if kind in DIGITS_THEN_GPT2:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    raise UnsupportedModelError(
        f"The GGUF file's pre-tokenizer {shortened(kind)} is not supported: give a directory with --tokenizer."
    )


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _sentencepiece(vocabulary: _Vocabulary) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    ids = _ids(vocabulary.tokens)
    if vocabulary.merges is not None:
        merges = [_pair(merge) for merge in vocabulary.merges]
    else:
        merges = _merges_from_scores(ids, vocabulary)
    unknown = vocabulary.special("unknown")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=merges,
            unk_token=None if unknown is None else vocabulary.tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefixed = vocabulary.flag("add_space_prefix", True)
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefixed else spaces
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefixed:
        steps.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges_from_scores(ids: Mapping[str, int], vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """SentencePiece merges whichever neighbours form the piece with the best score: list those pairs, best first."""
    from interleaf._native import merges_from_scores

    names = list(ids)
    usable = [kind == NORMAL for kind in vocabulary.kinds]
    pairs = merges_from_scores(vocabulary.tokens, names, vocabulary.scores(), usable)
    return [(names[left], names[right]) for left, right in pairs]


def _add_special_tokens(tokenizer: tokenizers.Tokenizer, vocabulary: _Vocabulary) -> None:
    from tokenizers import AddedToken

    def added(tokens: Iterable[str], special: bool) -> list[AddedToken]:
        return [AddedToken(token, normalized=False, special=special) for token in tokens if token]

    named = [
        vocabulary.tokens[token] for key in SPECIAL_TOKENS.values() if (token := vocabulary.special(key)) is not None
    ]
    tokenizer.add_special_tokens(added(dict.fromkeys(vocabulary.of_kind(CONTROL) + named), True))
    tokenizer.add_tokens(added(vocabulary.of_kind(USER_DEFINED), False))


def _set_template(tokenizer: tokenizers.Tokenizer, vocabulary: _Vocabulary, kind: str) -> None:
    """Which special tokens go around a text: the file's flags, else what its kind of vocabulary always had."""
    pre_tokenizer = vocabulary.metadata.get("tokenizer.ggml.pre")
    begins = vocabulary.flag("add_bos_token", kind == "llama" or SPLITS.get(pre_tokenizer or "") == LLAMA3_SPLIT)
    bos = vocabulary.special("bos") if begins else None
    eos = vocabulary.special("eos") if vocabulary.flag("add_eos_token", False) else None
    surround(
        tokenizer,
        [] if bos is None else [(vocabulary.tokens[bos], bos)],
        [] if eos is None else [(vocabulary.tokens[eos], eos)],
    )


def surround(tokenizer: tokenizers.Tokenizer, before: list[tuple[str, int]], behind: list[tuple[str, int]]) -> None:
    """Have these (token, id) put before and behind every text that is encoded with special tokens."""
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single=[token for token, _ in before] + ["$A"] + [token for token, _ in behind],
        special_tokens=list(dict.fromkeys(before + behind)),
    )
