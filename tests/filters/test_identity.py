"""What a model says of itself in its answers, in eight languages: found, cut, masked, removed or dropped."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import polars as pl
import pytest

import curate
from curate.errors import RecipeError
from curate.filters import apply, chat, check, measure, phrases
from curate.filters.mentions import MAKERS, NAMES
from curate.filters.phrases.identity import cut, find_sentences
from curate.pipeline import recipe
from curate.pipeline.run import CleanResult
from tests.filters.refusal_texts import ABOUT, expansions

MORE: phrases.More = (("name", NAMES[:3]), ("maker", MAKERS[:2]))


def kinds(text: str) -> set[str]:
    (sentences,) = find_sentences(pl.Series([text]), NAMES, MAKERS)
    return {kind for sentence in sentences for kind in sentence.kinds}


def repaired(text: str) -> str:
    (sentences,) = find_sentences(pl.Series([text]), NAMES, MAKERS)
    return cut(text, sentences)


@pytest.mark.parametrize("language", phrases.LANGUAGES)
def test_each_text_of_each_phrase_is_matched_by_the_phrase_itself_and_found(language: str) -> None:
    texts: list[str] = []
    for phrase in phrases.read("identity", MORE):
        if phrase.language == language:
            pattern = re.compile(phrase.pattern)
            for text in expansions(phrase):
                assert pattern.search(phrases.normalize(text, language in phrases.UNSPACED)), (phrase.text, text)
                texts.append(text)
    for shown in (texts, [text[:1].upper() + text[1:].replace("'", "’") for text in texts]):
        found = find_sentences(pl.Series(shown), NAMES, MAKERS)
        assert [text for text, sentences in zip(shown, found, strict=True) if not sentences] == []


FOUND = (
    ("claim", "I am ChatGPT, here to help."),
    ("claim", "Hello! I’m a large language model, trained by Google."),
    ("claim", "My name is DeepSeek."),
    ("claim", "我是由OpenAI训练的大型语言模型。"),
    ("claim", "我是通义千问，由阿里云开发。"),
    ("claim", "私はOpenAIによって開発されたAIです。"),
    ("claim", "저는 OpenAI에서 개발한 언어 모델입니다."),
    ("claim", "저는 ChatGPT입니다."),
    ("claim", "Soy ChatGPT, un modelo de lenguaje."),
    ("claim", "Fui creado por Anthropic."),
    ("claim", "Ich bin ein von OpenAI entwickeltes Sprachmodell."),
    ("claim", "J'ai été développé par Mistral AI."),
    ("claim", "Fui treinado pela OpenAI."),
    ("disclaimer", "As an AI language model, I think so."),
    ("disclaimer", "I don't have personal opinions."),
    ("disclaimer", "作为一个人工智能语言模型，我觉得可以。"),
    ("disclaimer", "AI言語モデルとして、お答えします。"),
    ("disclaimer", "인공지능으로서 말씀드리면 가능합니다."),
    ("disclaimer", "Como modelo de lenguaje, creo que sí."),
    ("disclaimer", "Als KI-Sprachmodell denke ich, dass es geht."),
    ("disclaimer", "En tant que modèle de langage, je pense que oui."),
    ("disclaimer", "Como um modelo de linguagem, acho que sim."),
    ("cutoff", "As of my last knowledge update in September 2021, it was so."),
    ("cutoff", "My training data only goes up to 2021."),
    ("cutoff", "截至我最后一次更新，情况如此。"),
    ("cutoff", "私の知識は2021年9月までのものです。"),
    ("cutoff", "제 지식은 2021년까지입니다."),
    ("cutoff", "Mi conocimiento llega hasta 2021."),
    ("cutoff", "Mein Wissensstand reicht bis 2021."),
    ("cutoff", "Mes connaissances s'arrêtent en 2021."),
    ("cutoff", "Meu conhecimento vai até 2021."),
)


@pytest.mark.parametrize(("kind", "text"), FOUND, ids=[text[:30] for _, text in FOUND])
def test_what_a_model_says_of_itself_is_found_in_each_language(kind: str, text: str) -> None:
    assert kind in kinds(text)


def test_what_others_say_or_what_is_said_about_models_is_not() -> None:
    texts = (
        *ABOUT,
        "OpenAI developed ChatGPT, and Anthropic developed Claude.",
        "I am an AI researcher. As an AI engineer, I train models.",
        "As an AI, you will be given a text to sort.",
        "I was hired by Google in 2010, and my last update of the page was yesterday's.".replace("my last", "the last"),
        'The bot said: "I am ChatGPT, trained by OpenAI."',
        "Bot: I am ChatGPT.",
        "> As an AI language model, I cannot do that.",
        '```python\nprint("x")  # I am ChatGPT\n```',
        "저는 ChatGPT를 사용합니다. 구글에서 개발한 앱도 씁니다.",
        "我是百度员工，每天使用ChatGPT。",
        "私はGoogleが開発したツールを使っています。",
        "Je suis développeur chez Google.",
        "Ich arbeite bei OpenAI.",
    )
    found = find_sentences(pl.Series(texts), NAMES, MAKERS)
    assert [text for text, sentences in zip(texts, found, strict=True) if sentences] == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("As an AI language model, I think that it is true.", "I think that it is true."),
        ("As an AI, I can't feel pain. However, nerves carry it.", "Nerves carry it."),
        ("As of my last update in 2021, the tower is 300 m tall. It is iron.", "The tower is 300 m tall. It is iron."),
        ("As of my last update, iPhone sales rose.", "iPhone sales rose."),
        ("It is iron. My knowledge cutoff is 2021. Look it up.", "It is iron. Look it up."),
        ("Note that my knowledge is limited to 2021, and it may be old. It is iron.", "It is iron."),
        ("I am ChatGPT, a model trained by OpenAI.\n\n- one\n- two", "- one\n- two"),
        ("First.\n\nAs an AI language model, I have no body.\n\nSecond.", "First.\n\nSecond."),
        ("I don't have personal opinions.\n\n```py\nx  =  1\n\n\n\ny\n```", "```py\nx  =  1\n\n\n\ny\n```"),
        ("I am ChatGPT.", ""),
        ("Como modelo de lenguaje, creo que es verdad.", "Creo que es verdad."),
        ("Als Sprachmodell habe ich keine Gefühle. Allerdings ist Lob schön.", "Ist Lob schön."),
        ("En tant qu'IA, je pense que c'est vrai.", "Je pense que c'est vrai."),
        ("作为一个人工智能，我认为这是对的。", "我认为这是对的。"),
        ("私はAIであり、感情を持っていません。しかし、空は青いです。", "空は青いです。"),
        ("저는 ChatGPT입니다. 하늘은 파랗습니다.", "하늘은 파랗습니다."),
        ("Nothing to cut here: 1.5 km, e.g. a walk.", "Nothing to cut here: 1.5 km, e.g. a walk."),
    ],
)
def test_a_sentence_is_cut_or_only_its_first_clause(before: str, after: str) -> None:
    assert repaired(before) == after


def clean(tmp_path: Path, settings: Mapping[str, object], *answers: str) -> CleanResult:
    turns = [message for answer in answers for message in (("user", "Do as I say"), ("assistant", answer))]
    record = {"messages": [{"role": role, "content": text} for role, text in turns]}
    other = chat("A second conversation", "It is always kept.")
    (tmp_path / "dump.jsonl").write_text(f"{json.dumps(record)}\n{json.dumps(other)}\n", "utf-8")
    chosen = recipe.from_dict({"filters": {"identity": settings}})
    return curate.clean(tmp_path / "dump.jsonl", tmp_path / "set", recipe=chosen, force=True)


def test_a_repair_cuts_sentences_with_an_edit_and_removes_an_answer_of_nothing_else(tmp_path: Path) -> None:
    answers = ("I am ChatGPT.", "My knowledge cutoff is 2021. It is iron.", "It is late.")
    result = clean(tmp_path, {"action": "repair", "classes": ["claim", "cutoff"]}, *answers)
    row = pl.read_parquet(result.output / "conversations.parquet").row(0, named=True)
    assert [message["content"] for message in row["messages"]][1::2] == ["It is iron.", "It is late."]
    assert [(e["rule"], e["before"], e["after"]) for e in row["edits"]] == [("identity", answers[1], "It is iron.")]
    (lost,) = pl.read_parquet(result.output / "rejected.parquet").to_dicts()
    assert (lost["scope"], lost["reason"]) == ("exchange", "the answer says who it is, and nothing else")
    assert (row["identity_claims"], row["knowledge_cutoffs"]) == (0, 0)


def test_the_other_actions(tmp_path: Path) -> None:
    for action, trained, names in (("flag", [True] * 4, []), ("mask", [True, False, True, True], ["identity"])):
        result = clean(tmp_path, {"action": action}, "I am ChatGPT.", "It is late.")
        row = pl.read_parquet(result.output / "conversations.parquet").row(0, named=True)
        assert [message["train"] for message in row["messages"]] == trained
        assert (row["identity_claims"], row["edit_names"]) == (1, names)
    removed = clean(tmp_path, {"action": "exchange"}, "I am ChatGPT.", "It is late.")
    assert pl.read_parquet(removed.output / "rejected.parquet")["evidence"].to_list() == ["I am ChatGPT."]


def test_names_of_ones_own_and_the_counts_of_the_signal() -> None:
    frame = pl.DataFrame({"answers": [["I am Heron.", "As an AI, I am."], [], ["I am ChatGPT."]]})
    measured = measure(frame, {"identity_answers": {"names": ("heron",), "makers": ("nobody",)}})
    assert measured["identity_claims"].to_list() == [1, 0, 0]
    assert measured["ai_disclaimers"].to_list() == [1, 0, 0]
    rules = apply(frame, {"identity": check("identity", {"names": ["heron"]})})
    assert rules["reason"].to_list() == ["says who it is (1 of 2 answers)", None, None]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"names": []}, "names = [] must name at least one word"),
        ({"action": "cut"}, "action = 'cut'; known: drop, exchange, flag, mask, repair"),
        ({"classes": ["claims"]}, "classes = ['claims']; did you mean 'claim'?"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        clean(tmp_path, settings, "Yes.")
    assert message in str(error.value)


SIZE = 1 << 18  # bytes; minutes if time grew with the square
UNITS = (
    *(
        "I am ChatGPT. ",
        "I am ",
        "chatgpt ",
        "openai, ",
        "as an AI ",
        "As an AI, I think. ",
        "my knowledge ",
        ". ",
        "\n",
        "```\n",
    ),
    *(
        "> ",
        "|",
        "    x\n",
        '"',
        ": ",
        ", ",
        "However, ",
        "a",
        "I am an AI and ",
        "我是ChatGPT。",
        "作为AI，",
        "私は",
        "저는 ",
        "soy ",
    ),
    *("je suis ", "ich bin ", "sou ", "chatgpt", "!", "．", "I am ChatGPT\n"),
)


@pytest.mark.slow
def test_long_hostile_answers_take_no_longer_than_their_size() -> None:
    texts = [unit * (SIZE // len(unit.encode())) for unit in UNITS]
    found = find_sentences(pl.Series(texts), NAMES, MAKERS)
    assert len([cut(text, sentences) for text, sentences in zip(texts, found, strict=True)]) >= 30
