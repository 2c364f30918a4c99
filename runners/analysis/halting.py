"""After how many repeats tokens halt: by difficulty, position and token."""

from __future__ import annotations

from runners.analysis.figures import curves
from runners.analysis.findings import Finding, NotThere, Row
from runners.analysis.traces import Traces

MOST_TOKENS = 24


def halting_depth(traces: Traces) -> list[Finding]:
    """Return mean and standard deviation of the repeats of real tokens, by three properties.

    Raises:
        NotThere: nothing in the model decides over the repeats of a token.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for each in traces.batches:
        decisions = (each.output.decisions or {}).get(traces.stack_name, {})
        names = [name for name in decisions if name.endswith(".repeats")]
        if not names:
            raise NotThere("no token halts: the model has no halting, or none that counts repeats")
        taken = decisions[names[0]]
        for row, column in each.real.nonzero().tolist():
            repeats = float(taken[row, column])
            example = each.examples[row] if each.examples else None
            keys = [
                ("position", str(column)),
                ("token", traces.word(int(each.tokens[row, column]))),
            ]
            if example is not None and example.difficulty is not None:
                keys.append(("difficulty", f"{example.difficulty:g}"))
            for key in keys:
                found.setdefault(key, []).append(repeats)
    return [_finding(by, {key[1]: v for key, v in found.items() if key[0] == by}) for by in
            dict.fromkeys(key[0] for key in found)]  # fmt: skip


def _finding(by: str, groups: dict[str, list[float]]) -> Finding:
    if by == "token":
        order = sorted(groups, key=lambda name: (-len(groups[name]), name))[:MOST_TOKENS]
    else:
        order = sorted(groups, key=float)
    rows: list[Row] = []
    for name in order:
        values = groups[name]
        mean = sum(values) / len(values)
        spread = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
        key = name if by == "token" else float(name)
        rows.append({by: key, "mean_repeats": mean, "std": spread, "tokens": len(values)})
    return Finding(
        name=f"halting_by_{by}",
        title=f"Repeats that tokens take, by {by}",
        rows=rows,
        limits="Depth that goes with difficulty need not be needed: score the same rows at a fixed "
        "depth to see what more repeats are worth. Difficulty is a row's, depth a token's.",
        draw=curves(by, ["mean_repeats", "std"]),
    )
