"""The tokenizer: text to token ids and back, under the names that Transformers' tokenizers have.

It wraps the `tokenizers` library and is built from a model directory or from a GGUF file's
metadata. Transformers is only asked, where it is installed, to convert directories that have
nothing but a SentencePiece model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from interleaf.errors import CheckpointNotFoundError, CorruptCheckpointError, RequestError, UnsupportedModelError
from interleaf.frontend.chat_template import render_chat
from interleaf.frontend.token_bytes import TokenBytes
from interleaf.loader import gguf_tokenizer, hub
from interleaf.loader.checkpoint import Checkpoint, TokenizerSource, locate, read_json
from interleaf.loader.gguf import read_gguf

if TYPE_CHECKING:
    import tokenizers

SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class Tokenizer:
    """Text to token ids and back.

    Args:
        backend: the `tokenizers.Tokenizer` that does the work.
        special_tokens: `bos_token` and the like -> the token.
        chat_templates: name -> Jinja template; "default" is the one that is used, "tool_use" the
            one for requests with tools.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str], chat_templates: Mapping[str, str]
    ) -> None:
        self.backend = backend
        self.special_tokens_map = dict(special_tokens)
        self.chat_templates = dict(chat_templates)

    # Tokens and ids

    def __len__(self) -> int:
        """Tokens, added ones included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    @property
    def vocab_size(self) -> int:
        """Tokens, without those added to the vocabulary."""
        return int(self.backend.get_vocab_size(with_added_tokens=False))

    def get_vocab(self) -> dict[str, int]:
        return dict(self.backend.get_vocab(with_added_tokens=True))

    @property
    def bos_token(self) -> str | None:
        return self.special_tokens_map.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        return self.special_tokens_map.get("eos_token")

    @property
    def pad_token(self) -> str | None:
        return self.special_tokens_map.get("pad_token")

    @property
    def unk_token(self) -> str | None:
        return self.special_tokens_map.get("unk_token")

    @property
    def bos_token_id(self) -> int | None:
        return self._special_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._special_id("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        return self._special_id("pad_token")

    @property
    def unk_token_id(self) -> int | None:
        return self._special_id("unk_token")

    def _special_id(self, name: str) -> int | None:
        token = self.special_tokens_map.get(name)
        return None if token is None else self.backend.token_to_id(token)

    @cached_property
    def special_id_set(self) -> frozenset[int]:
        """Ids that `skip_special_tokens` leaves out."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @property
    def special_tokens(self) -> dict[str, int]:
        """The special tokens as they are spelled, and their ids."""
        return {token: token_id for token_id in self.all_special_ids if (token := self.backend.id_to_token(token_id))}

    @property
    def all_special_ids(self) -> list[int]:
        return sorted(self.special_id_set)

    @cached_property
    def token_bytes(self) -> TokenBytes | None:
        """The bytes of each token, where tokens have bytes of their own."""
        return TokenBytes.of(self.backend)

    @overload
    def convert_ids_to_tokens(self, ids: int) -> str | None: ...
    @overload
    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]: ...
    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> str | list[str | None] | None:
        """The vocabulary's spelling of one or more ids; None for an id that has no token."""
        if isinstance(ids, int):
            return self.backend.id_to_token(ids) if ids >= 0 else None
        return [self.convert_ids_to_tokens(token_id) for token_id in ids]

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int | None]: ...
    def convert_tokens_to_ids(self, tokens: str | list[str]) -> int | list[int | None] | None:
        """The ids of one or more tokens; the unknown token's id (None if there is none) for any other string."""
        if isinstance(tokens, str):
            found = self.backend.token_to_id(tokens)
            return self.unk_token_id if found is None else found
        return [self.convert_tokens_to_ids(token) for token in tokens]

    # Text to ids and back

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with the special tokens that the model wants around it.

        Raises:
            RequestError: the text is no sequence of Unicode characters.
        """
        try:
            return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)
        except (TypeError, UnicodeError):
            raise RequestError("The text is not valid Unicode.") from None

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """`encode` for several texts at once.

        Raises:
            RequestError: as `encode`.
        """
        try:
            found = self.backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeError):
            raise RequestError("One of the texts is not valid Unicode.") from None
        return [list(encoding.ids) for encoding in found]

    def decode(self, ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of one or more ids. Ids that have no token give no text.

        Raises:
            RequestError: an id is negative or no integer.
        """
        try:
            return str(self.backend.decode([ids] if isinstance(ids, int) else list(ids), skip_special_tokens))
        except (TypeError, OverflowError):
            raise RequestError("Token ids must be integers from 0.") from None

    # Chats

    @property
    def chat_template(self) -> str | None:
        """The template that is used unless a call names another."""
        return self.chat_templates.get("default")

    @chat_template.setter
    def chat_template(self, template: str) -> None:
        self.chat_templates = {"default": template}

    def get_chat_template(self, chat_template: str | None = None, tools: Sequence[Any] | None = None) -> str:
        """The template for a call: one of the model's by name, the given text, or the model's own.

        Raises:
            RequestError: none was given and the model has none.
        """
        if chat_template is not None:
            return self.chat_templates.get(chat_template, chat_template)
        if tools and "tool_use" in self.chat_templates:
            return self.chat_templates["tool_use"]
        if self.chat_template is None:
            raise RequestError("The model has no chat template: give one with --chat-template.", "messages")
        return self.chat_template

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        tokenize: Literal[False] = False,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> str: ...
    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        *,
        tokenize: Literal[True],
        continue_final_message: bool = False,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> list[int]: ...
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        tokenize: bool = False,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> str | list[int]:
        """Write a chat as the prompt that the model was trained on: text, or token ids if `tokenize`.

        Args:
            messages: dicts with a role and content.
            tools: JSON schemas of functions, for templates that describe them.
            add_generation_prompt: end with the start of an assistant's message.
            continue_final_message: leave the last message open; needs `add_generation_prompt=False`.
            chat_template: Jinja text, or the name of one of the model's templates.
            kwargs: further variables for the template.

        Raises:
            RequestError: there is no template, or it refuses the messages.
        """
        text = render_chat(
            self.get_chat_template(chat_template, tools),
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables={**self.special_tokens_map, **kwargs},
        )
        # Templates write the special tokens themselves.
        return self.encode(text, add_special_tokens=False) if tokenize else text


