"""Which words are akin, what a lexicon votes for, and that a model looks by it, before and after training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from training import export, meaning, tokenizer
from training.batch import Encoder, Size, id_of, loss_of, make_batch
from training.initialise import initialise
from training.lexicon import SIZE, Lexicon, Sample, sampled
from training.meaning_head import HEAD, MORE, kept
from training.model import LOOKS, Layer, Shape, TrainingModel
from training.optimise import Optimiser, Rates
from training.tokenizer import make_tokenizer, with_words

TEXTS = ["She bought a boat. They sold it, and carried the wood home.", "Who wrote it? It was written in 1990."] * 3

# What WordNet's files look like (wndb(5WN)), a few lines of it.
FILES = {
    "data.verb": (
        "  1 licence\n"
        "00000010 40 v 02 buy 0 purchase 0 002 @ 00000030 v 0000 + 00000050 n 0101 01 + 08 00 | obtain by payment\n"
        "00000030 40 v 01 get 0 000 01 + 08 00 | come into possession of\n"
        "00000070 38 v 01 stop 0 000 01 + 08 00 | end\n"
        "00000090 35 v 01 catch 0 000 01 + 08 00 | seize\n"
    ),
    "data.noun": "00000050 18 n 01 buyer 0 000 | a person who buys\n",
    "data.adj": "",
    "data.adv": "",
    "index.verb": (
        "  1 licence\n"
        "buy v 1 2 @ + 1 1 00000010  \n"
        "catch v 2 0 2 0 00000090 00000010  \n"
        "get v 1 0 1 1 00000030  \n"
        "purchase v 1 2 @ + 1 1 00000010  \n"
        "stop v 1 0 1 1 00000070  \n"
    ),
    "index.noun": "buyer n 1 0 1 0 00000050  \n",
    "index.adj": "",
    "index.adv": "",
    "verb.exc": "bought buy\n",
    "noun.exc": "",
    "adj.exc": "",
    "adv.exc": "",
    "cntlist.rev": "buy%2:40:00:: 1 29\npurchase%2:40:00:: 1 9\n",
}


def forget() -> None:
    for each in (meaning.synsets, meaning.senses):
        each.cache_clear()


@pytest.fixture
def wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, "latin-1")
    monkeypatch.setattr(meaning, "WORDNET", tmp_path)
    forget()
    yield tmp_path
    forget()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Tokenizer:
    """Few pieces, and what there is to learn more of them from."""
    made = make_tokenizer(TEXTS, 460)
    monkeypatch.setattr(tokenizer, "corpus", lambda **_: iter(TEXTS))
    monkeypatch.setattr(tokenizer, "docstrings", lambda: ("The parser returns a dictionary.",))
    monkeypatch.setattr(tokenizer, "definitions", tuple)
    return made


def test_words_of_one_synset_are_akin_and_so_are_irregular_and_derived_ones(wordnet: Path) -> None:
    pieces = [" buy", " purchas", " bought", " get", " buy" + "er", " stop", " stopp", "<s>", " frog", " catch"]
    akin = meaning.relatives(pieces)
    buy, purchase, bought, get, buyer, stop, stopp, start, frog, catch = range(10)
    assert akin[buy][purchase] == akin[purchase][buy] == pytest.approx(1.0)
    assert akin[bought][purchase] == pytest.approx(1.0)
    assert 0 < akin[buy][get] < akin[buy][buyer] < 1
    assert akin[stopp] == {stop: 1.0}
    assert not akin[start]
    assert not akin[frog]
    assert stop not in akin[buy]
    assert akin[buy][catch] == pytest.approx((1 / 3) ** 0.5)  # it means that less often


def test_without_wordnet_only_spellings_are_akin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meaning, "WORDNET", tmp_path)
    forget()
    assert meaning.relatives([" buy", " purchas", " carri", " carry"]) == [{}, {}, {3: 1.0}, {2: meaning.BACK}]
    forget()


def test_whole_words_are_pieces_and_all_others_keep_their_ids(small: Tokenizer) -> None:
    larger = with_words(small, 3)
    old, new = small.get_vocab(), larger.get_vocab()
    assert len(new) == len(old) + 3
    assert {piece: new[piece] for piece in old} == old
    added = set(new) - set(old)
    for piece in added:
        assert len(small.encode(piece, add_special_tokens=False).ids) > 1
        assert piece in larger.encode(f"a{piece}ing", add_special_tokens=False).tokens
    for text in (*TEXTS, "A frog, `x.y` and 12.5 €"):
        assert larger.decode(larger.encode(text, add_special_tokens=False).ids) == small.decode(
            small.encode(text, add_special_tokens=False).ids
        )
    assert larger.encode("Xq zv", add_special_tokens=False).ids == small.encode("Xq zv", add_special_tokens=False).ids


def test_a_word_votes_for_the_sentence_of_one_that_means_the_same_and_else_for_its_own(small: Tokenizer) -> None:
    ids = {name: at for at, name in enumerate(("start", "a", "b", "c", "asked", "else"))}
    known = torch.ones(len(ids), dtype=torch.bool)
    known[ids["else"]] = False
    lexicon = Lexicon(known, [{} for _ in ids])
    with torch.no_grad():
        lexicon.means[ids["asked"]] = lexicon.means[ids["b"]]
        lexicon.means[ids["else"]] = lexicon.means[ids["c"]]  # it is not known to mean anything
        lexicon.asks.mul_(2)
    document = torch.tensor([ids[each] for each in ("start", "a", "b", "c")])
    sample = Sample(document, torch.tensor([0, 1, 2, 3]), [])
    found = lexicon(sample, torch.tensor([[ids["asked"], -1], [ids["else"], -1], [ids["else"], ids["a"]]]))
    assert found.shape == (3, 4)
    assert found[0, 1:].argmax() == 1
    assert found[0, 2] - found[0, 1] > 1
    assert float(found[1, 1:].detach().std()) < 0.2
    assert found[2, 1:].argmax() == 0


def test_answers_are_found_in_the_document_by_the_number_of_their_sentence() -> None:
    known = export.load(export.SHIPPED)[1]
    encoder = Encoder(known)
    checked = 0
    for seed in range(5):
        sample = sampled(encoder, seed, 12)
        for question, sentence in sample.questions:
            assert question
            if sentence:
                assert int(sample.ids[sample.sentences == sentence][0]) == encoder.start
                checked += 1
    assert checked > 40


def looks(model: TrainingModel, ids: list[int]) -> torch.Tensor:
    """How near each token is to each other one for the head for meanings, [query, key]."""
    layer = model.layers[LOOKS]
    assert isinstance(layer, Layer)
    seen = []
    hook = layer.input_layernorm.register_forward_hook(lambda norm, inputs, normed: seen.append(normed))
    asked = torch.tensor([[ids]])
    model(torch.tensor([[0]]), torch.tensor([1]), asked, torch.arange(len(ids))[None, None])
    hook.remove()
    rows = slice(model.shape.head * HEAD, model.shape.head * HEAD + model.shape.head)
    queries, keys = (getattr(layer.self_attn, name).weight[rows] for name in ("q_proj", "k_proj"))
    return (seen[0][1:] @ queries.T) @ (seen[0][1:] @ keys.T).T / model.shape.head**0.5


@torch.no_grad()
def test_a_new_model_looks_for_meanings_and_nothing_writes_over_them_before() -> None:
    known = export.load(export.SHIPPED)[1]
    many = known.get_vocab_size()
    model = TrainingModel(Shape(vocabulary=many))
    torch.manual_seed(1)
    lexicon = Lexicon(torch.ones(many, dtype=torch.bool), [{} for _ in range(many)])
    text = "<s>[INST] The harbour was quiet. Who keeps the money?"
    ids = known.encode(text, add_special_tokens=False).ids
    quiet, money = (ids.index(id_of(known, each)) for each in (" quiet", " money"))
    lexicon.means[ids[money]] = lexicon.means[ids[quiet]]
    initialise(model, known, lexicon)
    width = model.shape.hidden - MORE
    for layer in model.layers[:LOOKS]:  # type: ignore[union-attr]
        assert not layer.self_attn.o_proj.weight[width:].any()  # type: ignore[union-attr, index]
        assert not layer.mlp.down_proj.weight[width:].any()  # type: ignore[union-attr, index]
    near = looks(model, ids)[money]
    others = torch.tensor([at for at in range(1, len(ids)) if at not in (quiet, money)])  # the first one is a sink
    assert near[quiet] > near[others].max() + 1
    assert (model.embed_tokens.weight[:, width : width + SIZE] == lexicon.means).all()


def test_training_leaves_the_head_for_meanings_as_it_is_and_moves_all_around_it() -> None:
    model, known = export.load(export.SHIPPED)
    parts = kept(model)
    assert len(parts) == 4 + 2 * LOOKS
    whole = [each.detach().clone() for each, _ in parts]
    batch = make_batch(Encoder(known), 5, Size(2, 6, 6))
    optimiser = Optimiser(model, Rates(matrices=0.1, norms=0.1, embeddings=0.1, warm=1))
    for _ in range(2):
        loss_of(model(*batch.inputs), batch).backward()  # type: ignore[no-untyped-call]
        optimiser.step(1.0)
        model.zero_grad(set_to_none=True)
    for (each, where), before in zip(parts, whole, strict=True):
        assert torch.equal(each[where], before[where])
        elsewhere = torch.ones_like(before, dtype=torch.bool)
        elsewhere[where] = False
        assert float((each != before)[elsewhere].float().mean()) > 0.5 or each is model.embed_tokens.weight
    assert not torch.equal(model.embed_tokens.weight, whole[0])


def test_a_model_without_that_head_is_trained_as_a_whole() -> None:
    assert kept(TrainingModel(Shape(vocabulary=300, hidden=320))) == []
