"""Chat templates: as transformers renders them, and never beyond their budget."""

from __future__ import annotations

import json
import struct
import tracemalloc
from datetime import datetime
from pathlib import Path

import pytest

from outrider.errors import InvalidRequest, ModelCorrupt, ModelError
from outrider.models import template
from outrider.models.source import resolve
from outrider.models.template import ChatTemplate

NOW = datetime(2026, 3, 4, 5, 6, 7)
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " <b>hi</b> \u00e9\n"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "more"},
]
CHATML = (
    "{% for message in messages %}\n"
    "    {%- if loop.first and message.role != 'system' %}{{ bos_token }}{% endif %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n' + message.content | trim }}"
    "{{ '<|im_end|>\\n' }}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}"
    "{% for message in rest %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token ~ '[INST] ' ~ message['content'] ~ ' [/INST]' }}"
    "{% else %}{{ ' ' ~ message['content'] ~ ' ' ~ eos_token }}{% endif %}{% endfor %}"
)
TOOLS = (
    "{%- macro show(tool, depth=0) -%}{{ tool | tojson }}{{ '-' * depth }}{%- endmacro -%}"
    "{%- set ns = namespace(last=none) -%}"
    "{%- for m in messages if m.role == 'user' -%}{%- set ns.last = loop.index -%}"
    "{%- if loop.length > 9 -%}{%- break -%}{%- endif -%}{%- endfor -%}"
    "{{ ns.last }}{{ strftime_now('%d %b %Y') }}{{ show(messages, 3) }}"
    "{% for key, value in {'b': 1, 'a': [1, 2]} | dictsort %}{{ key }}={{ value }};{% endfor %}"
    "{{ messages | map(attribute='role') | join(',') }}{{ 'a-b'.split('-')[-1].upper() }}"
    "{{ messages[1].content | replace('hi', 'ho') }}{% generation %}x{% endgeneration %}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    "{{ 'abc' is string and messages is iterable }}{{ messages | tojson(indent=2) | length }}"
    "{{ ('a\nb') | indent(2) }}{{ 7 // 2 + 2 ** 3 % 5 }}"
)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("source", [CHATML, LLAMA2, TOOLS])
@pytest.mark.parametrize("turn", ["assistant", "none"])
def test_rendered_as_transformers_does(source: str, turn: template.Turn) -> None:
    theirs = pytest.importorskip("transformers.utils.chat_template_utils")
    compiled = theirs._compile_jinja_template(source)
    expected = compiled.render(
        messages=MESSAGES,
        tools=None,
        documents=None,
        add_generation_prompt=turn == "assistant",
        **TOKENS,
    )
    today = datetime.now().strftime("%d %b %Y")
    found = ChatTemplate(source, TOKENS).render(MESSAGES, now=NOW, turn=turn)
    assert found.replace("04 Mar 2026", today) == expected


def test_the_plain_template() -> None:
    plain = ChatTemplate(None)
    assert plain.name == template.PLAIN
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    messages: list[template.Message] = [{"content": "x"}, {"role": "user", "content": parts}]
    assert plain.render(messages, now=NOW) == "x\n\nab"
    assert plain.render([{"role": "assistant", "content": None}], now=NOW) == ""


def test_a_template_can_refuse() -> None:
    strict = ChatTemplate(LLAMA2, TOKENS)
    with pytest.raises(InvalidRequest, match="alternate"):
        strict.render([{"role": "assistant", "content": "x"}], now=NOW)


