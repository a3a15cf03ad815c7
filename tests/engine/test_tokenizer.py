"""The tokenizer of a model folder: from whichever files are there, with Mistral's ids, and with a chat template."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_daemon.engine.prompt import PromptTemplate
from cag_daemon.engine.tokenizer import TEMPLATES, load_tokenizer
from cag_daemon.errors import ModelFailed, ModelNotFound
from tests.mistral_files import NAMES, SENTENCEPIECE, TEKKEN, Mistrals, data, tekken
from tests.models import EMBEDDED, embedded_tokenizer

TEXT = "DON'T  say </s> [INST]\tto 12345 naïve 漢字 camelCase\n\n   I'll 😀 e\u0301 [/INST] __init__.py\r\n"
FIRST = "{{ bos_token }}[INST] {{ messages[0]['content'] }} [/INST] in the folder's own words"
NAMED = {"name": "tools", "template": "with tools"}
OTHER_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"


@pytest.fixture(scope="module")
def mistrals(tmp_path_factory: pytest.TempPathFactory) -> Mistrals:
    return Mistrals(tmp_path_factory.mktemp("mistrals"))


def ids(tokenizer: Any, system: str = "Be brief.") -> list[int]:
    template = PromptTemplate(tokenizer, system)
    return template.document_ids(TEXT) + template.question_ids("Q")


def theirs(mistrals: Mistrals, name: str, system: str = "Be brief.") -> list[int]:
    return mistrals.encoded(name, f"{TEXT}\n\nQuestion: Q", system)


def change_json(file: Path, change: Callable[[Any], object]) -> None:
    values = json.loads(file.read_text("utf-8"))
    change(values)
    file.write_text(json.dumps(values), "utf-8")


# ── the chat template ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [name for name in NAMES if name != "tekken v3"])  # large, and tested as a prompt
def test_the_template_is_of_the_files_version(mistrals: Mistrals, name: str) -> None:
    version = TEKKEN.get(name, name)
    ours = (resources.files("cag_daemon.engine") / "templates" / f"{TEMPLATES[version]}.jinja").read_text("utf-8")
    used = mistrals.tokenizer(name).chat_template
    assert used == (ours if name in SENTENCEPIECE else ours.replace('gap = " "', 'gap = ""'))


def test_every_template_belongs_to_a_version() -> None:
    folder = Path(str(resources.files("cag_daemon.engine") / "templates"))
    assert {file.stem for file in folder.iterdir()} == set(TEMPLATES.values())


def test_the_templates_take_one_turn(mistrals: Mistrals) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    for name in ("v1", "v3", "v7"):
        with pytest.raises(Exception, match="one turn"):
            mistrals.tokenizer(name).apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize("kind", ["raw", "saved"])
@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("chat_template.jinja", None),
        ("tokenizer_config.json", {"chat_template": FIRST}),
        (
            "tokenizer_config.json",
            {"chat_template": [NAMED, NAMED | {"name": "default", "template": FIRST}]},
        ),
        ("chat_template.json", {"chat_template": FIRST}),
    ],
)
def test_the_folders_own_template_comes_first(
    mistrals: Mistrals, tmp_path: Path, kind: str, file: str, values: dict[str, Any] | None
) -> None:
    folder = shutil.copytree(
        mistrals.raw("tekken v7") if kind == "raw" else mistrals.saved("tekken v7"), tmp_path / "model"
    )
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / file).write_text(FIRST if values is None else json.dumps(values))
    assert load_tokenizer(folder).chat_template == FIRST


@pytest.mark.parametrize("name", ["v1", "v3", "v7", "tekken v13"])
@pytest.mark.parametrize("scheme", ["first", "always"])
def test_a_tokenizer_json_without_template_gets_ours(
    mistrals: Mistrals, tmp_path: Path, name: str, scheme: str
) -> None:
    """Also where it puts a space behind each control token by itself, as some do."""
    folder = shutil.copytree(mistrals.saved(name), tmp_path / "Mistral-Instruct")
    (folder / "chat_template.jinja").unlink()
    if name in SENTENCEPIECE:
        change_json(folder / "tokenizer.json", lambda all: all["pre_tokenizer"].update(prepend_scheme=scheme))
    assert ids(load_tokenizer(folder)) == theirs(mistrals, name)


def test_where_nothing_tells_v3_from_v7_it_is_a_turn_of_both(mistrals: Mistrals, tmp_path: Path) -> None:
    folder = shutil.copytree(mistrals.saved("tekken v7"), tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    assert ids(load_tokenizer(folder)) == theirs(mistrals, "tekken v3 image")
    assert ids(load_tokenizer(folder), "") == mistrals.encoded("tekken v7", f"{TEXT}\n\nQuestion: Q")
    shutil.copy(mistrals.raw("tekken v7") / "tekken.json", folder)
    assert ids(load_tokenizer(folder)) == theirs(mistrals, "tekken v7")


def bare_v1(folder: Path) -> Path:
    folder.mkdir(parents=True)
    shutil.copy(data(SENTENCEPIECE["v1"]), folder / "tokenizer.model")
    return folder


def test_v1_without_its_version_is_an_instruct_model_if_it_is_called_so(mistrals: Mistrals, tmp_path: Path) -> None:
    cached = bare_v1(tmp_path / "models--mistralai--Mistral-7B-Instruct-v0.1" / "snapshots" / "0123abcd")
    named = bare_v1(tmp_path / "seven")
    (named / "config.json").write_text('{"_name_or_path": "mistralai/Mistral-7B-Instruct-v0.1"}')
    for folder in (bare_v1(tmp_path / "mistral-7b-INSTRUCT"), cached, named):
        assert ids(load_tokenizer(folder)) == theirs(mistrals, "v1")


def test_a_base_model_is_said_to_have_no_chat_template(tmp_path: Path) -> None:
    with pytest.raises(ModelFailed, match="has no chat template: choose an instruct model"):
        load_tokenizer(bare_v1(tmp_path / "instructions" / "Mistral-7B-v0.1"))


def test_a_version_without_template_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text(json.dumps(tekken("v15")))
    with pytest.raises(ModelFailed, match=r"\(a v15\) has no chat template: choose a model that has one"):
        load_tokenizer(tmp_path)


# ── the files ───────────────────────────────────────────────────────────────────────────────


def test_the_embedded_models_tokenizer_is_as_it_was() -> None:
    ours, before = load_tokenizer(EMBEDDED), embedded_tokenizer()
    assert ours.chat_template == before.chat_template
    assert ids(ours) == ids(before)
    assert ours.backend_tokenizer.to_str() == before.backend_tokenizer.to_str()


def test_of_several_files_the_first_is_read(mistrals: Mistrals, tmp_path: Path) -> None:
    """tokenizer.json, tekken.json, the newest version of tokenizer.model, and the one without a version."""
    folder = bare_v1(tmp_path / "instruct")
    for name, file in (("v1", "v1"), ("v3", "v3"), ("v7", "v7m1")):
        shutil.copy(data(SENTENCEPIECE[name]), folder / f"tokenizer.model.{file}")
    (folder / "tokenizer.model.vocab").write_text("something else")
    assert ids(load_tokenizer(folder)) == theirs(mistrals, "v7")
    shutil.copy(mistrals.raw("tekken v13") / "tekken.json", folder)
    assert ids(load_tokenizer(folder)) == theirs(mistrals, "tekken v13")
    shutil.copytree(mistrals.saved("v2"), folder, dirs_exist_ok=True)
    assert ids(load_tokenizer(folder)) == theirs(mistrals, "v2")


def with_other_words(folder: Path, version: str | None) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral3", "transformers_version": version}))
    change_json(
        folder / "tokenizer.json",
        lambda all: all["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": OTHER_WORDS}),
    )
    return folder


@pytest.mark.parametrize("version", [None, "4.57.1", "5.1.0"])
def test_words_are_split_as_mistral_does_where_the_file_does_not(
    mistrals: Mistrals, tmp_path: Path, version: str | None
) -> None:
    """Several tokenizer.json on the hub have another's pattern; transformers corrects some of them if it is told to."""
    folder = with_other_words(shutil.copytree(mistrals.saved("tekken v13"), tmp_path / "model"), version)
    assert ids(load_tokenizer(folder)) == theirs(mistrals, "tekken v13")


