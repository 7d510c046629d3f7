"""An insight as a person reads it: synthesis, ranking, shared patterns, next steps, who contributed what."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from node.cli import render

RANKING_ROWS = 10
PATTERNS_SHOWN = 12


def text(session: Mapping[str, Any], insight: Mapping[str, Any], provenance: Sequence[Mapping[str, Any]],
         names: Mapping[str, str]) -> str:  # fmt: skip
    """`names`: node id -> name, where known."""
    efficiency = insight.get("parallel_efficiency") or session.get("parallel_efficiency")
    facts = [
        f"{insight.get('branches_used', 0)} of {render.counted(session.get('total_branches', 0), 'branch')}",
        render.counted(insight.get("total_patterns", 0), "pattern"),
        render.counted(insight.get("total_connections", 0), "connection"),
        f"novelty {render.clean(insight.get('average_novelty', 0.0))}",
    ]
    if insight.get("branches_failed"):
        facts.append(f"{insight['branches_failed']} failed")
    if efficiency:
        facts.append(f"parallel efficiency {efficiency:.1f}")
    parts = [render.heading("Insight"), f"  {render.paint(', '.join(facts), 'dim')}"]
    if insight.get("synthesis"):
        parts.append(render.paragraphs(str(insight["synthesis"])))
    parts += _ranking(insight)
    patterns = insight.get("emergent_patterns") or []
    if patterns:
        parts += [render.heading("Shared patterns"), render.bullets(patterns[:PATTERNS_SHOWN])]
        if len(patterns) > PATTERNS_SHOWN:
            parts.append(f"  ... and {len(patterns) - PATTERNS_SHOWN} more (--json shows all)")
    if insight.get("next_steps"):
        parts += [render.heading("Next steps"), render.bullets(insight["next_steps"])]
    parts += _provenance(provenance, names)
    return "\n".join(parts)


def _ranking(insight: Mapping[str, Any]) -> list[str]:
    rows = [entry for entry in insight.get("ranking") or [] if isinstance(entry, Mapping)]
    if not rows:
        return []
    table = render.table(
        ["#", "branch", "score", "task", "summary"],
        [
            [place, row.get("branch_index"), row.get("score"), row.get("task"), row.get("summary", "")]
            for place, row in enumerate(rows[:RANKING_ROWS], 1)
        ],
        indent="  ",
        right=(0, 1, 2),
    )
    total = max(len(rows), int(insight.get("branches_used") or 0))  # an insight ranks no more than the best
    title = "Ranking" if len(rows) <= RANKING_ROWS else f"Ranking (best {RANKING_ROWS} of {total})"
    return [render.heading(title), table]


def _provenance(provenance: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[str]:
    if not provenance:
        return []
    branches: Counter[str] = Counter()
    repeated: Counter[str] = Counter()
    time_ms: Counter[str] = Counter()
    rituals: dict[str, set[str]] = {}
    for row in provenance:
        node = str(row.get("node_id"))
        branches[node] += 1
        repeated[node] += int((row.get("attempt") or 1) > 1)
        time_ms[node] += int(row.get("duration_ms") or 0)
        rituals.setdefault(node, set()).add(f"{row.get('ritual')} {row.get('ritual_version') or ''}".strip())
    rows = [
        [names.get(node, node), node[:8], count, repeated[node], render.duration(time_ms[node]),
         ", ".join(sorted(rituals[node]))]
        for node, count in branches.most_common()
    ]  # fmt: skip
    table = render.table(
        ["node", "id", "branches", "repeated", "computed for", "rituals"], rows, indent="  ", right=(2, 3, 4)
    )
    return [render.heading("Provenance"), table]
