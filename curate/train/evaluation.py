"""What a model makes of held-out conversations: its loss, overall and by kind, and its answers to some prompts.

Losses are exact sums over supervised tokens: each token's loss is taken once, added in fp64 to that of its answer, and
answers are then grouped by depth, language and length. Over several ranks every rank makes as many forward passes, so
that one with less to do never leaves a sharded model's others waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.distributed.fsdp import FSDPModule

from curate.inference import sampling
from curate.inference.sampling import Sampling
from curate.model import serving
from curate.model.attention import choose as attentions
from curate.model.attention.choose import Attention
from curate.rendering.mask_view import spans_of_ids
from curate.rendering.renderer import Renderer
from curate.schemas.conversation import Message
from curate.tokenization.tokenizer import Tokenizer
from curate.train import distributed, packing
from curate.train.distributed import World
from curate.train.examples import Examples
from curate.train.loss import CausalLoss
from curate.train.run.records import Row

Numbers = NDArray[np.int64]
LEAST_LENGTH = 256  # tokens; shorter conversations are one kind
UNKNOWN = "unknown"


# ---- losses


@dataclass(frozen=True)
class Slice:
    """The loss per supervised token of one kind of conversation (or answer); null where none is a number."""

    name: str
    loss: float | None
    tokens: int
    conversations: int


@dataclass(frozen=True)
class EvalLoss:
    """Held-out loss, overall and by kind.

    `by_exchanges` groups conversations by how many exchanges they have, `by_depth` answers by which of their
    conversation they are, `by_length` conversations by their tokens.
    """

    overall: Slice
    by_exchanges: tuple[Slice, ...] = ()
    by_depth: tuple[Slice, ...] = ()
    by_language: tuple[Slice, ...] = ()
    by_length: tuple[Slice, ...] = ()

    def record(self, step: int, which: str) -> Row:
        """Return the line of `eval.jsonl`; `which` is `base` or `tuned`."""
        return {"step": step, "which": which, **asdict(self)}


@dataclass(frozen=True)
class _Answers:
    """The trained stretches of some conversations: `of` conversation, at `depth` from 1, with how many `tokens`.

    `places[i]`: for each target of conversation i that counts, the stretch it is in.
    """

    of: Numbers
    depth: Numbers
    tokens: Numbers
    places: dict[int, Numbers]


def losses(
    module: nn.Module,
    attention: Attention,
    examples: Examples,
    world: World,
    *,
    row_tokens: int,
    micro_batch: int = 1,
    limit: int = 0,
) -> EvalLoss:
    """Return the held-out loss; every rank calls it, and gets the same.

    module: CausalLoss, bare, in DDP or sharded. `limit` takes so many conversations, evenly spread; 0 takes all.
    """
    chosen = spread(len(examples), limit)
    if not len(chosen):
        return EvalLoss(Slice("all", None, 0, 0))
    answers = _answers(examples, chosen)
    packed = packing.pack(examples.lengths[chosen], row_tokens)
    rows = [[int(chosen[i]) for i in row] for row in packed.rows]
    sums = torch.zeros(len(answers.of), dtype=torch.float64)
    with _evaluating(module):
        for part in distributed.shares(rows, micro_batch, world):
            sums += _sums(module, attention, examples, answers, part, row_tokens, micro_batch, world.device)
    total = np.array(distributed.total(sums.tolist(), world))
    return _grouped(examples, answers, total)


def spread(count: int, limit: int) -> Numbers:
    """Return the places of `limit` things out of `count`, evenly spread; 0 is all."""
    if not limit or limit >= count:
        return np.arange(count)
    return np.arange(limit) * count // limit


def _answers(examples: Examples, chosen: Numbers) -> _Answers:
    of: list[int] = []
    depth: list[int] = []
    places: dict[int, Numbers] = {}
    for index in chosen.tolist():
        begin, end = examples.offsets[index : index + 2].tolist()
        trained = examples.mask[begin + 1 : end]  # as packing shifts it: the first token is nobody's target
        starts = trained & ~np.concatenate([[False], trained[:-1]])
        places[index] = (np.cumsum(starts) - 1 + len(of))[trained]
        count = int(starts.sum())
        of += [index] * count
        depth += range(1, count + 1)
    tokens = np.bincount(np.concatenate([*places.values(), np.zeros(0, np.int64)]), minlength=len(of))
    return _Answers(np.array(of, np.int64), np.array(depth, np.int64), tokens, places)


def _sums(
    module: nn.Module,
    attention: Attention,
    examples: Examples,
    answers: _Answers,
    rows: list[list[int]],
    row_tokens: int,
    micro_batch: int,
    device: torch.device,
) -> torch.Tensor:
    """Return the summed loss of each answer that stands in some rows, fp64 on the CPU."""
    # Empty rows keep the shape on CUDA, where another is compiled anew, and keep a rank in step that has no rows.
    wanted = micro_batch if device.type == "cuda" else 1
    filled = rows + [[] for _ in range(wanted - len(rows))]
    batch = packing.batch(examples, filled, row_tokens).to(device)
    found = distributed.inner(module)(batch, attention, each=True)
    sums = torch.zeros(len(answers.of), dtype=torch.float64)
    places = [answers.places[index] for row in rows for index in row]
    if places:
        sums.index_add_(0, torch.from_numpy(np.concatenate(places)), found.double().cpu())
    return sums


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Take dropout and gradients away; unlike `sampling.at_rest`, layers stay compiled for their fixed shapes."""
    before = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(before)


