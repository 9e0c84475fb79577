"""Self-instruct as Alpaca does it: some tasks are shown, and the model goes on with the list (arXiv 2212.10560)."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

from curate.client.exchange import Reply
from curate.generation.inputs import Task
from curate.generation.similarity import words
from curate.generation.steps import Ask, Asker, Drop, Prompt, Sampling, problem
from curate.generation.wording import blocked_words, fill, wording

SHOWN, TASKS = 3, 20  # examples in a prompt, and tasks in the list with them (Alpaca's generate_instruction.py)
FROM_MODEL = 1  # of the examples, at most so many were generated
FEWEST_WORDS, MOST_WORDS = 3, 150  # of an instruction: more than the first, not more than the second (Alpaca)
NO_INPUT = "<none>"
_LABELS = re.compile(r"^[ \t>*_#]*(?:\d+[.)]\s*)?(instruction|input|output)[ \t*_]*[:：][ \t*_]*", re.I | re.M)
_NOTHING = re.compile(r"[<(\[]?\s*(?:none|no ?input|n/a|empty)\s*[>)\]]?\.?", re.I)
_SEPARATOR = re.compile(r"^\s*#{3,}[^\n]*$", re.M)


class SelfInstruct:
    """Tasks with answers; the examples of a prompt are all in one language."""

    expected = 12.0
    window = 32

    def __init__(self, asker: Asker, seeds: Mapping[str, Sequence[Task]], sampling: Sampling) -> None:
        self._asker = asker
        self._seeds = seeds
        self._generated: dict[str, list[Task]] = {language: [] for language in seeds}
        self._languages = list(seeds)
        self._sampling = sampling
        self._asked = 0

    def next(self) -> Ask:
        """Return a prompt with other examples."""
        language = self._languages[self._asked % len(self._languages)]
        self._asked += 1
        key = f"tasks-{self._asked:06d}"
        shown = self._choose(key, language)
        return Ask(
            self._asker.chat(key, [{"role": "user", "content": _prompt(shown, language)}], self._sampling), shown
        )

    def _choose(self, key: str, language: str) -> list[Task]:
        chance = random.Random(f"{self._asker.seed} {key}")
        own = chance.sample(self._generated[language], min(FROM_MODEL, len(self._generated[language])))
        shown = chance.sample(list(self._seeds[language]), min(SHOWN - len(own), len(self._seeds[language]))) + own
        chance.shuffle(shown)
        return shown

    def read(self, ask: Ask, reply: Reply) -> Sequence[Prompt | Drop]:
        """Return the tasks in a reply; the last of one that was cut off is dropped."""
        shown: list[Task] = ask.context
        key = ask.request.key
        found = problem(reply)
        if found and found[0] != "cut_off":
            return [Drop(*found, reply.text, key)]
        blocks = [block for block in _SEPARATOR.split(reply.text) if block.strip()]
        read: list[Prompt | Drop] = []
        for number, block in enumerate(blocks):
            if found and number == len(blocks) - 1:
                read.append(Drop("cut_off", f"the last task of a reply that was {found[1]}", block.strip(), key))
            else:
                read.append(_read_task(block, ask, reply, shown))
        return read

    def check(self, prompt: Prompt) -> Drop | None:
        """Drop tasks by Alpaca's rules."""
        found = check_instruction(prompt.instruction, prompt.language)
        return Drop(*found, prompt.text, prompt.source) if found else None

    def accept(self, prompt: Prompt, name: str) -> None:
        """Show the task in later prompts."""
        entered = prompt.text[len(prompt.instruction) :].strip()
        task = Task(name, prompt.instruction, entered, prompt.answer or "", prompt.language)
        self._generated[prompt.language].append(task)


def _prompt(shown: Sequence[Task], language: str) -> str:
    examples = "\n".join(
        f"### {number}\nInstruction: {task.instruction}\nInput: {task.input or NO_INPUT}\nOutput: {task.output}"
        for number, task in enumerate(shown, 1)
    )
    name = wording()["languages"].get(language, "the language of the examples")
    text = str(wording()["self_instruct"]["prompt"])
    return fill(text, first=len(shown) + 1, last=TASKS, language=name, examples=examples)


def _read_task(block: str, ask: Ask, reply: Reply, shown: Sequence[Task]) -> Prompt | Drop:
    """Read `Instruction: … Input: … Output: …`; another order or a missing part is a drop."""
    marks = list(_LABELS.finditer(block))
    labels = [mark[1].lower() for mark in marks]
    with_input = labels[:3] == ["instruction", "input", "output"]
    if not with_input and labels[:2] != ["instruction", "output"]:
        reason = f"no instruction, input and output, but {', '.join(labels) or 'none of them'}"
        return Drop("malformed", reason, block.strip(), ask.request.key)
    instruction = block[marks[0].end() : marks[1].start()].strip()
    entered = block[marks[1].end() : marks[2].start()].strip() if with_input else ""
    entered = "" if _NOTHING.fullmatch(entered) else entered
    answer = block[marks[2 if with_input else 1].end() :].strip()
    if not instruction or not answer:
        return Drop("malformed", "the instruction or the output is empty", block.strip(), ask.request.key)
    return Prompt(
        f"{instruction}\n\n{entered}" if entered else instruction,
        instruction,
        ask.request.key,
        tuple(task.name for task in shown),
        language=shown[0].language,
        answer=answer,
        made_by=ask.request,
        model=reply.model,
    )


def check_instruction(instruction: str, language: str) -> tuple[str, str] | None:
    """Return the rule and reason by which Alpaca drops an instruction, None if it does not.

    The rule on the first letter is Alpaca's for English; in other languages it may be any letter or digit.
    """
    count = len(words(instruction))
    if not FEWEST_WORDS < count <= MOST_WORDS:
        return "words", f"{count} words; Alpaca keeps {FEWEST_WORDS + 1} to {MOST_WORDS}"
    if found := blocked_words(language).search(instruction):
        return "not_text", f"{found[0]!r}: text alone may not do"
    if start := next(
        (start for start in wording()["self_instruct"]["starts"] if instruction.lower().startswith(start)), ""
    ):
        return "start", f"it starts with {start!r}"
    first = instruction.lstrip("¿¡«„“" if language != "en" else "")[:1]
    if not first.isalnum() or (language == "en" and not first.isascii()):
        return "first_letter", f"it starts with {first!r}"
    return None
