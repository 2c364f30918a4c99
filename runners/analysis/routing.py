"""Which experts tokens meet, and how that differs between the repeats of a layer."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from runners.analysis.figures import curves, maps
from runners.analysis.findings import Finding, NotThere, Row
from runners.analysis.traces import Traces

MOST_TOKENS = 24


@dataclass
class _Router:
    """The decisions of one router of one distinct layer over all real tokens (N), by repeat."""

    num_experts: int = 0
    selections: dict[int, list[Tensor]] = field(default_factory=dict)
    """Repeat → parts (n, H, k), -1 for none."""
    entropies: dict[int, list[Tensor]] = field(default_factory=dict)
    """Repeat → parts (n,): bits of the softmax of the logits, mean over heads."""
    tokens: list[Tensor] = field(default_factory=list)
    """Ids (n,), once for each part."""

    def chosen(self, repeat: int) -> Tensor:
        """Return (N, H, E) bool: which experts each token met."""
        selection = torch.cat(self.selections[repeat])
        return one_hot(selection, self.num_experts)

    def usage(self, repeat: int) -> Tensor:
        """Return (H, E): share of each expert in what tokens chose; 0 where nothing was."""
        counts = self.chosen(repeat).sum(dim=0).double()
        return counts / counts.sum(dim=-1, keepdim=True).clamp_min(1)


def one_hot(selection: Tensor, num_experts: int) -> Tensor:
    """Return (..., E) bool: the experts of a selection (..., k), of which -1 is none."""
    found = torch.zeros(*selection.shape[:-1], num_experts + 1, dtype=torch.bool)
    return found.scatter_(-1, selection + 1, torch.ones_like(selection, dtype=torch.bool))[..., 1:]


def jaccard(one: Tensor, other: Tensor) -> Tensor:
    """Return (...): size of the intersection over that of the union of sets (..., E) bool.

    It is not a number where both are empty.
    """
    return (one & other).sum(dim=-1) / (one | other).sum(dim=-1)


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Return the Jensen–Shannon divergence of distributions (..., E), in bits, 0 to 1."""
    return entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2


def entropy(p: Tensor) -> Tensor:
    """Return the entropy of distributions (..., E) in bits."""
    return -torch.special.xlogy(p, p).sum(dim=-1) / torch.log(torch.tensor(2.0, dtype=p.dtype))


def routing(traces: Traces) -> list[Finding]:
    """Return overlap between repeats, use of the experts, and both maps.

    Raises:
        NotThere: no layer of the stack has a router.
    """
    routers = _collect(traces)
    if not routers:
        raise NotThere("no layer has a router")
    overlap = [row for key, router in routers.items() for row in _overlap(key, router)]
    use = [row for key, router in routers.items() for row in _use(key, router)]
    of_repeats = [row for key, router in routers.items() for row in _expert_by_repeat(key, router)]
    of_tokens = [row for key, r in routers.items() for row in _expert_by_token(traces, key, r)]
    findings = [
        Finding(
            name="routing_use",
            title="Experts that each repeat uses",
            rows=use,
            limits="An expert counts as dead if no token of these rows met it; other rows may. "
            "Entropies say how evenly experts are used, not whether they do different things.",
            draw=curves(
                "repeat",
                ["usage_entropy_bits", "router_entropy_bits", "dead_experts"],
                group=["layer", "router"],
            ),
        ),
        Finding(
            name="routing_experts_by_repeat",
            title="Share of each expert in what tokens choose, by repeat",
            rows=of_repeats,
            limits="Numbers of experts mean nothing across seeds; gates weigh what is chosen.",
            draw=maps("expert", "repeat", "share", group=["layer", "router", "head"]),
        ),
        Finding(
            name="routing_experts_by_token",
            title="Share of each expert in what a token chooses, over all repeats",
            rows=of_tokens,
            limits=f"The {MOST_TOKENS} most frequent tokens; where a token stands goes with what "
            "it is, so that position may be what a router follows.",
            draw=maps("expert", "token", "share", group=["layer", "router"]),
        ),
    ]
    if overlap:
        findings.insert(
            0,
            Finding(
                name="routing_overlap",
                title="How much the experts of two repeats of a layer overlap",
                rows=overlap,
                limits="A low overlap says that a token meets other experts, not that these "
                "compute something else; compare with what chance gives (jaccard_by_chance).",
                draw=maps(
                    "second",
                    "first",
                    "jaccard",
                    group=["layer", "router"],
                    beside=["jaccard_by_chance", "jensen_shannon_bits"],
                ),
            ),
        )
    return findings


