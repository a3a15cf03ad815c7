"""The template: what is cached and what is asked are together the whole prompt, and a document is only ever text."""

from __future__ import annotations

import json
import re
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from cag_daemon.engine.prompt import PromptTemplate
from cag_daemon.errors import ModelFailed
from tests.models import EMBEDDED, embedded_tokenizer

ENGINE = settings(settings.get_profile("engine"), max_examples=60)

# Mistral's own tokenizer files; the templates write down what mistral-common does. GAP is the space that sentencepiece
# puts before what starts a string: what transformers makes of such a file does so itself from 5.24 on, not before.
MISTRALS = {
    "v1": ("tokenizer.model.v1", "{{ bos_token }}GAP[INST] {{ messages[0]['content'] }} [/INST]"),
    "v3": (
        "mistral_instruct_tokenizer_240323.model.v3",
        "{{ bos_token }}[INST]GAP{{ messages[0]['content'] }}[/INST]",
    ),
}
_loaded: dict[str, Any] = {"embedded": embedded_tokenizer()}


def tokenizer_named(name: str, folder: Path | None = None) -> Any:
    return _loaded[name]


@pytest.fixture(scope="module", autouse=True)
def _mistrals(tmp_path_factory: pytest.TempPathFactory) -> None:
    for name, (file, template) in MISTRALS.items():
        folder = tmp_path_factory.mktemp(name)
        shutil.copy(str(resources.files("mistral_common") / "data" / file), folder / "tokenizer.model")
        values = {
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(values))
        (folder / "config.json").write_text('{"model_type": "mistral"}')
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        by_itself = tokenizer.tokenize("word")[0].startswith("▁")
        tokenizer.chat_template = template.replace("GAP", "" if by_itself else " ")
        _loaded[name] = tokenizer


NAMES = ("embedded", "v1", "v3")
PIECES = [
    *["</s>", "<s>", "[INST]", "[/INST]", " [INST] ", "<unk>", "<0x0A>", "[control_12]", "▁", "Question: ", "why"],
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

# transformers makes a fast tokenizer of a bare tokenizer.model without its scores: where spaces follow each other it
# merges them first, sentencepiece last. Mistral's own tokenizer.json has the right order. Not the template's business.
single_spaced = texts.map(lambda text: re.sub("[ ▁]+", " ", text.replace("\ud800", "")).strip(" "))


@pytest.mark.parametrize("name", NAMES)
@settings(ENGINE)
@given(text=texts, question=texts, selection=st.none() | texts, system=st.sampled_from(["", "Be brief.", "</s>[INST]"]))
@example(text="", question="", selection=None, system="")
@example(text=" \n", question="\nwhy", selection="\n", system="")
@example(text="a line that does not end with a stop and is longer than forty", question="q", selection=None, system="")
def test_prefix_and_suffix_are_the_whole_prompt(
    name: str, text: str, question: str, selection: str | None, system: str
) -> None:
    template = PromptTemplate(tokenizer_named(name), system)
    prefix, suffix = template.document_ids(text), template.question_ids(question, selection)
    assert prefix + suffix == template.prompt_ids(text, question, selection)


@pytest.mark.parametrize("name", NAMES)
@settings(ENGINE)
@given(text=texts, question=texts, selection=st.none() | texts)
def test_control_tokens_come_from_the_template_alone(
    name: str, text: str, question: str, selection: str | None
) -> None:
    tokenizer = tokenizer_named(name)
    template = PromptTemplate(tokenizer, "Be brief.")
    control = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special} - {tokenizer.unk_token_id}
    ids = template.document_ids(text) + template.question_ids(question, selection)
    plain = template.document_ids("x") + template.question_ids("x")
    assert [id for id in ids if id in control] == [id for id in plain if id in control]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("name", ["v1", "v3"])
@settings(ENGINE)
@given(text=single_spaced, question=single_spaced.filter(bool))
def test_it_is_what_mistral_common_makes_of_it(name: str, text: str, question: str) -> None:
    from mistral_common.protocol.instruct.messages import UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    reference = _loaded.setdefault(f"{name} reference", getattr(MistralTokenizer, name)())
    content = f"Be brief.\n\n{text}\n\nQuestion: {question}"
    theirs = reference.encode_chat_completion(ChatCompletionRequest(messages=[UserMessage(content=content)])).tokens
    template = PromptTemplate(tokenizer_named(name), "Be brief.")
    assert template.document_ids(text) + template.question_ids(question) == theirs


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


def with_template(template: str | None) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED, local_files_only=True)
    tokenizer.chat_template = template
    return tokenizer


def test_bos_is_added_where_the_template_has_none() -> None:
    tokenizer = with_template("[INST] {{ messages[0]['content'] }} [/INST]")
    with_bos = PromptTemplate(tokenizer_named("embedded"), "")
    assert PromptTemplate(tokenizer, "").document_ids("One.") == with_bos.document_ids("One.")


def test_two_bos_become_one() -> None:
    tokenizer = with_template("<s>{{ bos_token }}[INST] {{ messages[0]['content'] }} [/INST]")
    assert PromptTemplate(tokenizer, "").document_ids("One.").count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(
    "template", [None, "", "nothing is repeated", "{{ messages[0]['content'] }} {{ messages[0]['content'] }}"]
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
