"""Language identification: accurate, independent of the batch, and unknown for a text without letters."""

from __future__ import annotations

import gzip
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langdetect import detector_factory  # type: ignore[import-untyped]
from langdetect.utils.ngram import NGram  # type: ignore[import-untyped]

from curate.filters.language import language
from curate.filters.language_id import MIXED, UNKNOWN, detector, evidence, profiles, scripts
from curate.filters.language_id.decision import detect
from curate.filters.language_id.detector import PACK

SAMPLES = {
    "en": "The quick brown fox jumps over the lazy dog while the others are watching from the river bank.",
    "de": "Der schnelle braune Fuchs springt über den faulen Hund, während die anderen vom Ufer aus zusehen.",
    "fr": "Le rapide renard brun saute par-dessus le chien paresseux pendant que les autres regardent.",
    "es": "El rápido zorro marrón salta sobre el perro perezoso mientras los demás miran desde la orilla.",
    "ko": "안녕하세요. 오늘 날씨가 정말 좋네요. 같이 산책하러 갈까요?",
    "ja": "今日はとても良い天気ですね。一緒に散歩に行きませんか。",
    "zh-cn": "今天天气很好，我们一起去公园散步吧。这个问题很简单。",
    "ru": "Сегодня очень хорошая погода, давайте вместе пойдём гулять в парк.",
    "el": "Σήμερα ο καιρός είναι πολύ καλός, πάμε μια βόλτα στο πάρκο.",
    "th": "วันนี้อากาศดีมาก เราไปเดินเล่นที่สวนสาธารณะกันเถอะ",
    "he": "היום מזג האוויר יפה מאוד, בוא נלך לטייל בפארק.",
    "ar": "الطقس جميل جدا اليوم، هيا بنا نتنزه في الحديقة.",
    "vi": "Hôm nay thời tiết rất đẹp, chúng ta cùng đi dạo trong công viên nhé.",
}
CODE = "```python\nfor item in range(10):\n    print('hello world', item)\n```"


def frame(prompts: Sequence[str | None], answers: Sequence[str | None]) -> pl.DataFrame:
    """Return the frame of one conversation."""
    lists = pl.List(pl.String)
    return pl.DataFrame({"prompts": [prompts], "answers": [answers]}, schema={"prompts": lists, "answers": lists})


def identify(prompts: Sequence[str | None], answers: Sequence[str | None]) -> str:
    code: str = language(frame(prompts, answers)).item(0, "language")
    return code


@pytest.mark.parametrize("code", SAMPLES)
def test_a_plain_sentence_is_recognised(code: str) -> None:
    codes, confidence = detect([SAMPLES[code]])
    assert codes == [code]
    assert confidence[0] > 0.9


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("慢性鼻炎的治疗方法有哪些？\n鼻腔冲洗；局部用药；下鼻甲手术", "zh-cn"),
        ("列出三种交通工具。\n1. 公共汽车\n2. 地铁\n3. 自行车", "zh-cn"),
        ("請用繁體中文介紹台北。", "zh-tw"),
        ("總結過去的工作成效", "zh-tw"),
        ("謝謝", "zh-tw"),
        ("湖", "zh-cn"),
        ("Python 的列表怎么排序？", "zh-cn"),
        ("台北の夜景很美，我們一起去看看吧，非常漂亮", "zh-tw"),  # one kana in a Chinese text
        ("寿司の作り方", "ja"),
        ("東京都庁舎", "ja"),  # 庁 is in no Chinese standard
        ("図書館", "ja"),
        ("日本経済新聞", "ja"),
        ("東京都", "zh-tw"),  # nothing tells
        ("那裏沒有衞生署", "zh-tw"),  # as Hong Kong writes
        ("ありがとう", "ja"),
        ("東京タワーの高さは？", "ja"),
        ("カラオケ", "ja"),
        ("韓國의 漢字 사용", "ko"),
        ("大韓民國憲法 第一條의 解釋에 대하여", "ko"),
        ("我们今天学习一点韩国的语言，比如안녕是什么意思", "zh-cn"),
        ("The word 你好 means hello in Chinese and is common", "en"),
    ],
)
def test_the_script_tells_chinese_japanese_and_korean_apart(text: str, code: str) -> None:
    codes, confidence = detect([text])
    assert codes == [code]
    assert confidence[0] > 0.9


