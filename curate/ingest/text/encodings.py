"""Encodings of text: transcode blocks to UTF-8, and guess the encoding of text that is not UTF-8."""

from __future__ import annotations

import codecs
import functools
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from encodings.aliases import aliases

from curate.errors import RecipeError, did_you_mean
from curate.ingest.damage import Block, Gap

UTF8 = "utf-8"
BOMS = (
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
    (codecs.BOM_UTF8, UTF8),
)
UNMARKED = (  # JSON begins with an ASCII character, and most other text with some: zero bytes tell how wide they are
    (re.compile(rb"[^\0]\0\0\0"), "utf-32-le"),
    (re.compile(rb"\0\0\0[^\0]"), "utf-32-be"),
    (re.compile(rb"[\t\n\r \[{\"]\0|(?:[ -~]\0){4}"), "utf-16-le"),
    (re.compile(rb"\0[\t\n\r \[{\"]|(?:\0[ -~]){4}"), "utf-16-be"),
)
NOT_OF_FILES = frozenset({"idna", "punycode", "raw-unicode-escape", "unicode-escape", "undefined", "mbcs", "oem"})
SAMPLE_BYTES = 1 << 16  # of a text that are looked at
KEEP_BYTES = "curate_keep_bytes"  # the name of an error handler
MIN_UTF8 = 3  # characters beyond ASCII that make a text UTF-8 whatever encoding is given: fewer may be chance
MIN_PLAUSIBLE = 0.25  # of the measure in `_plausibility`
RANKED = 0.3  # what a character of an encoding's first level counts, against 1 for one of the commonest
LEVELS_FROM_A1 = ("gb18030", "euc_jp", "euc_kr")  # their second bytes begin at 0xA1

BEYOND_ASCII = re.compile(rb"[\x80-\xff]+")
BEYOND_ASCII_TEXT = re.compile(r"[^\x00-\x7f]+")
UTF8_CHARACTERS = re.compile(rb"(?:[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3})++")

KANA = "".join(map(chr, [*range(0x3041, 0x3097), *range(0x30A1, 0x30FB), 0x30FC]))
CYRILLIC = "".join(map(chr, [*range(0x430, 0x450), 0x451, 0x454, 0x456, 0x457]))
WIDE = "。，、！？：；（）「」《》“”…"
SIMPLIFIED = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么去"
    "法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全三又关点正业"
)
TRADITIONAL = (
    "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下自之年過發後作裡用道行所然家種事成方多經麼去"
    "法學如都同現當沒動面起看定天分還進好小部其些主樣理心她本前開但因只從想實日軍者意無力它與長把機十民第公此已工使情明性知全三又關點正業"
)
HANGUL = (
    "이다는을가에의한하고지로서기를은도사나인리어자아대시일전정해보만라들수있했그게부니상면원스것제구장조주연선트여공성과안요국야세문화"
    "생음내와적까없우던었네무드려비신르오말데미거된중할모진회금당실유동위경영소방관간물속습입때크계학저설술체재년개분용"
)
WESTERN = "àâäáãåæçèéêëìíîïñòóôõöøùúûüÿßœÀÂÄÁÃÅÆÇÈÉÊËÍÎÑÓÔÕÖØÚÜŒ“”‘’–—…€«»°·¿¡£™•"
CENTRAL = "áčďéěíňóřšťúůýžąćęłńśźżäöüőűâăîşţßÁČĎÉĚÍŇÓŘŠŤÚŮÝŽĄĆĘŁŃŚŹŻÄÖÜŐŰÂĂÎ“”„‘’–—…€«»°"


@dataclass(frozen=True)
class Candidate:
    """An encoding, and characters that are common in the texts it is used for.

    `level`: the first bytes of the characters that its standard ranks as frequent; empty in single-byte encodings.
    """

    encoding: str
    common: str
    level: range = range(0)
    single: bool = False  # letters beyond ASCII stand alone between others, as in Western languages

    @functools.cached_property
    def letters(self) -> frozenset[str]:
        """The common characters."""
        return frozenset(self.common)


