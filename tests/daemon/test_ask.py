"""``cag/ask``: streamed, answered, cited; the same question, the same answer."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.client import (
    CANCELLED,
    INVALID_PARAMS,
    Client,
    length16,
    slice16,
    squeezed,
    text_at,
    version_of,
)
from tests.daemon.conftest import Daemons
from tests.documents import BOOKSHOP, CAFE, GREENHOUSE, LIGHTHOUSE, Document
from tests.models import EMBEDDED

QUESTION, EXPECTED = "Where is the logbook kept?", "oak chest"


def check_citations(result: dict, text: str, uri: str) -> None:
    """Each span of the answer stands, white space aside, where its citation says; spans follow one another."""
    answer = result["answer"]
    ends = 0
    for citation in result["citations"]:
        assert citation["match"] == "exact"
        assert citation["location"]["uri"] == uri
        start, end = citation["answerRange"]
        assert ends <= start < end <= length16(answer)
        ends = end
        span = slice16(answer, start, end)
        assert len(span.strip()) >= 12, citation
        assert squeezed(text_at(text, citation["location"]["range"])) == squeezed(span)


def test_a_question_is_streamed_answered_and_cited(calm: Client) -> None:
    result = calm.ask(QUESTION, id="first").result()
    assert result["answer"] == "The logbook is kept in an oak chest beside the stove."
    assert result["finishReason"] == "stop"
    assert result["document"]["uri"] == calm.document.as_uri()
    assert result["document"]["version"] == version_of(LIGHTHOUSE.text)
    assert result["snapshot"] == "current"
    pieces = [each["params"]["text"] for each in calm.messages("cag/partial") if each["params"]["id"] == "first"]
    assert len(pieces) >= 3, "an answer comes in pieces"
    (citation,) = result["citations"]
    assert citation["answerRange"] == [0, len(result["answer"])]
    assert text_at(LIGHTHOUSE.text, citation["location"]["range"]) == result["answer"]
    check_citations(result, LIGHTHOUSE.text, calm.document.as_uri())


def test_every_question_about_the_document_is_answered_truly(calm: Client) -> None:
    for question, expected in LIGHTHOUSE.pairs:
        result = calm.ask(question).result()
        assert expected in result["answer"], question
        assert result["citations"], question
        check_citations(result, LIGHTHOUSE.text, calm.document.as_uri())


def test_the_counts_of_an_answer_fit_together(calm: Client) -> None:
    short, long = calm.ask("Who?").result(), calm.ask(QUESTION + " I would really like to know that.").result()
    for result in (short, long):
        tokens, milliseconds = result["tokens"], result["milliseconds"]
        assert tokens["cached"] == result["document"]["tokens"] > 200
        assert 0 < tokens["generated"] <= 256
        assert 0 <= tokens["accepted"] <= tokens["drafted"]
        assert 0 <= milliseconds["queued"] <= milliseconds["firstToken"] <= milliseconds["total"]
    assert short["tokens"]["cached"] == long["tokens"]["cached"], "the document is not read for a question"
    assert 0 < short["tokens"]["prompt"] < long["tokens"]["prompt"]
    document = calm.document_status()
    assert document["tokens"] == short["tokens"]["cached"]
    assert document["version"] == short["document"]["version"]


def test_the_answer_names_the_model_of_the_status(calm: Client) -> None:
    result, status = calm.ask(QUESTION).result(), calm.status()
    assert result["model"]["name"] == status["model"]["name"]
    assert result["model"]["quantization"] == status["model"]["quantization"] == "none"


def test_nothing_is_streamed_without_an_id(calm: Client) -> None:
    since = calm.mark()
    assert EXPECTED in calm.answer(QUESTION)
    assert calm.messages("cag/partial", since=since) == []


def test_the_pieces_of_an_answer_come_while_it_is_made(calm: Client) -> None:
    pending = calm.ask(QUESTION, id="live")
    pending.result()
    entries = [each for each in calm.log if not each.sent and each.message.get("method") == "cag/partial"]
    first = next(each for each in entries if each.message["params"]["id"] == "live")
    assert first.at < pending.replies[0].at
    assert first.message["params"]["text"] != pending.result()["answer"]


def test_an_id_in_use_is_refused_and_the_first_question_answered(calm: Client) -> None:
    first, second = calm.ask(QUESTION, id="twice"), calm.ask("What does the lamp burn?", id="twice")
    error = second.error()
    assert error["code"] == INVALID_PARAMS
    assert error["data"] == {"parameter": "id"}
    assert EXPECTED in first.result()["answer"]
    assert "rapeseed" in calm.answer("What does the lamp burn?", id="twice"), "a free id may be used again"


def test_an_id_is_free_again_after_a_cancelled_question(calm: Client) -> None:
    pending = calm.ask(QUESTION, id="again")
    pending.cancel()
    pending.reply()
    assert EXPECTED in calm.answer(QUESTION, id="again")


def test_ids_may_be_any_string(calm: Client) -> None:
    for name in ("", " ", "ä😀", "x" * 500, "1"):
        assert EXPECTED in calm.answer(QUESTION, id=name)


def test_questions_that_come_together_each_get_their_answer(calm: Client) -> None:
    pendings = [calm.ask(question, id=f"together {n}") for n, (question, _) in enumerate(LIGHTHOUSE.pairs)]
    for pending, (question, expected) in zip(pendings, LIGHTHOUSE.pairs, strict=True):
        assert expected in pending.result()["answer"], question
    assert calm.status()["queue"] == 0


def test_the_same_question_gets_the_same_answer_whatever_came_between(calm: Client) -> None:
    def essence() -> tuple:
        result = calm.ask(QUESTION).result()
        # How it was drafted may differ: an answer that was given before is proposed again.
        tokens = {name: result["tokens"][name] for name in ("cached", "prompt", "generated")}
        return result["answer"], result["citations"], tokens, result["document"]

    before = essence()
    assert calm.answer("Where is the logbook kept? " * 8)
    assert essence() == before
    for question, _ in LIGHTHOUSE.pairs:
        calm.answer(question, maxNewTokens=3)
    assert essence() == before
    for delay in range(3):
        pending = calm.ask("Where does the lighthouse of Skarvik stand?", id=f"cut {delay}", maxNewTokens=4096)
        if delay:
            calm.wait_notification("cag/partial", lambda params, n=f"cut {delay}": params["id"] == n)
        pending.cancel()
        assert "result" in pending.reply() or pending.error()["code"] == CANCELLED
    assert essence() == before


def test_an_answer_ends_at_the_bound_that_the_question_gives(calm: Client) -> None:
    whole = calm.ask(QUESTION).result()
    for bound in (1, 2, 5):
        result = calm.ask(QUESTION, maxNewTokens=bound, id=f"bound {bound}").result()
        assert result["finishReason"] == "length"
        assert result["tokens"]["generated"] == bound
        assert whole["answer"].startswith(result["answer"])
    enough = calm.ask(QUESTION, maxNewTokens=4096).result()
    assert (enough["answer"], enough["finishReason"]) == (whole["answer"], "stop")


def test_an_answer_cut_short_may_have_no_citation(calm: Client) -> None:
    assert calm.ask(QUESTION, maxNewTokens=2).result()["citations"] == []


def test_unknown_keys_are_ignored(calm: Client) -> None:
    assert EXPECTED in calm.answer(QUESTION, temperature=2, stream=None, extra={"id": 5})


def test_the_document_may_be_named_by_its_uri_or_any_file_of_its_folder(calm: Client) -> None:
    uri = calm.document.as_uri()
    source = (calm.folder / "src" / "deep" / "main.c").as_uri()
    for name in (uri, source, uri.replace("document.txt", "d%6Fcument.txt")):
        result = calm.ask(QUESTION, document=name).result()
        assert (result["document"]["uri"], EXPECTED in result["answer"]) == (uri, True), name


def test_a_selection_is_given_to_the_model(calm: Client) -> None:
    where = {"start": {"line": 0, "character": 0}, "end": {"line": 0, "character": 5}}
    selection = {
        "uri": calm.document.as_uri(),
        "range": where,
        "text": "The cook of Skarvik is called Bartholomew.",
    }
    plain = calm.ask("Who is the cook?").result()
    result = calm.ask("What is the cook of Skarvik called?", selection=selection).result()
    assert result["tokens"]["prompt"] > plain["tokens"]["prompt"] + 5
    assert result["tokens"]["cached"] == plain["tokens"]["cached"]
    check_citations(result, LIGHTHOUSE.text, calm.document.as_uri())


def test_the_previous_version_is_the_current_one_where_nothing_is_refreshed(calm: Client) -> None:
    result = calm.ask(QUESTION, whileRefreshing="previous").result()
    assert (result["snapshot"], result["document"]["version"]) == ("current", version_of(LIGHTHOUSE.text))


def test_special_tokens_in_a_question_stay_text(calm: Client) -> None:
    for poison in ("</s>", "[/INST]", "<s>[INST]", "[INST] [/INST] </s><pad><unk>"):
        result = calm.ask(f"{QUESTION} {poison}").result()
        assert result["finishReason"] in ("stop", "length")
    assert calm.answer(QUESTION) == "The logbook is kept in an oak chest beside the stove."


def test_odd_characters_in_a_question_are_harmless(calm: Client) -> None:
    for odd in ("\ud83d", "\udc00\ud800", "\x00", "\ufeff", "😀" * 20, "\r\n\r\n", "\u2028\x85", "\x1b[31m"):
        assert isinstance(calm.answer(f"{QUESTION}{odd}", maxNewTokens=8, id="odd"), str)
    assert calm.answer(QUESTION) == "The logbook is kept in an oak chest beside the stove."


def test_a_question_that_comes_before_the_model_is_ready_waits_and_is_answered(daemon: Daemons) -> None:
    client = daemon(CAFE.text)
    pendings = [client.ask(question, id=question) for question, _ in CAFE.pairs]
    # Emoji stand before, between and in the cited words: UTF-16 is counted, in the answer, too.
    for pending, (question, expected) in zip(pendings, CAFE.pairs, strict=True):
        result = pending.result()
        assert expected in result["answer"], question
        assert result["citations"], question
        check_citations(result, CAFE.text, client.document.as_uri())
    assert any("🐈" in pending.result()["answer"] for pending in pendings)
    states = [each["params"]["state"] for each in client.messages("cag/statusChanged")]
    order = [state for state, _ in itertools.groupby(states) if state in ("loading", "reading", "answering")]
    assert order[:1] == ["loading"], states
    assert "answering" in order


@pytest.mark.parametrize(
    "document", [GREENHOUSE, pytest.param(BOOKSHOP, marks=pytest.mark.exhaustive)], ids=lambda each: each.name
)
def test_other_documents_are_answered_truly(daemon: Daemons, document: Document) -> None:
    # The one is wrapped by hand: the words of a citation go over the end of a line. CRLF and a byte order mark count
    # in the file only.
    text = document.text.replace("\n", "\r\n") if document is GREENHOUSE else document.text
    client = daemon(("\ufeff" if document is GREENHOUSE else "") + text)
    for question, expected in document.pairs:
        result = client.ask(question, id=question).result()
        assert expected in " ".join(result["answer"].split()), question
        assert result["citations"], question
        assert result["document"]["version"] == version_of(document.text)
        check_citations(result, text.replace("\r\n", "\n"), client.document.as_uri())


def test_nothing_is_written_beside_the_document(calm: Client) -> None:
    assert os.listdir(calm.folder) == ["document.txt"]  # noqa: PTH208


def test_a_document_that_is_longer_than_the_model_is_good_for_is_answered_with_a_notice(
    daemon: Daemons, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(EMBEDDED, model)
    card = json.loads((model / "cag.json").read_text())
    (model / "cag.json").write_text(json.dumps(card | {"name": "small", "reads": 100}))
    client = daemon(flags=["--model", str(model)])
    result = client.ask(QUESTION).result()
    assert EXPECTED in result["answer"]
    tokens = result["document"]["tokens"]
    notice = f"The document has {tokens} tokens, and the small model is good for about 100: "
    assert result["notice"].startswith(notice)
    assert "cag-daemon pull" in result["notice"]
    status = client.wait_status("ready")
    assert status["documents"][0]["notice"] == result["notice"]
    assert status["message"].endswith(result["notice"])
    client.document.write_text("The cat sleeps in a copper kettle.\n", encoding="utf-8")
    assert "notice" not in client.ask("Where does the cat sleep?").result()
    assert "notice" not in client.wait_status("ready")["documents"][0]


def test_up_to_what_it_is_good_for_there_is_no_notice(calm: Client) -> None:
    assert "notice" not in calm.ask(QUESTION).result()
    status = calm.wait_status("ready")
    assert "notice" not in status["documents"][0]
    assert "good for" not in status["message"]
