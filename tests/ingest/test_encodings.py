"""Text in other encodings than UTF-8: read where the encoding is known, named where it is likely."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curate.errors import InputError, RecipeError
from curate.ingest.reader import Reader
from curate.ingest.sources import open_inputs
from curate.ingest.text.encodings import CODECS, check_encoding, guess_encoding, transcode
from tests.support.raw_dumps import Dump, good, read, reads, rules, values

TEXTS = {
    "gb18030": ("慢性鼻炎的治疗方法有哪些？", "鼻腔冲洗；局部用药。"),
    "big5": ("請介紹台北的歷史", "功能許可，台北是台灣的首都。"),  # 功, 許 and 蓋 end with a backslash in Big5
    "shift_jis": ("表の能力を教えてください", "はい、ソースを表示します。"),  # so do 表, 能 and ソ in Shift-JIS
    "euc_jp": ("東京の天気を教えてください", "明日は晴れでしょう。"),
    "euc_kr": ("오늘 날씨가 어때요?", "서울은 맑습니다."),
    "cp1251": ("Столица России?", "Это Москва."),
    "koi8_r": ("Столица России?", "Это Москва."),
    "cp1252": ("Où est la gare de Genève ?", "À Cornavin, près du lac — 5 minutes."),
}
MAIN = ("gb18030", "big5", "shift_jis", "euc_kr", "cp1252")


def rows(encoding: str, count: int = 4) -> list[Any]:
    prompt, answer = TEXTS[encoding]
    turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]
    return [{"id": str(n), "conversations": turns} for n in range(count)]


def lines(encoding: str, codec: str = "") -> bytes:
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows(encoding))
    return text.encode(codec or CODECS.get(encoding, encoding))


@pytest.fixture
def dump(tmp_path: Path) -> Dump:
    return reads(tmp_path)


@pytest.mark.parametrize("chunk_bytes", [64, 1 << 20])
@pytest.mark.parametrize("encoding", TEXTS)
def test_a_dump_in_a_given_encoding_is_read(dump: Dump, encoding: str, chunk_bytes: int) -> None:
    records, reader = dump(lines(encoding), encoding=check_encoding(encoding), chunk_bytes=chunk_bytes)
    assert values(records) == rows(encoding)
    assert reader.warnings == []


def test_it_is_read_from_within_archives(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "dump.zip", "w") as archive:
        archive.writestr("a.jsonl", lines("gb18030"))
        archive.writestr("b.jsonl.gz", gzip.compress(lines("gb18030")))
    records, reader = read(tmp_path / "dump.zip", encoding="gb18030")
    assert values(records) == rows("gb18030") * 2
    assert reader.warnings == []


@pytest.mark.parametrize("encoding", MAIN)
def test_the_likely_encoding_of_other_text_is_named(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "dump.jsonl").write_bytes(lines(encoding))
    reader = Reader(open_inputs([tmp_path / "dump.jsonl"]))
    try:
        list(reader)
    except InputError as error:
        assert f"add --encoding {encoding}" in str(error)
    assert f"add --encoding {encoding}" in reader.warnings[0].text


def test_each_rejected_record_names_it_too(dump: Dump) -> None:
    records, _ = dump(lines("gb18030"))
    assert rules(records) == ["encoding"] * 4
    assert "it may be gb18030" in str(records[0].problem)


@pytest.mark.parametrize("encoding", TEXTS)
def test_short_texts_are_recognised(encoding: str) -> None:
    assert guess_encoding(lines(encoding)) == encoding


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("before", ["", "\n", "[", "  "])
def test_wide_characters_are_read_without_a_mark(dump: Dump, codec: str, before: str) -> None:
    text = before + ", ".join(json.dumps(row, ensure_ascii=False) for row in rows("gb18030"))
    records, _ = dump((text + "]" * (before == "[")).encode(codec))
    assert values(records) == rows("gb18030")


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "a"])
def test_wide_characters_are_read_without_a_mark_in_tables_and_chats_too(dump: Dump, codec: str, name: str) -> None:
    prompt, answer = TEXTS["gb18030"]
    table = f"question,answer\n{prompt},{answer}\n"
    text = f"User: {prompt}\nAssistant: {answer}\n" if name == "a.txt" else table
    records, reader = dump((text.replace(",", "\t") if name == "a.tsv" else text).encode(codec), name)
    assert answer in str(values(records)) and prompt in str(values(records))
    assert not reader.warnings


# ── dirty cases ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_bytes_that_the_encoding_lacks_cost_their_record(dump: Dump) -> None:
    bad = lines("gb18030").replace("鼻腔".encode("gb18030"), b"\xff\xff", 1)
    records, _ = dump(bad, encoding="gb18030")
    assert rules(records) == ["encoding"]
    assert good(records) == rows("gb18030")[1:]


@pytest.mark.parametrize("tail", [b"\x81", b"\x81\x30", b"\x81\x30\x81"])
def test_a_character_cut_at_the_end_costs_its_record(dump: Dump, tail: bytes) -> None:
    records, _ = dump(lines("gb18030") + b'\n{"id": "cut", "v": "' + tail, encoding="gb18030")
    assert good(records) == rows("gb18030")
    assert len(records) == 5


def test_bytes_that_look_like_utf8_only_in_part_stay_rejected(dump: Dump) -> None:
    records, _ = dump(b'{"v": "\x81\x8d"}\n' + lines("cp1252"), encoding="cp1252")  # undefined in cp1252
    assert rules(records) == ["encoding"]
    assert good(records) == rows("cp1252")


def test_utf8_is_read_as_such_whatever_is_given(dump: Dump) -> None:
    records, reader = dump(lines("gb18030", "utf-8"), encoding="gb18030")
    assert values(records) == rows("gb18030")
    assert "the text is UTF-8" in reader.warnings[0].text


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_counts_more_than_what_is_given(dump: Dump, codec: str) -> None:
    records, _ = dump(lines("gb18030", codec), encoding="cp1252")
    assert values(records) == rows("gb18030")


def test_a_given_encoding_in_which_the_text_makes_no_sense_is_warned_of(dump: Dump) -> None:
    _, reader = dump(lines("gb18030"), encoding="cp1252")
    assert "but it may be gb18030" in reader.warnings[0].text


def test_one_bad_byte_in_utf8_is_not_another_encoding(dump: Dump) -> None:
    records, reader = dump(lines("cp1252", "utf-8") + b'\n{"id": "x", "v": "caf\xe9 \xc3\xa9 \xc3\xa9"}')
    assert rules(records) == ["encoding"]
    assert "--encoding" not in str(records[-1].problem)
    assert reader.warnings == []


def test_ascii_and_other_bytes_have_no_likely_encoding() -> None:
    assert guess_encoding(b'{"id": 1}') == ""
    assert guess_encoding(bytes(range(128, 256)) * 4) == ""


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("gbkk", "did you mean 'gbk'?"),
        ("shift-jiss", "did you mean 'shiftjis'?"),
        ("klingon", "such as gb18030"),
        ("base64", "such as gb18030"),  # not a text encoding
        ("unicode_escape", "unknown encoding"),
        ("", "such as gb18030"),
        ("gb\0k", "unknown encoding"),
        ("ANSI", "unknown encoding"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(RecipeError, match="unknown encoding") as error:
        check_encoding(name)
    assert hint in str(error.value)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["gb18030", "cp932", "cp950", "cp949", "euc_jp", "utf-16-le", "utf-8"]),
    st.text(st.sampled_from('aé你表能功ソ한이的ü \\"{}[]\n'), min_size=4, max_size=40),
    st.integers(1, 7),
)
def test_blocks_may_end_inside_a_character(encoding: str, text: str, size: int) -> None:
    try:
        data = ('["' + text).encode(encoding)
    except UnicodeEncodeError:
        return
    stream = io.BytesIO(data)
    blocks = iter(lambda: stream.read(size), b"")
    expected = data if encoding == "utf-8" else ('["' + text).encode()
    assert b"".join(b for b in transcode(blocks, encoding, lambda _: None) if isinstance(b, bytes)) == expected


@settings(max_examples=60)
@given(st.binary(max_size=60), st.sampled_from(["gb18030", "shift_jis", "cp1252", "big5", "ascii", "iso2022_jp", "hz"]))
def test_any_bytes_are_transcoded_without_an_error(data: bytes, encoding: str) -> None:
    out = b"".join(b for b in transcode(iter([data]), codecs.lookup(encoding).name, lambda _: None) if b)  # type: ignore[misc]
    assert len(out) <= 4 * len(data) + 4