CANDIDATES = (  # the first of equally likely ones wins
    Candidate("gb18030", SIMPLIFIED + WIDE, range(0xB0, 0xD8)),
    Candidate("big5", TRADITIONAL + WIDE, range(0xA4, 0xC7)),
    Candidate("shift_jis", KANA + WIDE, range(0x88, 0x98)),
    Candidate("euc_jp", KANA + WIDE, range(0xB0, 0xD0)),
    Candidate("euc_kr", HANGUL, range(0xB0, 0xC9)),
    Candidate("cp1252", WESTERN, single=True),
    Candidate("cp1250", CENTRAL, single=True),
    Candidate("cp1251", CYRILLIC + "«»—–“”№"),
    Candidate("koi8_r", CYRILLIC),
)
CODECS = {"shift_jis": "cp932", "big5": "cp950", "euc_kr": "cp949"}  # Windows's supersets, which files really are in


def check_encoding(name: str) -> str:
    """Return Python's name of a text encoding; raises RecipeError, with the nearest name, for an unknown one."""
    if (found := _text_encoding(name)) is None:
        near = did_you_mean(name.lower(), _known_encodings())
        hint = near if near.startswith("; did") else "; such as gb18030, big5, shift_jis, euc_kr, cp1251 or cp1252"
        raise RecipeError(f"unknown encoding {name!r}{hint}")
    return found


def _text_encoding(name: str) -> str | None:
    try:
        info = codecs.lookup(name)
    except (LookupError, ValueError):  # a zero byte in the name
        return None
    return info.name if info._is_text_encoding and info.name not in NOT_OF_FILES else None


def _known_encodings() -> set[str]:
    names = {*aliases, *aliases.values(), *(candidate.encoding for candidate in CANDIDATES)}
    return {name for name in names if _text_encoding(name)}


def transcode(blocks: Iterator[Block], encoding: str, warn: Callable[[str], None]) -> Iterator[Block]:
    """Yield text as UTF-8: from its byte-order mark's encoding, UTF-16 or UTF-32 without a mark, or `encoding`.

    Bytes that the encoding does not have stay as they are, so that their records are rejected. `warn` is called if the
    text is plainly in another encoding.
    """
    head, blocks = _peek(blocks)
    mark, marked = next(((mark, marked) for mark, marked in BOMS if head.startswith(mark)), (b"", ""))
    if mark:
        text = _drop(blocks, len(mark))
        return text if marked == UTF8 else _decode(text, marked)
    if unmarked := next((name for pattern, name in UNMARKED if pattern.match(head)), ""):
        return _decode(blocks, unmarked)
    if encoding == UTF8:
        if advice := advise(head):
            warn(f"the text is not UTF-8{advice}")
        return blocks
    if _is_utf8(head):
        warn(f"the text is UTF-8, and is read as such, not as {encoding}")
        return blocks
    _warn_of_other(head, encoding, warn)
    return _decode(blocks, encoding)


def is_plain(head: bytes, encoding: str) -> bool:
    """Return whether `transcode` leaves a text with this beginning as it is, without a warning."""
    if any(head.startswith(mark) for mark, _ in BOMS) or any(pattern.match(head) for pattern, _ in UNMARKED):
        return False
    return encoding == UTF8 and not advise(head)


def _warn_of_other(head: bytes, encoding: str, warn: Callable[[str], None]) -> None:
    """Warn if a text looks like a double-byte encoding in which it reads differently."""
    guess = guess_encoding(head)
    codec = CODECS.get(guess, guess)
    is_double = any(guess == item.encoding and item.level for item in CANDIDATES)
    if is_double and head.decode(encoding, "replace") != head.decode(codec, "replace"):
        warn(f"the text is read as {encoding}, but it may be {guess}")


def _peek(blocks: Iterator[Block]) -> tuple[bytes, Iterator[Block]]:
    """Return the first bytes, at least SAMPLE_BYTES if the text is that long, and all blocks."""
    first: list[Block] = []
    size = 0
    for block in blocks:
        first.append(block)
        size += len(block) if isinstance(block, bytes) else 0
        if size >= SAMPLE_BYTES:
            break
    head = b"".join(block for block in first if isinstance(block, bytes))
    return head[:SAMPLE_BYTES], itertools.chain(first, blocks)


def _drop(blocks: Iterator[Block], count: int) -> Iterator[Block]:
    """Remove the first bytes."""
    for block in blocks:
        if isinstance(block, bytes):
            yield block[count:]
            count -= min(count, len(block))
        else:
            yield block


