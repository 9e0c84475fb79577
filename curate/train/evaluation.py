"""Evaluation of a model in training: held-out loss, overall and by group, and sample answers.

Losses are sums over supervised tokens: each token's loss is added in fp64 to that of its answer, and answers are
grouped by depth, language and length. Every rank makes the same number of forward passes, because each pass of a
sharded model is collective.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
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
from curate.train.objectives.scoring import evaluating, token_losses
from curate.train.packing import PackedData
from curate.train.run.records import EvalLoss, Prompt, Row, Sample, Slice
from curate.train.trainer import causal_model

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
LEAST_LENGTH = 256  # tokens; shorter examples form one band
UNKNOWN = "unknown"  # language
FIXED_PROMPTS = (
    "Who are you, and what can you help me with?",
    "Explain in two sentences why the sky is blue.",
    "Write a Python function that reverses a string.",
)


# ---- losses


class HeldOut:
    """Held-out examples, packed once for all evaluations, and the answer that each supervised token belongs to.

    `limit` takes that many pieces, evenly spaced over the set; 0 takes all.
    """

    def __init__(self, examples: Examples, row_tokens: int, limit: int = 0) -> None:
        self.examples = examples
        self.pieces = spread(examples.pieces, limit)
        rows: list[list[int]] = []
        if len(self.pieces):
            packed = packing.pack(examples.piece_lengths[self.pieces], row_tokens)
            rows = [self.pieces[row].tolist() for row in packed.rows]  # which count within `pieces`
        self.packed = PackedData(examples, packing.rows_of_sides(rows, examples.sides), row_tokens)

    @cached_property
    def answers(self) -> _Answers:
        """The answers of the examples, which have one side each."""
        return _answers(self.examples, self.pieces)


@dataclass(frozen=True)
class _Answers:
    """The answers of some examples, as consecutive supervised tokens; arrays are [answers]."""

    example: Ints  # index in the examples
    depth: Ints  # number of the answer in its example, from 1
    tokens: Ints  # supervised ones
    of_targets: dict[int, Ints]  # by example: for each supervised target in order, the index of its answer


def losses(
    module: nn.Module, attention: ChosenKernel, held_out: HeldOut, world: World, *, micro_batch: int = 1
) -> EvalLoss:
    """Return the held-out loss, the same on every rank. Collective: every rank must call this.

    `module` is a CausalLoss, alone, in DDP or sharded.
    """
    packed = held_out.packed
    if not packed.rows:
        return EvalLoss(Slice("all", None, 0, 0))
    sums = torch.zeros(len(held_out.answers.example), dtype=torch.float64)  # [answers], on the CPU
    with evaluating(module):
        for members, of_tokens in token_losses(module, attention, packed, world, micro_batch=micro_batch):
            if members:
                answer_of = np.concatenate([held_out.answers.of_targets[index] for index in members])
                sums.index_add_(0, torch.from_numpy(answer_of), of_tokens)
    total = np.array(distributed.total(sums.tolist(), world))  # [answers]
    return _group_losses(held_out.examples, held_out.answers, total)


def spread(count: int, limit: int) -> Ints:
    """Return `limit` indices out of `count`, evenly spaced and ascending; a limit of 0 returns all."""
    if not limit or limit >= count:
        return np.arange(count)
    return np.arange(limit) * count // limit


def _answers(examples: Examples, indices: Ints) -> _Answers:
    """Find the answers of these examples: each begins where a supervised target follows an unsupervised one."""
    example: list[int] = []
    depth: list[int] = []
    of_targets: dict[int, Ints] = {}
    for index in indices.tolist():
        begin, end = examples.offsets[index : index + 2].tolist()
        supervised = examples.loss_mask[begin + 1 : end]  # shifted as in packing: the first token is never a target
        starts = supervised & ~np.concatenate([[False], supervised[:-1]])  # [targets]
        # Counting the starts up to a target numbers the answers; those of earlier examples come first.
        of_targets[index] = (np.cumsum(starts) - 1 + len(example))[supervised]
        count = int(starts.sum())
        example += [index] * count
        depth += range(1, count + 1)
    all_targets = np.concatenate([*of_targets.values(), np.zeros(0, np.int64)])
    tokens = np.bincount(all_targets, minlength=len(example))
    return _Answers(np.array(example, np.int64), np.array(depth, np.int64), tokens, of_targets)


def _group_losses(examples: Examples, answers: _Answers, sums: Floats) -> EvalLoss:
    """Return the losses by group, from the summed loss of each answer [answers]."""
    exchanges, lengths = examples.exchanges, examples.lengths

    def group_by(key: Callable[[int, int], Hashable], *, largest_first: bool = False) -> tuple[Slice, ...]:
        """Group answers by a key of example and depth; sort by key, or by tokens."""
        groups: dict[Any, list[int]] = {}
        pairs = zip(answers.example.tolist(), answers.depth.tolist(), strict=True)
        for answer, (index, depth) in enumerate(pairs):
            groups.setdefault(key(index, depth), []).append(answer)
        slices = [(name, _slice(name, answers, sums, members)) for name, members in groups.items()]
        slices.sort(key=(lambda pair: -pair[1].tokens) if largest_first else (lambda pair: pair[0]))
        return tuple(group for _, group in slices)

    return EvalLoss(
        overall=_slice("all", answers, sums, range(len(sums))),
        by_exchanges=group_by(lambda index, _: band(int(exchanges[index]))),
        by_depth=group_by(lambda _, depth: band(depth)),
        by_language=group_by(lambda index, _: examples.languages[index] or UNKNOWN, largest_first=True),
        by_length=group_by(lambda index, _: band(int(lengths[index]), LEAST_LENGTH)),
    )


Band = tuple[int, int]  # first and last number, both included


def band(number: int, least: int = 1) -> Band:
    """Return the band of a number: 1 to `least`, then each twice as wide (1, 2, 3 to 4, 5 to 8 …); 0 is its own."""
    if number < 1:
        return 0, 0
    top = least
    while top < number:
        top *= 2
    return (1 if top == least else top // 2 + 1), top


def band_name(name: str | Band) -> str:
    """Return the name of a group: for a band its numbers, such as 3-4, but 1 for 1 to 1."""
    return name if isinstance(name, str) else "-".join(map(str, dict.fromkeys(name)))


def _slice(name: str | Band, answers: _Answers, sums: Floats, members: Sequence[int]) -> Slice:
    """Return the mean loss per token of some answers, given by index."""
    tokens = int(answers.tokens[members].sum())
    loss = float(sums[members].sum()) / tokens if tokens else float("nan")
    return Slice(
        band_name(name), loss if np.isfinite(loss) else None, tokens, len(set(answers.example[members].tolist()))
    )


# ---- answers


def fixed_prompts(renderer: Renderer, texts: Sequence[str] = FIXED_PROMPTS) -> list[Prompt]:
    """Return a prompt of one user message for each text."""
    questions = [(Message("user", text),) for text in texts]
    return [
        Prompt("fixed prompt", messages, tuple(renderer.generation_prompt(messages).tolist())) for messages in questions
    ]


def data_prompts(renderer: Renderer, examples: Examples, count: int, *, kind: str = "held out") -> list[Prompt]:
    """Return the prompts before the first supervised answer of `count` examples, evenly spaced over all.

    Examples have ids, not messages. A prompt is therefore shown as decoded text, without the text that the template
    writes around a single question.
    """
    prompts = []
    before, after = _text_around_question(renderer)
    for index in (spread(examples.pieces, count) * examples.sides).tolist() if count else ():
        begin, end = examples.offsets[index : index + 2].tolist()
        ids, loss_mask = examples.ids[begin:end], examples.loss_mask[begin:end]
        start = int(loss_mask.argmax())  # first supervised token
        stop = start + int(np.append(loss_mask[start:], False).argmin())  # first unsupervised one after it, or the end
        answer_ids = [token for token in ids[start:stop].tolist() if token not in renderer.stop_ids]
        prompt_ids, tokenizer = ids[:start].tolist(), renderer.tokenizer
        question = tokenizer.decode(prompt_ids).removeprefix(before).removesuffix(after).strip()
        answer = tokenizer.decode(answer_ids).removeprefix(serving.answer_lead(renderer.name))
        name = f"{kind}: {examples.names[index]}"
        prompts.append(Prompt(name, (Message("user", question),), tuple(prompt_ids), answer))
    return prompts


def _text_around_question(renderer: Renderer) -> tuple[str, str]:
    """Return the text that a renderer writes before and after a single question."""
    question = "QUESTION"
    rendered = renderer.tokenizer.decode(renderer.generation_prompt((Message("user", question),)).tolist())
    before, _, after = rendered.rpartition(question)
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
    """Return the model's answer to each prompt, the same on every rank. Collective: every rank must call this.

    `module` is a CausalLoss, alone, in DDP or sharded. `limit` is the maximum number of tokens of prompt and answer
    together, 0 for none. Unsharded ranks share the prompts; a sharded model needs all ranks for each token, so each
    answers all of them.
    """
    model = causal_model(module)
    sharded = distributed.is_sharded(module)
    own_prompts = prompts if sharded else prompts[world.rank :: world.size]
    with sampling.eval_mode(model), attentions.plain_attention(model), _gather(module):
        samples = [_answer(model, renderer, prompt, sampling_settings, limit) for prompt in own_prompts]
    if sharded:
        return samples
    by_rank = distributed.gather(samples, world)
    return [by_rank[index % world.size][index // world.size] for index in range(len(prompts))]


@contextmanager
def _gather(module: nn.Module) -> Iterator[None]:
    """Keep a sharded model's embeddings, norm and head gathered within the block.

    Generation calls the model inside the sharded root module, whose own forward would gather them. Layers gather
    themselves. All ranks choose the same tokens, because all compute the same logits.
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
    """Disable a model's adapter within the block, if it has one: the model is then its base."""
    disable_adapter: Any = getattr(causal_model(module), "disable_adapter", None)
    with nullcontext() if disable_adapter is None else disable_adapter():
        yield


# ---- the loss mask, to inspect


def decode_masks(tokenizer: Tokenizer, examples: Examples, count: int) -> list[Row]:
    """Return lines of `masked.jsonl`: the text of `count` pieces in spans, each with loss or without.

    A pair has a line for each side.
    """
    [shown] = packing.rows_of_sides([spread(examples.pieces, count).tolist()], examples.sides)
    return [
        {"name": examples.names[index], "runs": decode_masked(tokenizer, *examples.rendering(index))} for index in shown
    ]
