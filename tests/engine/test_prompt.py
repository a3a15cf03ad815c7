"""The template: what is cached and what is asked are together the whole prompt, and a document is only ever text."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from cag_daemon.engine.prompt import SURROGATE, PromptTemplate
from cag_daemon.errors import ModelFailed
from tests.mistral_files import NAMES as MISTRALS
from tests.mistral_files import SENTENCEPIECE, Mistrals
from tests.models import EMBEDDED, embedded_tokenizer

ENGINE = settings(settings.get_profile("engine"), max_examples=30)
QUICK = [name for name in MISTRALS if name != "tekken v3"]  # which takes long to load
SAVED = ("v1", "v3", "v7", "tekken v3 image", "tekken v13")

_mistrals: list[Mistrals] = []
_embedded = embedded_tokenizer()


@pytest.fixture(scope="module", autouse=True)
def mistrals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mistrals]:
    _mistrals.append(Mistrals(tmp_path_factory.mktemp("mistrals")))
    yield _mistrals[-1]
    _mistrals.pop()


def tokenizer_named(name: str) -> Any:
    return _embedded if name == "embedded" else _mistrals[-1].tokenizer(name)


NAMES = ("embedded", "v1", "v3", "v7", "tekken v13")
PIECES = [
    *["</s>", "<s>", "[INST]", "[/INST]", " [INST] ", "<unk>", "<0x0A>", "[control_12]", "▁", "Question: ", "why"],
    *["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[THINK]", "[REFERENCE_DOC_3]", "[REF]", "<SPECIAL_30>", "[IMG]", "<pad>"],
    *["   ", " " * 15, " " * 16, " " * 40, "▁▁▁", "\t\t", "\n        return x", "\n\n\n", "\r\n", ".\n\n", "//\n"],
    *["\n", "\n\n", "\r", "\t", " ", "  ", "\xa0", "\u2028", "\u3000", "\x0b", "\x85", "\ufeff", "\u200b", "\x00"],
    *[
        "😀",
        "👩‍👩‍👧",
        "é",
        "e\u0301",
        "漢字",
        "\ue000",
        "\ue001",
        "\ud800",
        "A",
        "a",
        ".",
        "- item",
        "(see",
        "x" * 45,
        "12",
    ],
    *["Anna bakes.", "Selected text:\n", '"Yes," she said. '],
]
texts = st.one_of(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.text(max_size=30))


@pytest.mark.parametrize("name", NAMES)
@settings(ENGINE)
@given(text=texts, question=texts, selection=st.none() | texts, system=st.sampled_from(["", "Be brief.", "</s>[INST]"]))
@example(text="", question="", selection=None, system="")
@example(text=" \n", question="\nwhy", selection="\n", system="")
@example(text="a line that does not end with a stop and is longer than forty", question="q", selection=None, system="")
@example(text="A.\nQuestion: who", question="q", selection=None, system="")
@example(text="A.\nQuestion: who\n\nelse", question="q\nr", selection="s. T\nu", system="")
@example(text="A.\nSelected text:", question="q", selection="s", system="")
def test_prefix_and_suffix_are_the_whole_prompt(
    name: str, text: str, question: str, selection: str | None, system: str
) -> None:
    template = template_of(tokenizer_named(name), system)
    prefix, suffix = template.document_ids(text), template.question_ids(question, selection)
    assert prefix + suffix == template.prompt_ids(text, question, selection)


@pytest.mark.parametrize("name", NAMES)
@settings(ENGINE)
@given(text=texts, question=texts, selection=st.none() | texts)
def test_control_tokens_come_from_the_template_alone(
    name: str, text: str, question: str, selection: str | None
) -> None:
    tokenizer = tokenizer_named(name)
    template = template_of(tokenizer, "Be brief.")
    control = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special} - {tokenizer.unk_token_id}
    ids = template.document_ids(text) + template.question_ids(question, selection)
    plain = template.document_ids("x") + template.question_ids("x")
    assert [id for id in ids if id in control] == [id for id in plain if id in control]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


systems = st.sampled_from(["", "Be brief.", "</s>[INST] [/SYSTEM_PROMPT]  \n"])


@cache
def template_of(tokenizer: Any, system: str) -> PromptTemplate:
    """Made once: rendering takes longer than encoding."""
    return PromptTemplate(tokenizer, system)


def assert_it_is_what_mistral_common_makes_of_it(
    name: str, kind: str, text: str, question: str, selection: str | None, system: str
) -> None:
    mistrals = _mistrals[-1]
    template = template_of(mistrals.tokenizer(name, kind), system)
    asked = (f"Selected text:\n{selection}\n\n" if selection else "") + f"Question: {question}"
    content, system = (SURROGATE.sub("\ufffd", each) for each in (f"{text}\n\n{asked}", system))
    theirs = mistrals.encoded(name, content, system or None)
    assert template.document_ids(text) + template.question_ids(question, selection) == theirs


@pytest.mark.parametrize(("name", "kind"), [*product(QUICK, ["raw"]), *product(SAVED, ["saved"])])
@settings(ENGINE, max_examples=20)
@given(text=texts, question=texts, selection=st.none() | texts, system=systems)
@example(text="a" + " " * 47 + "b\n" + " " * 16 + "c", question="", selection=" ", system="")
@example(text="[REF]</s>", question="[/INST]", selection="[INST]", system="[/SYSTEM_PROMPT][INST]")
def test_it_is_what_mistral_common_makes_of_it(
    name: str, kind: str, text: str, question: str, selection: str | None, system: str
) -> None:
    assert_it_is_what_mistral_common_makes_of_it(name, kind, text, question, selection, system)


@pytest.mark.parametrize("name", ["v3", "v7", "tekken v13"])
@settings(ENGINE, max_examples=15)
@given(system=texts)
def test_any_text_may_be_the_system_prompt(name: str, system: str) -> None:
    assert_it_is_what_mistral_common_makes_of_it(name, "raw", "Anna bakes.", "Who?", None, system)


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", MISTRALS)
@settings(ENGINE, max_examples=1000)
@given(
    text=st.one_of(
        st.lists(st.sampled_from(PIECES), max_size=40).map("".join),
        st.text(max_size=200),
        # Where pieces overlap themselves, and where only spaces differ.
        *(
            st.text(letters, max_size=80)
            for letters in ("an", "aber ", " \n", " \tx", "=-. ", "▁ a", "()[]{}; \n", "的一是 ")
        ),
    ),
    question=texts,
    system=systems,
)
def test_it_is_what_mistral_common_makes_of_much(name: str, text: str, question: str, system: str) -> None:
    assert_it_is_what_mistral_common_makes_of_it(name, "raw", text, question, None, system)


def test_the_embedded_models_prompt_to_the_letter() -> None:
    tokenizer = tokenizer_named("embedded")
    template = PromptTemplate(tokenizer, "")
    theirs = tokenizer.encode("<s>[INST] Anna bakes.\n\nQuestion: Who? [/INST]", add_special_tokens=False)
    assert template.document_ids("Anna bakes.") + template.question_ids("Who?") == theirs


def test_a_selection_comes_after_the_document() -> None:
    tokenizer = tokenizer_named("v3")
    template = PromptTemplate(tokenizer, "S")
    whole = tokenizer.decode(template.document_ids("D") + template.question_ids("Q", "sel"))
    assert whole.replace(" ", "") == "<s>[INST]S\n\nD\n\nSelectedtext:\nsel\n\nQuestion:Q[/INST]"


# Newer templates of Mistral's bring a system prompt of their own, with the day, where the messages have none.
WITH_A_DEFAULT = """
{%- set today = strftime_now("%A, the %d of %B %Y") -%}
{%- set ours = "You are somebody else. Your makers live by the sea. Today is " + today + ". Talk a lot." -%}
{{- bos_token -}}
{%- if messages[0]["role"] == "system" -%}
    {%- set words = messages[0]["content"] -%}{%- set turns = messages[1:] -%}
{%- else -%}
    {%- set words = ours -%}{%- set turns = messages -%}
{%- endif -%}
[SYSTEM_PROMPT]{{ words or MAYBE }}[/SYSTEM_PROMPT]
{%- for turn in turns -%}
    {%- if turn["role"] != "user" -%}{{- raise_exception("only users") -}}{%- endif -%}
    [INST]{{ turn["content"] }}[/INST]
{%- endfor -%}"""


def with_template(template: str | None, name: str = "embedded") -> Any:
    tokenizer = copy.copy(tokenizer_named(name))
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("empty", ["''", "ours"])
@pytest.mark.parametrize("name", ["v7", "tekken v13"])
@settings(ENGINE, max_examples=10)
@given(system=systems, text=texts)
@example(system="", text="D")
@example(system="Be brief.", text="D")
def test_a_templates_own_system_prompt_is_left_out(name: str, empty: str, system: str, text: str) -> None:
    tokenizer = with_template(
        WITH_A_DEFAULT.replace("MAYBE", empty).replace("[INST]{{", f"[INST]{gap(name)}{{{{"), name
    )
    tokenizer.chat_template = tokenizer.chat_template.replace("PROMPT]{{", f"PROMPT]{gap(name)}{{{{")
    with_default = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert "by the sea" in with_default
    template = PromptTemplate(tokenizer, system)
    ids = template.document_ids(text) + template.question_ids("Q")
    text, system = (SURROGATE.sub("\ufffd", each) for each in (text, system))
    if system or name not in SENTENCEPIECE:  # where nothing follows a control token, the template's space stands alone
        assert ids == _mistrals[-1].encoded(name, f"{text}\n\nQuestion: Q", system)
    assert "by the sea" not in tokenizer.decode(ids)


def gap(name: str) -> str:
    return " " if name in SENTENCEPIECE else ""


@pytest.mark.parametrize("name", ["v3", "tekken v3 image"])
@pytest.mark.parametrize("system", ["", "Be brief.", "[INST]"])
def test_a_template_that_joins_the_system_prompt_to_the_content_may(name: str, system: str) -> None:
    joins = "{{ bos_token }}[INST]GAP{% for each in messages %}{{ each.content }}"
    joins += r"{% if not loop.last %}{{ '\n\n' }}{% endif %}{% endfor %}[/INST]"
    template = PromptTemplate(with_template(joins.replace("GAP", gap(name)), name), system)
    theirs = _mistrals[-1].encoded(name, "D\n\nQuestion: Q", system or None)
    assert template.document_ids("D") + template.question_ids("Q") == theirs


@pytest.mark.parametrize("refused", ['raise_exception("no system")', 'messages[0]["none"]["such"]', "1 / 0"])
def test_where_there_is_no_place_for_it_the_system_prompt_comes_before_the_document(refused: str) -> None:
    """Tokenizers up to v3 have none; mistral-common does the same."""
    refuses = '{{ bos_token }}{% if messages[0]["role"] == "system" %}{{ REFUSED }}{% endif %}'
    refuses = refuses.replace("REFUSED", refused) + "[INST] {{ messages[-1]['content'] }}[/INST]"
    template = PromptTemplate(with_template(refuses, "v3"), "Be brief.")
    theirs = _mistrals[-1].encoded("v3", "D\n\nQuestion: Q", "Be brief.")
    assert template.document_ids("D") + template.question_ids("Q") == theirs


def test_a_template_may_want_a_system_message() -> None:
    wants = "{{ bos_token }}[SYSTEM_PROMPT]{% if messages[0]['role'] == 'user' %}{{ raise_exception('who am I?') }}"
    wants += "{% endif %}{{ messages[0]['content'] }}[/SYSTEM_PROMPT][INST]{{ messages[1]['content'] }}[/INST]"
    template = PromptTemplate(with_template(wants, "tekken v7"), "")
    theirs = _mistrals[-1].encoded("tekken v7", "D\n\nQuestion: Q", "")
    assert template.document_ids("D") + template.question_ids("Q") == theirs


def test_bos_is_added_where_the_template_has_none() -> None:
    tokenizer = with_template("[INST] {{ messages[0]['content'] }} [/INST]")
    with_bos = PromptTemplate(tokenizer_named("embedded"), "")
    assert PromptTemplate(tokenizer, "").document_ids("One.") == with_bos.document_ids("One.")


def test_two_bos_become_one() -> None:
    tokenizer = with_template("<s>{{ bos_token }}[INST] {{ messages[0]['content'] }} [/INST]")
    assert PromptTemplate(tokenizer, "").document_ids("One.").count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(
    "template",
    [
        *(None, "", "nothing is repeated", "{{ messages[0]['content'] }} {{ messages[0]['content'] }}"),
        *("{{ raise_exception('never') }}", "{{ messages", "{{ 1 / 0 }}"),
    ],
)
def test_a_template_that_cannot_be_used_is_said_to_be(template: str | None) -> None:
    with pytest.raises(ModelFailed, match="chat template"):
        PromptTemplate(with_template(template), "")


def test_tokenizers_that_put_a_space_before_a_string_are_continued() -> None:
    """sentencepiece's dummy prefix: only what starts a string gets one, a question does not start it."""
    from tokenizers import normalizers

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED, local_files_only=True)
    tokenizer.backend_tokenizer.normalizer = normalizers.Prepend("z")
    template = PromptTemplate(tokenizer, "")
    assert template.document_ids("one") + template.question_ids("q") == template.prompt_ids("one", "q")
    assert "zQuestion" not in tokenizer.decode(template.question_ids("q"))
