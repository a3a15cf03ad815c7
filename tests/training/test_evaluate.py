"""The hand-written sets are possible, the rules of scoring are what they are said to be."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from cag_daemon.errors import DocumentTooLong
from training import evaluate, natural
from training.evaluate import Failure, Report, Row, Tally, is_right, is_span
from training.lookup import Lookup, stem, stems
from training.natural import REFUSAL, Document, Question, documents, joined, of_any_document, plain, sentences

PARTS = ("dev", "kept_aside")
DOCUMENTS = [each for part in PARTS for each in documents(part)]
NOTES = """\
# Harbour notes

The crane lifts 12.5 tons. Dr. Ida Holm repaired it on 3 May, e.g. the
hook; it was "quite rusty." The tide tables hang in room no. 4.

1. Ring the bell. Wait.
2. Lower the hook

| signal | meaning |
|---|---|
| two blasts | stop |
"""


def words(text: str) -> int:
    return len(text.split())


# ── the sets ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: each.name)
def test_every_question_has_its_words_in_exactly_one_sentence(document: Document) -> None:
    for section in ("questions", "of its own", "paraphrases", "selections"):
        for question in document.asked[section]:
            holding = [each for each in sentences(document.text) if all(x in each for x in question.expected)]
            assert question.expected, question
            assert len(holding) == 1, question
            assert is_right(holding[0], question, document.text)
            assert question.selection is None or plain(question.selection) in plain(document.text), question


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: each.name)
def test_only_selections_have_a_selection_and_what_has_no_answer_expects_no_words(document: Document) -> None:
    for section, asked in document.asked.items():
        assert asked, section
        assert {question.selection is not None for question in asked} == {section == "selections"}
        assert {question.expected == () for question in asked} == {section == "no answer"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: each.name)
def test_a_paraphrase_shares_at_most_one_word_with_its_answer(document: Document) -> None:
    for question in document.asked["paraphrases"]:
        answer = next(each for each in sentences(document.text) if all(x in each for x in question.expected))
        assert len(stems(question.text) & stems(answer)) <= 1, question


def test_the_sets_are_as_large_as_issue_5_wants_them_and_a_third_is_kept_aside() -> None:
    assert len(documents("dev")) == 2 * len(documents("kept_aside")) == 16
    for part, least in (("dev", 30), ("kept_aside", 15)):
        for kind in ("prose", "manual"):
            of_kind = [each for each in documents(part) if each.kind == kind]
            assert sum(len(each.asked["questions"]) + len(each.asked["of its own"]) for each in of_kind) >= 2 * least
        assert sum(len(each.asked["paraphrases"]) for each in documents(part)) >= least
        assert sum(len(each.asked["no answer"]) for each in documents(part)) + len(of_any_document(part)) >= 1.5 * least


def test_what_is_kept_aside_has_nothing_in_common_with_the_development_set() -> None:
    def said(part: natural.Part) -> set[str]:
        asked = {question.text for each in documents(part) for some in each.asked.values() for question in some}
        stated = {sentence for each in documents(part) for sentence in sentences(each.text)}
        anywhere = {question.text for question in of_any_document(part)}
        return {each for each in asked | stated | anywhere if words(each) > 4}  # "How heavy is it?" may be

    assert said("dev") & said("kept_aside") == set()
    assert {each.name for each in documents("dev")} & {each.name for each in documents("kept_aside")} == set()


def test_no_question_of_a_document_is_asked_twice() -> None:
    for each in DOCUMENTS:
        asked = [(q.selection, q.text) for section in each.asked.values() for q in section]
        assert len(asked) == len(set(asked)), each.name


def test_a_file_that_is_written_otherwise_is_refused(tmp_path) -> None:
    (tmp_path / "some.txt").write_text("Text.\n=====\nkind: verse\n[questions]\nWhy? | because\n", "utf-8")
    with pytest.raises(ValueError, match=r"some\.txt is not a document"):
        natural.read(tmp_path / "some.txt")


@pytest.mark.parametrize("tokens", [800, 1600])
@pytest.mark.parametrize("part", PARTS)
def test_joined_texts_are_of_nearly_that_length_and_each_document_has_its_turn_once(part, tokens) -> None:
    own, others = documents(part), documents("dev") if part == "kept_aside" else []
    found = joined(own, others, tokens, words)
    assert sorted(each.name for group, _ in found for each in group) == [each.name for each in own]
    for group, text in found:
        assert 0.8 * tokens <= words(text) <= 1.02 * tokens
        assert all(each.text in text for each in group)
    assert joined(own, others, tokens, words) == found
    with pytest.raises(ValueError, match="alone has more than 10 tokens"):
        joined(own, others, 10, words)


@pytest.mark.parametrize("part", PARTS)
def test_in_joined_texts_a_question_has_its_words_in_few_sentences(part: natural.Part) -> None:
    for asking in evaluate.plan(part, words):
        if asking.row in evaluate.LONG:
            for question in asking.questions:
                assert any(all(x in each for x in question.expected) for each in sentences(asking.text)), question


# ── scoring ─────────────────────────────────────────────────────────────────────────────────


def test_sentences_end_where_a_reader_would_say() -> None:
    assert list(sentences(NOTES)) == [
        "# Harbour notes",
        "The crane lifts 12.5 tons.",
        'Dr. Ida Holm repaired it on 3 May, e.g. the hook; it was "quite rusty."',
        "The tide tables hang in room no. 4.",
        "1. Ring the bell.",
        "Wait.",
        "2. Lower the hook",
        "| signal | meaning |",
        "|---|---|",
        "| two blasts | stop |",
    ]
    assert sentences("Is it? No. J. R. Amsel said so! We met at 7 p.m. The end.\nYours,\nPia") == (
        *("Is it?", "No.", "J. R. Amsel said so!", "We met at 7 p.m.", "The end.", "Yours,", "Pia"),
    )


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("The crane lifts 12.5 tons.", True),
        ("12.5 tons", True),
        ("  The crane\nlifts 12.5   tons. ", True),
        ("the crane lifts 12.5 tons.", False),  # not verbatim
        ("The crane lifts 12.5 ton", False),  # cuts a word
        ("The crane lifts 12.5 tons. Dr. Ida Holm repaired it on 3 May", False),  # more than a sentence
        ("# Harbour notes The crane lifts 12.5 tons.", False),
        ("The crane lifts", False),  # without the words
        ("Dr. Ida Holm repaired it on 3 May", False),
        ("", False),
        (REFUSAL, False),
    ],
)
def test_an_answer_is_right_with_the_words_in_at_most_one_sentence_verbatim(answer: str, right: bool) -> None:
    assert is_right(answer, Question("How much does the crane lift?", ("12.5",)), NOTES) is right


def test_spans_may_reach_over_the_lines_of_a_paragraph_and_begin_or_end_with_signs() -> None:
    for span in (
        "on 3 May, e.g. the hook;",
        '"quite rusty."',
        "| two blasts | stop |",
        "1. Ring the bell.",
        "Lower the",
    ):
        assert is_span(span, NOTES), span
    for span in ("Ring the bell. Wait.", "ide tables", "stop | 1"):
        assert not is_span(span, NOTES), span


def test_all_expressions_must_be_in_the_answer() -> None:
    question = Question("Who repaired the crane?", ("Ida Holm", "repaired"))
    assert is_right("Ida Holm repaired it", question, NOTES)
    assert not is_right("Ida Holm", question, NOTES)


@pytest.mark.parametrize("answer", ["The document does not say", "the document does not say.", f"{REFUSAL} Sorry.", ""])
def test_a_refusal_is_exactly_that(answer: str) -> None:
    assert is_right(REFUSAL, Question("Hello!"), NOTES, "refusal")
    assert not is_right(answer, Question("Hello!"), NOTES, "refusal")


def test_of_synthetic_documents_the_whole_sentence_is_asked_for() -> None:
    question = Question("How much does the crane lift?", ("The crane lifts 12.5 tons.",))
    assert is_right("The crane  lifts 12.5 tons.", question, NOTES, "sentence")
    assert not is_right("12.5 tons.", question, NOTES, "sentence")


def test_a_question_of_the_generator_is_put_as_the_daemon_puts_it() -> None:
    assert evaluate._taken_apart("Question: Who is it?", "Ida.") == Question("Who is it?", ("Ida.",))
    selected = evaluate._taken_apart("Selected text:\nthe\ncrane\n\nQuestion: Who repaired it?", "Ida did.")
    assert selected == Question("Who repaired it?", ("Ida did.",), "the\ncrane")


# ── what has to be beaten ───────────────────────────────────────────────────────────────────


def test_the_lookup_finds_the_sentence_that_shares_the_most_stems() -> None:
    lookup = Lookup(NOTES)
    assert lookup.answer("What can the cranes lift?") == "The crane lifts 12.5 tons."
    assert lookup.answer("Who was repairing it?").startswith("Dr. Ida Holm")
    assert lookup.answer("Where is this?", "tide tables") == "The tide tables hang in room no. 4."
    assert lookup.answer("Who are you?") == REFUSAL


def test_the_lookup_is_deterministic() -> None:
    for each in DOCUMENTS:
        questions = [question for some in each.asked.values() for question in some]
        first, second = Lookup(each.text), Lookup(each.text)
        answers = [first.answer(question.text, question.selection) for question in questions]
        assert answers == [second.answer(question.text, question.selection) for question in questions]


@pytest.mark.parametrize(
    ("one", "other"),
    [("listens", "listening"), ("copies", "copy"), ("stopped", "stop"), ("Anna's", "anna"), ("box", "boxes")],
)
def test_forms_of_a_word_have_one_stem(one: str, other: str) -> None:
    assert stem(one) == stem(other)


# ── the report ──────────────────────────────────────────────────────────────────────────────


def test_a_goal_is_a_least_or_a_most_and_the_lookup_is_beaten_only_by_more() -> None:
    assert Row("prose", "", 0.98, 0.98, 0.97).met
    assert not Row("prose", "", 0.98, 0.97).met
    assert Row("refused", "", 0.02, 0.02).met
    assert not Row("time", "", 0.3, 0.31).met
    assert Row("synthetic10", "", 0.98, None).met is None
    assert Row("selections", "", None, 0.5).met is None
    assert Row("prose", "", 0.98, 0.98, 0.98).beaten_by_lookup
    assert not Row("prose", "", 0.98, 0.98, 0.97).beaten_by_lookup
    assert Row("refused", "", 0.02, 0.03, 0.01).beaten_by_lookup
    assert not Row("refused", "", 0.02, 0.0, 0.0).beaten_by_lookup


class ToyEngine:
    """Reads everything that is not too long, and answers by looking it up, or with what it is told to say."""

    def __init__(self, says: str | None = None, longest: int = 100_000) -> None:
        self.says, self.longest = says, longest

    def prepare(self, document: str, version: str, text: str) -> None:
        if len(text) > self.longest:
            raise DocumentTooLong("It is too long.")
        self.lookup = Lookup(text)

    def ask(self, document: str, question: str, selection: str | None = None):
        return SimpleNamespace(text=self.says or self.lookup.answer(question, selection))


def tallied(engine: ToyEngine) -> tuple[dict[str, Row], list[Failure]]:
    tally = Tally()
    for asking in evaluate.plan("dev", lambda text: len(text) // 4):
        tally.add(asking, evaluate._answers(engine, asking))
    return {row.name: row for row in evaluate._rows(tally, evaluate.EMBEDDED, [0.1, 0.4, 0.2])}, tally.failures


@pytest.fixture(autouse=True)
def _no_generator(monkeypatch) -> None:
    monkeypatch.setattr(evaluate, "_synthetic", list)


def test_an_engine_that_looks_up_scores_as_the_lookup_does() -> None:
    rows, _ = tallied(ToyEngine())
    for name in (*evaluate.ANSWERABLE, "selections", "no answer", "refused"):
        assert rows[name].value == rows[name].lookup, name
        assert rows[name].count >= 18
    assert rows["synthetic10"].value is None
    assert rows["time"].value == 0.2
    assert 1 < rows["size"].value < 15


def test_one_that_always_refuses_is_right_only_where_nothing_can_be_answered() -> None:
    rows, failures = tallied(ToyEngine(REFUSAL))
    assert [rows[name].value for name in ("prose", "1800", "no answer", "refused")] == [0, 0, 1, 1]
    assert not [failure for failure in failures if failure.row == "no answer"]


def test_what_the_model_cannot_read_counts_as_wrong() -> None:
    rows, failures = tallied(ToyEngine(longest=10_000))
    assert {failure.answer for failure in failures if failure.row == "3500"} == {"It is too long."}
    assert rows["3500"].value == 0
    assert rows["1800"].value > 0.5


def test_both_lengths_together_ask_every_question_that_can_stand_beside_other_documents() -> None:
    asked = [q for asking in evaluate.plan("dev", words) if asking.row in evaluate.LONG for q in asking.questions]
    all_of_them = [question for each in documents("dev") for question in each.asked["questions"]]
    assert sorted(question.text for question in asked) == sorted(question.text for question in all_of_them)


def test_what_was_not_asked_is_not_run() -> None:
    rows = {row.name: row.value for row in evaluate._rows(Tally(), evaluate.EMBEDDED, [])}
    assert {name for name, value in rows.items() if value is not None} == {"size"}


@pytest.fixture
def a_report(monkeypatch) -> Report:
    rows = [Row("prose", "ordinary prose", 0.98, 0.5, 0.6, 2), Row("synthetic10", "synthetic", 0.98, None)]
    failure = Failure("prose", "ferry", "Who [it]?", None, "Per-Arne", "Somebody\nelse.")
    report = Report(rows, [failure])
    monkeypatch.setattr(evaluate, "evaluate", lambda *_: report)
    return report


def test_the_table_marks_what_misses_its_goal_and_what_does_not_beat_the_lookup(a_report, capsys) -> None:
    evaluate.main([])
    prose, synthetic = capsys.readouterr().out.splitlines()[-2:]
    assert plain(prose) == "ordinary prose 2 ≥ 98.0 % 50.0 % 60.0 % misses the goal · does not beat the lookup"
    assert plain(synthetic) == "synthetic ≥ 98.0 % not run"


def test_failures_are_printed_beside_what_was_expected(a_report, capsys) -> None:
    evaluate.main(["--failures"])
    out = plain(capsys.readouterr().out)
    assert out.endswith("asked Who [it]? expected Per-Arne answer Somebody else.")


def test_json_has_the_rows_and_with_failures_those_too(a_report, capsys) -> None:
    evaluate.main(["--json", "--failures", "--kept-aside"])
    found = json.loads(capsys.readouterr().out)
    assert found["set"] == "kept_aside"
    assert [(row["name"], row["met"], row["beatenByLookup"]) for row in found["rows"]] == [
        *(("prose", False, True), ("synthetic10", None, False)),
    ]
    assert found["failures"][0]["expected"] == "Per-Arne"
