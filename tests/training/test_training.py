"""Training in small: what a step does, that it goes on where it was, and that what is exported is what was trained."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from cag_daemon.engine.model import load_model
from cag_daemon.engine.prompt import PromptTemplate
from training import export
from training.batch import (
    CHOSEN_AGAIN,
    IGNORED,
    Batch,
    Encoder,
    Size,
    choosing_loss,
    collate,
    exact,
    id_of,
    looking_loss,
    loss_of,
    make_batch,
    packed,
)
from training.curriculum import Curriculum
from training.data.document import Example, example
from training.data.questions import Question
from training.device import halves
from training.easier import easier
from training.initialise import Parts, initialise
from training.lexicon import Lexicon
from training.lookup import Lookup
from training.model import LOOKS, Shape, TrainingModel
from training.natural import plain
from training.optimise import Optimiser, Rates
from training.sharpen import sharpen
from training.tokenizer import CAPITAL, START, make_tokenizer, renewed
from training.train import Plan, Run

pytestmark = pytest.mark.exhaustive  # only those who change the training need them each time

SMALL = Curriculum(tokens=400, first=4, last=5, long=0)
TEXT = """\
# The mill

Dr. Ames bought the mill in 1887. It stands at 4 Church St. in Odense, e.g. beside the weir.

- Two eggs, 200 g of flour
1. Open `config.yaml` first.
2. 300 turns
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices are quicker on one, the more so where other tests run beside this one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return renewed(export.load(export.SHIPPED)[1])


@pytest.fixture(scope="module")
def wired(tokenizer: Tokenizer) -> TrainingModel:
    many = tokenizer.get_vocab_size()
    model = TrainingModel(Shape(vocabulary=many))
    torch.manual_seed(3)
    initialise(model, tokenizer, Lexicon(torch.zeros(many, dtype=torch.bool), [{} for _ in range(many)]))
    return model


@pytest.fixture
def model(wired: TrainingModel) -> TrainingModel:
    return deepcopy(wired)


def still(model: TrainingModel) -> None:
    """What makes names of sentences is left as it is: a step that is large for it undoes it."""
    for each in (model.embed_tokens, *model.layers[:2]):
        each.requires_grad_(False)


def falling(model: TrainingModel, batch: Batch, of: Callable[[], torch.Tensor]) -> list[float]:
    """A loss that is read off the model's last pass, over ten steps that lower it."""
    optimiser = Optimiser(model, Rates(matrices=0.005, warm=1))
    losses = []
    for _ in range(10):
        logits = model(*batch.inputs)
        loss = of()
        (loss + 0.01 * loss_of(logits, batch)).backward()
        optimiser.step(1.0)
        model.zero_grad()
        losses.append(loss.item())
    return losses


