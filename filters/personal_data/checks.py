"""What a value must pass beyond its pattern: checksums, numbers that are issued at all, and that it is no example."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable

Check = Callable[[str], bool]

RUNS = ("0123456789012345678", "9876543210987654321")
PLACEHOLDER = re.compile(
    r"example|your|placeholder|dummy|changeme|replace|redacted|insert|sample|xxxx|\.\.\.|0{6}|abcdef|12345|"
    r"qwerty|fake|demo|secret_?key|api_?key|(?:access|bot|auth)_?token|[<>{}$]",
    re.I,
)
WORDS = re.compile(r"[a-z]+(?:[_-][a-z]+)+", re.I)  # of plain words: a name of a variable, not a key
PASSWORDS = re.compile(
    r"(?:my|your|the|db|user|root|admin|some|new|old|test)?[_-]?(?:pass(?:word|wd|phrase)?|pwd|pw|secret|token|key|"
    r"guest|admin|root|user(?:name)?|postgres|mysql|rabbitmq|redis|test|x+|\*+|\d{1,5}|port|abc|foo|bar)\d{0,4}",
    re.I,
)
EMAIL_NAMES = re.compile(
    r"(?:your|my)[\w.+-]*|user(?:name)?\d?|name|e?-?mail|someone|somebody|firstname[._]?lastname|first[._]last|xxx+|git|"
    r"foo|bar|example|local[._-]?part|recipient|sender|receiver|no-?reply|do-?not-?reply",
    re.I,
)
# RFC 2606 and 6761, and the domains that texts use in their place
EMAIL_DOMAINS = re.compile(
    r"(?:.*\.)?(?:example|test|invalid|localhost|local)(?:\.[a-z]{2,3})?(?:\.[a-z]{2})?|"
    r"(?:your|my)[\w-]*\.[\w.]+|(?:some)?domain\.[\w.]+|(?:x+|foo|bar|foobar|baz)\.com|(?:company|somewhere|abc|xyz|emailaddress|contoso|fabrikam)\.com",
    re.I,
)
CARD_EXAMPLES = {  # of payment services' test environments, beside those that repeat few digits
    *("4012888888881881", "4917610000000000", "5105105105105100", "5200828282828210", "2223003122003222"),
    *("378282246310005", "371449635398431", "378734493671000", "6011000990139424", "6011111111111117"),
    *("30569309025904", "38520000023237", "3530111333300000", "3566002020360505", "4242424242424242"),
    *("5555555555554444", "4000056655665556", "6011000400000000", "36227206271667", "6200000000000005"),
}
CARD_LENGTHS = (  # first digits, as a range; lengths
    ("4", "4", {13, 16, 19}),
    ("51", "55", {16}),
    ("2221", "2720", {16}),
    ("34", "34", {15}),
    ("37", "37", {15}),
    ("6011", "6011", {16, 19}),
    ("644", "659", {16, 19}),
    ("3528", "3589", {16, 19}),
    ("300", "305", {14}),
    ("36", "36", {14}),
    ("38", "39", {14}),
    ("62", "62", {16, 17, 18, 19}),
)
IBAN_LENGTHS = {  # the SWIFT registry
    code: length
    for length, codes in {
        15: "NO",
        16: "BE",
        18: "DK FI FO GL NL SD FK",
        19: "MK SI",
        20: "AT BA EE KZ LT LU XK MN",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ TL OM SO",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "FR GR IT MC MR SM DJ BI",
        28: "AL AZ BY CY DO GT HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for code in codes.split()
}
DOCUMENTATION = [
    ipaddress.ip_network(net) for net in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
]
RESOLVERS = {
    *("8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "4.2.2.2", "208.67.222.222", "208.67.220.220"),
    *("75.75.75.75", "75.75.76.76"),
    *("2001:4860:4860::8888", "2001:4860:4860::8844", "2606:4700:4700::1111", "2606:4700:4700::1001", "1.2.3.4"),
}
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
ADDRESS_VERSIONS = {0x00, 0x05, 0x30, 0x32, 0x1E, 0x41}  # Bitcoin, Litecoin, Dogecoin, Tron
ADDRESS_EXAMPLES = {"1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa", "1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2"}
ETHEREUM_EXAMPLE = "0x742d35cc6634c0532925a3b844bc454e4438f44e"  # of the documentation of web3.js
JWT_EXAMPLE = "SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c"  # the one of jwt.io


def numbers(text: str) -> str:
    """Return the digits of a text."""
    return "".join(filter(str.isdigit, text))


def digits(value: str) -> bool:
    """Tell whether the digits are no example: not a run such as 12345678, and not of one or two digits only."""
    only = numbers(value)
    return len(set(only)) > 2 and not any(only[-7:] in run or only[:7] in run for run in RUNS)


def key(value: str) -> bool:
    """Tell whether a key is no example ("your_api_key", "xxxx", `AKIA…EXAMPLE`): random enough, without such words."""
    return not PLACEHOLDER.search(value) and _entropy(value) >= 2.8


def random(value: str) -> bool:
    """Tell whether a value mixes upper case, lower case and digits as a random one does."""
    kinds = (str.isupper, str.islower, str.isdigit)
    return key(value) and not WORDS.fullmatch(value) and all(any(map(kind, value)) for kind in kinds)


def assigned(value: str) -> bool:
    """Tell whether what is assigned to a password or key is random, with no word in it."""
    return random(value) and not re.search("[a-z]{5}|[A-Z]{6}|pass|secret|://|[().]{2}", value, re.A)


def _entropy(value: str) -> float:
    """Return Shannon's entropy of the characters, in bits."""
    size = len(value)
    return -sum(count / size * math.log2(count / size) for count in Counter(value).values())


