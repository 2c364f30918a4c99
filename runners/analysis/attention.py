"""Where each head looks in each repeat."""

from __future__ import annotations

from collections import Counter

import torch

from runners.analysis.figures import maps
from runners.analysis.findings import Finding, NotThere, Row
from runners.analysis.traces import Traces

MOST_COLUMNS = 32


def attention_maps(traces: Traces) -> list[Finding]:
    """Return mean attention weights by application, head, query and key.

    They are means over the rows that have the most frequent length, so that columns mean the same.

    Raises:
        NotThere: no layer keeps attention weights.
    """
    lengths = Counter(int(n) for each in traces.batches for n in each.real.sum(dim=1))
    length, rows_read = lengths.most_common(1)[0]
    sums: dict[tuple[int, str], torch.Tensor] = {}
    for each in traces.batches:
        chosen = each.real.sum(dim=1) == length
        for number, weights in enumerate(each.attention):
            for name, values in weights.items():
                if name == "attention" and chosen.any():
                    real = each.real[chosen][0].nonzero().flatten()  # prefix rows stand before
                    part = values[chosen][:, :, real][..., real]
                    found = part.double().sum(dim=0).cpu()
                    sums[number, name] = sums.get((number, name), torch.zeros(())) + found
    if not sums:
        raise NotThere("no layer keeps attention weights")
    rows: list[Row] = []
    for (number, _), total in sums.items():
        mean = total[:, :MOST_COLUMNS, :MOST_COLUMNS] / rows_read
        rows += [
            {
                **traces.where(number + 1),
                "head": head,
                "query": query,
                "key": key,
                "weight": weight,
                "rows": rows_read,
            }
            for head, queries in enumerate(mean.tolist())
            for query, keys in enumerate(queries)
            for key, weight in enumerate(keys)
        ]
    return [
        Finding(
            name="attention",
            title=f"Attention weights, means over {rows_read} rows of {length} tokens",
            rows=rows,
            limits="A weight says where a head reads, not what it takes from there nor whether it "
            f"matters; rows of other lengths, and columns after {MOST_COLUMNS}, are left out.",
            draw=maps("key", "query", "weight", group=["application", "head"]),
        )
    ]
