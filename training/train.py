"""A training run: steps until its budget is spent, with checkpoints that it goes on from."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as beside
from tokenizers import Tokenizer

from training.batch import Batch, Encoder, Size, choosing_loss, exact, looking_loss, loss_of, make_batch
from training.curriculum import Curriculum
from training.device import device, halves
from training.model import TrainingModel
from training.optimise import Optimiser, Rates

EVERY = 20  # steps between lines of the log
HELD_OUT = ((4, 12), (10, 8), (20, 5), (40, 3))  # sentences, documents; words that are never trained on
AHEAD = 4  # batches that each worker is asked for before they are needed


@dataclass(frozen=True)
class Plan:
    """What a run is.

    Attributes:
        folder: where its checkpoint and its log are.
        minutes: its budget, of the time spent in steps; a run that was cut off goes on with what is left.
        seed: of the data.
        threads: of the CPU.
        workers: processes that make data; 0: this one makes it.
        every: minutes between checkpoints.
        frozen: so many of the first layers, and the embeddings, stay as they are: a step takes half the time, and what
            looks up is not forgotten while the rest learns something new; 0: all is trained.
        average: how much of the average of weights each step keeps; 0: the last weights are the result.
        looking: how much it counts at which sentences the words of a question look, and which one is chosen.
    """

    folder: Path
    minutes: float
    seed: int = 1
    threads: int = 1
    workers: int = 0
    every: float = 5
    frozen: int = 0
    average: float = 0.0
    looking: float = 0.1
    rates: Rates = field(default_factory=Rates)
    curriculum: Curriculum = field(default_factory=Curriculum)


class Run:
    """A model on its way; see `Plan`."""

    def __init__(self, plan: Plan, model: TrainingModel, tokenizer: Tokenizer) -> None:
        self.plan = plan
        self.device = device()
        self.model = model.to(self.device)
        if plan.frozen:
            model.embed_tokens.requires_grad_(False)
            for layer in model.layers[: plan.frozen]:
                layer.requires_grad_(False)
        self.tokenizer = tokenizer
        self.encoder = Encoder(tokenizer)
        self.optimiser = Optimiser(self.model, plan.rates)
        self.averaged = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.rank, self.together = 0, 1
        if "WORLD_SIZE" in os.environ:  # torchrun has started several of us
            beside.init_process_group("gloo")
            self.rank, self.together = beside.get_rank(), beside.get_world_size()
        self._stopped = False
        self._shown = {"loss": 0.0, "looking": 0.0, "choosing": 0.0, "exact": 0.0, "refused": 0.0}
        self._seen = dict.fromkeys(self._shown, 0)
        plan.folder.mkdir(parents=True, exist_ok=True)

    @property
    def progress(self) -> float:
        """How much of the budget is spent, 0 to 1."""
        return min(1.0, self.seconds / (60 * self.plan.minutes))

    def go(self) -> TrainingModel:
        """Train to the end of the budget; return the model, averaged if the plan says so.

        Raises:
            KeyboardInterrupt: told to stop, by the keyboard or by SIGTERM; the checkpoint is of the last whole step.
        """
        torch.set_num_threads(self.plan.threads)
        torch.set_flush_denormal(True)  # sharp attention is full of them, and they cost half the time
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, self._stop)
        self.log("plan", **_plain(asdict(self.plan)))
        if not self.step:
            self.log("held out", **self.held_out())
        kept = self.seconds
        began = time.monotonic()
        for batch in self._batches():
            self._one(batch)
            now = time.monotonic()
            self.seconds, began = self.seconds + now - began, now
            self._agree()
            if self._stopped:
                self.save()
                raise KeyboardInterrupt
            if self.step % EVERY == 0:
                shown = {name: round(value, 3) for name, value in self._shown.items()}
                self.log("step", **shown, rate=round(self.tokens / max(1e-9, self.seconds)))
            if self.seconds - kept > 60 * self.plan.every:
                self.save()
                kept = self.seconds
        if self.plan.average:
            self.model.load_state_dict(self.averaged)
        self.save()
        self.log("held out", **self.held_out())
        return self.model

    def _stop(self, *_: Any) -> None:
        self._stopped = True

    def _agree(self) -> None:
        """All stop at one step: the clock is that of the slowest, and who is told to stop tells the others."""
        if self.together > 1:
            said = torch.tensor([self.seconds, float(self._stopped)], dtype=torch.float64)
            beside.all_reduce(said, beside.ReduceOp.MAX)
            self.seconds, self._stopped = said[0].item(), bool(said[1])

    def _share(self) -> None:
        """Everybody goes on with the mean of all gradients, and so all stay the same."""
        if self.together > 1:
            gradients = [each.grad for each in self.model.parameters() if each.grad is not None]
            flat = torch.cat([each.flatten() for each in gradients])
            beside.all_reduce(flat)
            flat /= self.together
            parts = torch.split(flat, [each.numel() for each in gradients])
            for mine, mean in zip(gradients, parts, strict=True):
                mine.copy_(mean.view_as(mine))

    def _one(self, batch: Batch) -> None:
        factor = self.plan.rates.factor(self.step, self.progress)
        batch = batch.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=halves(self.device)):
            logits = self.model(*batch.inputs)
        loss = loss_of(logits, batch)
        looking = looking_loss(self.model.votes, batch)
        choosing = choosing_loss(self.model.choices, batch)
        (loss + self.plan.looking * (looking + choosing)).backward()  # type: ignore[no-untyped-call]
        self._share()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step(factor)
        self.model.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += batch.tokens
        if self.plan.average:
            with torch.no_grad():
                for name, value in self.model.state_dict().items():
                    self.averaged[name].lerp_(value, 1 - self.plan.average)
        if self.device.type == "cpu" or self.step % EVERY == 0:  # elsewhere, looking means waiting
            right = exact(logits, batch)
            self._show("loss", loss.item())
            self._show("looking", looking.item())
            self._show("choosing", choosing.item())
            self._show("exact", right[~batch.refused].float().mean().item())
            self._show("refused", right[batch.refused].float().mean().item())

    def _show(self, name: str, value: float) -> None:
        """Keep a moving average; a step without a refusal has nothing to say of refusals."""
        if value == value:
            self._seen[name] += 1
            self._shown[name] += (value - self._shown[name]) * max(0.03, 1 / self._seen[name])

    def _batches(self) -> Iterator[Batch]:
        """Batches until the budget is spent. Workers are ahead, by sizes that fit a moment ago."""
        if not self.plan.workers:
            while self.progress < 1:
                yield make_batch(self.encoder, *self._wanted(self.step))
            return
        with ProcessPoolExecutor(self.plan.workers) as pool:
            coming: list[Future[Batch]] = []
            try:
                while self.progress < 1:
                    while len(coming) < AHEAD * self.plan.workers:
                        coming.append(pool.submit(make_batch, self.encoder, *self._wanted(self.step + len(coming))))
                    yield coming.pop(0).result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _wanted(self, step: int) -> tuple[int, Size]:
        seed = self.plan.seed * 10_000_000 + step * self.together + self.rank + 1
        return seed, self.plan.curriculum.size(step + 1, self.progress)  # one size: nobody waits for another

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """How many answers are exact, by sentences a document, with words that are never trained on."""
        found = {}
        for sentences, documents in HELD_OUT:
            batch = make_batch(self.encoder, 777 + sentences, Size(documents, sentences, 8), held_out=True)
            batch = batch.to(self.device)
            right = exact(self.model(*batch.inputs), batch)
            found[str(sentences)] = round(right[~batch.refused].float().mean().item(), 3)
            found[f"{sentences} refused"] = round(right[batch.refused].float().mean().item(), 3)
        return found

    def log(self, what: str, **values: Any) -> None:
        """A line of JSON to the log and to the terminal."""
        if self.rank:
            return
        where = {"minutes": round(self.seconds / 60, 1), "step": self.step}
        line = json.dumps({"what": what, **where, **values})
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        with (self.plan.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def save(self) -> None:
        """Keep all that the run goes on from, in place of what was kept before."""
        if self.rank:
            return
        state = {
            "model": self.model.state_dict(),
            "averaged": self.averaged,
            "optimiser": self.optimiser.state(),
            "counts": {"step": self.step, "tokens": self.tokens, "seconds": self.seconds},
        }
        new = self.plan.folder / "checkpoint.new"
        torch.save(state, new)
        new.replace(self.plan.folder / "checkpoint.pt")

    def resume(self) -> bool:
        """Go on from what was kept, if anything was."""
        kept = self.plan.folder / "checkpoint.pt"
        if not kept.exists():
            return False
        state = torch.load(kept, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.averaged = state["averaged"]
        self.optimiser.restore(state["optimiser"])
        counts = state["counts"]
        self.step, self.tokens, self.seconds = counts["step"], counts["tokens"], counts["seconds"]
        return True


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
