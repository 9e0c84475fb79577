"""The language of conversations, identified with langdetect's profiles, and the filter on it.

langdetect samples letter groups at random until it is sure, so two runs can differ. Here all sampled positions count
at once: the weights of their letter groups are summed by language, and the largest sum wins. One gather serves a
batch of conversations; `language_id.profiles` explains the weights.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Sequence

import polars as pl

from curate.errors import RecipeError, did_you_mean
from curate.filters.examples import Examples, chat
from curate.filters.language_id import MIXED, UNKNOWN
from curate.filters.language_id.prose import without_blocks
from curate.filters.registry import Settings, reject, rule, signal
from curate.pattern_cache import keep_patterns

ALIASES = {"zh": ("zh-cn", "zh-tw"), "nb": ("no",), "iw": ("he",), "in": ("id",), "fil": ("tl",)}

COLUMNS = {
    "language": pl.String(),
    "language_confidence": pl.Float32(),
    "prompt_language": pl.String(),
    "answer_language": pl.String(),
}


@signal(always=True, **COLUMNS)
def language(frame: pl.DataFrame) -> pl.DataFrame:
    """Measure the language of each conversation, of its prompts and of its answers, without code and addresses.

    Evidence is the whole text of a side, or four windows evenly spaced over a long one, without code, formulas,
    markup and addresses. A language needs two thirds of the letters, where one of Chinese, Japanese or Korean counts
    as two; otherwise the text is `mixed`. It is `unknown` if it has too few words or the confidence is below 0.5.
    The two sides are weighed by their letters; an unknown one does not count beside one that is known.

    Confidence is the winner's share of

        exp(mean[l] / 256 * min(n, 30) * share)    over all languages l

    with the mean weight of the n letter groups, and the share of the text that is not code: the posterior of
    langdetect's naive Bayes, assuming at most 30 independent groups (on 10,200 sentences in 51 languages it is then
    off by 0.1 % on average). The Chinese codes are one language. Where there are Han characters, the script decides:
    a text without Hangul is not Korean, one without kana not Japanese, and Chinese is `zh-cn` or `zh-tw` by its
    characters. For `mixed`, it is the share of the text that is surely in some language; for `unknown`, 0.
    """
    return _measure(frame)


@keep_patterns
def _measure(frame: pl.DataFrame) -> pl.DataFrame:
    from curate.filters.language_id import decision  # imports NumPy: late, to keep `curate filters` fast

    codes, confidence, *sides = decision.decide_sides(_texts(frame, "prompts"), _texts(frame, "answers"))
    return pl.DataFrame(dict(zip(COLUMNS, (codes, confidence, *sides), strict=True)), schema=COLUMNS)


def _texts(frame: pl.DataFrame, column: str) -> list[str]:
    """Return the texts of one side, each conversation's as one, composed: langdetect does so for Vietnamese."""
    joined = pl.col(column).list.join("\n", ignore_nulls=True).fill_null("")
    texts = frame.select(without_blocks(joined)).to_series().to_list()
    return [text if text.isascii() else unicodedata.normalize("NFC", text) for text in texts]


def check_languages(settings: Settings) -> None:
    """Raise RecipeError for settings with which the filter would do nothing."""
    if not settings["keep"] and not settings["skip"]:
        raise RecipeError("filter 'languages' names no language; give keep or skip, such as keep = [\"en\"]")


@rule(
    examples=Examples(
        chat("Nenne bitte einen großen Fluss in Deutschland.", "Der Rhein ist ein großer Fluss in Deutschland."),
        chat("Please name a large river in Germany.", "The Rhine is a large river in Germany."),
        settings={"keep": ("en",)},
    ),
    check=check_languages,
)
def languages(keep: tuple[str, ...] = (), skip: tuple[str, ...] = ()) -> pl.Expr:
    """Keep only conversations in the languages in `keep`, and drop those in `skip`; unknown languages are kept.

    Codes are langdetect's (`en`, `ko`, `zh-cn`, …); `zh` means both Chinese codes, and `mixed` conversations of which
    over a third is in another language. `skip = ["unknown"]` drops those whose language could not be identified.
    """
    kept, skipped = _language_codes(keep, "keep"), _language_codes(skip, "skip")
    detected = pl.col("language")
    dropped = detected.is_in(skipped) | (pl.lit(bool(kept)) & ~detected.is_in([*kept, UNKNOWN]))
    setting = f"kept are {', '.join(keep)}" if kept else f"skipped are {', '.join(skip)}"
    return reject(
        dropped,
        "language {language} ({confidence}), {setting}",
        evidence=pl.col("answers").list.first(),
        language=detected,
        confidence=pl.col("language_confidence").cast(pl.Float64).round(2),
        setting=setting,
    )


def _language_codes(names: Sequence[str], setting: str) -> list[str]:
    """Return langdetect's codes for a setting's names; raises RecipeError with the closest name for an unknown one."""
    from curate.filters.language_id import profiles

    allowed = {*profiles.codes(), *ALIASES, MIXED, *([UNKNOWN] if setting == "skip" else [])}
    for name in names:
        if name not in allowed:
            raise RecipeError(
                f"filter 'languages': unknown language {name!r} in {setting}{did_you_mean(name, allowed)}"
            )
    return list(itertools.chain.from_iterable(ALIASES.get(name, (name,)) for name in names))