def _collect(traces: Traces) -> dict[tuple[int, str], _Router]:
    routers: dict[tuple[int, str], _Router] = {}
    for each in traces.batches:
        seen = set()
        for place, record in zip(traces.places, each.records, strict=True):
            for name, router in ({} if record is None else record.routers).items():
                # Cross-attention's values are routed once, by what the encoder wrote.
                if router.selection is None or router.selection.shape[:2] != each.real.shape:
                    continue
                assert router.logits is not None
                found = routers.setdefault((place.layer, name), _Router())
                found.num_experts = router.logits.shape[-1]
                repeat = 1 if place.repeat is None else place.repeat + 1
                chosen = router.selection[each.real].long().cpu()
                found.selections.setdefault(repeat, []).append(chosen)
                bits = entropy(router.logits[each.real].double().softmax(dim=-1)).mean(dim=-1)
                found.entropies.setdefault(repeat, []).append(bits.cpu())
                if (place.layer, name) not in seen:
                    found.tokens.append(each.tokens[each.real].cpu())
                    seen.add((place.layer, name))
    return routers


def _overlap(key: tuple[int, str], router: _Router) -> list[Row]:
    """Return a row for each pair of repeats."""
    rows = []
    for first, second in itertools.combinations(sorted(router.selections), 2):
        one, other = router.chosen(first), router.chosen(second)
        if len(one) != len(other):
            continue  # a batch had ended before
        divergence = jensen_shannon(router.usage(first), router.usage(second))
        rows.append(
            {
                "layer": key[0],
                "router": key[1],
                "first": first,
                "second": second,
                "jaccard": float(jaccard(one, other).nanmean()),
                "jaccard_by_chance": float(_by_chance(router, first, second).nanmean()),
                "jensen_shannon_bits": float(divergence.mean()),
                "tokens": len(one),
            }
        )
    return rows


def _by_chance(router: _Router, first: int, second: int) -> Tensor:
    """Return the overlap of each token's experts with another token's, half the tokens away."""
    other = router.chosen(second)
    return jaccard(router.chosen(first), other.roll(max(len(other) // 2, 1), dims=0))


def _use(key: tuple[int, str], router: _Router) -> list[Row]:
    """Return a row for each repeat; ``experts_met`` are a token's distinct ones up to it."""
    rows = []
    met: Tensor | None = None
    for repeat in sorted(router.selections):
        chosen = router.chosen(repeat)
        met = chosen if met is None or len(met) != len(chosen) else met | chosen
        usage = router.usage(repeat)
        rows.append(
            {
                "layer": key[0],
                "router": key[1],
                "repeat": repeat,
                "experts": router.num_experts,
                "dead_experts": float((usage == 0).sum(dim=-1).double().mean()),
                "usage_entropy_bits": float(entropy(usage).mean()),
                "router_entropy_bits": float(torch.cat(router.entropies[repeat]).mean()),
                "experts_met": float(met.sum(dim=-1).double().mean()),
                "tokens": len(chosen),
            }
        )
    return rows


def _expert_by_repeat(key: tuple[int, str], router: _Router) -> list[Row]:
    return [
        {
            "layer": key[0],
            "router": key[1],
            "head": head,
            "repeat": repeat,
            "expert": expert,
            "share": share,
        }
        for repeat in sorted(router.selections)
        for head, shares in enumerate(router.usage(repeat).tolist())
        for expert, share in enumerate(shares)
    ]


def _expert_by_token(traces: Traces, key: tuple[int, str], router: _Router) -> list[Row]:
    """Return a row for each frequent token and expert; heads count alike."""
    tokens = torch.cat(router.tokens)
    counts = torch.zeros(len(tokens), router.num_experts, dtype=torch.float64)
    for repeat in router.selections:
        chosen = router.chosen(repeat)
        if len(chosen) == len(counts):
            counts += chosen.sum(dim=1)
    rows = []
    for token, _ in Counter(tokens.tolist()).most_common(MOST_TOKENS):
        shares = counts[tokens == token].sum(dim=0)
        shares /= shares.sum().clamp_min(1)
        rows += [
            {
                "layer": key[0],
                "router": key[1],
                "token": traces.word(token),
                "expert": expert,
                "share": share,
            }
            for expert, share in enumerate(shares.tolist())
        ]
    return rows