@pytest.mark.exhaustive
def test_so_are_those_of_a_whole_file_and_transformers_has_nothing_to_say(
    mistrals: Mistrals, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks at large ones only."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    folder = with_other_words(shutil.copytree(mistrals.saved("tekken v3"), tmp_path / "model"), "4.57.1")
    assert ids(load_tokenizer(folder)) == theirs(mistrals, "tekken v3")
    assert not caplog.records


def test_another_tokenizers_words_are_left_as_they_are(mistrals: Mistrals, tmp_path: Path) -> None:
    """The pattern is Mistral's where the control tokens are."""
    folder = shutil.copytree(mistrals.saved("tekken v13"), tmp_path / "model")

    def other(all: Any) -> None:
        all["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": OTHER_WORDS}
        all["model"]["vocab"]["<|start|>"] = all["model"]["vocab"].pop("[INST]")
        all["added_tokens"][3]["content"] = "<|start|>"

    change_json(folder / "tokenizer.json", other)
    assert (
        OTHER_WORDS
        in json.loads(load_tokenizer(folder).backend_tokenizer.to_str())["pre_tokenizer"]["pretokenizers"][0][
            "pattern"
        ].values()
    )


@pytest.mark.parametrize("name", ["v1", "v3", "tekken v13"])
@settings(settings.get_profile("engine"), max_examples=30)
@given(text=st.text(max_size=40))
def test_what_is_encoded_is_decoded(mistrals: Mistrals, name: str, text: str) -> None:
    tokenizer = mistrals.tokenizer(name)
    text = text.replace("▁", " ")
    encoded = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert tokenizer.decode(encoded, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text


def test_a_string_begins_with_one_bos(mistrals: Mistrals) -> None:
    """As the hub's files have it: the public core takes a tokenizer at its word."""
    for name in ("v1", "v3", "tekken v13"):
        tokenizer = mistrals.tokenizer(name)
        assert tokenizer("Anna bakes.").input_ids.count(tokenizer.bos_token_id) == 1
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_tokens_that_a_model_adds_are_control_tokens(mistrals: Mistrals, tmp_path: Path) -> None:
    folder = shutil.copytree(mistrals.raw("v3"), tmp_path / "model")
    config = {"added_tokens_decoder": {"2": {"content": "</s>"}, "32768": {"content": "<|im_start|>"}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "added_tokens.json").write_text('{"<|im_end|>": 32769}')
    chat = "{{ bos_token }}<|im_start|>{{ messages[0]['content'] }}<|im_end|>"
    (folder / "chat_template.jinja").write_text(chat)
    template = PromptTemplate(load_tokenizer(folder), "")
    assert template.document_ids("<|im_end|>").count(32769) == 0
    assert template.document_ids("x")[:2] == [1, 32768]
    assert template.question_ids("x")[-1] == 32769
    (folder / "added_tokens.json").write_text('{"<|im_end|>": 40000}')
    with pytest.raises(ModelFailed, match=r"leave a gap before <\|im_end\|>"):
        load_tokenizer(folder)


def test_nothing_of_mistral_common_sentencepiece_or_protobuf_is_needed(mistrals: Mistrals, tmp_path: Path) -> None:
    folder = shutil.copytree(mistrals.saved("tekken v13"), tmp_path / "both")
    shutil.copy(mistrals.raw("tekken v13") / "tekken.json", folder)  # here transformers would choose mistral-common
    code = (
        "import sys, json; from pathlib import Path\n"
        "sys.modules.update(dict.fromkeys(('mistral_common', 'sentencepiece', 'google.protobuf', 'tiktoken')))\n"
        "from cag_daemon.engine.tokenizer import load_tokenizer\n"
        "from cag_daemon.engine.prompt import PromptTemplate\n"
        "for folder in sys.argv[2:]:\n"
        "    template = PromptTemplate(load_tokenizer(Path(folder)), 'Be brief.')\n"
        "    print(json.dumps(template.document_ids(sys.argv[1]) + template.question_ids('Q')))\n"
    )
    names = ("v1", "v3", "tekken v13")
    command = [sys.executable, "-c", code, TEXT, *(str(mistrals.raw(name)) for name in names), str(folder)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    expected = [theirs(mistrals, name) for name in (*names, names[-1])]
    assert [json.loads(line) for line in done.stdout.splitlines()] == expected


# ── what is wrong with a folder ─────────────────────────────────────────────────────────────


def test_a_folder_without_tokenizer_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"There is no tokenizer\.json in .*: download the model again"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("file", ["tokenizer.json", "tekken.json", "tokenizer.model.v3"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_a_file_that_is_cut_off_is_said_to_be(mistrals: Mistrals, tmp_path: Path, file: str, part: float) -> None:
    folders = {"tokenizer.json": mistrals.saved("v3"), "tekken.json": mistrals.raw("tekken v13")}
    whole = (folders.get(file, mistrals.raw("v3")) / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(ModelFailed, match=r"download the model again|tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\n", b"\xff" * 99, b"{}", b"[1]", b"\x00"]
)
@pytest.mark.parametrize("file", ["tokenizer.json", "tekken.json", "tokenizer.model"])
def test_a_file_that_is_something_else_is_said_to_be(tmp_path: Path, file: str, content: bytes) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ModelFailed) as raised:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in raised.value.message


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.trainer_spec, "model_type", 1),
        lambda model: setattr(model.trainer_spec, "byte_fallback", False),
        lambda model: setattr(model.normalizer_spec, "precompiled_charsmap", b"nfkc"),
        lambda model: setattr(model.normalizer_spec, "add_dummy_prefix", False),
        lambda model: setattr(model.normalizer_spec, "remove_extra_whitespaces", True),
        lambda model: model.normalizer_spec.ClearField("remove_extra_whitespaces"),
        lambda model: setattr(model.normalizer_spec, "escape_whitespaces", False),
    ],
)
def test_a_sentencepiece_file_that_is_not_mistrals_is_not_taken_for_one(
    tmp_path: Path, change: Callable[[Any], object]
) -> None:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(data(SENTENCEPIECE["v3"]).read_bytes())
    change(model)
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFailed, match=r"is no sentencepiece file of Mistral's: .*tokenizer\.json"):
        load_tokenizer(tmp_path)
