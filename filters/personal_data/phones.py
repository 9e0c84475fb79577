"""Which numbers are telephone numbers: country codes with the lengths of their numbers, and what is only an example."""

from __future__ import annotations

import re

from curate.filters.personal_data.checks import digits, numbers

# Digits after the country code, shortest and longest (ITU-T E.164 and the national plans); other codes: 7 to 11.
LENGTHS = {
    "1": (10, 10), "7": (10, 10), "20": (8, 10), "27": (9, 9), "30": (10, 10), "31": (9, 9), "32": (8, 9),
    "33": (9, 9), "34": (9, 9), "36": (8, 9), "39": (8, 11), "40": (9, 9), "41": (9, 9), "43": (7, 13), "44": (9, 10),
    "45": (8, 8), "46": (7, 10), "47": (8, 8), "48": (9, 9), "49": (7, 11), "51": (8, 9), "52": (10, 10),
    "54": (10, 11), "55": (10, 11), "56": (9, 9), "57": (8, 10), "60": (8, 10), "61": (9, 9), "62": (8, 12),
    "63": (8, 10), "64": (8, 10), "65": (8, 8), "66": (8, 9), "81": (9, 10), "82": (8, 10), "84": (9, 10),
    "86": (9, 11), "90": (10, 10), "91": (10, 10), "92": (9, 10), "93": (9, 9), "94": (9, 9), "95": (7, 10),
    "98": (10, 10), "212": (9, 9), "213": (8, 9), "216": (8, 8), "234": (7, 10), "254": (9, 9), "351": (9, 9),
    "353": (7, 9), "358": (6, 12), "359": (8, 9), "380": (9, 9), "420": (9, 9), "421": (9, 9), "852": (8, 8),
    "853": (8, 8), "886": (8, 9), "880": (8, 10), "966": (8, 9), "971": (8, 9), "972": (8, 9),
}  # fmt: skip
OTHER_CODES = re.compile(
    "2(?:1[189]|2\\d|3\\d|4\\d|5[0-8]|6\\d|9[0-1789])|3(?:5\\d|7\\d|8[0-9])|4(?:2[013])|5(?:0\\d|9\\d)|"
    "6(?:7\\d|8\\d|9[0-2])|8(?:5[0356]|8[0-6])|9(?:6\\d|7[0-79]|9[2-689])"
)
OTHER_LENGTHS = (7, 11)
FICTIONAL = re.compile(  # numbers that regulators keep for films and books
    r"(?:1?\d{3})?555(?:01\d\d|1212|1234|4321|5555)|555\d{7}|555\d{4}|447700900\d{3}|442079460\d{3}|07700900\d{3}|02079460\d{3}|"
    r"441[0-9]{2}4960\d{3}|61491570\d{3}"
)
EXAMPLES = {"13800138000", "13800000000", "01000000000", "0102030405"}
AREA = re.compile("[2-9](?!11)[0-8][0-9]")  # of North America
NATIONAL_WITH_ZERO = re.compile(
    r"01[016789]\d{7,8}|02\d{7,8}|0[346][1-5]\d{7,8}|05[1-5]\d{7,8}|070\d{8}|050\d{8,9}"  # Korea
    r"|0[5789]0\d{8}|0[1-9]\d{8}"  # Japan
)
DATES = re.compile(r"(?:19|20)\d\d[-/. ]?[01]\d[-/. ]?[0-3]\d|[0-3]?\d[-/. ][0-3]?\d[-/. ](?:19|20)\d\d")


def is_example(number: str) -> bool:
    """Tell whether a number, in digits, is kept for fiction or a run of digits."""
    return not digits(number) or bool(FICTIONAL.fullmatch(number)) or number in EXAMPLES


def international_phone(value: str) -> bool:
    """Tell whether a number begins with a country's code and has the length of its numbers."""
    number = numbers(value).removeprefix("00") if value.startswith("00") else numbers(value)
    code = next((number[:size] for size in (1, 2, 3) if number[:size] in LENGTHS), None)
    if code is None and not OTHER_CODES.match(number[:3]):
        return False
    code = code or number[:3]
    rest = number[len(code) :].removeprefix("0")  # "+49 (0)30"
    shortest, longest = LENGTHS.get(code, OTHER_LENGTHS)
    if not shortest <= len(rest) <= longest or is_example(number) or is_example(rest):
        return False
    return nanp_phone(rest) if code == "1" else True


def nanp_phone(value: str) -> bool:
    """Tell whether a number can be dialled in North America: neither area nor exchange is N11 or begins with 0 or 1."""
    number = numbers(value)[-10:]
    return bool(AREA.match(number) and re.match("[2-9](?!11)", number[3:])) and not is_example(number)


def zero_phone(value: str) -> bool:
    """Tell whether a number with a leading zero and hyphens is one of Korea or Japan."""
    number = numbers(value)
    return bool(NATIONAL_WITH_ZERO.fullmatch(number)) and not is_example(number)


def plain_phone(value: str) -> bool:
    """Tell whether a number, written as telephone numbers are, is no example."""
    return not is_example(numbers(value))


def called_phone(value: str) -> bool:
    """Tell whether a number that a text calls a telephone number can be one: 7 to 15 digits, and no date."""
    number = numbers(value)
    return (
        7 <= len(number) <= 15
        and not DATES.match(value)
        and not is_example(number)
        and value.count("(") == value.count(")")
    )
