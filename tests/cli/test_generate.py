"""`interleaf generate` on the fake engine."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Run, Setup


@pytest.fixture
def setup(setup: Setup) -> Setup:
    setup.client.script = {"u:hi;a:": "hello there", "u:yo;a:": "what?", "hi": "raw answer", "s:be;u:hi;a:": "as told"}
    return setup


def test_the_answer_is_printed(run: Run, setup: Setup) -> None:
    assert run("generate", "hi") == (0, "hello there\n", "")
    assert setup.options == {}
    params = setup.client.requests[0].params
    assert (params.temperature, params.max_tokens) == (0, 57)
    assert setup.client.num_closed == 1


def test_raw_prompts_have_no_template(run: Run, setup: Setup) -> None:
    assert run("generate", "--raw", "hi")[1] == "raw answer\n"


def test_a_model_without_template_goes_on_from_the_bare_prompt(run: Run, setup: Setup) -> None:
    setup.tokenizer.chat_template = None
    assert run("generate", "hi")[1] == "raw answer\n"
    status, _, err = run("generate", "--system", "be", "hi")
    assert status == 1 and "no chat template" in err


def test_a_system_message(run: Run, setup: Setup) -> None:
    assert run("generate", "--system", "be", "hi")[1] == "as told\n"


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_standard_input(run: Run, setup: Setup, arguments: list[str]) -> None:
    assert run("generate", *arguments, stdin="hi\n")[1] == "hello there\n"


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["hi", "yo"], "=== hi\nhello there\n\n=== yo\nwhat?\n"),
        (["yo", "hi"], "=== yo\nwhat?\n\n=== hi\nhello there\n"),
        (["yo", "--n", "2"], "=== yo\nwhat?\n\n=== yo\nwhat?\n"),
    ],
)
def test_several_answers_come_in_order(run: Run, setup: Setup, arguments: list[str], printed: str) -> None:
    assert run("generate", *arguments) == (0, printed, "")


def test_flags_arrive(run: Run, setup: Setup) -> None:
    run("generate", "--max-tokens", "3", "--temperature", "0.5", "--seed", "7", "--block-size", "32", "hi")
    params = setup.client.requests[0].params
    assert (params.max_tokens, params.temperature, params.seed) == (3, 0.5, 7)
    assert setup.options == {"block_size": 32}


def test_json(run: Run, setup: Setup) -> None:
    status, out, _ = run("generate", "--json", "--logprobs", "1", "--prompt-logprobs", "0", "hi", "yo")
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and len(lines) == 2
    first = lines[0]
    assert (first["prompt"], first["text"], first["finish_reason"]) == ("u:hi;a:", "hello there", "stop")
    assert first["stop_reason"] is None and len(first["token_ids"]) == 12
    assert first["usage"] == {"prompt_tokens": 7, "completion_tokens": 12, "total_tokens": 19, "cached_tokens": 0}
    assert first["logprobs"][0][0] == {"token_id": ord("h"), "token": "h", "logprob": -2.0, "rank": 2}
    assert first["prompt_logprobs"][0] is None and len(first["prompt_logprobs"]) == 7


def test_json_with_several_answers(run: Run, setup: Setup) -> None:
    [line] = run("generate", "--json", "--n", "2", "yo")[1].splitlines()
    parsed = json.loads(line)
    assert [one["text"] for one in parsed["outputs"]] == ["what?", "what?"]
    assert parsed["usage"]["completion_tokens"] == 12


def test_json_without_text(run: Run, setup: Setup) -> None:
    parsed = json.loads(run("generate", "--json", "--no-detokenize", "yo")[1])
    assert parsed["text"] == "" and len(parsed["token_ids"]) == 6


@pytest.mark.parametrize(
    "arguments",
    [["--raw", "--system", "x"], ["--raw", "--chat-template", "x"], ["--logprobs", "1"], ["--prompt-logprobs", "1"],
     ["--no-detokenize"]],
)  # fmt: skip
def test_flags_that_would_be_ignored_are_refused(run: Run, setup: Setup, arguments: list[str]) -> None:
    assert run("generate", "hi", *arguments)[0] == 2
    assert setup.options is None


@pytest.mark.parametrize(
    "arguments", [["--temperature", "nan", "hi"], ["--n", "0", "hi"], ["--max-tokens", "0", "hi"], [""], []]
)
def test_bad_input_is_found_before_a_model_is_loaded(run: Run, setup: Setup, arguments: list[str]) -> None:
    status, out, err = run("generate", *arguments)
    assert (status, out) == (1, "") and err.startswith("interleaf: error: ") and err.count("\n") == 1
    assert setup.options is None


def test_a_prompt_over_the_context(run: Run, setup: Setup) -> None:
    status, _, err = run("generate", "x" * 100)
    assert status == 1 and "context" in err
    assert setup.client.requests == []
