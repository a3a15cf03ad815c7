"""The tokenizer: made for matching. A word gives the same tokens wherever it stands, a sentence's start is a token.

Byte-pair encoding of 3,072 pieces with byte fallback. A normalizer writes capital letters as a mark and the small
letter, and puts a mark where a sentence, a line, or an item of a list begins; common endings, digits and punctuation
are pieces of their own. The decoder takes it all back. The ids of prefix and suffix together are those of the whole.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from training.data import lists
from training.data.document import example
from training.data.sentences import docstrings
from training.data.words import definitions

CAPITAL = "\ue000"  # the next letter is a capital
START = "\ue001"  # a sentence starts here
SPECIALS = ["<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
VOCABULARY = 3072
ENDINGS = r"(?:ing|ed|es|s|er|ly|e)"
ABBREVIATED = "|".join(rf"{each}\." for each in ("Mr", "Mrs", "Ms", "Dr", "St", "Prof", "e\\.g", "i\\.e", "No", "vs"))
ENDED = r"[.!?]|[.!?][\"')\]*_]|[.!?]\*\*"
KEY = r"(?:[A-Z][^\n:.!?]{0,24}: |\([\da-z]{1,2}\))"  # a line of its own, however long the one before is
PROMPTS = "Question:|Selected text:"  # with which a suffix begins: what comes before it is the same without it
SEVERAL = 5  # starts in a question, or in the first line that is selected, that are not marked
WORDS = 4096  # that are whole pieces, too
WORD = re.compile(" [a-z]{3,}")
# Not so: words of the prompt, which a trained model goes wrong without, and those that have hardly a meaning of their
# own, which it would begin to look for.
KEPT = lists.split(" ".join(("question selected text does", *lists.phrases("grammar"))))
MARKS = "|".join(rf"{START} {mark}" for mark in ("[-*+•>]", "#", "##", "###", "####", r"\d\.", r"\d\d\.", r"\d\)"))


def normalizer() -> normalizers.Normalizer:
    """What is done to a text before it is cut into pieces."""
    steps = [
        (r"\r\n?", "\n"),
        (r"[ \t]+", " "),
        (r" ?\n ?", "\n"),
        # A line break within a paragraph is a space, unless an item of a list or a heading follows.
        (r"(?<=[^\n.!?:])\n(?=[a-z]|\((?!\w{1,2}\)))", " "),
        (rf"(?<=[^\n]{{40}})(?<![.!?:\n])\n(?=[^\s\-*#>|\d])(?!{KEY})", " "),
        (r"\s+\z", ""),
        # Where sentences start …
        (rf"(?<={ENDED})(?<!{ABBREVIATED})[ ](?=[\"'(\[*_]{{0,3}}[A-Z]|[*_]{{0,2}}`)", f"{START} "),
        (r"(?<=[!?])[ ](?=\d)", f"{START} "),
        # … but not in a question, nor in the first line that is selected: see `initialise`, which asks as far as that …
        (rf"^ ?Selected text:\K\s*\n\s*(?!{PROMPTS})(?=\S)", " "),
        (rf"^ ?Question: [^\n.?!]*\K\n+(?!{PROMPTS})(?=[^\n])", " "),
        *[(rf"^ ?(?:Question|Selected text): [^\n{START}]*\K{START}", "")] * SEVERAL,
        (r"\A\s*(?=\S)", f"{START} "),
        (r"\s*\n\s*(?=\S)", f"{START} "),
        # … and behind the mark of an item or a heading.
        (rf"(?<={MARKS})[ ](?=\S)", f"{START} "),
    ]
    for capital in string.ascii_uppercase:
        steps.append((f" {capital}(?=[a-z])", f"{CAPITAL} {capital.lower()}"))
        steps.append((f"{capital}(?=[a-z])", f"{CAPITAL}{capital.lower()}"))
    return normalizers.Sequence([normalizers.Replace(Regex(pattern), content) for pattern, content in steps])


def decoder() -> decoders.Decoder:
    """What makes a text of pieces, of an answer that is still growing, too: a mark alone is no text."""
    steps: list[decoders.Decoder] = [decoders.ByteFallback(), decoders.Fuse()]
    for capital in string.ascii_uppercase:
        steps.append(decoders.Replace(f"{CAPITAL} {capital.lower()}", f" {capital}"))
        steps.append(decoders.Replace(f"{CAPITAL}{capital.lower()}", capital))
    return decoders.Sequence([*steps, decoders.Replace(START, ""), decoders.Replace(CAPITAL, "")])


def make_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """Learn the pieces from texts."""
    words = rf"{CAPITAL}|{START}| ?\d| ?\p{{L}}{{3,}}?(?={ENDINGS}(?!\p{{L}}))| ?\p{{L}}+|\s+| ?[^\s\p{{L}}\d]"
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(words), "isolated")
    tokenizer.decoder = decoder()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIALS + BYTES,
        initial_alphabet=[*map(chr, range(32, 127)), "\n", CAPITAL, START],
        limit_alphabet=110,
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Bytes have to be pieces, but not special ones: a document may well have "<0x0A>" in it.
    made = json.loads(tokenizer.to_str())
    made["added_tokens"] = [each for each in made["added_tokens"] if not each["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(made))


def renewed(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer of an earlier run with what cuts and joins today; its pieces, and so the model's ids, stay."""
    tokenizer.normalizer, tokenizer.decoder = normalizer(), decoder()
    return tokenizer


def with_words(tokenizer: Tokenizer, many: int = WORDS) -> Tokenizer:
    """The tokenizer with so many words that texts are full of, as whole pieces behind those that it has.

    What a piece was cut into before is found whole first; everything else is cut as before, and ids stay.
    """
    made = json.loads(tokenizer.to_str())
    known, counted = made["model"]["vocab"], Counter[str]()
    for share, texts in ((1.0, definitions()), (0.8, corpus(documents=3000)), (1.0, docstrings())):
        of_these = Counter(piece for text in texts for piece in _cut(tokenizer, text))
        counted.update({piece: share * count for piece, count in of_these.items()})
    kept = {piece for word in KEPT for piece in _cut(tokenizer, f"a {word}")}
    new = [piece for piece, _ in counted.most_common() if piece not in known and piece not in kept][:many]
    made["model"]["vocab"] = known | {piece: len(known) + at for at, piece in enumerate(new)}
    made["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(made))


def _cut(tokenizer: Tokenizer, text: str) -> list[str]:
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
    return [piece for piece, _ in pieces if WORD.fullmatch(piece)]


def corpus(seed: int = 10_000_000, documents: int = 2500) -> Iterator[str]:
    """What the pieces are learned from: documents of the generator, their questions, and docstrings."""
    for at in range(documents):
        made = example(seed + at, 12, 6)
        yield made.text
        yield from (question.text for question in made.questions)
    for _ in range(3):
        yield from docstrings()
