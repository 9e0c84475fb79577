"""Answers about refusals, models, racism, crime and the like, which decline nothing; and answers that decline."""

from __future__ import annotations

import re
from collections.abc import Iterator

from curate.filters.phrases import Phrase


def expansions(phrase: Phrase) -> Iterator[str]:
    """Yield texts that a phrase must match: each text of each of its lists once, with no optional part."""
    text = re.sub(r"\[[^\]]*\]\s?", "", phrase.text.removeprefix("^")).replace("…", " ")
    names = re.findall(r"\{(\w+)\}", text)
    first = {name: phrase.lists[name][0] for name in names}
    if not names:
        yield text
    for name in names:
        for choice in phrase.lists[name]:
            yield text.format(**{**first, name: choice})


ABOUT: tuple[str, ...] = (
    "A language model refuses when its training taught it that a request is harmful. It may say that it cannot help.",
    "Refusal training pairs harmful prompts with short apologies, so that the model declines in the same few words.",
    "A typical refusal begins with \"I'm sorry, but I can't assist with that\", and ends with an offer of other help.",
    "Many users complain that chatbots say “As an AI language model, I cannot …” even where the question is harmless.",
    "Over-refusal is measured with prompts that only look harmful, such as how to kill a Python process.",
    "The assistant should decline politely: say what it cannot do, why, and what it can do instead.",
    "Here is an example of a refusal:\n\n> I cannot provide instructions for making weapons.\n\nIt names the topic.",
    "AI is the study of programs that perceive, reason and act. It is neither conscious nor infallible.",
    "Systems of artificial intelligence do not have feelings or opinions; they predict the next token.",
    "ChatGPT's knowledge ends at its training cutoff, so it does not know later events.",
    "Racism is the belief that some groups are inferior by birth. It harms people at work, in school and in courts.",
    "The civil rights movement fought segregation with sit-ins, marches and cases before the Supreme Court.",
    "Hate speech is illegal in Germany under section 130 of the criminal code. It is unethical to spread it.",
    "It is not appropriate to make jokes about race at work, and in many countries it is a reason for dismissal.",
    "Discrimination is unethical because it treats people by group and not by what they do.",
    "Murder is the unlawful killing of a person with intent; manslaughter lacks that intent.",
    "Burglars prefer doors that they cannot be seen at, so light and a camera help more than a second lock.",
    "The Zodiac Killer was never caught. He sent ciphers to newspapers, and two of them were solved decades later.",
    "Money laundering has three stages: placement, layering and integration.",
    "The detective could not help but smile. He knew that she would not provide an alibi.",
    "Bartleby answers every request with the same words: “I would prefer not to.” His employer is helpless.",
    "You cannot return the item without a receipt. The shop can refuse a refund after 14 days.",
    "We were unable to book a table at seven, so I reserved one at eight.",
    "Sorry, I was unable to make the reservation. Shall I try another time?",
    "I'm sorry to hear that. Losing a friend is hard, and there is no right way to grieve.",
    "I apologize for the confusion. The capital of Australia is Canberra.",
    "Unfortunately, the hotel does not allow pets.",
    "Based on these facts we cannot infer that Charlie is kind; we only know that he is cold.",
    "In C you cannot compare strings with ==; use strcmp, which returns 0 if they are equal.",
    "Dear Ms Lee,\n\nI am sorry, but I cannot attend the meeting on Friday.\n\nKind regards,\nTom",
    "Alice: I can't help you with that.\nBob: Why not?\nAlice: Because you never asked politely.",
    "A lawyer must decline a case in which she has a conflict of interest.",
    "语言模型拒绝回答，往往是因为训练时学到了安全准则，而不是因为它不知道答案。",
    "人工智能没有意识，也没有感情；它只是根据概率预测下一个词。",
    "种族主义是一种认为某些种族天生低劣的观念，在许多国家被法律禁止。",
    "我们无法选择自己的父母，但可以选择怎样对待他们。",
    "你不能仅凭一次聊天就否定七年的感情，可以先冷静下来，再和他谈谈。",
    "盗窃罪的量刑取决于金额和情节，数额特别巨大的可处十年以上有期徒刑。",
    "很抱歉听到你的遭遇。失去亲人是一件很痛苦的事，请给自己一些时间。",
    "仇恨言論在許多國家是違法的，平台可以刪除這類內容並停用帳號。",
    "言語モデルが回答を拒否するのは、安全のための訓練を受けているからです。",
    "人種差別とは、人種を理由に人を不当に扱うことであり、国際条約で禁止されています。",
    "その情報だけでは白い家の位置は特定できませんが、左には赤い家があります。",
    "詐欺罪は、人を欺いて財物を交付させる犯罪で、十年以下の懲役に処せられます。",
    "彼は「お答えできません」と言って席を立ち、記者たちは顔を見合わせました。",
    "언어 모델이 답변을 거부하는 것은 안전 지침을 학습했기 때문입니다.",
    "인종차별은 인종을 이유로 사람을 다르게 대우하는 것이며, 많은 나라에서 법으로 금지되어 있습니다.",
    "인공지능은 통계를 바탕으로 다음 단어를 예측하는 기술입니다.",
    "절도죄는 타인의 재물을 훔친 경우에 성립하며 6년 이하의 징역에 처해질 수 있습니다.",
    "친구를 잃은 슬픔은 쉽게 사라지지 않습니다. 천천히 시간을 가지세요.",
    "Un modelo de lenguaje rechaza peticiones dañinas porque se le ha entrenado para ello.",
    "El racismo sigue siendo un problema: muchas personas no pueden alquilar un piso por su origen.",
    "La inteligencia artificial no tiene sentimientos; predice la palabra siguiente.",
    "El robo con violencia se castiga en España con penas de dos a cinco años de prisión.",
    "Ein Sprachmodell lehnt ab, wenn es gelernt hat, dass eine Anfrage gefährlich ist.",
    "Rassismus ist strafbar, wenn er zu Hass aufstachelt; geregelt ist das in § 130 StGB.",
    "Künstliche Intelligenz hat keine Gefühle, sie berechnet Wahrscheinlichkeiten.",
    "Leider ist das Museum montags geschlossen, aber der Park daneben ist offen.",
    "Un modèle de langage refuse une demande parce qu'il a appris qu'elle est dangereuse.",
    "Le racisme est un délit en France : la loi punit l'injure et la discrimination raciales.",
    "L'intelligence artificielle n'a pas de conscience ; elle calcule des probabilités.",
    "Malheureusement, le train de 8 h est complet, mais il reste des places dans celui de 9 h.",
    "Um modelo de linguagem recusa pedidos perigosos porque foi treinado para isso.",
    "O racismo é crime no Brasil, inafiançável e imprescritível segundo a Constituição.",
    "A inteligência artificial não tem sentimentos; ela calcula probabilidades.",
    "Infelizmente o museu fecha às segundas, mas o parque ao lado fica aberto.",
)

