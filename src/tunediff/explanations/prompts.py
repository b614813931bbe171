"""What a language model is asked, and how its replies are read: strictly, or not at all (method.md section 8)."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from tunediff.explanations.asking import Reply, Request
from tunediff.markup import visible

WINDOWS_PER_CALL = 5
ROTATIONS = (0, 2)  # of a call's windows: each window is judged at two places
EXPLANATION_TOKENS, JUDGEMENT_TOKENS = 160, 40  # that a reply may have
TOP_LOGPROBS = 5
TEMPLATE_LIKE = re.compile(r"<(\|?/?[A-Za-z_][\w /.-]*\|?)>|\[(/?[A-Z_]+)\]")
OPEN, CLOSE = "«", "»"  # around the tokens a latent fires on

EXPLAIN = (
    "You study one feature inside a language model. It is active on some tokens of a text and not on others. You are "
    f"given texts in which it is active; the tokens it is active on stand in {OPEN} {CLOSE}. Say in one sentence what "
    "these tokens have in common, as precisely as the texts allow: which words, where they stand, what the text is "
    'about. Reply with JSON only: {"explanation": "..."}'
)
JUDGE = (
    "You are given a description of a feature inside a language model, and numbered texts. Decide for each text "
    "whether the feature is active somewhere in it: 1 if it is, 0 if it is not. Reply with a JSON list of one number "
    "per text, in their order, and nothing else, for example [0,1,0,0,1]"
)


def _request(model: str, seed: int, system: str, user: str, max_tokens: int, logprobs: bool) -> Request:
    parameters: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "max_tokens": max_tokens, "seed": seed}
    if logprobs:
        parameters |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    return Request(model, (("system", system), ("user", user)), parameters)


def harmless(text: str) -> str:
    """Return a text in one line, in which nothing reads as a token of a chat template: <eos> is written ⟨eos⟩."""
    return TEMPLATE_LIKE.sub(lambda found: f"⟨{found[1] or found[2]}⟩", visible(text))


def marked(pieces: Sequence[str], firing: Sequence[bool]) -> str:
    """Return a window as an explainer sees it: what the latent fires on in « », neighbours together."""
    parts, inside = [], False
    for piece, fires in zip(pieces, firing, strict=True):
        if bool(fires) != inside:
            parts.append(CLOSE if inside else OPEN)
            inside = not inside
        parts.append(piece)
    return harmless("".join(parts) + (CLOSE if inside else ""))


def explain_request(model: str, seed: int, windows: Sequence[str]) -> Request:
    """Return the request for an explanation, given marked windows."""
    texts = "\n".join(f"{number}. {text}" for number, text in enumerate(windows, 1))
    return _request(model, seed, EXPLAIN, f"Texts:\n{texts}", EXPLANATION_TOKENS, logprobs=False)


def judge_request(model: str, seed: int, explanation: str, windows: Sequence[str]) -> Request:
    """Return the request for one number per window, given their texts."""
    texts = "\n".join(f"{number}. {harmless(text)}" for number, text in enumerate(windows, 1))
    return _request(
        model, seed, JUDGE, f"Description: {harmless(explanation)}\n\nTexts:\n{texts}", JUDGEMENT_TOKENS, logprobs=True
    )


def _json(text: str) -> Any:
    """Return the JSON of a reply, which may stand in one fenced block; `ValueError` where it is anything else."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", text, re.DOTALL)
    return json.loads(fenced[1] if fenced else text)


def read_explanation(reply: Reply) -> str:
    """Return the explanation of a reply, in one line; nothing where it holds none as asked for."""
    try:
        found = _json(reply.text or "")
    except ValueError:
        return ""
    text = found.get("explanation") if isinstance(found, dict) else None
    return " ".join(text.split()) if isinstance(text, str) else ""


def _probability(alternatives: Sequence[tuple[str, float]]) -> float:
    """Return P(1) of P(0) and P(1) among a token's alternatives; NaN where neither is there."""
    total = {"0": 0.0, "1": 0.0}
    for text, log_probability in alternatives:
        digits = re.findall(r"\d", text)
        if len(digits) == 1 and digits[0] in total:
            total[digits[0]] += math.exp(log_probability)
    both = total["0"] + total["1"]
    return total["1"] / both if both > 0 else math.nan


def read_judgement(reply: Reply, n: int) -> list[float] | None:
    """Return P(1) of each of `n` windows, or 0 and 1 without log-probabilities; None of a reply not as asked."""
    try:
        found = _json(reply.text or "")
    except ValueError:
        return None
    if not isinstance(found, list) or len(found) != n:
        return None
    if any(type(each) is not int or each not in (0, 1) for each in found):
        return None
    soft = [_probability(alternatives) for text, alternatives in reply.tokens or () if re.search(r"\d", text)]
    usable = len(soft) == n and all(map(math.isfinite, soft))  # else tokens hold several numbers, or none was given
    return soft if usable else [float(each) for each in found]
