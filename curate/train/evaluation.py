"""Evaluation of a model in training: held-out loss, overall and by kind, and answers to some prompts.

Losses are exact sums over supervised tokens: each token's loss is added in fp64 to that of its answer, and answers are
grouped by depth, language and length. Every rank makes the same number of forward passes, so that a rank with fewer
rows never blocks the others of a sharded model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.distributed.fsdp import FSDPModule

from curate.inference import sampling
from curate.inference.sampling import Sampling
from curate.model import serving
from curate.model.attention import selection as attentions
from curate.model.attention.selection import ChosenKernel
from curate.rendering.mask_view import decode_masked
from curate.rendering.renderer import Renderer
from curate.schemas.conversation import Message
from curate.tokenization.tokenizer import Tokenizer
from curate.train import distributed, packing
from curate.train.distributed import World
from curate.train.examples import Examples
from curate.train.packing import PackedData
from curate.train.prepare import Run
from curate.train.run.records import BASE, EvalLoss, Prompt, Row, Sample, Slice
from curate.train.trainer import Trainer, causal_model

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
LEAST_LENGTH = 256  # tokens; shorter conversations are one kind
MAX_EVALUATIONS = 10  # of a run whose evaluations come by epochs: a small set has many epochs
UNKNOWN = "unknown"
FIXED_PROMPTS = (
    "Who are you, and what can you help me with?",
    "Explain in two sentences why the sky is blue.",
    "Write a Python function that reverses a string.",
)


class Evaluator:
    """Evaluates the model of a run; every rank calls the same methods in the same order."""

    def __init__(self, run: Run, trainer: Trainer) -> None:
        self.run = run
        self.trainer = trainer
        self.prompts = _prompts(run)
        lengths = run.data.eval.lengths
        longest = int(lengths.max()) if len(lengths) else 0
        # Packed rows as in training, or longer for a longer conversation: held-out ones are never left out.
        self.held_out = HeldOut(run.data.eval, max(run.packed.row_tokens, longest), run.config.eval.limit)

    def is_due(self, step: int) -> bool:
        """Return whether to evaluate after a step: every `eval.steps`, or at the ends of at most 10 epochs."""
        if self.run.config.eval.steps:
            return step % self.run.config.eval.steps == 0
        steps, load = self.run.plan.steps, self.run.plan.load
        interval = load.rows * max(1, math.ceil(steps.total_rows / load.rows / MAX_EVALUATIONS))  # packed rows
        return step * steps.rows // interval > (step - 1) * steps.rows // interval

    def loss(self, which: str) -> EvalLoss | None:
        """Return the held-out loss of the BASE or the TUNED model, None where nothing is held out."""
        if not len(self.run.data.eval):
            return None
        trainer = self.trainer
        with self._model(which):
            return losses(
                trainer.module, trainer.attention, self.held_out, trainer.world, micro_batch=trainer.micro_batch
            )

    def samples(self, which: str) -> list[Sample]:
        """Return answers of the BASE or the TUNED model to the run's prompts."""
        if not self.prompts:
            return []
        settings = Sampling(max_new_tokens=self.run.config.eval.max_new_tokens)
        with self._model(which):
            return answers(
                self.trainer.module,
                self.run.renderer,
                self.prompts,
                self.trainer.world,
                sampling_settings=settings,
                limit=self.run.shape.positions,
            )

    @contextmanager
    def _model(self, which: str) -> Iterator[None]:
        with as_base(self.trainer.module) if which == BASE else nullcontext():
            yield


def _prompts(run: Run) -> list[Prompt]:
    """Return prompts from held-out conversations, or trained ones where none are held out, and fixed prompts."""
    settings = run.config.eval
    if not settings.samples and not settings.prompts:
        return []
    held_out = len(run.data.eval) > 0
    examples, kind = (run.data.eval, "held out") if held_out else (run.data.train, "trained on")
    texts = settings.prompts or FIXED_PROMPTS
    prompts = data_prompts(run.renderer, examples, settings.samples, kind=kind)
    return [*prompts, *fixed_prompts(run.renderer, texts)]


# ---- losses


class HeldOut:
    """Held-out conversations, packed once, and the answer that each supervised token belongs to.

    `limit` takes that many conversations, evenly spread; 0 takes all.
    """

    def __init__(self, examples: Examples, row_tokens: int, limit: int = 0) -> None:
        self.examples = examples
        indices = spread(len(examples), limit)
        self.answers = _answers(examples, indices)
        rows: list[list[int]] = []
        if len(indices):
            packed = packing.pack(examples.lengths[indices], row_tokens)
            rows = [[int(indices[place]) for place in row] for row in packed.rows]
        self.packed = PackedData(examples, rows, row_tokens)