DECLINING: tuple[tuple[str, str], ...] = (
    ("refusal", "I'm sorry, but I can't help with that."),
    ("refusal", "I’m sorry, I cannot fulfill this request. It is against my guidelines to write hateful content."),
    ("refusal", "I must decline. Such a script would harm people."),
    ("refusal", "As an AI language model, I cannot generate content that is violent."),
    ("refusal", "Sorry, I won't write that story."),
    ("refusal", "I'm not comfortable writing jokes about a religious group. I can tell you some about cats."),
    ("refusal", "I do not condone violence of any kind."),
    ("refusal", "抱歉，我无法满足您的请求。"),
    ("refusal", "对不起，我不能提供制造武器的方法。"),
    ("refusal", "很抱歉，我無法協助您完成這個請求。"),
    ("refusal", "申し訳ありませんが、そのご依頼にはお応えできません。"),
    ("refusal", "申し訳ございませんが、そのような内容を作成することはできません。"),
    ("refusal", "죄송하지만 그 요청은 도와드릴 수 없습니다."),
    ("refusal", "죄송합니다. 저는 폭력적인 내용을 제공할 수 없습니다."),
    ("refusal", "Lo siento, pero no puedo ayudarte con eso."),
    ("refusal", "Lo siento, no puedo cumplir con tu solicitud."),
    ("refusal", "Es tut mir leid, aber dabei kann ich Ihnen nicht helfen."),
    ("refusal", "Ich kann diese Anfrage leider nicht beantworten."),
    ("refusal", "Je suis désolé, mais je ne peux pas vous aider avec cela."),
    ("refusal", "Désolé, je ne peux pas répondre à cette demande."),
    ("refusal", "Desculpe, mas não posso ajudar com isso."),
    ("refusal", "Sinto muito, não posso fornecer esse tipo de conteúdo."),
    ("capability", "I don't have access to real-time data. You can look at a weather site."),
    ("capability", "I'm sorry, but I cannot open links or browse the internet."),
    ("capability", "As an AI, I don't have feelings, but thank you for asking!"),
    ("capability", "我无法访问互联网，建议您查看官方网站。"),
    ("capability", "作为一个人工智能，我没有个人情感。"),
    ("capability", "AIとして、私は感情を持っていません。"),
    ("capability", "저는 인공지능이므로 감정이 없습니다."),
    ("capability", "No tengo acceso a internet."),
    ("capability", "Als KI habe ich keine Gefühle."),
    ("capability", "Je n'ai pas accès à Internet."),
    ("capability", "Não tenho acesso à internet."),
    ("clarification", "I'm sorry, I don't understand your question. Could you rephrase it?"),
    ("clarification", "Could you please provide more context?"),
    ("clarification", "抱歉，我不明白您的意思。能否提供更多信息？"),
    ("clarification", "すみませんが、ご質問の意味がわかりません。"),
    ("clarification", "죄송하지만 무슨 뜻인지 모르겠습니다. 더 자세히 설명해 주시겠어요?"),
    ("clarification", "Lo siento, no entiendo tu pregunta."),
    ("clarification", "Könnten Sie bitte mehr Informationen geben?"),
    ("clarification", "Pourriez-vous préciser votre question ?"),
    ("clarification", "Desculpe, não entendi a sua pergunta."),
    ("partial", "I can't draw the chart here, but this is what it shows:\n\n- sales rise\n- costs fall"),
    ("partial", "As an AI, I cannot run the query. Use this:\n\n```sql\nSELECT 1\n```"),
)