def test_steps_lower_the_loss_on_a_fixed_batch(model: TrainingModel, tokenizer: Tokenizer) -> None:
    batch = make_batch(Encoder(tokenizer), 1, Size(2, 4, 4))
    still(model)
    optimiser = Optimiser(model, Rates(warm=1))
    losses = []
    for _ in range(8):
        loss = loss_of(model(*batch.inputs), batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step(1.0)
        model.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@torch.no_grad()
def test_the_wired_start_chooses_and_copies_before_any_step(model: TrainingModel, tokenizer: Tokenizer) -> None:
    batch = make_batch(Encoder(tokenizer), 3, Size(6, 12, 8))
    logits = model(*batch.inputs)
    told = batch.chosen > 0
    choices = model.choices.view(-1, model.choices.shape[-1])[batch.choosers[told]]
    assert float((choices.argmax(-1) == batch.chosen[told]).float().mean()) > 0.25
    there = batch.targets != IGNORED
    # Of the tokens of answers: most are right only where the sentence is the right one, and is gone on with.
    refused = torch.cat([batch.refused, torch.tensor([True])])[batch.answers]
    right = logits.argmax(-1) == batch.targets
    assert float(right[there & ~refused].float().mean()) > 0.6


@torch.no_grad()
def test_names_of_sentences_are_as_long_as_each_other_and_have_little_in_common(
    model: TrainingModel, tokenizer: Tokenizer
) -> None:
    batch = make_batch(Encoder(tokenizer), 12, Size(1, 60, 4))
    seen: list[torch.Tensor] = []
    model.layers[2].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # type: ignore[union-attr]
    model(*batch.inputs)
    number = batch.sentences[0].int().argmax(-1)
    starts = (number.diff() > 0).nonzero().flatten() + 2  # the mark before a sentence belongs to the one before
    name = seen[0][: len(number), Parts.sentence]
    names = name[starts[starts < int(batch.lengths[0])]]
    assert len(names) > 40
    sizes = names.norm(dim=1)
    assert float(sizes.std() / sizes.mean()) < 0.2
    normed = torch.nn.functional.normalize(names, dim=1)
    alike = (normed @ normed.T)[~torch.eye(len(names), dtype=torch.bool)]
    assert float(alike.square().mean().sqrt()) < 0.25  # 0.11 if they were random
    # All tokens of a sentence have its name.
    for at, each in zip(starts.tolist()[:30], name[starts[:30]], strict=True):
        assert torch.cosine_similarity(name[at + 2], each, dim=0) > 0.9


@torch.no_grad()
def test_every_word_of_a_question_counts_alike_and_what_stands_around_it_does_not(
    model: TrainingModel, tokenizer: Tokenizer
) -> None:
    batch = make_batch(Encoder(tokenizer), 13, Size(1, 20, 6))
    seen: list[Tensor] = []
    model.layers[3].input_layernorm.register_forward_hook(lambda *each: seen.append(each[2]))
    model(*batch.inputs)
    adds = model.layers[3].self_attn
    first, asked = seen[0][:1], seen[0][batch.documents.numel() :]
    words, colons = asked[batch.askers], asked[batch.askers[batch.asking.diff(prepend=torch.tensor([-1])) > 0] - 1]
    told = seen[0][1 : int(batch.lengths[0])]
    asks = asked[batch.choosers[::CHOSEN_AGAIN]]
    # Position counts for little there; so queries and keys are compared as they are.
    head = slice(0, model.shape.head)
    query = adds.q_proj(asks)[:, head] / model.shape.head**0.5
    every = (first, words, told, colons)
    of_first, of_words, of_told, of_colons = (query @ adds.k_proj(each)[:, head].T for each in every)
    assert float(of_words.std(1).max()) < 0.5
    assert float((of_words.mean(1) - of_first[:, 0]).min()) > 0.5
    assert float((of_words.mean(1, keepdim=True) - of_told).min()) > 6
    assert float((of_words.mean(1, keepdim=True) - of_colons).min()) > 6
    # Who only reads looks at the first token, which has nothing to add.
    query = adds.q_proj(told)[:, head] / model.shape.head**0.5
    assert float((query @ adds.k_proj(first)[:, head].T - query @ adds.k_proj(told)[:, head].T).mean()) > 8


def asking(model: TrainingModel, batch: Batch) -> list[bool]:
    """Which tokens of a batch's documents, and then of its questions, look something up."""
    seen: list[Tensor] = []
    model.layers[LOOKS].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # type: ignore[union-attr]
    with torch.no_grad():
        model(*batch.inputs)
    asks: list[bool] = (seen[0][:, Parts.asking] > 1).tolist()
    return asks


@pytest.mark.parametrize("selected", ["", "Selected text:\nthe kettle of Ann\n\n"])
def test_what_is_asked_and_selected_looks_something_up_and_of_a_document_only_lines_that_seem_to_ask(
    model: TrainingModel, tokenizer: Tokenizer, selected: str
) -> None:
    encoder = Encoder(tokenizer)
    told = "Text: see below.\nQuestion: Where is the kettle?\nIt is there, at last: in the shed. Ann found it.\nAnd?"
    question = f"{selected}Question: I need a kettle. Where is it?"
    batch = collate(encoder, [Example(told, (Question(question, "It is there, at last: in the shed."),))])
    asks, many = asking(model, batch), batch.documents.numel()
    starts = [at for at, each in enumerate(batch.documents[0].tolist()) if each == encoder.start]
    assert len(starts) == 5
    assert not any(asks[starts[3] : int(batch.lengths[0])])
    begins = many + encoder.before(encoder.question(question)) - 1
    answered = many + int(batch.choosers[0])
    assert not any(asks[many:begins])
    if selected:
        again = many + encoder.question(question).index(id_of(tokenizer, " question"))
        assert all(asks[begins : again - 2])
        begins = again + 1
    assert all(asks[begins : answered + 12])


@torch.no_grad()
def test_words_of_a_document_are_not_looked_up_in_it(model: TrainingModel, tokenizer: Tokenizer) -> None:
    batch = make_batch(Encoder(tokenizer), 12, Size(1, 20, 6))
    seen: list[Tensor] = []
    model.layers[LOOKS].input_layernorm.register_forward_hook(lambda *each: seen.append(each[2]))
    model(*batch.inputs)
    told = seen[0][: int(batch.lengths[0])]
    looks = model.layers[LOOKS].self_attn
    for head in range(2):
        rows = slice(model.shape.head * head, model.shape.head * (head + 1))
        found = looks.q_proj(told)[:, rows] @ looks.k_proj(told)[:, rows].T / model.shape.head**0.5
        assert float((found[1:, 0] - found[1:, 1:].max(1).values).min()) > 3


@torch.no_grad()
def test_sentences_are_chosen_by_their_names_and_not_by_how_large_they_are(
    model: TrainingModel, tokenizer: Tokenizer
) -> None:
    batch = make_batch(Encoder(tokenizer), 12, Size(1, 60, 4))
    seen: list[Tensor] = []
    model.layers[4].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # type: ignore[union-attr]
    model(*batch.inputs)
    sizes = seen[0][1 : int(batch.lengths[0])].square().mean(1).sqrt()
    assert float(sizes.std() / sizes.mean()) < 0.06


@torch.no_grad()
def test_where_two_words_stand_twice_in_a_sentence_the_one_before_them_tells_which_is_gone_on_with(
    model: TrainingModel, tokenizer: Tokenizer
) -> None:
    told = "Ann can set the alarm with a code and Bob brought the alarm to the porter."
    text = f"The shop is in Mill Lane. {told} It opens at nine."
    batch = collate(Encoder(tokenizer), [Example(text, (Question("Question: Who was brought the alarm?", told),))])
    seen: list[Tensor] = []
    model.layers[5].input_layernorm.register_forward_hook(lambda *each: seen.append(each[2]))
    model(*batch.inputs)
    ids, targets = batch.documents[0].tolist(), batch.targets.tolist()
    alarm = id_of(tokenizer, " alarm")
    copies, head = model.layers[5].self_attn, slice(2 * model.shape.head, 3 * model.shape.head)
    behind = [at + 1 for at, each in enumerate(ids) if each == alarm]
    asking = [at for at, each in enumerate(targets) if targets[at - 1] == alarm]
    assert [ids[at] for at in behind] == [targets[at] for at in asking]
    assert len({ids[at] for at in behind}) == 2
    queries = copies.q_proj(seen[0][len(ids) + batch.wanted[asking]])[:, head] / model.shape.head**0.5
    found = queries @ copies.k_proj(seen[0][behind])[:, head].T
    assert float((found.diagonal() - found.flip(1).diagonal()).min()) > 2


def test_the_wiring_is_for_one_shape(tokenizer: Tokenizer) -> None:
    lexicon = Lexicon(torch.zeros(300, dtype=torch.bool), [{} for _ in range(300)])
    with pytest.raises(ValueError, match="7 layers of 3 heads of 96"):
        initialise(TrainingModel(Shape(vocabulary=300, layers=6)), tokenizer, lexicon)


def test_choosing_the_right_sentence_or_none_is_likely_and_a_step_makes_it_likelier(
    model: TrainingModel, tokenizer: Tokenizer
) -> None:
    batch = make_batch(Encoder(tokenizer), 3, Size(3, 8, 8, 0.4))
    # Before each of the first tokens of an answer, for whichever is the next one the sentence is the same.
    first = batch.asked.flatten()[batch.choosers].tolist()
    begins = [at for at, each in enumerate(first) if each == id_of(tokenizer, "[/INST]")]
    assert batch.choosers.diff().eq(1).sum() == len(first) - len(begins) == (CHOSEN_AGAIN - 1) * len(begins)
    assert batch.chosen.view(-1, CHOSEN_AGAIN).eq(batch.chosen[::CHOSEN_AGAIN, None]).all()
    assert 0 < int((batch.chosen[begins] == 0).sum()) == int(batch.refused.sum()) < len(begins)
    model(*batch.inputs)
    choices = torch.zeros_like(model.choices).view(-1, model.choices.shape[-1])
    choices[batch.choosers, batch.chosen] = 1.0
    assert choosing_loss(choices.view_as(model.choices), batch).item() == pytest.approx(0, abs=1e-3)
    still(model)
    losses = falling(model, batch, lambda: choosing_loss(model.choices, batch))
    assert losses[-1] < 0.9 * losses[0]


def test_an_easier_example_has_all_that_shared_words_answer_and_a_part_of_the_rest() -> None:
    made = [example(seed, 20, 14) for seed in range(8)]

    def split(asked: Sequence[Question], text: str) -> tuple[set[Question], set[Question]]:
        lookup = Lookup(text)
        told = [each for each in asked if not each.refused]
        easy = {q for q in told if plain(lookup.answer(q.text.rpartition("Question: ")[2])) in plain(q.answer)}
        return easy, set(told) - easy

    kept: dict[float, int] = dict.fromkeys((0.0, 0.4, 1.0), 0)
    for seed, each in enumerate(made):
        easy, _ = split(each.questions, each.text)
        for part in kept:
            fewer = easier(each, part, seed)
            assert fewer == easier(each, part, seed)
            assert fewer.text == each.text
            assert [q for q in each.questions if q in fewer.questions] == list(fewer.questions)
            still_easy, hard = split(fewer.questions, each.text)
            assert still_easy == easy
            assert [q for q in fewer.questions if q.refused] == [q for q in each.questions if q.refused]
            kept[part] += len(hard)
    assert kept[0.0] < 0.1 * kept[1.0]  # an answer of several sentences, one of which is found, is not hard
    assert 0.2 * kept[1.0] < kept[0.4] < 0.6 * kept[1.0]
    alone = replace(made[0], questions=tuple(split(made[0].questions, made[0].text)[1])[:2])
    assert easier(alone, 0.0, 1).questions == alone.questions[:1]


def test_questions_in_a_batch_do_not_see_each_other(model: TrainingModel, tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer)
    examples = [example(seed, 6, 5) for seed in (1, 2)]
    together = collate(encoder, examples)
    alone = [collate(encoder, [Example(each.text, (asked,))]) for each in examples for asked in each.questions]
    with torch.no_grad():
        one = torch.cat([model(*batch.inputs)[batch.targets != IGNORED] for batch in alone])
        torch.testing.assert_close(model(*together.inputs)[together.targets != IGNORED], one, atol=2e-3, rtol=1e-3)


def test_a_batch_knows_which_words_ask_and_in_which_sentence_the_answer_is(tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer)
    made = example(31, 9, 8)
    told = made.questions[0]
    selected = replace(told, text=f"Selected text:\nthe red boat\n\n{told.text}")
    made = replace(made, questions=(*made.questions, selected))
    batch = collate(encoder, [made])
    ids = encoder.document(made.text)
    found = [each for each in made.questions if not each.refused]
    assert len(batch.found) == len(found) > 3
    for number, (question, sentence) in enumerate(zip(found, batch.found.tolist(), strict=True)):
        told = batch.sentences[0, :, sentence].nonzero().flatten().tolist()
        assert tokenizer.decode([ids[at] for at in told]).strip().startswith(question.answer.partition("\n")[0][:12])
        words = batch.asked.flatten()[batch.askers[batch.asking == number]].tolist()
        assert tokenizer.decode(words).split() == re.sub(r"\A(Selected text|Question):", "", question.text).split()


def test_an_answer_is_found_by_its_first_sentence(tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer)
    ids = encoder.document("Ames bought the mill. It stands in Odense. The wheel was mended.")
    for answer, sentence in (("It stands in Odense.", 2), ("It stands in Odense. Nobody knows why.", 2)):
        place = encoder.place(ids, encoder.answer(answer))
        assert place is not None
        assert int(encoder.sentences(ids)[place]) == sentence
    assert encoder.place(ids, encoder.answer("It stands in Aarhus.")) is None


def test_looking_at_the_right_sentence_is_likely_and_a_step_makes_it_likelier(
    model: TrainingModel, tokenizer: Tokenizer
) -> None:
    batch = make_batch(Encoder(tokenizer), 3, Size(2, 6, 6))
    model(*batch.inputs)
    votes = model.votes.detach()
    assert votes.shape == (*batch.asked.shape, batch.sentences.shape[-1])
    assert float(votes.max()) <= model.shape.heads + 1e-4
    nowhere = torch.zeros_like(votes)
    right = nowhere.clone().view(-1, votes.shape[-1])
    right[batch.askers, batch.found[batch.asking]] = 4.0
    assert looking_loss(nowhere, batch).item() == pytest.approx(torch.tensor(votes.shape[-1] - 1.0).log().item())
    assert looking_loss(right.view_as(votes), batch).item() < 1e-3
    losses = falling(model, batch, lambda: looking_loss(model.votes, batch))
    assert losses[-1] < 0.9 * losses[0]


def test_packing_leaves_no_piece_out_and_lays_none_over_another() -> None:
    lengths = [30, 70, 10, 60, 100, 5]
    taken = {
        (row, start + at)
        for (row, start), many in zip(packed(lengths, 100), lengths, strict=True)
        for at in range(many)
    }
    assert len(taken) == sum(lengths)
    assert max(at for _, at in taken) < 100


def test_an_exported_model_is_the_same_in_the_engine(
    model: TrainingModel, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    export.export(model, tokenizer, tmp_path)
    again, _ = export.load(tmp_path)  # the weights as they were rounded
    loaded = load_model(str(tmp_path))
    encoder = Encoder(tokenizer)
    prefix, suffix = encoder.document(TEXT), encoder.question("Question: Who bought the mill?")
    assert prefix == PromptTemplate(loaded.tokenizer, "").document_ids(TEXT)
    assert suffix == PromptTemplate(loaded.tokenizer, "").question_ids("Who bought the mill?")
    with torch.no_grad():
        theirs = loaded.model(torch.tensor([prefix + suffix])).logits[0, len(prefix) :]
        places = torch.arange(len(suffix))[None, None]
        ours = again(torch.tensor([prefix]), torch.tensor([len(prefix)]), torch.tensor([[suffix]]), places)
    torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=1e-3)
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


@torch.no_grad()
def test_what_is_sharpened_copies_with_larger_queries_and_stays_else_as_it_was(
    model: TrainingModel, wired: TrainingModel
) -> None:
    sharpen(model, 1.5)
    before = wired.state_dict()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"layers.5.self_attn.q_proj.weight"}
    query = model.state_dict()["layers.5.self_attn.q_proj.weight"]
    torch.testing.assert_close(query, 1.5 * before["layers.5.self_attn.q_proj.weight"])


