"""Personal data and secrets: signals that count them, and filters that flag, redact or drop.

`personal_data/rules.toml` has the rules; no value is ever part of a reason, an evidence or an edit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import polars as pl

from curate.errors import RecipeError, did_you_mean
from curate.filters.examples import Examples, chat
from curate.filters.registry import reject, repair, rule, signal

if TYPE_CHECKING:
    from curate.filters.personal_data.matching import Family
    from curate.schemas.conversation import Conversation

Found = Mapping[int, Sequence[tuple[str, int, int]]]  # of each text: type, start and end of its values

ACTIONS = ("flag", "redact", "drop")


@signal(private_hits=pl.UInt32, private_types=pl.List(pl.String), private_hashes=pl.List(pl.String))
def personal_data(frame: pl.DataFrame) -> pl.DataFrame:
    """Count e-mail addresses, telephone, card and bank numbers, IP addresses, national ids and crypto addresses.

    `private_types` has the types that were found in any message, tool or metadata: email, phone, card, iban, ip,
    kr_rrn, cn_id, jp_my_number, de_tax_id, us_ssn, in_aadhaar, in_pan, crypto. Numbers must have a valid checksum where
    there is one. What only stands for a value (name@example.com, 555-0123, 4111 1111 1111 1111) does not count.
    `private_hashes` has each value's type with 16 bits of a hash keyed with the conversation's texts: it tells the
    values of a conversation apart, and is too short to find one by trying.
    """
    return _count(frame, _by_rules("privacy"), "private")


@signal(model_private_hits=pl.UInt32, model_private_types=pl.List(pl.String), model_private_hashes=pl.List(pl.String))
def privacy_model(frame: pl.DataFrame, model: str = "", batch_size: int = 8, max_tokens: int = 4096) -> pl.DataFrame:
    """Count what a token classifier takes for personal data, such as names, which no rule can find.

    `model` is a name on the Hub or a folder, such as OpenAI's Privacy Filter (openai/privacy-filter, Apache-2.0); a GPU
    is used if there is one. The columns are like those of `personal_data`, with the model's labels as types
    (private_person, private_address, private_date …). Texts are read in windows of `max_tokens` tokens.
    """
    from curate.filters.classifiers import spans  # imports torch: late

    if not model:
        raise RecipeError("signal 'privacy_model': model is missing; give a classifier's name on the Hub or its folder")
    if batch_size < 1 or max_tokens < 16:
        raise RecipeError("signal 'privacy_model': give batch_size of at least 1 and max_tokens of at least 16")

    def find(texts: pl.Series) -> Found:
        found = spans.find_spans(texts.to_list(), model, batch_size, max_tokens)
        return {place: values for place, values in enumerate(found) if values}

    return _count(frame, find, "model_private")


@signal(secret_hits=pl.UInt32, secret_types=pl.List(pl.String), secret_hashes=pl.List(pl.String))
def secret_values(frame: pl.DataFrame) -> pl.DataFrame:
    """Count private keys, keys and tokens of well-known services, and passwords in addresses and assignments.

    `secret_types` has the types that were found, such as `aws_key_id`, `github_token` or `private_key`, `secret_hashes`
    a hash of each value. What only stands for a key (your_api_key, sk-xxxx, AKIA…EXAMPLE) does not count.
    """
    return _count(frame, _by_rules("secrets"), "secret")


@rule(
    examples=Examples(
        chat("Whom do I ask?", "Ask Minsu, at minsu.kim@naver.com."),
        chat("Whom do I ask?", "Ask somebody, at name@example.com."),
        settings={"action": "drop"},
    )
)
def privacy(action: str = "flag", types: tuple[str, ...] = ()) -> pl.Expr:
    """Flag, redact or drop conversations with personal data, such as e-mail addresses and telephone numbers.

    `action`: "flag" only measures the signal `personal_data`; "redact" replaces each value in all texts by a
    placeholder such as [EMAIL_1], the same for the same value; "drop" rejects the conversation. `types` are those of
    the signal that count, by default all. No rule finds names of people, street addresses and dates of birth.
    """
    return _reject("privacy", "private", action, types)


@rule(
    examples=Examples(
        chat("Which key did you use?", "postgres://app:q8Zt-41vKs@db.lumen.io/x"),
        chat("Which key did you use?", "postgres://app:your_password@db.lumen.io/x"),
        settings={"action": "drop"},
    )
)
def secrets(action: str = "flag", types: tuple[str, ...] = ()) -> pl.Expr:
    """Flag, redact or drop conversations with secrets, such as keys of well-known services and private keys.

    `action` and `types` are those of `privacy`, with the types of the signal `secret_values`.
    """
    return _reject("secrets", "secret", action, types)


@repair(of="privacy")
def redact_privacy(conversations: Sequence[Conversation], action: str = "flag", types: tuple[str, ...] = ()) -> None:
    """Replace personal data in all texts of the conversations by placeholders, if the action is "redact"."""
    _redact(conversations, "privacy", action, types)


@repair(of="secrets")
def redact_secrets(conversations: Sequence[Conversation], action: str = "flag", types: tuple[str, ...] = ()) -> None:
    """Replace secrets in all texts of the conversations by placeholders, if the action is "redact"."""
    _redact(conversations, "secrets", action, types)


def _redact(conversations: Sequence[Conversation], name: Family, action: str, types: Sequence[str]) -> None:
    if action == "redact":
        from curate.filters.personal_data import redaction

        redaction.redact(conversations, name, types)


def _reject(name: Family, prefix: str, action: str, types: Sequence[str]) -> pl.Expr:
    """Return the verdict of a filter: none unless the action is "drop". Raises RecipeError for an unknown name."""
    _check(name, action, types)
    found, hashes = pl.col(f"{prefix}_types"), pl.col(f"{prefix}_hashes")
    if types:
        found = found.list.set_intersection(list(types)).list.sort()
        hashes = hashes.list.eval(pl.element().filter(pl.element().str.extract(r"^(\w+)").is_in(list(types))))
    return reject(
        pl.lit(action == "drop") & (found.list.len() > 0),
        "{count} values of type {types}",
        evidence=hashes.list.join(", "),
        count=hashes.list.len(),
        types=found.list.join(", "),
    )


def _check(name: Family, action: str, types: Sequence[str]) -> None:
    if action not in ACTIONS:
        raise RecipeError(f"filter {name!r}: action = {action!r} is not allowed; give flag, redact or drop")
    if not types:
        return
    from curate.filters.personal_data import matching

    known = matching.types(name)
    for wrong in (value for value in types if value not in known):
        raise RecipeError(f"filter {name!r}: unknown type {wrong!r}{did_you_mean(wrong, known)}")


def _by_rules(family: Family) -> Callable[[pl.Series], Found]:
    """Return a function that finds the values of a family's rules."""
    from curate.filters.personal_data import matching  # compiles its rules: late, to keep `curate filters` fast

    def find(texts: pl.Series) -> Found:
        found = matching.find(texts, family)
        return {place: [(hit.rule.type, hit.start, hit.end) for hit in hits] for place, hits in found.items()}

    return find


