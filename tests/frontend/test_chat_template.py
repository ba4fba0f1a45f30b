"""Chat templates as Transformers renders them, and what broken or hostile ones end in."""

from __future__ import annotations

from typing import Any

import pytest

from interleaf.errors import RequestError
from interleaf.frontend import chat_template
from interleaf.frontend.chat_template import render_chat

CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role not in ['user', 'assistant'] %}{{- raise_exception('Unknown: ' + message.role) }}{%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
TOOLS = """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- set ns.last = loop.index0 %}
    {%- if message.tool_calls %}
        {{- '<|im_start|>assistant' }}
        {%- for call in message.tool_calls %}
            {{- '\\n<tool_call>\\n' + call.function | tojson(indent=2) + '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- generation %}{{- '<|im_start|>assistant\\n' + message.content + '<|im_end|>\\n' }}{%- endgeneration %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{{- ns.last }}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
CHAT = [
    {"role": "system", "content": "  Be brief & <b>bold</b>. "},
    {"role": "user", "content": "Grüße, 日本! {{ 1 + 1 }}"},
    {"role": "assistant", "content": "Yes.  "},
    {"role": "user", "content": " And?\n"},
]
CALLED = [
    {"role": "user", "content": "Weather in Köln?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln <1>"}}}],
    },
    {"role": "tool", "content": '{"degrees": 20}'},
]
WEATHER = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "It's the <weather> & more",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
TOKENS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}


def transformers_renders(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template([messages], chat_template=template, **options)
    return str(rendered[0])


@pytest.mark.parametrize("template", [CHATML, SMOLLM, LLAMA3, TOOLS])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_equals_transformers(template: str, add_generation_prompt: bool) -> None:
    expected = transformers_renders(template, CHAT, add_generation_prompt=add_generation_prompt, **TOKENS)
    assert render_chat(template, CHAT, None, add_generation_prompt, variables=TOKENS) == expected


def test_tools_equal_transformers() -> None:
    expected = transformers_renders(TOOLS, CALLED, tools=WEATHER, add_generation_prompt=True, **TOKENS)
    assert render_chat(TOOLS, CALLED, WEATHER, variables=TOKENS) == expected
    assert "It's the <weather> & more" in expected and "Köln <1>" in expected


@pytest.mark.parametrize("template", [CHATML, SMOLLM, LLAMA3])
@pytest.mark.parametrize("ending", ["Well", "Well, ", "Well,\n\n"])
def test_continuing_equals_transformers(template: str, ending: str) -> None:
    chat = [*CHAT, {"role": "assistant", "content": ending}]
    expected = transformers_renders(template, chat, continue_final_message=True, **TOKENS)
    assert render_chat(template, chat, None, False, True, variables=TOKENS) == expected
    assert chat[-1]["content"] == ending


def test_continuing_parts() -> None:
    template = "{% for m in messages %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endfor %}END"
    chat = [{"role": "assistant", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
    assert render_chat(template, chat, None, False, True) == "[one][two"
    assert chat[0]["content"][1]["text"] == "two"  # type: ignore[index]


def test_variables_reach_the_template() -> None:
    template = "{{ bos_token }}{{ enable_thinking }}{{ strftime_now('%Y') | length }}{{ documents is none }}"
    assert render_chat(template, CHAT, variables={"bos_token": "<s>", "enable_thinking": False}) == "<s>False4True"


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("{% for %}", "not well-formed at line 1"),
        ("\n\n{{ a", "not well-formed at line 3"),
        ("{{ 'x' | nofilter }}", "nofilter"),
        ("{{ raise_exception('Only user messages.') }}", "Only user messages"),
        ("{{ messages[99].content }}", "does not take"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ messages + 1 }}", "does not take"),
        ("{{ nothing.at.all }}", "does not take"),
        ("{{ ().__class__.__base__.__subclasses__() }}", "does not take"),
        ("{{ messages.append(1) }}", "does not take"),
        ("{{ cycler.__init__.__globals__ }}", "does not take"),
        ("{% for i in range(10**9) %}x{% endfor %}", "does not take"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "does not take"),
        ("{{ messages | tojson(indent='x' * 3, sort_keys=cycler) }}{{ cycler | tojson }}", "does not take"),
        ("{% include 'secret' %}", "does not take"),
    ],
)
def test_bad_templates_are_the_requests_fault(template: str, word: str) -> None:
    with pytest.raises(RequestError, match=word) as caught:
        render_chat(template, CHAT)
    assert len(str(caught.value).splitlines()) == 1


def test_output_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_OUTPUT_CHARS", 1000)
    with pytest.raises(RequestError, match="more than 1000 characters"):
        render_chat("{% for i in range(90000) %}{% for j in range(90000) %}x{% endfor %}{% endfor %}", CHAT)


def test_templates_are_capped() -> None:
    with pytest.raises(RequestError, match="longer than"):
        render_chat("x" * (chat_template.MAX_TEMPLATE_CHARS + 1), CHAT)
    with pytest.raises(RequestError):
        render_chat("{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}", CHAT)


def test_templates_are_compiled_once() -> None:
    assert chat_template.compile_template(CHATML) is chat_template.compile_template(CHATML)


@pytest.mark.parametrize(
    ("messages", "options", "word"),
    [
        ([], {}, "must not be empty"),
        (CHAT, {"continue_final_message": True}, "exclude each other"),
        ([{"role": "user", "content": None}], {"continue_final_message": True, "add_generation_prompt": False}, "text"),
        ([{"role": "user", "content": [{}]}], {"continue_final_message": True, "add_generation_prompt": False}, "text"),
    ],
)
def test_bad_calls(messages: list[dict[str, Any]], options: dict[str, Any], word: str) -> None:
    with pytest.raises(RequestError, match=word):
        render_chat(CHATML, messages, **options)


def test_a_message_that_the_template_drops_cannot_be_continued() -> None:
    with pytest.raises(RequestError, match="leaves the last message out"):
        render_chat("{{ messages[0].content }}", CHAT, None, False, True)
