"""Structured output offline: what comes out fits what was asked, and is the same bits however it is run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from interleaf import LLM, GuidedDecodingParams, SamplingParams, StructuredOutputsParams
from interleaf.errors import GrammarError, ParameterError
from interleaf.params import BeamSettings
from tests.json_schemas import WRITTEN, drawn
from tests.loader import tiny
from tests.test_same_bits import block_bytes, essence

CACHE_BYTES = 1 << 25
PROMPT = "The quick brown fox"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_qwen3(tmp_path_factory.mktemp("structured"), num_hidden_layers=2)


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[LLM]:
    with LLM(model, kv_cache_memory_bytes=CACHE_BYTES) as llm:
        yield llm


def asked(seed: int = 0, max_tokens: int = 250, **structure: Any) -> SamplingParams:
    structured = StructuredOutputsParams(**structure)
    return SamplingParams(temperature=1.0, seed=seed, max_tokens=max_tokens, structured_outputs=structured)


def complete_texts(llm: LLM, params: list[SamplingParams]) -> list[tuple[int, str]]:
    """(number, text) of those that were not cut off."""
    outputs = llm.generate([PROMPT] * len(params), params, use_tqdm=False)
    for output in outputs:
        assert output.outputs[0].finish_reason in ("stop", "length"), output
    return [
        (i, output.outputs[0].text) for i, output in enumerate(outputs) if output.outputs[0].finish_reason == "stop"
    ]


def check_json(schema: dict[str, Any], text: str) -> None:
    jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)


def test_every_json_schema_is_followed(llm: LLM) -> None:
    schemas = [*WRITTEN, *(drawn(seed) for seed in range(200 - len(WRITTEN)))]
    for schema in schemas:
        jsonschema.Draft202012Validator.check_schema(schema)
    found = complete_texts(llm, [asked(i, json=one, disable_any_whitespace=i % 3 > 0) for i, one in enumerate(schemas)])
    for i, text in found:
        check_json(schemas[i], text)
    assert len(found) > 0.9 * len(schemas)


def test_the_real_model_follows_schemas(builtin_gguf: Path) -> None:
    schemas = [*WRITTEN[:8], *(drawn(seed) for seed in range(8))]
    with LLM(kv_cache_memory_bytes=1 << 28) as real:
        params = [asked(i, 100, json=schema) for i, schema in enumerate(schemas)]
        found = complete_texts(real, params)
    for i, text in found:
        check_json(schemas[i], text)
    assert len(found) > 0.6 * len(schemas)


@pytest.mark.parametrize(
    "pattern",
    [
        r"\d{3}-[a-f]+",
        r"^(yes|no)$",
        r"[^\n]{1,20}",
        r"a*b?(c|d){2,3}",
        r"(?i:hello) wörld!?",
        "",
        r"\w{1,9}@\w{1,9}\.(com|org)",
    ],
)
def test_every_regex_is_matched(llm: LLM, pattern: str) -> None:
    found = complete_texts(llm, [asked(seed, regex=pattern) for seed in range(4)])
    assert found
    for _, text in found:
        assert re.fullmatch(pattern, text), text


def test_choices(llm: LLM) -> None:
    choices = ["yes", "no", "yes and no", "ja 😀", 'quo"te\\', "1\n2"]
    texts = [text for _, text in complete_texts(llm, [asked(seed, choice=choices) for seed in range(24)])]
    assert len(texts) == 24 and set(texts) <= set(choices) and len(set(texts)) > 2


LARK = """
?start: sum
sum: NUMBER | sum "+" NUMBER
NUMBER: /[1-9][0-9]{0,2}/
"""
GBNF = """
root ::= number ("+" number)*
number ::= [1-9] [0-9]? [0-9]?
"""


@pytest.mark.parametrize("grammar", [LARK, GBNF], ids=["lark", "gbnf"])
def test_grammars(llm: LLM, grammar: str) -> None:
    found = complete_texts(llm, [asked(seed, grammar=grammar) for seed in range(6)])
    assert found
    for _, text in found:
        assert re.fullmatch(r"[1-9]\d{0,2}(\+[1-9]\d{0,2})*", text), text


def test_json_objects_and_whitespace(llm: LLM) -> None:
    for _, text in complete_texts(llm, [asked(seed, json_object=True) for seed in range(4)]):
        assert isinstance(json.loads(text), dict)
    schema = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9, "minimum": 0}}, "required": ["a"]}
    compact = [asked(s, json=schema, disable_any_whitespace=True) for s in range(4)]
    for _, text in complete_texts(llm, compact):
        assert re.fullmatch(r'\{"a":\d\}', text)
    spaced = [asked(s, json=schema, whitespace_pattern=" ") for s in range(4)]
    for _, text in complete_texts(llm, spaced):
        assert re.fullmatch(r'\{ ?"a" ?: ?\d ?\}', text)


def test_the_older_name(llm: LLM) -> None:
    params = SamplingParams(guided_decoding=GuidedDecodingParams(choice=["Positive", "Negative"]))
    [output] = llm.generate(PROMPT, params, use_tqdm=False)
    assert output.outputs[0].text in ("Positive", "Negative")


def test_beside_other_parameters(llm: LLM) -> None:
    """Everything else that changes logits may forbid what it likes: the grammar has the last word."""
    digit = tiny.byte_level_bpe().token_to_id("7")
    for other in (
        {"min_tokens": 20},
        {"allowed_token_ids": [digit]},
        {"logit_bias": {digit: 100.0}},
        {"bad_words": ["7"], "repetition_penalty": 1.5, "frequency_penalty": 1.0},
        {"ignore_eos": True},
        {"top_k": 1, "min_p": 0.5},
        {"stop_token_ids": [digit]},
    ):
        params = SamplingParams(
            temperature=1.0,
            max_tokens=30,
            logprobs=3,
            structured_outputs=StructuredOutputsParams(regex="[0-9]{3,5}"),
            **other,
        )
        [output] = llm.generate(PROMPT, params, use_tqdm=False)
        [sequence] = output.outputs
        if "stop_token_ids" in other:
            assert re.fullmatch("[0-9]{0,5}", sequence.text)
        else:
            assert re.fullmatch("[0-9]{3,5}", sequence.text), (other, sequence.text)
        assert sequence.logprobs is not None and len(sequence.logprobs) == len(sequence.token_ids)
        if "min_tokens" in other:
            assert len(sequence.token_ids) >= 20


def test_logprobs_are_of_the_model_not_of_the_grammar(llm: LLM) -> None:
    structured = StructuredOutputsParams(regex="[xyz]{4}")
    params = SamplingParams(temperature=0, logprobs=1, max_tokens=8, structured_outputs=structured)
    [held] = llm.generate(PROMPT, params, use_tqdm=False)
    [free] = llm.generate(PROMPT, SamplingParams(temperature=0, logprobs=1, max_tokens=1), use_tqdm=False)
    assert held.outputs[0].logprobs is not None and free.outputs[0].logprobs is not None
    best = free.outputs[0].token_ids[0]
    assert held.outputs[0].logprobs[0][best] == free.outputs[0].logprobs[0][best]


@pytest.mark.parametrize(
    ("structure", "param", "reason"),
    [
        ({"json": {"type": "strin"}}, "json", "JSON schema.*strin"),
        ({"json": '{"type": '}, "json", "not valid JSON"),
        ({"json": "[]"}, "json", "object"),
        ({"json": {"maximum": float("nan")}}, "json", "number"),
        ({"regex": "a("}, "regex", "regex.*unclosed"),
        ({"choice": ["\ud800"]}, "choice", "Unicode"),
        ({"grammar": "root ::= ("}, "grammar", "GBNF"),
        ({"grammar": "start: nothing"}, "grammar", "unknown name"),
        ({"structural_tag": {"type": "structural_tag"}}, "structural_tag", "format"),
        ({"whitespace_pattern": "(", "json_object": True}, "json_object", "regex"),
    ],
)
def test_what_is_refused(llm: LLM, structure: dict[str, Any], param: str, reason: str) -> None:
    with pytest.raises(ParameterError, match=f"(?i){reason}") as caught:
        llm.generate([PROMPT, PROMPT], [SamplingParams(), asked(**structure)], use_tqdm=False)
    assert isinstance(caught.value, GrammarError)
    assert caught.value.param == param and str(caught.value).endswith(".") and "\n" not in str(caught.value)
    assert not llm.has_unfinished()


# ---- the same bits ----


def requests() -> list[tuple[str, SamplingParams]]:
    """Structured ones of each kind beside free ones, with and without logprobs and penalties."""
    structures: list[dict[str, Any] | None] = [
        *({"json": schema} for schema in WRITTEN[:8]),
        None,
        {"regex": r"\d{2,30}[a-z]*"},
        {"choice": ["the quick brown fox jumps", "the lazy dog", "numbers like 12345"]},
        {"grammar": LARK},
        None,
        {"json_object": True},
    ]
    work = []
    for i in range(42):
        structure = structures[i % len(structures)]
        params = SamplingParams(
            temperature=0.0 if i % 5 == 0 else 0.9,
            repetition_penalty=1.2 if i % 4 == 0 else 1.0,
            seed=100 + i,
            max_tokens=40,
            min_tokens=12 if i % 6 == 0 else 0,
            logprobs=2 if i % 3 == 0 else None,
            structured_outputs=None if structure is None else StructuredOutputsParams(**structure),
        )
        work.append((f"{PROMPT} {'jumps ' * (7 * i % 40)}{i}", params))
    return work


def run(llm: LLM, work: list[tuple[str, SamplingParams]]) -> list[Any]:
    prompts, params = zip(*work, strict=True)
    return [essence(output) for output in llm.generate(list(prompts), list(params), use_tqdm=False)]


@pytest.fixture(scope="module")
def expected(model: Path) -> list[Any]:
    """Every request alone, token by token."""
    work = requests()
    for _, params in work:
        params.speculative = False
    with LLM(model, kv_cache_memory_bytes=CACHE_BYTES, enable_prefix_caching=False) as llm:
        return [run(llm, [request])[0] for request in work]


MODES: list[dict[str, Any]] = [
    {},
    {"max_num_batched_tokens": 24},
    {"max_num_seqs": 3},
    {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1}},
]


@pytest.mark.parametrize("options", MODES)
def test_same_bits(model: Path, expected: list[Any], options: dict[str, Any]) -> None:
    with LLM(model, kv_cache_memory_bytes=CACHE_BYTES, **options) as llm:
        for _ in range(2 if not options else 1):  # Cold, then with every prefix cached.
            assert run(llm, requests()) == expected


def test_same_bits_under_preemption(model: Path, expected: list[Any]) -> None:
    with LLM(model, max_model_len=160, kv_cache_memory_bytes=14 * block_bytes(model)) as llm:
        assert run(llm, requests()) == expected
        assert llm.client.stats().num_preemptions > 10


@pytest.mark.parametrize("options", [{}, {"max_num_seqs": 2}, {"max_num_batched_tokens": 20}])
def test_forks_are_requests_with_the_derived_seeds(model: Path, options: dict[str, Any]) -> None:
    structured = StructuredOutputsParams(json=WRITTEN[1])
    common: dict[str, Any] = {"temperature": 0.9, "max_tokens": 50, "logprobs": 1, "structured_outputs": structured}
    with LLM(model, kv_cache_memory_bytes=CACHE_BYTES, **options) as llm:
        together = run(llm, [(PROMPT, SamplingParams(n=3, seed=5, **common))])[0][0]
        assert together == [run(llm, [(PROMPT, SamplingParams(seed=5 + i, **common))])[0][0][0] for i in range(3)]
        assert len({tuple(tokens) for tokens, _ in together}) > 1


def test_forced_tokens_take_no_steps_of_their_own(llm: LLM) -> None:
    text = 'A sentence that is known before it is written, and "quoted".'
    schema = {"type": "object", "properties": {"a": {"const": text}}, "required": ["a"], "additionalProperties": False}
    steps, tokens = {}, {}
    for speculative in (None, False):
        params = asked(json=schema, disable_any_whitespace=True)
        params.speculative = speculative
        before = llm.client.stats().num_steps
        [output] = llm.generate(PROMPT, params, use_tqdm=False)
        steps[speculative], tokens[speculative] = llm.client.stats().num_steps - before, output.outputs[0].token_ids
        assert json.loads(output.outputs[0].text) == {"a": text}
    assert tokens[None] == tokens[False]
    assert steps[False] == len(tokens[False]) > 3 * steps[None]
    assert llm.client.stats().num_draft_tokens == 0


@pytest.mark.parametrize("blocks", [None, 14])
def test_beam_search_stays_in_the_grammar_and_keeps_its_bits(model: Path, llm: LLM, blocks: int | None) -> None:
    numbers = SamplingParams(
        n=3,
        logprobs=0,
        max_tokens=40,
        beam=BeamSettings(4),
        structured_outputs=StructuredOutputsParams(regex="[a-f]{3}(-[0-9]{2}){1,9}"),
    )
    prompts = [PROMPT + " jumps" * i for i in range(6)]
    alone = [essence(llm.generate([prompt], numbers, use_tqdm=False)[0]) for prompt in prompts]
    budget = CACHE_BYTES if blocks is None else blocks * block_bytes(model)
    with LLM(model, max_model_len=96, kv_cache_memory_bytes=budget) as tight:
        outputs = tight.generate(prompts, numbers, use_tqdm=False)
        assert (tight.client.stats().num_preemptions > 0) == (blocks is not None)
    assert [essence(output) for output in outputs] == alone
    for output in outputs:
        texts = [one.text for one in output.outputs]
        assert len(set(texts)) == 3
        assert all(re.fullmatch("[a-f]{3}(-[0-9]{2}){1,9}", text) for text in texts)
