"""Short conversations generated from tables: countries, elements, weekdays, percentages, conversions, code."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Chat:
    """One conversation in markdown: `turns` holds (role, text) with role `human`, `gpt` or `html` (a raw answer)."""

    name: str
    layout: str
    turns: tuple[tuple[str, str], ...]
    model: str | None = None


def chat(name: str, layout: str, *texts: str) -> Chat:
    """Make a conversation whose texts are prompts and answers in turn."""
    return Chat(name, layout, tuple((("human", "gpt")[i % 2], text) for i, text in enumerate(texts)))


LANGUAGES = ("en", "de", "es", "ja", "ko")

# country, capital and currency in each language; then thousands of square kilometres
COUNTRIES: tuple[tuple[dict[str, tuple[str, str, str]], int], ...] = (
    (
        {
            "en": ("Norway", "Oslo", "the Norwegian krone"),
            "de": ("Norwegen", "Oslo", "die norwegische Krone"),
            "es": ("Noruega", "Oslo", "la corona noruega"),
            "ja": ("ノルウェー", "オスロ", "ノルウェー・クローネ"),
            "ko": ("노르웨이", "오슬로", "노르웨이 크로네"),
        },
        385,
    ),
    (
        {
            "en": ("Peru", "Lima", "the sol"),
            "de": ("Peru", "Lima", "der Sol"),
            "es": ("Perú", "Lima", "el sol"),
            "ja": ("ペルー", "リマ", "ソル"),
            "ko": ("페루", "리마", "솔"),
        },
        1285,
    ),
    (
        {
            "en": ("Egypt", "Cairo", "the Egyptian pound"),
            "de": ("Ägypten", "Kairo", "das ägyptische Pfund"),
            "es": ("Egipto", "El Cairo", "la libra egipcia"),
            "ja": ("エジプト", "カイロ", "エジプト・ポンド"),
            "ko": ("이집트", "카이로", "이집트 파운드"),
        },
        1002,
    ),
    (
        {
            "en": ("Vietnam", "Hanoi", "the dong"),
            "de": ("Vietnam", "Hanoi", "der Dong"),
            "es": ("Vietnam", "Hanói", "el dong"),
            "ja": ("ベトナム", "ハノイ", "ドン"),
            "ko": ("베트남", "하노이", "동"),
        },
        331,
    ),
    (
        {
            "en": ("Kenya", "Nairobi", "the Kenyan shilling"),
            "de": ("Kenia", "Nairobi", "der Kenia-Schilling"),
            "es": ("Kenia", "Nairobi", "el chelín keniano"),
            "ja": ("ケニア", "ナイロビ", "ケニア・シリング"),
            "ko": ("케냐", "나이로비", "케냐 실링"),
        },
        580,
    ),
    (
        {
            "en": ("Poland", "Warsaw", "the zloty"),
            "de": ("Polen", "Warschau", "der Złoty"),
            "es": ("Polonia", "Varsovia", "el esloti"),
            "ja": ("ポーランド", "ワルシャワ", "ズウォティ"),
            "ko": ("폴란드", "바르샤바", "즈워티"),
        },
        313,
    ),
)

COUNTRY_TEXTS = {
    "en": (
        "What is the capital of {country}?",
        "The capital of {country} is **{capital}**.",
        "And what do people pay with there?",
        "With {currency}. In {capital} cards are accepted in most places; in the country it is wise to carry some cash.",
        "How large is the country?",
        "About {area},000 square kilometres, which is {ratio} times the size of Switzerland.",
    ),
    "de": (
        "Wie heißt die Hauptstadt von {country}?",
        "Die Hauptstadt von {country} ist **{capital}**.",
        "Und womit bezahlt man dort?",
        "Die Währung ist {currency}. In {capital} kann man fast überall mit Karte zahlen, auf dem Land nimmt man besser "
        "etwas Bargeld mit.",
        "Wie groß ist das Land?",
        "Ungefähr {area} Tausend Quadratkilometer, das ist das {ratio}-Fache der Schweiz.",
    ),
    "es": (
        "¿Cuál es la capital de {country}?",
        "La capital de {country} es **{capital}**.",
        "¿Y con qué moneda se paga allí?",
        "La moneda es {currency}. En {capital} se puede pagar con tarjeta casi en todas partes, pero en el campo conviene "
        "llevar algo de efectivo.",
        "¿Qué superficie tiene el país?",
        "Unos {area} mil kilómetros cuadrados, es decir, {ratio} veces Suiza.",
    ),
    "ja": (
        "{country}の首都はどこですか？",
        "{country}の首都は**{capital}**です。",
        "そこではどの通貨を使いますか？",
        "通貨は{currency}です。{capital}ではほとんどの店でカードが使えますが、地方へ行くときは現金を少し持っていくと安心です。",
        "国の面積はどのくらいですか？",
        "約{tens}万平方キロメートルで、スイスのおよそ{ratio}倍です。",
    ),
    "ko": (
        "{country}의 수도는 어디인가요?",
        "{country}의 수도는 **{capital}**입니다.",
        "그곳에서는 어떤 돈을 쓰나요?",
        "통화는 {currency}입니다. {capital}에서는 대부분의 가게에서 카드를 쓸 수 있지만, 시골에 갈 때는 현금을 조금 가져가는 것이 좋습니다.",
        "나라의 넓이는 얼마나 되나요?",
        "약 {tens}만 제곱킬로미터로, 스위스의 약 {ratio}배입니다.",
    ),
}


def countries() -> Iterator[Chat]:
    """Capital, currency and size of six countries, in five languages."""
    for number, (names, area) in enumerate(COUNTRIES):
        for place, language in enumerate(LANGUAGES):
            country, capital, currency = names[language]
            values = {"country": country, "capital": capital, "currency": currency, "area": area, "tens": area / 10}
            texts = [text.format(**values, ratio=round(area / 41)) for text in COUNTRY_TEXTS[language]]
            kept = texts[: 4 + 2 * ((number + place) % 2)]
            yield chat(f"country-{number}-{language}", ("v3", "v5", "v7")[(number + place) % 3], *kept)


ELEMENTS = (
    ("hydrogen", "H", 1, "1.008", "the fuel of the stars, and of rockets as well"),
    ("helium", "He", 2, "4.003", "balloons, and the cooling of magnets"),
    ("lithium", "Li", 3, "6.94", "batteries"),
    ("carbon", "C", 6, "12.011", "steel, pencils and all living things"),
    ("nitrogen", "N", 7, "14.007", "fertiliser, and cooling as a liquid"),
    ("oxygen", "O", 8, "15.999", "breathing, welding and the making of steel"),
    ("neon", "Ne", 10, "20.180", "red shop signs"),
    ("sodium", "Na", 11, "22.990", "table salt and street lamps"),
    ("magnesium", "Mg", 12, "24.305", "light alloys, and sparks in fireworks"),
    ("aluminium", "Al", 13, "26.982", "aircraft, cans and window frames"),
    ("silicon", "Si", 14, "28.085", "computer chips and glass"),
    ("phosphorus", "P", 15, "30.974", "fertiliser and matches"),
    ("sulfur", "S", 16, "32.06", "sulfuric acid and the hardening of rubber"),
    ("chlorine", "Cl", 17, "35.45", "clean swimming pools and PVC"),
    ("argon", "Ar", 18, "39.95", "the gas around a weld"),
    ("potassium", "K", 19, "39.098", "fertiliser"),
    ("calcium", "Ca", 20, "40.078", "cement, and our bones"),
    ("titanium", "Ti", 22, "47.867", "white paint and replacement hips"),
    ("chromium", "Cr", 24, "51.996", "stainless steel and shiny taps"),
    ("iron", "Fe", 26, "55.845", "nearly everything that is built of metal"),
    ("nickel", "Ni", 28, "58.693", "coins and batteries"),
    ("copper", "Cu", 29, "63.546", "wires and water pipes"),
    ("zinc", "Zn", 30, "65.38", "the coating that keeps steel from rusting"),
    ("silver", "Ag", 47, "107.87", "mirrors, cutlery and contacts"),
    ("tin", "Sn", 50, "118.71", "solder"),
    ("tungsten", "W", 74, "183.84", "drills and old light bulbs"),
    ("gold", "Au", 79, "196.97", "jewellery and thin contacts that must not corrode"),
    ("mercury", "Hg", 80, "200.59", "old thermometers"),
    ("lead", "Pb", 82, "207.2", "car batteries and the shielding of X-rays"),
    ("uranium", "U", 92, "238.03", "nuclear power stations"),
)


def element_turns() -> Iterator[tuple[str, str]]:
    """One question and answer for each element; also the content of the very long conversation."""
    for name, symbol, number, mass, use in ELEMENTS:
        yield (
            f"What should I remember about {name}?",
            f"**{name.capitalize()}** ({symbol}) has the atomic number {number}: each of its atoms holds {number} "
            f"proton{'s' if number > 1 else ''}, and so many electrons when it is neutral. Its atomic mass is {mass} u.\n\n"
            f"It is known for {use}.\n\n| Name | Symbol | Number | Mass |\n| --- | --- | --: | --: |\n"
            f"| {name} | {symbol} | {number} | {mass} |",
        )


def elements() -> Iterator[Chat]:
    """Two elements per conversation."""
    pairs = list(element_turns())
    for at in range(0, 20, 2):
        yield chat(f"elements-{at // 2}", ("v3", "v7")[at // 2 % 2], *pairs[at], *pairs[at + 1])


DAYS = {
    "en": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "de": ("Montag", "Dienstag", "Mittwoch", "Donnerstag", "Freitag", "Samstag", "Sonntag"),
    "es": ("lunes", "martes", "miércoles", "jueves", "viernes", "sábado", "domingo"),
    "ja": ("月曜日", "火曜日", "水曜日", "木曜日", "金曜日", "土曜日", "日曜日"),
    "ko": ("월요일", "화요일", "수요일", "목요일", "금요일", "토요일", "일요일"),
}
DAY_TEXTS = {
    "en": ("On which day of the week was {date}?", "It was a **{day}**, day number {number} of the year."),
    "de": ("Welcher Wochentag war der {date}?", "Das war ein **{day}**, der {number}. Tag des Jahres."),
    "es": ("¿Qué día de la semana fue el {date}?", "Fue un **{day}**, el día número {number} del año."),
    "ja": ("{date}は何曜日でしたか？", "その日は**{day}**で、一年の{number}日目でした。"),
    "ko": ("{date}은 무슨 요일이었나요?", "그날은 **{day}**이었고, 그해의 {number}번째 날이었습니다."),
}
DATES = ((1969, 7, 20), (1989, 11, 9), (2000, 1, 1))


def weekdays() -> Iterator[Chat]:
    """Days of the week, computed from the calendar."""
    for number, (year, month, day) in enumerate(DATES):
        when = datetime.date(year, month, day)
        for language in LANGUAGES:
            question, answer = DAY_TEXTS[language]
            values = {
                "date": when.isoformat(),
                "day": DAYS[language][when.weekday()],
                "number": when.timetuple().tm_yday,
            }
            yield chat(f"weekday-{number}-{language}", "v3", question.format(**values), answer.format(**values))


DISCOUNT = {
    "en": (
        "A coat costs {price} euros and is reduced by {percent} %. What do I pay?",
        "You pay ${price} \\cdot {factor} = {paid}$, that is **{paid} euros**.",
    ),
    "de": (
        "Ein Mantel kostet {price} Euro und ist um {percent} % reduziert. Was zahle ich?",
        "Sie zahlen ${price} \\cdot {factor} = {paid}$, also **{paid} Euro**.",
    ),
    "es": (
        "Un abrigo cuesta {price} euros y tiene un descuento del {percent} %. ¿Cuánto pago?",
        "Pagas ${price} \\cdot {factor} = {paid}$, es decir, **{paid} euros**.",
    ),
    "ja": (
        "{price}ユーロのコートが{percent}%引きです。いくら払えばいいですか？",
        "計算は ${price} \\cdot {factor} = {paid}$ なので、**{paid}ユーロ**です。",
    ),
    "ko": (
        "{price}유로짜리 코트를 {percent}% 할인합니다. 얼마를 내야 하나요?",
        "계산하면 ${price} \\cdot {factor} = {paid}$ 이므로 **{paid}유로**입니다.",
    ),
}


def discounts() -> Iterator[Chat]:
    """Percentages, with maths as KaTeX lays it out."""
    for number, (price, percent) in enumerate(((80, 25), (120, 15))):
        factor, paid = f"0.{100 - percent}", f"{price * (100 - percent) / 100:g}"
        for language, (question, answer) in DISCOUNT.items():
            values = {"price": price, "percent": percent, "factor": factor, "paid": paid}
            layout = ("v5", "v9")[number]
            yield chat(f"discount-{number}-{language}", layout, question.format(**values), answer.format(**values))


UNITS = (
    ("miles", "kilometres", 1.609344, (1, 5, 10, 26.2)),
    ("pounds", "kilograms", 0.45359237, (1, 10, 150)),
    ("inches", "centimetres", 2.54, (1, 12, 36)),
    ("US gallons", "litres", 3.785411784, (1, 5, 15)),
    ("knots", "kilometres per hour", 1.852, (5, 10, 30)),
    ("acres", "hectares", 0.40468564224, (1, 10, 640)),
)


def conversions() -> Iterator[Chat]:
    """Tables of units."""
    for number, (source, target, factor, values) in enumerate(UNITS):
        rows = "\n".join(f"| {value:g} | {value * factor:,.2f} |" for value in values)
        table = f"| {source} | {target} |\n| --: | --: |\n{rows}"
        last = values[-1]
        yield chat(
            f"units-{number}",
            ("v3", "v5", "v7")[number % 3],
            f"Make me a small table from {source} to {target}.",
            f"{table}\n\nTo convert other values, multiply by {factor:g}.",
            f"Which number do I multiply {target} by to get back?",
            f"By {1 / factor:.4f}. For example, {last * factor:,.2f} {target} are {last:g} {source} again.",
        )


CODE = {
    "python": ("total = sum(x for x in numbers if x > 0)", 'for line in open("notes.txt"):\n    print(line.rstrip())'),
    "javascript": (
        "const total = numbers.filter((x) => x > 0).reduce((a, b) => a + b, 0);",
        'import { readFileSync } from "node:fs";\n\nfor (const line of readFileSync("notes.txt", "utf8").split("\\n")) {\n'
        "  console.log(line);\n}",
    ),
    "go": (
        "total := 0\nfor _, x := range numbers {\n\tif x > 0 {\n\t\ttotal += x\n\t}\n}",
        'file, err := os.Open("notes.txt")\nif err != nil {\n\tlog.Fatal(err)\n}\ndefer file.Close()\n'
        "scanner := bufio.NewScanner(file)\nfor scanner.Scan() {\n\tfmt.Println(scanner.Text())\n}",
    ),
    "rust": (
        "let total: i64 = numbers.iter().filter(|x| **x > 0).sum();",
        'use std::io::{BufRead, BufReader};\n\nlet file = std::fs::File::open("notes.txt")?;\n'
        'for line in BufReader::new(file).lines() {\n    println!("{}", line?);\n}',
    ),
    "cpp": (
        "int total = 0;\nfor (int x : numbers) {\n    if (x > 0) total += x;\n}",
        '#include <fstream>\n#include <iostream>\n#include <string>\n\nstd::ifstream file("notes.txt");\n'
        "for (std::string line; std::getline(file, line);) {\n    std::cout << line << '\\n';\n}",
    ),
    "java": (
        "int total = numbers.stream().filter(x -> x > 0).mapToInt(Integer::intValue).sum();",
        'try (var lines = Files.lines(Path.of("notes.txt"))) {\n    lines.forEach(System.out::println);\n}',
    ),
    "ruby": ("total = numbers.select { |x| x > 0 }.sum", 'File.foreach("notes.txt") { |line| puts line }'),
    "bash": (
        'total=0\nfor x in "${numbers[@]}"; do\n    (( x > 0 )) && (( total += x ))\ndone\necho "$total"',
        "while IFS= read -r line; do\n    printf '%s\\n' \"$line\"\ndone < notes.txt",
    ),
}


def code() -> Iterator[Chat]:
    """Two small tasks in eight programming languages, in every form of the code block."""
    layouts = ("v2", "v3", "v4", "v5", "v7", "v8", "v9", "v3")
    for layout, (language, (total, lines)) in zip(layouts, CODE.items(), strict=True):
        yield chat(
            f"code-{language}",
            layout,
            f"In {language}: how do I add up only the positive values of numbers?",
            f"Like this:\n\n```{language}\n{total}\n```\n\nZero counts as not positive; use `>=` if that matters to you.",
            "And how do I print notes.txt line by line?",
            f"```{language}\n{lines}\n```\n\nThe line break at the end of each line is printed once, not twice.",
        )


TRAIN = {
    "en": (
        "A train leaves at {leaves} and takes {hours} h {minutes} min. When does it arrive?",
        "It arrives at **{arrives}**. Add the hours first, which gives {between}, and then the {minutes} minutes.",
    ),
    "de": (
        "Ein Zug fährt um {leaves} Uhr ab und braucht {hours} Stunden und {minutes} Minuten. Wann kommt er an?",
        "Er kommt um **{arrives} Uhr** an. Erst die Stunden dazu, das ergibt {between} Uhr, dann die {minutes} Minuten.",
    ),
    "es": (
        "Un tren sale a las {leaves} y tarda {hours} horas y {minutes} minutos. ¿A qué hora llega?",
        "Llega a las **{arrives}**. Primero suma las horas, y son las {between}; después suma los {minutes} minutos.",
    ),
    "ja": (
        "{leaves}に出発する電車は{hours}時間{minutes}分かかります。何時に着きますか？",
        "**{arrives}**に着きます。先に時間を足すと{between}になり、それから{minutes}分を足します。",
    ),
    "ko": (
        "{leaves}에 출발하는 기차는 {hours}시간 {minutes}분이 걸립니다. 몇 시에 도착하나요?",
        "**{arrives}**에 도착합니다. 먼저 시간을 더하면 {between}이 되고, 그다음에 {minutes}분을 더합니다.",
    ),
}
JOURNEYS = ((9, 40, 2, 35), (13, 5, 1, 50), (6, 55, 4, 10), (17, 25, 3, 45))


def trains() -> Iterator[Chat]:
    """Times of arrival, in five languages."""
    for number, (hour, minute, hours, minutes) in enumerate(JOURNEYS):
        leaves = datetime.datetime(2024, 1, 1, hour, minute)
        between = leaves + datetime.timedelta(hours=hours)
        arrives = between + datetime.timedelta(minutes=minutes)
        values = {"leaves": f"{leaves:%H:%M}", "between": f"{between:%H:%M}", "arrives": f"{arrives:%H:%M}"}
        for language, (question, answer) in TRAIN.items():
            texts = (text.format(**values, hours=hours, minutes=minutes) for text in (question, answer))
            yield chat(f"train-{number}-{language}", ("v3", "v2", "v5", "v7")[number], *texts)


def all_chats() -> list[Chat]:
    """Return every generated conversation, in a fixed order."""
    made = (countries(), elements(), weekdays(), discounts(), conversions(), trains(), code())
    return [chat for family in made for chat in family]
