"""What is said of one claim: whether it holds, by which figure, on what evidence."""

from __future__ import annotations

from typing import Any

Claim = dict[str, Any]


def verdict(holds: bool, claim: str, figure: str, evidence: str) -> Claim:
    """A claim that this run has figures for."""
    return {"holds": bool(holds), "claim": claim, "figure": figure, "evidence": evidence}


def untestable(claim: str, why: str) -> Claim:
    """A claim that this run has no figures for, and why not."""
    return {"holds": "untestable", "claim": claim, "figure": "", "evidence": why}