def email(value: str) -> bool:
    """Tell whether an address is somebody's, not of documentation."""
    name, domain = value.rsplit("@", 1)
    return not EMAIL_NAMES.fullmatch(name) and not EMAIL_DOMAINS.fullmatch(domain)


def luhn(value: str) -> bool:
    """Tell whether the last digit is Luhn's (ISO/IEC 7812)."""
    reverse = [int(digit) for digit in reversed(value)]
    return sum(reverse[::2] + [sum(divmod(2 * digit, 10)) for digit in reverse[1::2]]) % 10 == 0


def card(value: str) -> bool:
    """Tell whether a number is a payment card's, by issuer, length and checksum."""
    only = numbers(value)
    issued = any(low <= only[: len(low)] <= high and len(only) in lengths for low, high, lengths in CARD_LENGTHS)
    return issued and luhn(only) and only not in CARD_EXAMPLES and len(set(only)) > 3 and digits(value)


def iban(value: str) -> bool:
    """Tell whether a number is an IBAN of its country's length (ISO 13616: modulo 97 is 1)."""
    compact = re.sub("[ -]", "", value)
    if IBAN_LENGTHS.get(compact[:2]) != len(compact):
        return False
    return int("".join(str(int(letter, 36)) for letter in compact[4:] + compact[:4])) % 97 == 1


def ipv4(value: str) -> bool:
    """Tell whether an address is public, of one machine, and neither a resolver's nor documentation's."""
    parts = [int(part) for part in value.split(".")]
    if (
        max(parts) > 255
        or max(parts) < 32
        or parts[3] in (0, 255)
        or any(part != str(int(part)) for part in value.split("."))
    ):
        return False
    return _is_public(value)


def ipv6(value: str) -> bool:
    """Tell whether an address is public and written with at least four groups."""
    groups = [group for group in value.split(":") if group]
    try:
        return len(groups) >= 4 and _is_public(value)
    except ValueError:
        return False


def _is_public(value: str) -> bool:
    address = ipaddress.ip_address(value)
    documented = any(address in network for network in DOCUMENTATION)
    return address.is_global and not address.is_multicast and not documented and value not in RESOLVERS


def _is_date(year: int, month: str, day: str) -> bool:
    try:
        return datetime.date(year, int(month), int(day)).year >= 1900
    except ValueError:
        return False


def kr_rrn(value: str) -> bool:
    """Tell whether a number is a Korean's or a foreign resident's: a date of birth, and before 2020-10 a checksum."""
    only = numbers(value)
    year = (1900 if only[6] in "1256" else 2000) + int(only[:2])
    if not _is_date(year, only[2:4], only[4:6]):
        return False
    if (year, int(only[2:4])) >= (2020, 10):  # since then the last digits are random
        return "-" in value
    total = sum(weight * int(digit) for weight, digit in zip((2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5), only, strict=False))
    expected = (13 - total % 11) % 10 if only[6] in "5678" else (11 - total % 11) % 10
    return int(only[12]) == expected


def cn_id(value: str) -> bool:
    """Tell whether a number is a Chinese resident's (GB 11643: ISO 7064, modulo 11-2)."""
    if not _is_date(int(value[6:10]), value[10:12], value[12:14]):
        return False
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(value[:17]))
    return "10X98765432"[total % 11] == value[17].upper()


