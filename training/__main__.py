"""``python -m training``: from nothing, or from a model that there is, to a folder that the daemon loads."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from training.curriculum import Curriculum
from training.export import export, load, ship
from training.initialise import initialise
from training.lexicon import learn
from training.model import Shape, TrainingModel
from training.optimise import Rates
from training.sharpen import sharpen
from training.tokenizer import corpus, make_tokenizer, renewed, with_words
from training.train import Plan, Run


def main() -> None:
    """Read the command line and train."""
    options = _options()
    if options.folder:
        model, tokenizer = load(options.folder)
        tokenizer = renewed(tokenizer)
    else:
        tokenizer = with_words(make_tokenizer(corpus()))
        model = TrainingModel(Shape(vocabulary=tokenizer.get_vocab_size()))
        torch.manual_seed(options.seed)
        initialise(model, tokenizer, learn(tokenizer), options.seed)
    plan = Plan(
        folder=options.run,
        minutes=options.minutes,
        seed=options.seed,
        threads=options.threads,
        workers=options.workers,
        frozen=options.frozen if options.frozen is not None else 0 if options.folder else 2,
        average=options.average,
        looking=options.looking,
        rates=Rates(options.matrices, options.norms, options.embeddings, decay=options.decay),
        curriculum=replace(
            Curriculum(),
            tokens=options.tokens,
            first=options.first,
            last=options.last,
            longest=options.longest,
        ),
    )
    run = Run(plan, model, tokenizer)
    run.resume()
    try:
        trained = run.go()
    except KeyboardInterrupt:
        sys.exit(f"Stopped; the same command goes on from the checkpoint in {options.run}.")
    if run.rank:
        return
    sharpen(trained, options.sharper)
    export(trained, tokenizer, options.out)
    if options.ship:
        ship(options.out)


def _options() -> argparse.Namespace:
    reader = argparse.ArgumentParser("python -m training", description=__doc__)
    add = reader.add_argument
    add("--from", dest="folder", type=Path, help="go on from the model in this folder; its tokenizer stays")
    add("--run", type=Path, required=True, help="where the checkpoint and the log are; a run that is there goes on")
    add("--out", type=Path, required=True, help="where the model is put, for the daemon's --model")
    add("--ship", action="store_true", help="put it into cag_daemon/embedded, too")
    add("--minutes", type=float, default=120, help="of steps; what a run that was cut off had, counts (default: 120)")
    add("--seed", type=int, default=1, help="of the data, and of the start (default: 1)")
    add("--threads", type=int, default=1, help="of the CPU (default: 1, the quickest on two busy cores)")
    add("--workers", type=int, default=0, help="processes that make data; for a GPU 12 or more (default: 0)")
    add("--tokens", type=int, default=2500, help="of a step, about; for a GPU 100000 (default: 2500)")
    add("--first", type=int, default=18, help="sentences of a document at the start (default: 18)")
    add("--longest", type=int, default=170, help="sentences of the longest documents, 3 of 10 (default: 170)")
    add("--last", type=int, default=45, help="and from half of the run on (default: 45); some have more, see --longest")
    add("--matrices", type=float, default=0.0016, help="rate of the layers' matrices, by Muon (default: 0.0016)")
    add("--norms", type=float, default=6e-4, help="rate of the norms, by AdamW (default: 0.0006)")
    add("--embeddings", type=float, default=2e-4, help="rate of the embeddings, by AdamW (default: 0.0002)")
    add("--decay", type=float, default=0.9, help="part of the run in which the rates fall to almost 0 (default: 0.9)")
    add(
        "--frozen",
        type=int,
        help="so many first layers, and the embeddings, stay as they are (default: 2, with --from 0)",
    )
    add("--average", type=float, default=0.0, help="keep so much of an average of weights at each step (default: 0)")
    add(
        "--looking",
        type=float,
        default=0.1,
        help="how much it counts which sentence is chosen (default: 0.1)",
    )
    add(
        "--sharper",
        type=float,
        default=1.25,
        help="how much more sharply to copy at the end; 1 leaves it as it is (default: 1.25)",
    )
    return reader.parse_args()


if __name__ == "__main__":
    main()