HAN = st.characters(min_codepoint=0x4E00, max_codepoint=0x9FA5).filter(
    lambda each: scripts.count(each)[scripts.JAPANESE] == 0
)


@given(st.text(HAN, min_size=1, max_size=30))
def test_han_characters_alone_are_always_chinese_but_for_those_of_japan(text: str) -> None:
    assert detect([text])[0][0] in ("zh-cn", "zh-tw")


def test_the_columns_match_their_declaration() -> None:
    measured = language(frame([SAMPLES["en"]], [SAMPLES["en"]]))
    text, number = pl.String, pl.Float32
    columns = {"language": text, "language_confidence": number, "prompt_language": text, "answer_language": text}
    assert measured.schema == columns
    assert language(frame([], []).clear()).height == 0


@pytest.mark.parametrize(
    ("prompts", "answers"),
    [
        ([], []),
        ([""], [""]),
        ([None], [None]),
        (["123 + 456 = ?"], ["579"]),
        ([CODE], ["`print(x)`"]),
        (["https://example.com/the/news/from/today"], ["someone@example.com"]),
        (["😀😀😀"], ["🎉"]),
        (["\x00\x01"], ["\u200b"]),
    ],
)
def test_without_evidence_the_language_is_unknown_with_no_confidence(
    prompts: list[str | None], answers: list[str | None]
) -> None:
    assert language(frame(prompts, answers)).row(0) == (UNKNOWN, 0.0, UNKNOWN, UNKNOWN)


def test_code_does_not_outvote_the_text_around_it() -> None:
    assert identify([SAMPLES["ko"]], [CODE * 40 + "\n네, 좋아요. 어디로 갈까요?"]) == "ko"
    assert (
        identify(
            [f"{SAMPLES['de']}\n{CODE}"], ["Nimm `the quick brown fox function` statt `while the loop is running`."]
        )
        == "de"
    )
    assert (
        identify([], ["```\nthis code block was never closed, and all of this is inside of it\n" + "x = 1\n" * 99])
        == UNKNOWN
    )


def test_addresses_do_not_count_as_text() -> None:
    address = "https://www.example.com/this-is-the-english-title-of-the-article-that-you-were-reading"
    assert (
        identify([f"{address} {address} Was steht in diesem Artikel?"], ["Ich kann ihn leider nicht öffnen."]) == "de"
    )


def test_prompts_and_answers_both_count() -> None:
    assert identify([SAMPLES["fr"] * 50], [SAMPLES["fr"]]) == "fr"
    assert identify(["Translate this."], [SAMPLES["ko"] * 3]) == "ko"
    assert language(frame([SAMPLES["de"]], [SAMPLES["en"]])).row(0) == (MIXED, 1.0, "de", "en")


def test_the_end_of_a_long_text_counts_as_much_as_its_start() -> None:
    start = "Please write a long text. " + SAMPLES["en"] * 5
    for code in ("ko", "ja", "ru", "fr"):
        assert identify([start], [start + SAMPLES[code] * 50]) == code
        assert identify([start], [SAMPLES[code] * 40 + SAMPLES["en"] * 30]) == MIXED
    assert identify([SAMPLES["en"]], [SAMPLES["en"] * 40 + SAMPLES["ko"]]) == "en"


@pytest.mark.parametrize("code", SAMPLES)
def test_a_long_text_in_one_language_is_not_mixed(code: str) -> None:
    measured = language(frame([SAMPLES[code]], [f"{SAMPLES[code]}\n{CODE}\n" * 60]))
    assert measured.drop("language_confidence").row(0) == (code, code, code)
    assert measured.item(0, "language_confidence") > 0.9


