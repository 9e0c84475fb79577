"""Evaluate the model of a run: when, on which pieces and prompts, and against what."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
from numpy.typing import NDArray

from curate.inference.sampling import Sampling
from curate.train import evaluation, pair_evaluation
from curate.train.evaluation import HeldOut
from curate.train.objectives.reference import Reference
from curate.train.objectives.scoring import log_probabilities
from curate.train.prepare import Run
from curate.train.run.records import BASE, EvalLoss, Prompt, Sample
from curate.train.trainer import Trainer

MAX_EVALUATIONS = 10  # of a run that evaluates after each epoch: on a small set, a run may have many short epochs


class Evaluator:
    """Evaluates the model of a run; every rank calls the same methods in the same order."""

    def __init__(self, run: Run, trainer: Trainer) -> None:
        self.run = run
        self.trainer = trainer
        self.prompts = _prompts(run)
        self.reference: NDArray[np.float64] | None = None  # of pairs: log-probabilities [held-out examples]
        lengths = run.data.eval.piece_lengths
        longest = int(lengths.max()) if len(lengths) else 0
        # Rows as long as in training, or longer, so that every held-out example fits.
        self.held_out = HeldOut(run.data.eval, max(run.packed.row_tokens, longest), run.config.eval.limit)

    def is_due(self, step: int) -> bool:
        """Return whether to evaluate after a step, counted from 1.

        That is every `eval.steps` steps if that is set, otherwise once an epoch, at most MAX_EVALUATIONS times.
        """
        if self.run.config.eval.steps:
            return step % self.run.config.eval.steps == 0
        steps, load = self.run.plan.steps, self.run.plan.load
        interval = load.rows * max(1, math.ceil(steps.total_rows / load.rows / MAX_EVALUATIONS))  # packed rows
        # True for the step that completes an interval: steps and epochs need not end at the same row.
        return step * steps.rows // interval > (step - 1) * steps.rows // interval

    def loss(self, which: str) -> EvalLoss | None:
        """Return the held-out loss of the BASE or the TUNED model, None if nothing is held out. Collective."""
        if not len(self.run.data.eval):
            return None
        trainer = self.trainer
        model, world, micro_batch = (trainer.module, trainer.attention), trainer.world, trainer.micro_batch
        with self._model(which):
            if self.reference is None:
                return evaluation.losses(*model, self.held_out, world, micro_batch=micro_batch)
            against = self.reference, self.run.config.objective
            return pair_evaluation.losses(*model, self.held_out, *against, world, micro_batch=micro_batch)

    def score(self) -> Reference:
        """Return the log-probabilities of all pairs under the model as it is. Collective."""
        trainer = self.trainer
        everything = HeldOut(self.run.data.eval, self.held_out.packed.row_tokens)  # `eval.limit` may change on resuming
        train, held_out = (
            log_probabilities(trainer.module, trainer.attention, packed, trainer.world, micro_batch=trainer.micro_batch)
            for packed in (self.run.packed, everything.packed)
        )
        return Reference(train, held_out)

    def samples(self, which: str) -> list[Sample]:
        """Return answers of the BASE or the TUNED model to the run's prompts. Collective."""
        if not self.prompts:
            return []
        settings = Sampling(max_new_tokens=self.run.config.eval.max_new_tokens)
        with self._model(which):
            return evaluation.answers(
                self.trainer.module,
                self.run.renderer,
                self.prompts,
                self.trainer.world,
                sampling_settings=settings,
                limit=self.run.shape.positions,
            )

    @contextmanager
    def _model(self, which: str) -> Iterator[None]:
        with evaluation.as_base(self.trainer.module) if which == BASE else nullcontext():
            yield


def _prompts(run: Run) -> list[Prompt]:
    """Return prompts from held-out examples (or trained ones if none are held out), and fixed prompts."""
    settings = run.config.eval
    if not settings.samples and not settings.prompts:
        return []
    held_out = len(run.data.eval) > 0
    examples, kind = (run.data.eval, "held out") if held_out else (run.data.train, "trained on")
    texts = settings.prompts or evaluation.FIXED_PROMPTS
    prompts = evaluation.data_prompts(run.renderer, examples, settings.samples, kind=kind)
    return [*prompts, *evaluation.fixed_prompts(run.renderer, texts)]
