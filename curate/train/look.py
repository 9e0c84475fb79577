"""Looks at a model in training: held-out loss and sample answers, of the base model first, then now and then."""

from __future__ import annotations

import math
from contextlib import nullcontext

from curate.inference.sampling import Sampling
from curate.train import evaluation
from curate.train.evaluation import Prompt
from curate.train.prepare import Prepared
from curate.train.run import records
from curate.train.run.log import Journal
from curate.train.trainer import Trainer

MOST = 10  # looks, where they come by epochs: a small set has many


class Look:
    """Takes the looks of one run; every rank takes them together."""

    def __init__(self, ready: Prepared, trainer: Trainer, journal: Journal) -> None:
        self.ready = ready
        self.trainer = trainer
        self.journal = journal
        self.settings = ready.config.eval
        self.prompts = _prompts(ready)
        self.taken = -1

    def is_due(self, step: int) -> bool:
        """Tell whether a look is due after a step: every so many, or where an epoch ends, but then `MOST` in a run."""
        if self.settings.steps:
            return step % self.settings.steps == 0
        steps, load = self.ready.plan.steps, self.ready.plan.load
        apart = load.rows * max(1, math.ceil(steps.total_rows / load.rows / MOST))
        return step * steps.rows // apart > (step - 1) * steps.rows // apart

    def base(self) -> None:
        """Look at the model as it was before."""
        self._look(records.BASE)

    def tuned(self, step: int) -> None:
        """Look at the model as it is, once a step."""
        if self.taken != step:
            self.taken = step
            self._look(records.TUNED)

    def _look(self, which: str) -> None:
        trainer, world, made = self.trainer, self.trainer.world, self.ready.renderer
        with evaluation.as_base(trainer.module) if which == records.BASE else nullcontext():
            if len(self.ready.data.eval):
                found = evaluation.losses(
                    trainer.module,
                    trainer.attention,
                    self.ready.data.eval,
                    world,
                    row_tokens=self.ready.eval_row_tokens,
                    micro_batch=trainer.micro_batch,
                    limit=self.settings.limit,
                )
                self.journal.evaluated(which, found)
            if self.prompts:
                how = Sampling(max_new_tokens=self.settings.max_new_tokens)
                limit = self.ready.shape.positions
                said = evaluation.answers(trainer.module, made, self.prompts, world, sampling_settings=how, limit=limit)
                self.journal.sampled(which, said)


def _prompts(ready: Prepared) -> list[Prompt]:
    """Return what is asked: held-out prompts, or trained ones where nothing is held out, and fixed ones."""
    settings = ready.config.eval
    if not settings.samples and not settings.prompts:
        return []
    held_out = len(ready.data.eval) > 0
    examples, said = (ready.data.eval, "held out") if held_out else (ready.data.train, "trained on")
    texts = settings.prompts or evaluation.FIXED
    asked = evaluation.data_prompts(ready.renderer, examples, settings.samples, said=said)
    return [*asked, *evaluation.fixed_prompts(ready.renderer, texts)]
