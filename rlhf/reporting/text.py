"""Text made fit to show: durations in words, no terminal controls, no secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any


def duration(seconds: float) -> str:
    """`41 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


# CSI and OSC sequences whole; then any other control character, C1 included, and the marks that reorder text.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """`text` without anything that could steer a terminal; newlines and tabs stay."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


_SECRET_NAME = re.compile(r"(?:^|[._-])(?:api[_-]?key|token|secret|passw(?:or)?d|credentials?|auth)$", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"\bhf_\w{20,}|\bsk-(?=[\w-]*\d)(?=[\w-]*[A-Z])[\w-]{20,}|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bAKIA[0-9A-Z]{16}\b|\bwandb_v1_\w{20,}"
    r"|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*|(?<=://)[^/@\s]+:[^/@\s]+(?=@)"
)
_HEX_KEY = re.compile(r"(?<![\w/])[0-9a-f]{40}(?![\w/])")
_SECRET_VARIABLE = re.compile(r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASS|PASSW(?:OR)?D|CREDENTIALS?)$", re.IGNORECASE)
_DIGEST_NAME = re.compile(r"revision|commit|digest|sha|fingerprint", re.IGNORECASE)


def redact(value: Any, name: str = "") -> Any:
    """`value` with whatever looks like a secret replaced by `[redacted]`, at any depth.

    Whatever the environment calls a token, key, secret or password is one wherever it turns up. Forty hex digits are a
    W&B key, unless they are part of a path, or the setting's name says they are a commit or a digest.
    """
    if isinstance(value, Mapping):
        return {key: redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [redact(item, name) for item in value]
    if not isinstance(value, str):
        return value
    if _SECRET_NAME.search(name) and len(value) >= 8:
        return "[redacted]"
    for secret in _environment_secrets():
        value = value.replace(secret, "[redacted]")
    shown = _SECRET_VALUE.sub("[redacted]", value)
    return shown if _DIGEST_NAME.search(name) else _HEX_KEY.sub("[redacted]", shown)


def _environment_secrets() -> list[str]:
    """The longest first, since one may be part of another; what is no secret but a file's place is left alone."""
    found = {value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name) and len(value) >= 8}
    return sorted((value for value in found if not value.startswith(("/", "~", "."))), key=len, reverse=True)


def short(value: float) -> str:
    """A number in at most three significant digits, without an exponent where it can be avoided: 1200, 0.35, -1.73."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def percent(value: float) -> str:
    """A share as a percentage; a share that is neither 0 nor 1 is never shown as one."""
    shown = f"{100 * value:.0f}%"
    if (shown == "0%" and value > 0) or (shown == "100%" and value < 1):
        return f"{100 * value:.1f}%" if 0.0005 <= value < 0.9995 else ("<0.1%" if value < 0.5 else ">99.9%")
    return shown


def two_places(value: float) -> str:
    """0.35; a value that rounds to nothing has no sign."""
    return f"{value + 0.0:.2f}".replace("-0.00", "0.00")