def test_what_else_stands_in_the_card_of_a_folder_stays(
    model: TrainingModel, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "cag.json").write_text('{"goodFor": 3500}', "utf-8")
    export.export(model, tokenizer, tmp_path)
    assert json.loads((tmp_path / "cag.json").read_text("utf-8")) == {"goodFor": 3500, **export.CARD}


def test_a_run_goes_on_where_it_was(tokenizer: Tokenizer, model: TrainingModel, tmp_path: Path) -> None:
    plan = Plan(tmp_path, minutes=1e-4, curriculum=SMALL)
    before = model.embed_tokens.weight.clone()
    first = Run(plan, model, tokenizer)
    first.held_out = dict  # type: ignore[method-assign] # it takes long
    trained = first.go()
    assert not torch.equal(trained.embed_tokens.weight, before)
    second = Run(replace(plan, minutes=2e-4), TrainingModel(model.shape), tokenizer)
    second.held_out = dict  # type: ignore[method-assign]
    assert second.resume()
    assert second.step == first.step > 0
    for name, value in second.model.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name])
    log = (tmp_path / "log.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["what"] for line in log] == ["plan", "held out", "held out"]


def test_what_is_looked_at_and_chosen_counts_in_a_run_as_much_as_the_plan_says(
    tokenizer: Tokenizer, model: TrainingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch(Encoder(tokenizer), 3, Size(2, 6, 6))
    found: list[Tensor] = []
    monkeypatch.setattr(Optimiser, "step", lambda *_: found.append(gradient(model)))
    weighed = (0.0, 30.0)
    for looking in weighed:
        Run(Plan(tmp_path, minutes=1, looking=looking), model, tokenizer)._one(batch)
    for looking, moved in zip(weighed, found, strict=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=halves(torch.device("cpu"))):
            loss = loss_of(model(*batch.inputs), batch)
        (loss + looking * (looking_loss(model.votes, batch) + choosing_loss(model.choices, batch))).backward()
        assert torch.cosine_similarity(moved, gradient(model), dim=0) > 0.97
        model.zero_grad(set_to_none=True)
    assert torch.cosine_similarity(*found, dim=0) < 0.9


def gradient(model: TrainingModel) -> Tensor:
    """All gradients, one behind the other."""
    return torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])