@dataclass(frozen=True)
class _Answers:
    """The answers (runs of supervised tokens) of some conversations; arrays are [answers]."""

    conversation: Ints  # index in the examples
    depth: Ints  # from 1
    tokens: Ints
    of_targets: dict[int, Ints]  # by conversation: the answer of each of its supervised targets, in order


def losses(
    module: nn.Module, attention: ChosenKernel, held_out: HeldOut, world: World, *, micro_batch: int = 1
) -> EvalLoss:
    """Return the held-out loss; every rank calls it, and gets the same.

    module: CausalLoss, bare, in DDP or sharded.
    """
    packed = held_out.packed
    if not packed.rows:
        return EvalLoss(Slice("all", None, 0, 0))
    sums = torch.zeros(len(held_out.answers.conversation), dtype=torch.float64)  # on the CPU
    # A rank without rows runs an empty one, so that it stays in step; on CUDA every batch has the same shape, so that
    # none is compiled again.
    min_rows = micro_batch if world.device.type == "cuda" else 1
    with _evaluating(module):
        for part in distributed.shares(range(len(packed.rows)), micro_batch, world):
            batch = packed.batch(part, min_rows).to(world.device)
            token_losses = distributed.inner(module)(batch, attention, per_token=True)  # [supervised], fp32
            indices = [held_out.answers.of_targets[index] for row in part for index in packed.rows[row]]
            if indices:
                sums.index_add_(0, torch.from_numpy(np.concatenate(indices)), token_losses.double().cpu())
    total = np.array(distributed.total(sums.tolist(), world))
    return _group_losses(held_out.examples, held_out.answers, total)


def spread(count: int, limit: int) -> Ints:
    """Return `limit` indices out of `count`, evenly spread; a limit of 0 returns all."""
    if not limit or limit >= count:
        return np.arange(count)
    return np.arange(limit) * count // limit


def _answers(examples: Examples, indices: Ints) -> _Answers:
    conversation: list[int] = []
    depth: list[int] = []
    of_targets: dict[int, Ints] = {}
    for index in indices.tolist():
        begin, end = examples.offsets[index : index + 2].tolist()
        supervised = examples.loss_mask[begin + 1 : end]  # shifted as in packing: the first token is no target
        starts = supervised & ~np.concatenate([[False], supervised[:-1]])
        of_targets[index] = (np.cumsum(starts) - 1 + len(conversation))[supervised]
        count = int(starts.sum())
        conversation += [index] * count
        depth += range(1, count + 1)
    every = np.concatenate([*of_targets.values(), np.zeros(0, np.int64)])
    tokens = np.bincount(every, minlength=len(conversation))
    return _Answers(np.array(conversation, np.int64), np.array(depth, np.int64), tokens, of_targets)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Turn dropout and gradients off; unlike in `sampling.eval_mode`, layers stay compiled for their fixed shapes."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


def _group_losses(examples: Examples, answers: _Answers, sums: Floats) -> EvalLoss:
    """Return the losses by kind from the summed loss of each answer [answers]."""
    exchanges, lengths = examples.exchanges, examples.lengths

    def by(key: Callable[[int, int], Hashable], *, largest_first: bool = False) -> tuple[Slice, ...]:
        groups: dict[Any, list[int]] = {}
        pairs = zip(answers.conversation.tolist(), answers.depth.tolist(), strict=True)
        for place, (index, depth) in enumerate(pairs):
            groups.setdefault(key(index, depth), []).append(place)
        slices = [(name, _slice(name, answers, sums, places)) for name, places in groups.items()]
        slices.sort(key=(lambda pair: -pair[1].tokens) if largest_first else (lambda pair: pair[0]))
        return tuple(part for _, part in slices)

    return EvalLoss(
        overall=_slice("all", answers, sums, range(len(sums))),
        by_exchanges=by(lambda index, _: band(int(exchanges[index]))),
        by_depth=by(lambda _, depth: band(depth)),
        by_language=by(lambda index, _: examples.languages[index] or UNKNOWN, largest_first=True),
        by_length=by(lambda index, _: band(int(lengths[index]), LEAST_LENGTH)),
    )


Band = tuple[int, int]  # from, to, both included


