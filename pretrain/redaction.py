"""Removes secrets from everything that is printed or stored: output, logs, records, resolved configs, cards, reports.

A credential enters a run in the URL of a set (``https://user:password@host``, ``?X-Amz-Signature=…``) or in the
command of ``pipe:``. ``redacted`` replaces each by ``MARK`` and leaves the rest readable. In the
query of a URL, only parameters that are known to be harmless keep their values. A reference to a variable (``$TOKEN``)
is not a secret and is kept.
"""

from __future__ import annotations

import re
from typing import Any

MARK = "***"
HARMLESS_PARAMETERS = frozenset(
    {
        "alt",
        "delimiter",
        "download",
        "expires",
        "format",
        "generation",
        "list-type",
        "part",
        "partnumber",
        "prefix",
        "raw",
        "ref",
        "resolve",
        "revision",
        "versionid",
        "x-amz-algorithm",
        "x-amz-date",
        "x-amz-expires",
        "x-amz-signedheaders",
        "x-goog-algorithm",
        "x-goog-date",
        "x-goog-expires",
        "x-goog-signedheaders",
        "x-id",
    }
)
_LETTER = r"(?:[^\s'\"<>\\]|\\(?!['\"]))"  # a quote that JSON has escaped ends a word too
# a URL, possibly with a single slash, which is what a Path makes of it
_URL = re.compile(rf"(?:[A-Za-z][A-Za-z0-9+.-]*://|(?:https?|s?ftp|s3|gs|hf):/){_LETTER}*")
_USER = re.compile(r"(?<=:/)(/?)(?:[^\s/@:]*:(?![0-9]+(?:/|$))(?:[^\s?#]*|\S*)|[^\s/]*)@")
# the rest of a URL in a library's message: only parameters that name a secret, since the text may be a path
_RELATIVE = re.compile(
    r"(?i)([?&](?:amp;)?)((?:x-(?:amz|goog)-)?(?:sig|signature|credential|security-token|(?:[a-z_-]*_)?token|secret|key|"
    rf"password|api[-_]?key))=((?:(?![&;#]){_LETTER})+)"
)
_PARAMETER = re.compile(r"([?&;](?:amp;)?)([^=&;?#\s]+)=([^&;#\s]+)")
_NO_REFERENCE = r"(?!['\"]?[$*])"
_VALUE = rf"{_NO_REFERENCE}(?:'[^']*'|\"[^\"]*\"|{_LETTER}+)"
_SCHEME = "(?:basic|bearer|token|digest)"
_NAMES = "password|passwd|secret|api[-_]?key|access[-_]?key|access[-_]?token|auth[-_]?token"
_ELSEWHERE = (
    # a signature outside a URL, or in a truncated one
    re.compile(rf"(?i)((?:x-amz|x-goog)-(?:signature|credential|security-token)=)({_VALUE})"),
    # an assignment to a variable: AWS_SECRET_ACCESS_KEY=…, HF_TOKEN=…
    re.compile(
        r"(\b[A-Z][A-Z0-9_]*(?:TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|API_?KEY|ACCESS_KEY|JWT)[A-Z0-9_]*=)"
        rf"({_VALUE})"
    ),
    # a header: Authorization: Bearer …
    re.compile(rf"(?i)\b((?:proxy-)?authorization:\s*(?:{_SCHEME}\s+)?)((?!{_SCHEME}\s){_NO_REFERENCE}{_LETTER}+)"),
    re.compile(rf"(?i)\b((?:x-[a-z-]*(?:token|key|secret)|cookie):\s*)({_NO_REFERENCE}{_LETTER}+)"),
    # an option: --password …, --token=…, curl's -u user:password
    re.compile(rf"(?i)(--[a-z-]*(?:token|credentials?|{_NAMES})[= ])({_VALUE})"),
    re.compile(rf"((?:^|\s)(?:-u|--user|--proxy-user)[= ]?)({_NO_REFERENCE}['\"]?[^\s:'\"]+:[^\s'\"]+['\"]?)"),
    # a setting: password=…, also in YAML or JSON
    re.compile(rf"(?i)(\b(?:{_NAMES})['\"]?[=:]\s*)({_VALUE})"),
)


def redacted(text: str) -> str:
    """The text without passwords, tokens and signatures. Idempotent."""
    text = _RELATIVE.sub(_without_value, _URL.sub(_without_credentials, text))
    for pattern in _ELSEWHERE:
        text = pattern.sub(_without_secret, text)
    return text


def redacted_in(value: Any) -> Any:
    """Applies ``redacted`` to every string in nested dicts and lists."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {key: redacted_in(inner) for key, inner in value.items()}
    return [redacted_in(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def is_redacted(text: str) -> bool:
    """Whether a URL or a command lacks credentials because it was redacted when it was stored."""
    return MARK in text


def _without_secret(match: re.Match[str]) -> str:
    before, value = match.groups()
    quote = value[0] if value[0] in "'\"" and value[0] == value[-1] else ""
    return f"{before}{quote}{MARK}{quote}"


def _without_credentials(match: re.Match[str]) -> str:
    return _PARAMETER.sub(_without_value, _USER.sub(rf"\g<1>{MARK}@", match[0], count=1))


def _without_value(match: re.Match[str]) -> str:
    separator, name, value = match.groups()
    if name.lower() in HARMLESS_PARAMETERS or value.startswith("$"):
        return match[0]
    return f"{separator}{name}={MARK}"