def jp_my_number(value: str) -> bool:
    """Tell whether a number is a Japanese My Number, by its check digit."""
    only = numbers(value)
    weights = (6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2)
    rest = sum(weight * int(digit) for weight, digit in zip(weights, only, strict=False)) % 11
    return int(only[11]) == (0 if rest <= 1 else 11 - rest) and digits(value)


def de_tax_id(value: str) -> bool:
    """Tell whether a number is a German Steuer-ID: one digit twice or three times (ISO 7064, modulo 11, 10)."""
    only = numbers(value)
    counts = sorted(Counter(only[:10]).values())
    if counts[-1] not in (2, 3) or counts.count(counts[-1]) != 1 or counts[-2] != 1:
        return False
    product = 10
    for digit in only[:10]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(only[10])


def us_ssn(value: str) -> bool:
    """Tell whether a social security number can be issued, and is none of the published ones."""
    only = numbers(value)
    area, group, serial = only[:3], only[3:5], only[5:]
    published = only in ("078051120", "219099999", "123456789", "111223333")
    return area not in ("000", "666") and group != "00" and serial != "0000" and not published and digits(value)


def _dihedral(left: int, right: int) -> int:
    """Return the product in the dihedral group of order ten, in Verhoeff's numbering."""
    if left < 5:
        return (left + right) % 5 if right < 5 else 5 + (left + right) % 5
    return 5 + (left - right) % 5 if right < 5 else (left - right) % 5


def in_aadhaar(value: str) -> bool:
    """Tell whether a number is an Aadhaar number, by Verhoeff's checksum (1969)."""
    base = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)
    check = 0
    for place, digit in enumerate(reversed(numbers(value))):
        number = int(digit)
        for _ in range(place % 8):
            number = base[number]
        check = _dihedral(check, number)
    return check == 0 and digits(value)


def in_pan(value: str) -> bool:
    """Tell whether an Indian permanent account number is none of documentation, such as ABCDE1234F."""
    return "1234" not in value and len(set(value[:5])) > 2


def _base58check(value: str) -> bytes | None:
    """Return the payload of a Base58Check text, None if its checksum is wrong."""
    number = 0
    for letter in value:
        number = number * 58 + BASE58.index(letter)
    zeros = len(value) - len(value.lstrip("1"))
    raw = b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8, "big")
    payload, checksum = raw[:-4], raw[-4:]
    return payload if hashlib.sha256(hashlib.sha256(payload).digest()).digest()[:4] == checksum else None


def crypto(value: str) -> bool:
    """Tell whether an address has its checksum: Base58Check, or Bech32 (BIP 173, 350)."""
    if value.startswith(("bc1", "ltc1")):
        return _bech32(value)
    payload = _base58check(value)
    is_address = payload is not None and len(payload) == 21 and payload[0] in ADDRESS_VERSIONS
    return is_address and value not in ADDRESS_EXAMPLES


def _bech32(value: str) -> bool:
    prefix, data = value.split("1", 1)
    expanded = [ord(letter) >> 5 for letter in prefix] + [0] + [ord(letter) & 31 for letter in prefix]
    check = 1
    for number in [*expanded, *map(BECH32.index, data)]:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ number
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= generator if top >> bit & 1 else 0
    return check in (1, 0x2BC830A3)


def ethereum(value: str) -> bool:
    """Tell whether an address looks random; its checksum, which needs Keccak, is not computed."""
    return key(value) and len(set(value[2:].lower())) > 8 and value.lower() != ETHEREUM_EXAMPLE


def wif(value: str) -> bool:
    """Tell whether a text is a Bitcoin private key in wallet import format."""
    payload = _base58check(value)
    return payload is not None and payload[0] == 0x80 and len(payload) in (33, 34)


def jwt(value: str) -> bool:
    """Tell whether a token is none of documentation."""
    return value.rsplit(".", 1)[1] != JWT_EXAMPLE and _entropy(value) > 4


def pem(value: str) -> bool:
    """Tell whether there is a key between the lines that say so."""
    body = value.split("-----")[2]
    return _entropy(body) > 4 and not re.search(r"\.\.\.|xxxx|your|example", body, re.I)


def password(value: str) -> bool:
    """Tell whether a password in a URL is somebody's, not the word for one, or a variable's."""
    return not PASSWORDS.fullmatch(value) and not re.search(
        r"[<>{}$\[\]()]|\*\*|your|example|password|secret", value, re.I
    )