def _count(frame: pl.DataFrame, find: Callable[[pl.Series], Found], prefix: str) -> pl.DataFrame:
    """Return the number, types and hashes of the values in each conversation's texts."""
    from curate.filters.personal_data import matching

    texts = _texts(frame)
    found = find(texts["text"])
    rows = texts[list(found)]
    whole = texts.filter(pl.col("row").is_in(rows["row"].unique().implode())).group_by("row").agg("text")
    keys = {row: matching.hash_key(texts) for row, texts in whole.iter_rows()}
    hits = [
        (row, type, f"{type} {matching.hash_value(text[start:end], keys[row])}")
        for (row, text), values in zip(rows.iter_rows(), found.values(), strict=True)
        for type, start, end in values
    ]
    table = pl.DataFrame(hits, schema={"row": pl.UInt32, "type": pl.String, "hash": pl.String}, orient="row")
    columns = {
        f"{prefix}_hits": pl.len().cast(pl.UInt32),
        f"{prefix}_types": pl.col("type").unique().sort(),
        f"{prefix}_hashes": pl.col("hash").unique(maintain_order=True),
    }
    counts = table.group_by("row").agg(**columns)
    every = pl.DataFrame({"row": pl.int_range(frame.height, dtype=pl.UInt32, eager=True)})
    joined = every.join(counts, on="row", how="left", maintain_order="left").drop("row")
    return joined.with_columns(pl.col(pl.UInt32).fill_null(0), pl.col(pl.List(pl.String)).fill_null([]))


MESSAGE_TEXTS = ("content", "reasoning", "tool_calls", "extra")


def _texts(frame: pl.DataFrame) -> pl.DataFrame:
    """Return `row` and `text` of all texts of the conversations: of messages, rejected answers, tools and metadata."""
    numbered = frame.lazy().with_columns(row=pl.int_range(pl.len(), dtype=pl.UInt32))  # one query: each has its cost
    parts = [numbered.select("row", text=name) for name in ("tools", "metadata") if name in frame.columns]
    for column in ("messages", "rejected_answer"):
        if column in frame.columns:
            messages = numbered.select("row", message=pl.col(column)).explode("message")
            fields = pl.col("message").struct
            parts += [messages.select("row", text=fields.field(name)) for name in MESSAGE_TEXTS]
    return pl.concat([part.drop_nulls("text") for part in parts]).collect()
