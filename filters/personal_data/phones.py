"""Which numbers are telephone numbers: those that the library `phonenumbers` knows to be in use, but for examples."""

from __future__ import annotations

import functools
import re

from curate.filters.personal_data.checks import digits, numbers

FICTIONAL = re.compile(  # numbers that regulators keep for films and books
    r"(?:1?\d{3})?555(?:01\d\d|1212|1234|4321|5555)|555\d{7}|555\d{4}|447700900\d{3}|442079460\d{3}|07700900\d{3}|02079460\d{3}|"
    r"441[0-9]{2}4960\d{3}|61491570\d{3}"
)
EXAMPLES = {"13800138000", "13800000000", "01000000000", "0102030405"}
DATES = re.compile(r"(?:19|20)\d\d[-/. ]?[01]\d[-/. ]?[0-3]\d|[0-3]?\d[-/. ][0-3]?\d[-/. ](?:19|20)\d\d")


def is_example(number: str) -> bool:
    """Tell whether a number, in digits, is kept for fiction or a run of digits."""
    return not digits(number) or bool(FICTIONAL.fullmatch(number)) or number in EXAMPLES


def international_phone(value: str) -> bool:
    """Tell whether a number with a country's code is one of that country."""
    number = numbers(value)
    dialled = number.removeprefix("00") if value.startswith("00") else number
    national = None if is_example(dialled) else _find_national(f"+{dialled}")
    return national is not None and not is_example(national)


def nanp_phone(value: str) -> bool:
    """Tell whether a number is one of North America."""
    number = numbers(value)[-10:]
    return not is_example(number) and _find_national(f"+1{number}") is not None


def zero_phone(value: str) -> bool:
    """Tell whether a number with a leading zero and hyphens is one of Korea or Japan."""
    return _is_valid_in(value, "KR", "JP")


def chinese_phone(value: str) -> bool:
    """Tell whether a number is one of China."""
    return _is_valid_in(value, "CN")


def spaced_phone(value: str) -> bool:
    """Tell whether a number in groups is one of France or the United Kingdom."""
    return _is_valid_in(value, "FR", "GB")


def called_phone(value: str) -> bool:
    """Tell whether a number that a text calls a telephone number can be one: 7 to 15 digits, and no date."""
    number = numbers(value)
    return (
        7 <= len(number) <= 15
        and not DATES.match(value)
        and not is_example(number)
        and value.count("(") == value.count(")")
    )


def _is_valid_in(value: str, *regions: str) -> bool:
    number = numbers(value)
    return not is_example(number) and any(_find_national(number, region) is not None for region in regions)


@functools.lru_cache(maxsize=1024)
def _find_national(number: str, region: str | None = None) -> str | None:
    """Return a number, as it is dialled in a region or with `+`, without its country's code; None if none has it.

    Its range and length must be in use.
    """
    import phonenumbers  # late: few texts have a candidate

    try:
        parsed = phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException:
        return None
    valid = phonenumbers.is_valid_number_for_region(parsed, region) if region else phonenumbers.is_valid_number(parsed)
    return str(parsed.national_number) if valid else None