def load_tokenizer(source: Checkpoint | str | None, revision: str | None = None) -> Tokenizer:
    """Load the tokenizer of an opened checkpoint, or of whatever `open_checkpoint` accepts.

    A directory or hub model needs no weights for this.

    Raises:
        CheckpointNotFoundError: there is no such model, or it has no tokenizer.
        CorruptCheckpointError: the tokenizer's files are broken.
        UnsupportedModelError: it is of a kind that cannot be read.
    """
    if isinstance(source, Checkpoint):
        return _load(source.tokenizer_source)
    path = locate(source, revision, hub.TOKENIZER_FILES)
    return _load(read_gguf(path).metadata if path.is_file() else path)


def _load(source: TokenizerSource) -> Tokenizer:
    if isinstance(source, Path):
        return _from_directory(source)
    special = gguf_tokenizer.named_special_tokens(source)
    return Tokenizer(gguf_tokenizer.build_tokenizer(source), special, gguf_tokenizer.chat_templates(source))


def _from_directory(directory: Path) -> Tokenizer:
    config = _optional_json(directory / "tokenizer_config.json")
    named = _optional_json(directory / "special_tokens_map.json") | config
    special = {name: token for name in SPECIAL_TOKEN_NAMES if (token := _token_text(named.get(name)))}
    backend = _read_backend(directory)
    try:
        backend.no_padding()
        backend.no_truncation()
        _add_tokens(backend, config, [*special.values(), *_additional_tokens(named)])
        _surround(backend, config, special)
    except Exception as error:
        # The tokenizers library has no exception type of its own.
        raise CorruptCheckpointError(f"tokenizer_config.json does not fit tokenizer.json ({error}).") from None
    return Tokenizer(backend, special, _chat_templates(directory, config))


def _read_backend(directory: Path) -> tokenizers.Tokenizer:
    import tokenizers

    path = directory / "tokenizer.json"
    if path.is_file():
        try:
            return tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise CorruptCheckpointError(f"tokenizer.json cannot be read ({error}): fetch it again.") from None
    if not (directory / "tokenizer.model").is_file() and not (directory / "vocab.json").is_file():
        raise CheckpointNotFoundError(
            f"{directory} has no tokenizer.json: name a directory that has one with --tokenizer."
        )
    try:
        from transformers import AutoTokenizer

        converted = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
        return tokenizers.Tokenizer.from_str(converted.backend_tokenizer.to_str())
    except Exception:
        raise UnsupportedModelError(
            f"{directory} has no tokenizer.json, and Transformers, which could make one, is not installed or "
            f"failed: install transformers and sentencepiece, or name a directory that has it with --tokenizer."
        ) from None


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _token_text(token: Any) -> str | None:
    """A token is given as text or as an object with its text in "content"."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) and text else None


def _additional_tokens(config: Mapping[str, Any]) -> list[str]:
    listed = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    values = listed.values() if isinstance(listed, Mapping) else listed
    return [text for token in values if (text := _token_text(token))]


def _add_tokens(backend: tokenizers.Tokenizer, config: Mapping[str, Any], special: list[str]) -> None:
    """Add what tokenizer_config.json names beyond tokenizer.json; every named special token is special."""
    from tokenizers import AddedToken

    known = backend.get_added_tokens_decoder()
    declared = config.get("added_tokens_decoder") or {}
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    for token_id, token in sorted(declared.items(), key=lambda item: int(item[0])):
        if int(token_id) not in known and _token_text(token):
            options = {name: bool(token[name]) for name in flags if name in token}
            backend.add_tokens([AddedToken(token["content"], **options)])
    already = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    backend.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in dict.fromkeys(special) if text not in already]
    )


def _surround(backend: tokenizers.Tokenizer, config: Mapping[str, Any], special: Mapping[str, str]) -> None:
    """`add_bos_token` and `add_eos_token`, where they are given, overrule tokenizer.json."""
    if "add_bos_token" not in config and "add_eos_token" not in config:
        return

    def token(name: str) -> list[tuple[str, int]]:
        text = special.get(f"{name}_token")
        found = backend.token_to_id(text) if config.get(f"add_{name}_token") and text else None
        return [] if found is None or text is None else [(text, found)]

    gguf_tokenizer.surround(backend, token("bos"), token("eos"))


def _chat_templates(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name: from files of their own if there are any, else from tokenizer_config.json."""
    files = {"default": directory / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted(directory.glob("additional_chat_templates/*.jinja"))}
    found = {name: path.read_text(encoding="utf-8", errors="replace") for name, path in files.items() if path.is_file()}
    if found:
        return found
    given = config.get("chat_template") or _optional_json(directory / "chat_template.json").get("chat_template")
    if isinstance(given, str):
        return {"default": given}
    entries = [entry for entry in given or [] if isinstance(entry, Mapping)]
    return {
        entry["name"]: entry["template"]
        for entry in entries
        if isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)
    }
