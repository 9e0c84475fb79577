"""Use the ratings of answers: a bad one is flagged, and a good one with another beside it makes a preference pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from curate.schemas.conversation import Conversation, Message
from curate.schemas.reading.answers import ReadPath
from curate.schemas.reading.tree import MessageTree

Ratings = Mapping[str, bool]  # of nodes: true for good ones


def use_ratings(tree: MessageTree, read: ReadPath, ratings: Ratings) -> ReadPath:
    """Return a reader of the tree's paths that flags bad answers and adds rejected ones to what `read` returns."""

    def read_rated(path: Sequence[str]) -> tuple[Conversation, list[list[str]]]:
        conversation, sources = read(path)
        _flag_bad_answers(conversation, sources, ratings)
        _add_rejected_answer(conversation, sources, path, tree, read, ratings)
        return conversation, sources

    return read_rated if ratings else read


def _flag_bad_answers(conversation: Conversation, sources: Sequence[Sequence[str]], ratings: Ratings) -> None:
    """Flag each answer that was rated as bad; `sources` has the nodes of each message after the system message."""
    system = len(conversation.messages) - len(sources)
    for index, nodes in enumerate(sources, system):
        if conversation.messages[index].role == "assistant" and any(ratings.get(node) is False for node in nodes):
            conversation.flaw("bad_label", index, f"turn {index} was rated as bad", "rating: thumbs_down")


def _add_rejected_answer(
    conversation: Conversation,
    sources: Sequence[Sequence[str]],
    path: Sequence[str],
    tree: MessageTree,
    read: ReadPath,
    ratings: Ratings,
) -> None:
    """Add the answer beside the last one, if that was rated as good: one that was rated as bad, else the newest.

    An answer that calls tools makes no pair: a rejected answer stands in place of the last message alone.
    """
    messages = conversation.messages
    start = next((index for index in reversed(range(len(messages))) if messages[index].role == "user"), None)
    system = len(messages) - len(sources)
    if start != len(messages) - 2 or not sources[start - system]:
        return
    prompt = sources[start - system][-1]
    answer = path[path.index(prompt) + 1 :]
    if not any(ratings.get(node) is True for node in answer):
        return
    children = tree.children()
    others = [_chain(node, children) for node in children.get(prompt, ()) if node not in answer]
    others.sort(key=lambda nodes: any(ratings.get(node) is False for node in nodes))
    others = [nodes for nodes in others if not any(ratings.get(node) is True for node in nodes)]
    if others:
        other, _ = read([*path[: path.index(prompt) + 1], *others[-1]])
        conversation.rejected_answer = _until_prompt(other.messages[start + 1 :])


def _chain(node: str, children: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a node and the nodes below it, along the last child of each."""
    chain: dict[str, None] = {node: None}
    while (below := children.get(next(reversed(chain)), ())) and below[-1] not in chain:
        chain[below[-1]] = None
    return list(chain)


def _until_prompt(messages: Sequence[Message]) -> list[Message]:
    """Return the messages of the first answer."""
    stop = next((index for index, message in enumerate(messages) if message.role == "user"), len(messages))
    return list(messages[:stop])