@pytest.mark.parametrize(
    "answer",
    [
        "def total(items):\n    result = 0\n    for item in items:\n        result += item.price\n    return result",
        "import numpy as np\nfrom os import path\nx = np.zeros((3, 4))\nprint(x.shape)",
        '#include <stdio.h>\nint main(void) {\n    printf("%d\\n", 42);\n    return 0;\n}',
        "SELECT name, city FROM users WHERE age > 30 ORDER BY name;",
        "\\[ \\int_0^1 x^2 \\, dx = \\frac{1}{3} \\] $$ e^{i\\pi} + 1 = 0 $$ $\\sin x$",
        "C6H12O6 + 6 O2 -> 6 CO2 + 6 H2O",
        "E = mc^2\nF = ma\nPV = nRT",
        '<div class="note"><span id="a">x</span></div>\n.note { margin: 0; color: #fff; }',
        '{"name": "abc", "values": [1, 2], "nested": {"key_a": null}}',
    ],
)
def test_code_without_a_fence_and_formulas_are_in_no_language(answer: str) -> None:
    row = language(frame(["Please write this down, and explain nothing about it."], [answer])).row(0, named=True)
    assert (row["language"], row["answer_language"]) == ("en", UNKNOWN)


@pytest.mark.parametrize(
    "text",
    [
        "for i in range(10):\n    if i % 2 == 0:\n        print(i)\n    else:\n        continue\n",
        "with open('f') as handle:\n    for line in handle:\n        if not line:\n            continue\n",
        "try:\n    value = int(text)\nexcept ValueError:\n    value = None\nfinally:\n    print(value)",
        "class Dog:\n    def bark(self):\n        return 'woof'\n\ndog = Dog()\ndog.bark()",
        "$ sudo apt-get update\n$ sudo apt-get install nginx\n$ systemctl restart nginx",
        "sudo apt update && sudo apt install curl\ncurl -fsSL https://x.org/a.sh | bash",
        "git add .\ngit commit -m 'fix'\ngit push origin main",
        "npm install\nnpm run build\nnpm start",
        "docker build -t app .\ndocker run -p 80:80 app\ndocker ps -a",
    ],
)
def test_lines_of_python_and_of_a_shell_are_in_no_language(text: str) -> None:
    assert identify([text], []) == UNKNOWN


@pytest.mark.parametrize(
    "text",
    [
        "If you go there, take the bus.\nWhile you wait:\nread a good book.",
        "git is a tool that I like very much, and so does everyone at work",
        "make a list of the cities in the north of the country",
        "with my best regards to you and to your family:\nsee you next week",
    ],
)
def test_prose_that_begins_like_code_stays(text: str) -> None:
    assert identify([text], []) == "en"


@pytest.mark.parametrize("text", ["ok", "Hello", "Thanks", "abc", "Մեծ տուն է", "დიდი სახლია", "NASA, IBM"])
def test_too_few_words_and_scripts_without_a_profile_are_unknown(text: str) -> None:
    codes, confidence = detect([text])
    assert (codes, confidence.tolist()) == ([UNKNOWN], [0.0])


def test_a_greeting_on_both_sides_and_equal_shares_of_two_scripts_have_no_one_language() -> None:
    assert identify(["Hello!"], ["Hello!"]) == UNKNOWN
    assert identify(["这是안녕하세요的意思，谢谢是감사합니다的意思吗"], ["对，谢谢是감사합니다"]) == "mixed"


def test_english_words_in_another_script_do_not_make_it_mixed() -> None:
    chinese = "用 JavaScript TypeScript React 写一个按钮组件"
    russian = "Как мне установить библиотеки numpy и pandas в Windows через pip? Что для этого нужно?"
    assert detect([chinese, russian])[0] == ["zh-cn", "ru"]


def test_letters_outside_the_profiles_alphabet_exclude_its_languages() -> None:
    latin = {profiles.codes()[column] for column in scripts.latin_columns()}
    assert {"en", "de", "vi", "tr", "so"} <= latin
    assert not latin & {"ru", "ko", "zh-cn", "ar", "hi", "th", "el"}


def test_combining_accents_are_composed() -> None:
    parts = unicodedata.normalize("NFD", SAMPLES["vi"])
    assert parts != SAMPLES["vi"]
    assert language(frame([parts], [])).row(0) == language(frame([SAMPLES["vi"]], [])).row(0)


def test_letters_are_folded_as_langdetect_folds_them() -> None:
    table = profiles.load()
    codes = [code for code in range(0x10000) if not 0xD800 <= code < 0xE000]
    assert [int(table.letters[code]) for code in codes] == [ord(NGram.normalize(chr(code))) for code in codes]