def _decode(blocks: Iterator[Block], encoding: str) -> Iterator[Block]:
    """Transcode blocks, also where a character crosses from one to the next."""
    errors = {"16": "surrogatepass", "32": "replace"}.get(encoding[4:6], KEEP_BYTES)
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    for block in blocks:
        if isinstance(block, bytes):
            yield _to_utf8(decoder.decode(block), errors)
            continue
        if isinstance(block, Gap):
            decoder.reset()
        yield block
    yield _to_utf8(decoder.decode(b"", errors != "surrogatepass"), errors)


def _to_utf8(text: str, errors: str) -> bytes:
    """Encode text; a lone surrogate becomes its JSON escape, so that it stays distinct from other characters."""
    return text.encode(UTF8, "surrogateescape" if errors == KEEP_BYTES else "backslashreplace")


def _keep_bytes(error: UnicodeError) -> tuple[str, int]:
    """Keep a byte that is not of the encoding, as a surrogate that becomes that byte again.

    A byte of ASCII would be valid there, so it becomes a zero byte, which JSON cannot contain.
    """
    if not isinstance(error, UnicodeDecodeError):
        raise error
    byte = error.object[error.start]
    return chr(0xDC00 + byte) if byte >= 0x80 else "\0", error.start + 1


codecs.register_error(KEEP_BYTES, _keep_bytes)


# ── guessing ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _count_utf8(sample: bytes) -> tuple[int, int]:
    """Return how many runs of bytes beyond ASCII are UTF-8, and how many are not."""
    valid = invalid = 0
    for run in BEYOND_ASCII.finditer(sample):
        is_valid = UTF8_CHARACTERS.fullmatch(run[0]) is not None
        valid += is_valid
        invalid += not is_valid and run.end() < len(sample)  # the sample may end inside a character
    return valid, invalid


def _is_utf8(sample: bytes) -> bool:
    """Return whether a sample is UTF-8 with some characters beyond ASCII."""
    try:
        text = codecs.getincrementaldecoder(UTF8)().decode(sample)
    except UnicodeDecodeError:
        return False
    return sum(map(len, BEYOND_ASCII_TEXT.findall(text))) >= MIN_UTF8


def advise(sample: bytes) -> str:
    """Return what to type for a text that is not UTF-8: `; it may be …`, or nothing if it is or none is likely."""
    valid, invalid = _count_utf8(sample[:SAMPLE_BYTES])
    encoding = guess_encoding(sample) if invalid > valid else ""
    return f"; it may be {encoding}: if the whole file is, add --encoding {encoding}" if encoding else ""


def guess_encoding(sample: bytes) -> str:
    """Return the encoding in which a sample makes the most sense; empty if none is likely."""
    sample = sample[:SAMPLE_BYTES]
    if sample.isascii():
        return ""
    scores = {candidate.encoding: _plausibility(sample, candidate) for candidate in CANDIDATES}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] >= MIN_PLAUSIBLE else ""


def _plausibility(sample: bytes, candidate: Candidate) -> float:
    """Return how common the characters beyond ASCII are, 0 to 1; 0 if the bytes are not of the encoding."""
    decoder = codecs.getincrementaldecoder(CODECS.get(candidate.encoding, candidate.encoding))()
    try:
        text = decoder.decode(sample)
    except UnicodeDecodeError:
        return 0.0
    words = BEYOND_ASCII_TEXT.findall(text)
    size = sum(map(len, words))
    if not size:
        return 0.0
    common = candidate.letters
    if candidate.level:
        frequent = _frequent(candidate)
        return sum(1.0 if c in common else RANKED * (c in frequent) for word in words for c in word) / size
    whole = sum(len(word) for word in words if common.issuperset(word[:1].lower() + word[1:])) / size
    length = size / len(words)  # of a run of letters beyond ASCII: about one in Western languages
    return whole * min(1.0, 1.5 / length if candidate.single else length / 2)


@functools.cache
def _frequent(candidate: Candidate) -> frozenset[str]:
    """Return the characters of a double-byte encoding's first level."""
    codec = CODECS.get(candidate.encoding, candidate.encoding)
    pairs = (bytes([first, second]) for first in candidate.level for second in range(0x40, 0xFF))
    if candidate.encoding in LEVELS_FROM_A1:
        pairs = (pair for pair in pairs if pair[1] >= 0xA1)
    return frozenset("".join(pair.decode(codec, "ignore") for pair in pairs))
