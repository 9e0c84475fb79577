"""Prompts that only ask for more of the answer before them: "continue", "go on", "继续", "계속"."""

from __future__ import annotations

import re

LONGEST = 120  # characters of such a prompt

# What extensions of ChatGPT's page add to prompts: a button's label, and AIPRM's language.
_ADDED = re.compile(r"지금 번역하기|share prompt|(?:please )?(?:write|answer) in english(?: language)?", re.IGNORECASE)
_PARTS_OF_ADDED = ("지금", "share prompt", "in english")  # one of these is in all of them, and in few prompts
_POLITE = (
    r"(?:please|pls|plz|ok|okay|yes|yeah|good|great|perfect|and|now|so|just|then|bitte|por favor|s'il (?:te|vous) plaît"
    r"|можешь|пожалуйста|请你?|請|麻烦你?|お願い(?:します|いたします)?|どうぞ|(?:can|could|would|will) you(?: please)?)"
)
_ENGLISH = (
    r"(?:cont(?:inue|inued|iune|inu|ine)?\.?|keep (?:going|writing|generating|on)|go on|carry on|proceed|resume"
    r"|finish|finish (?:it|that|this|writing|(?:your|the) \w+)|(?:write |show me |give me |what is )?the rest"
    r"(?: (?:remaining )?of (?:the|your|it|this) ?\w*)?|complete (?:it|(?:your|the) (?:answer|response|code|sentence)))"
)
_AFTER = (
    r"(?:please|pls|thanks|thank you|writing|generating|going|coding|it|this|that|with (?:it|this|that|the \w+)"
    r"|(?:your|the|my) (?:previous |last )?(?:answer|response|code|text|story|list|sentence|reply|article|output)"
    r"|(?:from )?(?:where|there|here|above|the (?:above|last (?:line|sentence|word|part)))"
    r"|from (?:your|the) (?:last|previous) \w+|(?:from )?where (?:you|it) (?:left off|stopped|ended|was cut off))"
)
_OTHERS = (
    r"(?:继续|接着|往下)(?:说|写|讲|生成|输出|回答|吧|下去|上面的?|完成)*|(?:繼續|接著)(?:說|寫|講|生成|輸出|回答|吧|下去)*|继续上文"
    r"|続き(?:を|は)?(?:書いて|教えて|出力して|生成して)?(?:ください|くれ)?|続けて(?:ください|くれ)?|つづけて(?:ください)?|続行"
    r"|(?:계속|이어서)(?:해서)? ?(?:해|써|작성|말|생성|진행|설명|이야기|출력)*(?:해)? ?(?:줘|주세요|요|봐|하세요)?"
    r"|weiter(?:machen|schreiben)?|mach(?:e)? weiter|schreib(?:e)? weiter|fahre? (?:bitte )?fort|fortfahren"
    r"|fortsetzen|setze? fort|continúa(?: escribiendo)?|continua(?:r|re)?|continúe|sigue(?: escribiendo)?|continuez?"
    r"|continues|poursui(?:s|vez)|(?:la )?suite|prossiga|prosegui|vai avanti"
    r"|ga (?:verder|door)|verder"
    r"|fortsätt|kontynuuj|pokračuj|продолж(?:ай|айте|и|ите|ить)|дальше|далее"
    r"|продовжуй|devam(?: et| edin)?|tiếp(?: tục)?|viết tiếp"
    r"|lanjut(?:kan)?|teruskan|أكمل|استمر|تابع|واصل|ادامه بده|जारी रखें|आगे|ต่อ(?:ไป)?|เขียนต่อ"
)
_CONTINUE = re.compile(
    rf"(?:{_POLITE} ?)*(?:{_ENGLISH}(?: {_AFTER})*|(?:{_OTHERS}))(?: ?{_POLITE})*(?: ?(?:{_AFTER}))*", re.IGNORECASE
)


def asks_to_continue(prompt: str) -> bool:
    """Return whether a prompt only asks to go on, so that it means nothing without the answer before it."""
    if len(prompt) > LONGEST:
        return False
    lower = prompt.lower()
    if any(part in lower for part in _PARTS_OF_ADDED):
        prompt = _ADDED.sub(" ", prompt)
    plain = re.sub(r"[^\w' \u0900-\u0eff]+", " ", prompt.replace("’", "'"))
    words = " ".join(plain.split())
    return bool(words) and _CONTINUE.fullmatch(words) is not None
