"""What a request may ask its text to look like, under vLLM's names."""

from __future__ import annotations

from typing import Any

import msgspec

from interleaf.errors import ParameterError

MAX_GRAMMAR_CHARACTERS = 1 << 18
MAX_SCHEMA_DEPTH = 128
"""Objects and arrays inside one another in a JSON schema or a structural tag."""
MAX_SCHEMA_PARTS = 100_000
"""Values in one."""
CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


class StructuredOutputsParams(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What the generated text must look like; exactly one of the first six fields is set.

    The names are vLLM's. Types and sizes are checked when the object is made; whether a schema or a grammar
    makes sense is found when the request is processed. Both raise `ParameterError` with the field in `.param`.

    Fields:
        json: a JSON schema, as a mapping or as JSON text.
        regex: the whole text matches it.
        choice: the text is one of these.
        grammar: in Lark's notation (llguidance's dialect) or in GBNF, the EBNF of llama.cpp.
        json_object: any JSON object.
        structural_tag: free text with tagged structured parts: `{"structures": [{"begin", "schema", "end"}, ...],
            "triggers": [...]}` or `{"type": "structural_tag", "format": {...}}`, as a mapping or as JSON text.
        disable_any_whitespace: JSON without any space or line break between its parts.
        disable_additional_properties: objects whose schema lists properties and does not speak of further ones have
            none (`interleaf.frontend.closed_schema`); False takes the schema to the letter, which lets them have any.
        whitespace_pattern: a regex of what may stand between the parts of JSON.
    """

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | dict[str, Any] | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = True
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        given: object = self.choice
        if isinstance(given, tuple):
            self.choice = list(given)
        for name in ("regex", "grammar", "whitespace_pattern"):
            if not isinstance(getattr(self, name), str | None):
                raise ParameterError(f"{name} must be a text.", name)
        for name in ("json", "structural_tag"):
            _check_document(name, getattr(self, name))
        self._check_choice()
        for name in ("json_object", "disable_any_whitespace", "disable_additional_properties"):
            if not isinstance(getattr(self, name), bool) and not (name == "json_object" and self.json_object is None):
                raise ParameterError(f"{name} must be true or false.", name)
        self._check_sizes()
        named = [name for name in CONSTRAINTS if getattr(self, name) is not None and getattr(self, name) is not False]
        if len(named) != 1:
            found = "none is" if not named else f"{' and '.join(named)} are"
            raise ParameterError(
                f"Structured output takes exactly one of {', '.join(CONSTRAINTS)}, but {found} set.",
                "structured_outputs",
            )

    @staticmethod
    def from_optional(**fields: Any) -> StructuredOutputsParams | None:
        """Build from fields of which those that are None take their defaults; None if all are None."""
        given = {name: value for name, value in fields.items() if value is not None}
        return StructuredOutputsParams(**given) if given else None

    @property
    def constraint(self) -> str:
        """Which of the six is set."""
        return next(
            name for name in CONSTRAINTS if getattr(self, name) is not None and getattr(self, name) is not False
        )

    def _check_choice(self) -> None:
        if self.choice is not None and (
            not isinstance(self.choice, list)
            or not self.choice
            or not all(isinstance(choice, str) for choice in self.choice)
        ):
            raise ParameterError("choice must be a list of at least one text.", "choice")

    def _check_sizes(self) -> None:
        for name in ("json", "regex", "grammar", "structural_tag", "whitespace_pattern"):
            value = getattr(self, name)
            if isinstance(value, str) and len(value) > MAX_GRAMMAR_CHARACTERS:
                raise ParameterError(f"{name} is longer than {MAX_GRAMMAR_CHARACTERS} characters.", name)
        if sum(map(len, self.choice or ())) > MAX_GRAMMAR_CHARACTERS:
            raise ParameterError(f"choice has more than {MAX_GRAMMAR_CHARACTERS} characters.", "choice")


GuidedDecodingParams = StructuredOutputsParams
"""Its name in older releases of vLLM."""


def _check_document(name: str, value: Any) -> None:
    """A JSON document, as text or as a mapping that is not nested too deeply to be copied and sent."""
    if value is None or isinstance(value, str):
        return
    if not isinstance(value, dict):
        raise ParameterError(f"{name} must be a mapping or JSON text.", name)
    level: list[Any] = [value]
    num_parts = 0
    for _ in range(MAX_SCHEMA_DEPTH):
        num_parts += sum(map(len, level))
        if num_parts > MAX_SCHEMA_PARTS:
            raise ParameterError(f"{name} has more than {MAX_SCHEMA_PARTS} parts.", name)
        inner = [item.values() if isinstance(item, dict) else item for item in level]
        level = [item for items in inner for item in items if isinstance(item, (dict, list, tuple)) and item]
        if not level:
            return
    raise ParameterError(f"{name} is nested more than {MAX_SCHEMA_DEPTH} levels deep.", name)