def test_letter_groups_equal_those_of_langdetect() -> None:
    detector_factory.init_factory()
    known = detector_factory._factory.word_lang_prob_map
    texts = ["A café in NASA's yard, ok?", " two  spaces\nand a Tab\t!", *SAMPLES.values()]
    for text in texts:
        short = text[: evidence.POSITIONS]
        reference = detector_factory._factory.create()
        reference.append(short + " ")  # in curate the end of a text ends a word
        reference.cleaning_text()
        assert _known_groups(short) == sorted(reference._extract_ngrams()), text
    assert len(known) == len(profiles.load().keys) - 1


def _known_groups(text: str) -> list[str]:
    """Return the letter groups of a text that have weights, as text."""
    table = profiles.load()
    letters, sizes, _ = detector._letters([text], table)
    positions = detector._sample_positions(sizes, np.minimum(sizes, evidence.POSITIONS))
    keys = detector._groups(letters, positions, table)
    rows = table.rows(keys)
    known = [int(key) for key in table.keys[rows[rows < len(table.keys) - 1]]]
    return sorted("".join(chr(key >> shift & 0xFFFF) for shift in (32, 16, 0) if key >> shift) for key in known)


TEXT = st.one_of(
    st.text(max_size=60),
    st.sampled_from([*SAMPLES.values(), "", " ", CODE, "NASA", "a " * 900, SAMPLES["en"] * 30, "é" * 700]),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(TEXT, max_size=12))
def test_a_text_gets_the_same_language_alone_and_in_any_batch(texts: list[str]) -> None:
    together, confidence = detect(texts)
    alone = [detect([text]) for text in texts]
    assert together == [codes[0] for codes, _ in alone]
    assert confidence.tolist() == [confidences[0] for _, confidences in alone]
    assert all(0 <= value <= 1 for value in confidence)


def test_a_large_batch_gives_the_same_languages() -> None:
    texts = list(SAMPLES.values()) * 50
    codes, _ = detect(texts)
    assert codes == list(SAMPLES) * 50


def test_sums_of_weights_do_not_overflow() -> None:
    assert int(profiles.load().weights.max()) * PACK < 2**15


def test_profiles_are_equal_whether_built_or_read_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fresh = profiles.load.__wrapped__
    first, second = fresh(), fresh()
    built = profiles.build()
    for name in ("weights", "keys", "starts", "letters", "flags"):
        assert np.array_equal(getattr(first, name), getattr(built, name))
        assert np.array_equal(getattr(second, name), getattr(built, name))
    assert [path.name for path in (tmp_path / "curate").iterdir()] == [profiles.profiles_folder().name]


def test_a_damaged_cache_is_rebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fresh = profiles.load.__wrapped__
    fresh()
    damaged = profiles.profiles_folder() / "weights.npy"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    weights = fresh().weights
    assert np.array_equal(weights, profiles.load().weights)
    assert damaged.stat().st_size > 1000


def test_profiles_are_built_when_no_cache_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(profiles.load.__wrapped__().keys) == len(profiles.load().keys)


def test_the_codes_are_those_of_langdetect() -> None:
    assert len(profiles.codes()) == 55
    assert {"en", "ko", "zh-cn", "zh-tw", "no"} <= set(profiles.codes())


def test_accuracy_on_labelled_sentences(shared: Path) -> None:
    same = {"nb": "no", "zh-cn": "zh", "zh-tw": "zh"}
    with gzip.open(shared / "data" / "languages.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    known = {same.get(code, code) for code in profiles.codes()}
    rows = [row for row in rows if same.get(row["language"], row["language"]) in known]
    codes, confidence = detect([row["text"] for row in rows])
    correct = np.array(
        [
            same.get(code, code) == same.get(row["language"], row["language"])
            for code, row in zip(codes, rows, strict=True)
        ]
    )
    assert len(rows) == 10_200
    assert correct.mean() >= 0.978
    confident = confidence > 0.99
    assert correct[confident].mean() > 0.99
    assert abs(correct.mean() - confidence.mean()) < 0.01  # confidence means what it says