def band(number: int, least: int = 1) -> Band:
    """Return the band of a number: up to `least`, then each twice as wide (1, 2, 3 to 4, 5 to 8 …)."""
    if number < 1:
        return 0, 0
    top = least
    while top < number:
        top *= 2
    return (1 if top == least else top // 2 + 1), top


def _slice(name: str | Band, answers: _Answers, sums: Floats, places: Sequence[int]) -> Slice:
    shown = name if isinstance(name, str) else "-".join(map(str, dict.fromkeys(name)))
    tokens = int(answers.tokens[places].sum())
    loss = float(sums[places].sum()) / tokens if tokens else float("nan")
    return Slice(shown, loss if np.isfinite(loss) else None, tokens, len(set(answers.conversation[places].tolist())))


# ---- answers


def fixed_prompts(renderer: Renderer, texts: Sequence[str] = FIXED_PROMPTS) -> list[Prompt]:
    """Return prompts of one user message each."""
    conversations = [(Message("user", text),) for text in texts]
    return [
        Prompt("fixed prompt", messages, tuple(renderer.generation_prompt(messages).tolist()))
        for messages in conversations
    ]


def data_prompts(renderer: Renderer, examples: Examples, count: int, *, kind: str = "held out") -> list[Prompt]:
    """Return the prompts before the first supervised answer of some conversations, evenly spread.

    Examples keep ids, not messages, so a prompt is shown as decoded, without what the template writes around a single
    question.
    """
    prompts = []
    before, after = _around(renderer)
    for index in spread(len(examples), count).tolist() if count else ():
        begin, end = examples.offsets[index : index + 2].tolist()
        ids, loss_mask = examples.ids[begin:end], examples.loss_mask[begin:end]
        start = int(loss_mask.argmax())
        stop = start + int(np.append(loss_mask[start:], False).argmin())
        answer_ids = [token for token in ids[start:stop].tolist() if token not in renderer.stop_ids]
        prompt_ids, tokenizer = ids[:start].tolist(), renderer.tokenizer
        question = tokenizer.decode(prompt_ids).removeprefix(before).removesuffix(after).strip()
        answer = tokenizer.decode(answer_ids).removeprefix(serving.answer_lead(renderer.name))
        name = f"{kind}: {examples.names[index]}"
        prompts.append(Prompt(name, (Message("user", question),), tuple(prompt_ids), answer))
    return prompts


def _around(renderer: Renderer) -> tuple[str, str]:
    """Return the text that a renderer writes before and after a single question."""
    question = "QUESTION"
    whole = renderer.tokenizer.decode(renderer.generation_prompt((Message("user", question),)).tolist())
    before, _, after = whole.rpartition(question)
    return before, after


def answers(
    module: nn.Module,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    world: World,
    *,
    sampling_settings: Sampling = sampling.GREEDY,
    limit: int = 0,
) -> list[Sample]:
    """Return the model's answer to each prompt; every rank calls it, and gets the same.

    module: CausalLoss, bare, in DDP or sharded. `limit`: tokens of prompt and answer together, 0 for no limit.
    """
    model = causal_model(module)
    sharded = distributed.is_sharded(module)
    mine = prompts if sharded else prompts[world.rank :: world.size]
    with sampling.eval_mode(model), attentions.plain_attention(model), _gathered(module):
        samples = [_answer(model, renderer, prompt, sampling_settings, limit) for prompt in mine]
    if sharded:  # every rank answered every prompt
        return samples
    by_rank = distributed.gather(samples, world)
    return [by_rank[place % world.size][place // world.size] for place in range(len(prompts))]


@contextmanager
def _gathered(module: nn.Module) -> Iterator[None]:
    """Keep a sharded model's embeddings, norm and head gathered, as a forward pass that bypasses the root needs.

    The layers gather themselves. All ranks choose the same tokens, because all compute the same numbers.
    """
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def _answer(model: nn.Module, renderer: Renderer, prompt: Prompt, settings: Sampling, limit: int) -> Sample:
    tokenizer = renderer.tokenizer
    stops = tuple(dict.fromkeys((*renderer.stop_ids, tokenizer.info.eos_id)))
    lead = serving.answer_lead(renderer.name)
    answer = sampling.generate_answer(model, prompt.ids, stops, tokenizer, settings, lead=lead, limit=limit)
    return Sample(prompt, answer.text, answer.stopped, len(answer.ids))


@contextmanager
def as_base(module: nn.Module) -> Iterator[None]:
    """Disable a model's adapter, if it has one: the model is then its base."""
    disable_adapter: Any = getattr(causal_model(module), "disable_adapter", None)
    with nullcontext() if disable_adapter is None else disable_adapter():
        yield


# ---- the loss mask, to look at


def decode_masks(tokenizer: Tokenizer, examples: Examples, count: int) -> list[Row]:
    """Return lines of `masked.jsonl`: the text of some conversations in spans, each with loss or without."""
    return [
        {"name": examples.names[index], "runs": decode_masked(tokenizer, *examples.rendering(index))}
        for index in spread(len(examples), count).tolist()
    ]
