"""From `StructuredOutputsParams` to a grammar in the language of the llguidance library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from interleaf.errors import GrammarError
from interleaf.frontend.closed_schema import closed_schema
from interleaf.frontend.lark import lark_of, literal, parsed_json, regex
from interleaf.frontend.structural_tag import structural_tag_grammar
from interleaf.structured_params import StructuredOutputsParams

MAX_SOURCE_CHARACTERS = 1 << 20
WHITESPACE = r"[ \n\r\t]{1,40}"
"""Between the parts of JSON. A limit keeps models, small ones above all, from writing blanks until their tokens end."""

SUBJECTS = {
    "json": "JSON schema",
    "json_object": "JSON object",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
    "structural_tag": "structural tag",
}
"""What error messages call them."""


def grammar_source(params: StructuredOutputsParams, special_tokens: Mapping[str, int]) -> str:
    """The grammar, which may yet turn out to be wrong when it is compiled.

    Args:
        special_tokens: their spelling -> their id; where a structural tag writes one, the token is meant.

    Raises:
        GrammarError: it cannot be written.
    """
    kind = params.constraint
    grammars: list[dict[str, Any]]
    if kind == "json":
        grammars = [{"json_schema": json_schema(parsed_json("json", params.json), params)}]
    elif kind == "json_object":
        grammars = [{"json_schema": json_schema({"type": "object"}, params)}]
    elif kind == "regex":
        grammars = [{"lark_grammar": f"start: {regex(params.regex or '')}"}]
    elif kind == "choice":
        choices = " | ".join(literal(choice) for choice in dict.fromkeys(params.choice or ()))
        grammars = [{"lark_grammar": f"start: {choices}"}]
    elif kind == "grammar":
        grammars = [{"lark_grammar": lark_of(params.grammar or "")}]
    else:
        tag = parsed_json("structural_tag", params.structural_tag)
        grammars = structural_tag_grammar(tag, special_tokens, lambda schema: json_schema(schema, params))
    try:
        source = json.dumps({"grammars": grammars}, ensure_ascii=False, allow_nan=False)
        source.encode()
    except ValueError as error:
        raise GrammarError(f"The {SUBJECTS[kind]} has a number or a text that JSON does not have: {error}.") from None
    if len(source) > MAX_SOURCE_CHARACTERS:
        raise GrammarError(f"The {SUBJECTS[kind]} is too large: it makes a grammar of {len(source)} characters.")
    return source


def json_schema(schema: Any, params: StructuredOutputsParams) -> dict[str, Any]:
    """A schema with the options for the library; what it says to the library itself goes first.

    Raises:
        GrammarError: it is neither an object nor a truth value, or nested too deeply.
    """
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    if not isinstance(schema, dict):
        raise GrammarError("A JSON schema must be an object, true or false.", "json")
    if params.disable_additional_properties:
        schema = closed_schema(schema)
    options: dict[str, Any] = {"whitespace_pattern": params.whitespace_pattern or WHITESPACE}
    if params.disable_any_whitespace:
        options = {"whitespace_flexible": False}
    own = schema.get("x-guidance")
    return {**schema, "x-guidance": {**options, **own} if isinstance(own, dict) else options}