def _grouped(examples: Examples, answers: _Answers, sums: NDArray[np.float64]) -> EvalLoss:
    exchanges, lengths = examples.exchanges, examples.lengths

    def by(key: Callable[[int, int], Hashable], *, largest_first: bool = False) -> tuple[Slice, ...]:
        groups: dict[Any, list[int]] = {}
        for place, (index, depth) in enumerate(zip(answers.of.tolist(), answers.depth.tolist(), strict=True)):
            groups.setdefault(key(index, depth), []).append(place)
        made = [(name, _slice(name, answers, sums, places)) for name, places in groups.items()]
        made.sort(key=(lambda one: -one[1].tokens) if largest_first else (lambda one: one[0]))
        return tuple(one for _, one in made)

    return EvalLoss(
        overall=_slice("all", answers, sums, range(len(sums))),
        by_exchanges=by(lambda index, _: band(int(exchanges[index]))),
        by_depth=by(lambda _, depth: band(depth)),
        by_language=by(lambda index, _: examples.languages[index] or UNKNOWN, largest_first=True),
        by_length=by(lambda index, _: band(int(lengths[index]), LEAST_LENGTH)),
    )


Band = tuple[int, int]  # from, to, both within


def band(number: int, least: int = 1) -> Band:
    """Return the band of a number: up to `least`, then each twice as wide: 1, 2, 3 to 4, 5 to 8 …"""
    if number < 1:
        return 0, 0
    top = least
    while top < number:
        top *= 2
    return (1 if top == least else top // 2 + 1), top


def _slice(name: str | Band, answers: _Answers, sums: NDArray[np.float64], places: Sequence[int]) -> Slice:
    shown = name if isinstance(name, str) else "-".join(map(str, dict.fromkeys(name)))
    tokens = int(answers.tokens[places].sum())
    loss = float(sums[places].sum()) / tokens if tokens else float("nan")
    return Slice(shown, loss if np.isfinite(loss) else None, tokens, len(set(answers.of[places].tolist())))


# ---- answers

FIXED = (
    "Who are you, and what can you help me with?",
    "Explain in two sentences why the sky is blue.",
    "Write a Python function that reverses a string.",
)


@dataclass(frozen=True)
class Prompt:
    """What is asked: ids that end where an answer begins, the messages to show, and the answer that data has."""

    name: str
    messages: tuple[Message, ...]
    ids: tuple[int, ...]
    reference: str | None = None


@dataclass(frozen=True)
class Sample:
    """A model's answer to a prompt, and whether it stopped by itself."""

    prompt: Prompt
    answer: str
    stopped: bool
    tokens: int

    def record(self, step: int, which: str) -> Row:
        """Return the line of `samples.jsonl`; `which` is `base` or `tuned`."""
        asked = [{"role": message.role, "content": message.content} for message in self.prompt.messages]
        known = {} if self.prompt.reference is None else {"reference": self.prompt.reference}
        return {
            "step": step,
            "which": which,
            "name": self.prompt.name,
            "messages": asked,
            **known,
            "answer": self.answer,
            "stopped": self.stopped,
            "tokens": self.tokens,
        }


def fixed_prompts(renderer: Renderer, texts: Sequence[str] = FIXED) -> list[Prompt]:
    """Return prompts of one user message each."""
    asked = [(Message("user", text),) for text in texts]
    return [Prompt("fixed prompt", one, tuple(renderer.generation_prompt(one).tolist())) for one in asked]


def data_prompts(renderer: Renderer, examples: Examples, count: int, *, said: str = "held out") -> list[Prompt]:
    """Return the prompts before the first trained answer of some conversations, evenly spread.

    They are shown as they are rendered, without what the template writes around a single question: examples keep
    ids, and a piece of a conversation has no messages of its own.
    """
    found = []
    before, after = _around(renderer)
    for index in spread(len(examples), count).tolist() if count else ():
        begin, end = examples.offsets[index : index + 2].tolist()
        ids, trained = examples.ids[begin:end], examples.mask[begin:end]
        start = int(trained.argmax())
        stop = start + int(np.append(trained[start:], False).argmin())
        words = [token for token in ids[start:stop].tolist() if token not in renderer.stop_ids]
        tokenizer = renderer.tokenizer
        asked = Message("user", tokenizer.decode(ids[:start].tolist()).removeprefix(before).removesuffix(after).strip())
        answer = tokenizer.decode(words).removeprefix(serving.lead(renderer.name))
        found.append(Prompt(f"{said}: {examples.names[index]}", (asked,), tuple(ids[:start].tolist()), answer))
    return found


def _around(renderer: Renderer) -> tuple[str, str]:
    """Return what a renderer writes before and after a question that stands alone."""
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

    module: CausalLoss, bare, in DDP or sharded. `limit`: tokens that the model can hold, 0 for any number.
    """
    whole = distributed.inner(module)
    model = whole.model if isinstance(whole, CausalLoss) else whole
    sharded = distributed.is_sharded(module)
    mine = prompts if sharded else prompts[world.rank :: world.size]
    with sampling.at_rest(model), attentions.plain(model), _gathered(module):
        found = [_answer(model, renderer, prompt, sampling_settings, limit) for prompt in mine]
    if sharded:
        return found
    by_rank = distributed.gather(found, world)
    return [by_rank[place % world.size][place // world.size] for place in range(len(prompts))]


@contextmanager
def _gathered(module: nn.Module) -> Iterator[None]:
    """Hold a sharded model's embeddings, norm and head whole for a while: a forward that bypasses the root needs them.

    The layers gather themselves. All ranks choose the same tokens, as all compute the same numbers.
    """
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def _answer(model: nn.Module, renderer: Renderer, prompt: Prompt, how: Sampling, limit: int) -> Sample:
    tokenizer = renderer.tokenizer
    stops = tuple(dict.fromkeys((*renderer.stop_ids, tokenizer.info.eos_id)))
    lead = serving.lead(renderer.name)
    said = sampling.answer(model, prompt.ids, stops, tokenizer, how, lead=lead, limit=limit)
    return Sample(prompt, said.text, said.stopped, len(said.ids))


@contextmanager
def as_base(module: nn.Module) -> Iterator[None]:
    """Take a model's adapter away for a while, if it has one: what answers then is the base."""
    whole = distributed.inner(module)
    model = whole.model if isinstance(whole, CausalLoss) else whole
    without: Any = getattr(model, "disable_adapter", None)
    if without is None:
        yield
        return
    with without():
        yield


# ---- the mask, to look at


def masked(tokenizer: Tokenizer, examples: Examples, count: int) -> list[Row]:
    """Return lines of `masked.jsonl`: some conversations in runs of text, each trained on or not."""
    return [
        {"name": examples.names[index], "runs": spans_of_ids(tokenizer, *examples.rendering(index))}
        for index in spread(len(examples), count).tolist()
    ]