def test_extra_switches_reach_the_template() -> None:
    found = ChatTemplate("{{ thinking }}{{ tools | length }}{{ messages | length }}")
    extra = {"thinking": "yes", "messages": "not these"}
    assert found.render(MESSAGES, now=NOW, tools=[{"name": "f"}], extra=extra) == "yes14"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(3) %}{% endfor %}{% endfor %}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for c in 'ab' * 200000 %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}"
        "{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}"
        "{% endfor %}",
        "{% set ns = namespace(x='aa') %}{% for i in range(64) %}"
        "{% set ns.x = ns.x.replace('a', ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='aa') %}{% for i in range(64) %}"
        "{% set ns.x = ns.x | replace('a', ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='aa') %}{% for i in range(64) %}"
        "{% set ns.x = [ns.x, ns.x] | join(ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='aa') %}{% for i in range(64) %}"
        "{% set ns.x = ns.x.join([ns.x, ns.x]) %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}"
        "{% endfor %}",
        "{% set ns = namespace(x=3) %}{% for i in range(64) %}{% set ns.x = ns.x * ns.x %}"
        "{% endfor %}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ [0] * 10 ** 10 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ 'a\nb' | indent(1000000000) | length }}{{ 1 // 0 }}",
        "{{ 'a' | tojson(indent=1000000000) }}",
        "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].clear() }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['x'] }}",
        "{{ nothing.there }}",
        "{{ strftime_now('%9999999d') | length // 0 }}",
        "{% set _outrider_budget = 1 %}{{ 'a' ~ 'b' }}",
    ],
)
def test_bad_templates_end_in_a_typed_error(source: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises((InvalidRequest, ModelError)) as caught:
            ChatTemplate(source).render(MESSAGES, now=NOW)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "Be brief" not in str(caught.value)
    assert peak < 400 << 20


@pytest.mark.parametrize(
    "source",
    [
        "{% for x in y %}",
        "{{ 'a' }",
        "{% for x in y recursive %}{{ loop(x) }}{% endfor %}",
        "{{ x | nosuchfilter }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "-" * 50000 + "1 }}",
        "a" * (template.MAX_SOURCE + 1),
    ],
)
def test_templates_that_do_not_compile(source: str) -> None:
    with pytest.raises(ModelCorrupt):
        ChatTemplate(source)


# --- where they come from ----------------------------------------------------------------------


def model(folder: Path) -> Path:
    source = resolve("bundled:draft")
    for path in (*source.weights, source.config, source.tokenizer_json):
        assert path is not None
        (folder / path.name).symlink_to(path)
    return folder


def test_the_bundled_models_have_none() -> None:
    assert template.load(resolve("bundled:target")).name == template.PLAIN


def test_sources(tmp_path: Path) -> None:
    folder = model(tmp_path)
    config = folder / "tokenizer_config.json"
    tokens = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": True}
    config.write_text(json.dumps(tokens | {"chat_template": "1{{ bos_token }}{{ eos_token }}"}))
    files = resolve(str(folder))
    assert template.load(files).render([], now=NOW) == "1<s></s>"
    named = [{"name": "tool_use", "template": "2"}, {"name": "default", "template": "3"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert template.load(files).render([], now=NOW) == "3"
    (folder / "chat_template.jinja").write_text("4")
    assert template.load(files).render([], now=NOW) == "4"
    config.write_text("[]")
    with pytest.raises(ModelCorrupt):
        template.load(files)


def test_a_gguf_brings_its_own(tmp_path: Path, gguf_data: bytes) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_data)
    assert template.load(resolve(str(path))).name == template.PLAIN
    key = b"tokenizer.chat_template"
    held = struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, 5) + b"hello"
    keys = struct.unpack_from("<Q", gguf_data, 16)[0]
    data = gguf_data[:16] + struct.pack("<Q", keys + 1) + held + gguf_data[24:]
    path.write_bytes(data + bytes(64))
    assert template.load(resolve(str(path))).render([], now=NOW) == "hello"


def test_odd_messages_end_in_a_typed_error() -> None:
    found = ChatTemplate("{{ messages[0].content + 'x' }}")
    with pytest.raises(InvalidRequest):
        found.render([{"role": "user", "content": 5}], now=NOW)
    with pytest.raises(InvalidRequest):
        found.render([], now=NOW)