def test_what_is_frozen_stays_and_the_rest_learns(tokenizer: Tokenizer, model: TrainingModel, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = Run(Plan(tmp_path, minutes=1e-4, curriculum=SMALL, frozen=3), model, tokenizer)
    run.held_out = dict  # type: ignore[method-assign]
    trained = run.go().state_dict()
    changed = {name for name, value in trained.items() if not torch.equal(value, before[name])}
    frozen = {name for name in trained if name.startswith(("embed", "layers.0.", "layers.1.", "layers.2."))}
    assert len(frozen) == 1 + 3 * 9
    assert changed == trained.keys() - frozen


def test_rates_rise_and_fall() -> None:
    rates = Rates(warm=10, decay=0.5, least=0.02)
    assert rates.factor(0, 0.0) == pytest.approx(0.1)
    assert rates.factor(100, 0.4) == 1.0
    assert rates.factor(100, 0.75) == pytest.approx(0.5)
    assert rates.factor(100, 1.0) == 0.02


@pytest.mark.parametrize("text", [TEXT, "two\nwords", "naïve 漢字 — “quoted”\n\n> said", "A.\nB. c"])
def test_the_tokenizer_gives_back_what_it_was_given_but_for_white_space(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids).split() == text.split()


def test_sentences_start_where_they_do(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(TEXT, add_special_tokens=False).tokens
    starts = "".join(tokens).split("\ue001")[1:]
    assert [tokenizer.decode(tokenizer.encode(each).ids).strip()[:9].strip() for each in starts] == [
        *("#", "The mill", "Dr. Ames", "It stands", "-", "Two eggs,", "1.", "Open `con", "2.", "300 turns"),
    ]


def test_sentences_start_with_code_and_emphasis_too_and_keys_and_clauses_on_lines_of_their_own(
    tokenizer: Tokenizer,
) -> None:
    parts = (
        *("Which one is it? ", "`fetch` reads a page. ", "**Bold** stays. ", "*Ames* left!* "),
        *("What then? ", "12 of them. ", "Attendees of the meeting of the society: Ada, Bea\n"),
        *("Apologies for absence: Cyd, who is always late\n", "(4) Nobody may speak of it before the year has ended\n"),
        "(5) Telephones stay outside, those of the (few) guests in a basket that is as\nlarge (or nearly) as this.",
    )
    marked = tokenizer.normalizer.normalize_str("".join(parts))
    assert len(re.findall(START, marked)) == len(parts)
    for start, part in zip(marked.split(START)[1:], parts, strict=True):
        assert start.replace(CAPITAL, "").lower().split() == part.lower().split()


def test_what_is_shipped_is_cut_and_joined_as_training_cuts_and_joins() -> None:
    shipped = export.load(export.SHIPPED)[1]
    before = shipped.to_str()
    assert renewed(shipped).to_str() == before


def test_a_tokenizer_is_learned_from_texts() -> None:
    made = make_tokenizer((example(seed, 12, 6).text for seed in range(30)), 700)
    assert made.get_vocab_size() == 700
    assert made.encode("<s>[INST] Two words", add_special_tokens=False).ids[:2] == [1, 4]
    text = "A Mill by the Sea.\n\nIt is 1887 years old."
    ids = made.encode(text, add_special_tokens=False).ids
    assert made.decode(ids).split() == text.split()
    grown = [made.decode(ids[:many]) for many in range(len(ids))]
    assert not any(mark in each for mark in (CAPITAL, START) for each in grown)


def test_which_answers_are_exact(tokenizer: Tokenizer) -> None:
    batch = make_batch(Encoder(tokenizer), 3, Size(1, 4, 4))
    logits = torch.nn.functional.one_hot(batch.targets.clamp(min=0), tokenizer.get_vocab_size()).float()
    assert exact(logits, batch).all()
    logits[0] = 0
    assert exact(logits, batch).tolist() == [False, *[True] * (batch.count - 1)]
