"""The language a conversation is in, measured with langdetect's own profiles, and the filter on it.

langdetect draws letter groups at random until it is sure, so that two runs differ. Here every place of the evidence
speaks at once: the weights of its letter groups are summed by language, and the largest sum wins. Measured
in batches of conversations with one gather per batch; see `language_profiles` for the weights.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Sequence

import polars as pl

from curate.errors import RecipeError, did_you_mean
from curate.filters.language_id import UNKNOWN
from curate.filters.registry import reject, rule, signal
from curate.filters.structure import FENCED

ALIASES = {"zh": ("zh-cn", "zh-tw"), "nb": ("no",), "iw": ("he",), "in": ("id",), "fil": ("tl",)}

SIDE_RAW = 1_500  # characters of a side that are looked through for them
SIDE = 300  # characters of evidence taken from the prompts, and again from the answers

CODE_BLOCK = r"(?ms)^[ \t>]*(?:`{3,}|~{3,}).*?(?:^[ \t>]*(?:`{3,}|~{3,})[ \t]*$|\z)"
INLINE_CODE = r"`[^`\n]+`"
ADDRESS = r"https?://[-_.?&~;+=/#0-9A-Za-z%:@,!]+|[-_.0-9A-Za-z]+@[-_.0-9A-Za-z]+"


@signal(language=pl.String, language_confidence=pl.Float32)
def language(frame: pl.DataFrame) -> pl.DataFrame:
    """Measure the language of each conversation and how sure that is, code and addresses left out.

    Evidence is the first 300 characters of the prompts and the first 300 of the answers, as one text, so that neither
    a long paste nor a long answer speaks alone. Where the two differ (a translation), the longer side wins, and the
    one in another script than Latin if it has at least twice the letters. Confidence is the winner's share of

        exp(score[l] / 256 * min(1, 30 / n))    over all languages l, n = letter groups read,

    in four decimals: the posterior of langdetect's naive Bayes, as if at most 30 groups were independent (on
    10,200 sentences in 51 languages it is then off by 0.6 % on average). A conversation without evidence (code
    alone, or no letters) is `unknown`, with 0.
    """
    from curate.filters.language_id.detector import detect  # NumPy, which the list of filters does without

    texts = frame.select(evidence=_evidence()).to_series().to_list()
    # letters written with a combining accent, as one: langdetect does it for Vietnamese
    found, confidence = detect([text if text.isascii() else unicodedata.normalize("NFC", text) for text in texts])
    return pl.DataFrame(
        {"language": found, "language_confidence": confidence},
        schema={"language": pl.String, "language_confidence": pl.Float32},
    )


@rule
def languages(keep: tuple[str, ...] = (), skip: tuple[str, ...] = ()) -> pl.Expr:
    """Drop conversations in other languages than those in `keep`, or in one of `skip`; unknown ones stay.

    Codes are langdetect's (`en`, `ko`, `zh-cn`, …); `zh` stands for both Chinese ones. `skip = ["unknown"]` drops
    those in which no language was found.
    """
    kept, skipped = _known(keep, "keep"), _known(skip, "skip")
    found = pl.col("language")
    dropped = found.is_in(skipped) | (pl.lit(bool(kept)) & ~found.is_in([*kept, UNKNOWN]))
    wanted = f"kept are {', '.join(keep)}" if kept else f"skipped are {', '.join(skip)}"
    return reject(
        dropped,
        "language {found} ({sure}), {wanted}",
        evidence=pl.col("answers").list.first(),
        found=found,
        sure=pl.col("language_confidence").cast(pl.Float64).round(2),
        wanted=wanted,
    )


def _known(names: Sequence[str], setting: str) -> list[str]:
    """Turn a setting's names into codes of langdetect; raises RecipeError with the nearest for one it lacks."""
    from curate.filters.language_id import profiles

    allowed = {*profiles.codes(), *ALIASES, *([UNKNOWN] if setting == "skip" else [])}
    for name in names:
        if name not in allowed:
            raise RecipeError(f"filter 'languages': {setting} holds {name!r}, unknown{did_you_mean(name, allowed)}")
    return list(itertools.chain.from_iterable(ALIASES.get(name, (name,)) for name in names))


def _evidence() -> pl.Expr:
    """Return what the language is read from: the first words of both sides, without code and addresses."""
    return pl.concat_str([_side("prompts"), _side("answers")], separator="\n", ignore_nulls=True)


def _side(column: str) -> pl.Expr:
    text = pl.col(column).list.join("\n", ignore_nulls=True).str.slice(0, SIDE_RAW).str.replace_all(FENCED, " ")
    text = text.str.slice(0, 2 * SIDE)
    return text.str.replace_all(INLINE_CODE, " ").str.replace_all(ADDRESS, " ").str.slice(0, SIDE)
