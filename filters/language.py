"""The language of a conversation, identified with langdetect's profiles, and the filter on it.

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
from curate.filters.language_id import UNKNOWN
from curate.filters.registry import reject, rule, signal
from curate.filters.structure import FENCED

ALIASES = {"zh": ("zh-cn", "zh-tw"), "nb": ("no",), "iw": ("he",), "in": ("id",), "fil": ("tl",)}

SIDE_EVIDENCE = 300  # characters of evidence from the prompts, and as many from the answers
SIDE_SCANNED = 1_500  # characters of a side that are searched for evidence

INLINE_CODE = r"`[^`\n]+`"
URL_OR_EMAIL = r"https?://[-_.?&~;+=/#0-9A-Za-z%:@,!]+|[-_.0-9A-Za-z]+@[-_.0-9A-Za-z]+"


@signal(always=True, language=pl.String, language_confidence=pl.Float32)
def language(frame: pl.DataFrame) -> pl.DataFrame:
    """Measure the language of each conversation and the confidence in it, ignoring code and addresses.

    Evidence is the first 300 characters of the prompts and the first 300 of the answers, as one text, so neither
    a long paste nor a long answer decides alone. Where the two sides differ (a translation), the longer one wins; a
    non-Latin script wins if it has at least twice as many letters. Confidence is the winner's share of

        exp(score[l] / 256 * min(1, 30 / n))    over all languages l, n = number of letter groups,

    rounded to four decimals, for both codes of Chinese together: the posterior of langdetect's naive Bayes, assuming at
    most 30 independent groups (on 10,200 sentences in 51 languages it is then off by 0.6 % on average). Where there are
    Han characters, the script decides: a text without Hangul is not Korean, one without kana not Japanese, and Chinese
    is `zh-cn` or `zh-tw` by its characters. A conversation without evidence (only code, or no letters) is `unknown`,
    with confidence 0.
    """
    from curate.filters.language_id.detector import detect  # imports NumPy: late, to keep `curate filters` fast

    texts = frame.select(evidence=_evidence()).to_series().to_list()
    # NFC joins letters and combining accents; langdetect does so for Vietnamese
    codes, confidence = detect([text if text.isascii() else unicodedata.normalize("NFC", text) for text in texts])
    return pl.DataFrame(
        {"language": codes, "language_confidence": confidence},
        schema={"language": pl.String, "language_confidence": pl.Float32},
    )


@rule(
    examples=Examples(
        chat("Nenne bitte einen großen Fluss in Deutschland.", "Der Rhein ist ein großer Fluss in Deutschland."),
        chat("Please name a large river in Germany.", "The Rhine is a large river in Germany."),
        settings={"keep": ("en",)},
    )
)
def languages(keep: tuple[str, ...] = (), skip: tuple[str, ...] = ()) -> pl.Expr:
    """Keep only conversations in the languages in `keep`, and drop those in `skip`; unknown languages are kept.

    Codes are langdetect's (`en`, `ko`, `zh-cn`, …); `zh` means both Chinese codes. `skip = ["unknown"]` drops
    conversations whose language could not be identified.
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

    allowed = {*profiles.codes(), *ALIASES, *([UNKNOWN] if setting == "skip" else [])}
    for name in names:
        if name not in allowed:
            raise RecipeError(
                f"filter 'languages': unknown language {name!r} in {setting}{did_you_mean(name, allowed)}"
            )
    return list(itertools.chain.from_iterable(ALIASES.get(name, (name,)) for name in names))


def _evidence() -> pl.Expr:
    """Return the text to identify: the start of both sides, without code and addresses."""
    return pl.concat_str([_side("prompts"), _side("answers")], separator="\n", ignore_nulls=True)


def _side(column: str) -> pl.Expr:
    text = pl.col(column).list.join("\n", ignore_nulls=True).str.slice(0, SIDE_SCANNED).str.replace_all(FENCED, " ")
    text = text.str.slice(0, 2 * SIDE_EVIDENCE)  # the patterns below are slow on long texts
    return text.str.replace_all(INLINE_CODE, " ").str.replace_all(URL_OR_EMAIL, " ").str.slice(0, SIDE_EVIDENCE)
