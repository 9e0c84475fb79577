"""Which answers say nothing: a promise without what it promises, a request to wait, a bare "Sure!"."""

from __future__ import annotations

import re

LONGEST = 240  # characters of an answer that may say nothing
_YES = (
    r"(?:sure(?: thing)?|certainly|of course|absolutely|definitely|okay|ok|got it|no problem|understood|alright|great"
    r"|gladly|happy to help|yes|claro(?: que sí)?|por supuesto|bien sûr|natürlich|gerne|klar|selbstverständlich"
    r"|com certeza|certo|当然(?:可以)?|好的?|没问题|可以的?|明白了?|もちろん(?:です)?|はい|わかりました|承知しました"
    r"|물론(?:이죠|입니다)?|네|알겠습니다|그럼요)"
)
_BARE = re.compile(rf"\W*{_YES}(?:[\s,.!！。、，]+(?:{_YES}|i can help(?: you)?(?: with that)?))*\W*", re.IGNORECASE)
_PROMISE = re.compile(
    r"\b(?:here(?:['’]s| is| are| you go)|below (?:is|are)|the following|aquí (?:está|tienes?)|voici|hier (?:ist|sind)"
    r"|aqui está)[^.!?\n]*[:：]\W*$|(?:如下|以下是[^。]*|以下の[^。]*|다음과 같습니다|다음은[^.]*)[:：]\W*$",
    re.IGNORECASE,
)
_WAIT = re.compile(
    r"\b(?:(?:wait|hold on|stand by|bear with me)(?: (?:for )?(?:a|one) (?:moment|minute|second|while))?,? "
    r"(?:please|while i)\b"
    r"|(?:give|allow) me (?:a (?:moment|minute|second|few (?:moments|minutes))|some time)\b"
    r"|please wait\b|one moment,? (?:please|while)\b"
    r"|i(?:['’]ll| will) (?:get back to you|let you know (?:when|once|as soon as)|start working|get started)\b"
    r"|i(?:['’]m| am) (?:currently )?working on (?:it|that|this)\b)"
    r"|请(?:稍等|稍候|等待)|稍等一下|少々お待ちください|잠시만 (?:기다려|기다리)|einen moment bitte"
    r"|un momento,? por favor|un instant,? s['’]il vous plaît|aguarde um momento",
    re.IGNORECASE,
)
# One of these is in every text that has such a request: looked for first, since most have none.
_WAITING = (
    *("wait", "hold on", "stand by", "bear with me", "give me", "allow me", "moment", "'ll ", "’ll ", "i will "),
    *("working on", "请", "稍等", "お待ち", "잠시만", "instant", "momento"),
)
_ASKS = re.compile(r"[?？]|\b(?:provide|send|share|tell|upload|paste)\b|提供|发给", re.IGNORECASE)
# A prompt that wants no more than a short reply.
_SHORT_REPLY = re.compile(
    r"\b(?:thanks?|thank you|reply|respond|say|answer|type|understand|understood|acknowledge|ready|confirm|wait"
    r"|ok(?:ay)?|remember|next (?:message|prompt)|(?:do|can|could|are|will|would) you|is (?:it|this|that)|yes or no"
    r"|act as|you are|verst\w+|danke|gracias|merci|obrigad[oa])\b"
    r"|谢谢|明白|理解|准备|确认|回复|吗|ありがとう|わかり|準備|ですか|ますか|감사|이해|준비|나요|까\?",
    re.IGNORECASE,
)


def find_emptiness(prompt: str, answer: str) -> str | None:
    """Return why an answer says nothing, or None if it says something."""
    text = answer.strip()
    if len(text) > LONGEST:
        return None
    if (":" in text or "：" in text) and "\n" not in text and _PROMISE.search(text):
        return "it announces something that does not follow"
    wait = _find_wait(text)
    if wait and not re.search(r"[.!。]\s*\S", text[wait.end() :]):
        return "it only asks to wait"
    if len(prompt) >= 40 and _BARE.fullmatch(text) and not _SHORT_REPLY.search(prompt):
        return "it only agrees"
    return None


def _find_wait(text: str) -> re.Match[str] | None:
    lower = text.lower()
    if not any(words in lower for words in _WAITING) or _ASKS.search(text):
        return None
    return _WAIT.search(text)
