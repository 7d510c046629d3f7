"""The default consolidation: what do the branches of a session say together?

Counts, finds the patterns and connections that several branches share, ranks outcomes, compares themes, and writes it
down in plain words. It invents nothing: every sentence is a count, a ranking or a comparison of what branches returned,
and says from how many of them. Async with pauses, so that ten thousand inputs do not hold up other async rituals.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from node.rituals import BranchInput, Context, Knowledge, Parameter, ritual

INPUTS_PER_PAUSE = 200
TASK_CHARS_MAX = 200
EMERGENT_MAX = 50
CONNECTIONS_MAX = 30
SUPPORT_MIN = 2
"""A pattern is shared if this many branches report it in the same words."""
PHRASE_CHARS_MAX = 200


@ritual(
    version="1",
    timeout_s=120.0,
    parameters=[
        Parameter("top", "int", "how many outcomes to rank", default=20, minimum=1, maximum=200),
        Parameter("theme_key", "str", "the parameter that groups branches", default="theme", length_max=64),
    ],
)
async def consolidate(context: Context) -> Knowledge:
    """Aggregates the branches of a session: totals, shared patterns, ranking, plain-language synthesis, next steps."""
    top = int(context.parameters.get("top", 20))
    theme_key = str(context.parameters.get("theme_key", "theme"))
    tally = Tally(theme_key)
    for position, branch in enumerate(context.inputs or (), 1):
        tally.add(branch)
        if position % INPUTS_PER_PAUSE == 0:
            await asyncio.sleep(0)
    ranked = sorted(tally.outcomes, key=_rank_key)
    shared = _shared(tally.pattern_support)
    links = _shared(tally.connection_support)[:CONNECTIONS_MAX]
    themes = tally.theme_rows()
    sentences = _synthesis(context, tally, ranked, shared, links, themes)
    best = ranked[0].score if ranked else None
    return Knowledge(
        patterns=[phrase for phrase, _ in shared[:EMERGENT_MAX]],
        connections=[(a, b) for (a, b), _ in links],
        novelty=tally.novelty_mean(),
        score=best,
        summary=f"{sentences[0]}.",
        result={
            "synthesis": ". ".join(sentences) + ".",
            "emergent_patterns": [phrase for phrase, _ in shared[:EMERGENT_MAX]],
            "next_steps": _next_steps(tally, ranked, links, themes),
            "ranking": [outcome.to_json() for outcome in ranked[:top]],
            "pattern_support": [[phrase, count] for phrase, count in shared[:EMERGENT_MAX]],
            "connection_support": [[a, b, count] for (a, b), count in links],
            "themes": [theme.to_json() for theme in themes],
            "branches": {
                "used": len(tally.outcomes),
                "failed": len(tally.failed),
                "cancelled": tally.cancelled,
                "nodes": len(tally.nodes),
            },
            "totals": {"patterns": tally.patterns, "connections": tally.connections},
        },
    )


class Outcome(NamedTuple):
    """A completed branch, as far as the ranking needs it."""

    branch_index: int
    task: str
    score: float | None
    novelty: float
    summary: str
    theme: str | None
    node_id: str
    attempt: int
    ritual: str
    ritual_version: str

    def to_json(self) -> dict[str, Any]:
        return self._asdict()


class Theme(NamedTuple):
    """Branches that share a theme."""

    theme: str
    branches: int
    score_mean: float | None
    best_branch_index: int | None
    best_score: float | None

    def to_json(self) -> dict[str, Any]:
        return self._asdict()


class Tally:
    """What is counted while reading the branches."""

    def __init__(self, theme_key: str = "theme") -> None:
        self._theme_key = theme_key
        self.outcomes: list[Outcome] = []
        self.failed: list[BranchInput] = []
        self.cancelled = 0
        self.nodes: set[str] = set()
        self.patterns = 0
        self.connections = 0
        self.pattern_support: Counter[str] = Counter()
        self.connection_support: Counter[tuple[str, str]] = Counter()

    def add(self, branch: BranchInput) -> None:
        knowledge = branch.knowledge
        if branch.status != "completed" or knowledge is None:
            if branch.status == "cancelled":
                self.cancelled += 1
            else:
                self.failed.append(branch)
            return
        self.nodes.add(branch.node_id)
        self.patterns += len(knowledge.patterns)
        self.connections += len(knowledge.connections)
        self.pattern_support.update({pattern[:PHRASE_CHARS_MAX] for pattern in knowledge.patterns})
        self.connection_support.update(
            {(pair[0][:PHRASE_CHARS_MAX], pair[1][:PHRASE_CHARS_MAX]) for pair in knowledge.connections}
        )
        self.outcomes.append(
            Outcome(
                branch.branch_index,
                _cut(branch.task),
                knowledge.score,
                knowledge.novelty,
                _cut(knowledge.summary),
                self._theme_of(branch, knowledge),
                branch.node_id,
                branch.attempt,
                branch.ritual,
                branch.ritual_version,
            )
        )

    def novelty_mean(self) -> float:
        return sum(outcome.novelty for outcome in self.outcomes) / len(self.outcomes) if self.outcomes else 0.0

    def theme_rows(self) -> list[Theme]:
        """Best mean score first; empty if fewer than two themes can be compared."""
        groups: dict[str, list[Outcome]] = {}
        for outcome in self.outcomes:
            if outcome.theme is not None:
                groups.setdefault(outcome.theme, []).append(outcome)
        if len(groups) < 2:
            return []
        rows = []
        for theme, outcomes in groups.items():
            scored = [outcome for outcome in outcomes if outcome.score is not None]
            best = min(scored, key=_rank_key) if scored else None
            mean = sum(outcome.score or 0.0 for outcome in scored) / len(scored) if scored else None
            rows.append(
                Theme(
                    theme,
                    len(outcomes),
                    mean,
                    None if best is None else best.branch_index,
                    None if best is None else best.score,
                )
            )
        return sorted(rows, key=lambda row: (row.score_mean is None, -(row.score_mean or 0.0), row.theme))

    def _theme_of(self, branch: BranchInput, knowledge: Knowledge) -> str | None:
        theme = branch.parameters.get(self._theme_key)
        if theme is None and isinstance(knowledge.result, dict):
            theme = knowledge.result.get(self._theme_key)
        return _cut(theme) if isinstance(theme, str) else None


def _rank_key(outcome: Outcome) -> tuple[bool, float, float, int]:
    """Scored before unscored, high before low, then the more novel, then the lower index."""
    return outcome.score is None, -(outcome.score or 0.0), -outcome.novelty, outcome.branch_index


def _shared(support: Counter[Any]) -> list[tuple[Any, int]]:
    """What several branches support, most supported first; ties in alphabetical order, so that it is reproducible."""
    shared = [(item, count) for item, count in support.items() if count >= SUPPORT_MIN]
    return sorted(shared, key=lambda pair: (-pair[1], pair[0]))


def _synthesis(
    context: Context,
    tally: Tally,
    ranked: Sequence[Outcome],
    shared: Sequence[tuple[str, int]],
    links: Sequence[tuple[tuple[str, str], int]],
    themes: Sequence[Theme],
) -> list[str]:
    """Sentences without their full stops."""
    used, failed = len(tally.outcomes), len(tally.failed)
    total = used + failed + tally.cancelled
    if used == 0:
        return [f"None of the {_count(total, 'branch', 'branches')} completed, so there is nothing to consolidate"]
    sentences = []
    basis = f"{used} of {total} branches" if used < total else _count(used, "branch", "branches")
    question = f' to "{_cut(context.thought)}"' if context.thought else ""
    sentences.append(
        f"This answer{question} comes from {basis}, executed on {_count(len(tally.nodes), 'node', 'nodes')}"
    )
    if failed:
        sentences.append(f"{_count(failed, 'branch', 'branches')} failed and {_is(failed)} not part of it")
    scored = [outcome for outcome in ranked if outcome.score is not None]
    if scored:
        best, worst = scored[0], scored[-1]
        text = f"The best outcome is branch {best.branch_index}, {_quoted(best.task)}, with a score of {best.score:.3g}"
        if best.summary and best.summary != best.task:
            text += f" ({best.summary.rstrip('.')})"
        sentences.append(text)
        if len(scored) > 1:
            middle = scored[len(scored) // 2].score
            sentences.append(
                f"Scores range from {worst.score:.3g} to {best.score:.3g}, with {middle:.3g} in the middle"
            )
    compared = [theme for theme in themes if theme.score_mean is not None]
    if len(compared) > 1:
        order = ", ".join(f"{theme.theme} ({theme.score_mean:.3g})" for theme in compared[:8])
        sentences.append(f"Compared by theme, the mean scores are, best first: {order}")
    if shared:
        listed = "; ".join(f"{phrase} ({count} branches)" for phrase, count in shared[:5])
        more = f"; and {len(shared) - 5} more" if len(shared) > 5 else ""
        sentences.append(f"{_count(len(shared), 'pattern', 'patterns')} shared by several branches: {listed}{more}")
    elif used > 1:
        sentences.append("No pattern is shared by several branches")
    if links:
        (a, b), count = links[0]
        sentences.append(f"The connection found most often is {a} - {b} ({count} branches)")
    if not scored and not shared and used <= 3:
        told = [outcome.summary for outcome in ranked if outcome.summary]
        if told:
            sentences.append("The branches say: " + "; ".join(text.rstrip(".") for text in told))
    return sentences


def _next_steps(
    tally: Tally,
    ranked: Sequence[Outcome],
    links: Sequence[tuple[tuple[str, str], int]],
    themes: Sequence[Theme],
) -> list[str]:
    steps = []
    if tally.failed:
        reasons = Counter(
            branch.failure.code if branch.failure is not None else "unknown reason" for branch in tally.failed
        )
        reason, count = min(reasons.items(), key=lambda pair: (-pair[1], pair[0]))
        example = min(branch.branch_index for branch in tally.failed)
        steps.append(
            f"Look into the {_count(len(tally.failed), 'failed branch', 'failed branches')}: the most frequent reason "
            f"is {reason} ({count}); branch {example} is an example. Submit those branches again when it is fixed."
        )
    scored = [outcome for outcome in ranked if outcome.score is not None]
    if scored:
        best = scored[0]
        steps.append(
            f"Examine branch {best.branch_index} ({_quoted(best.task)}), which ranks first, and vary around it."
        )
    if len(scored) > 2 and (closest := scored[1]).score is not None and scored[0].score is not None:
        margin = scored[0].score - closest.score
        spread = scored[0].score - (scored[-1].score or 0.0)
        if spread > 0 and margin < 0.05 * spread:
            steps.append(
                f"Branches {scored[0].branch_index} and {closest.branch_index} are nearly equal: repeat both with "
                "other seeds or more scenarios before choosing."
            )
    compared = [theme for theme in themes if theme.score_mean is not None]
    if len(compared) > 1:
        steps.append(
            f"Combine the best of {compared[0].theme} (branch {compared[0].best_branch_index}) with the best of "
            f"{compared[1].theme} (branch {compared[1].best_branch_index}) in a new session."
        )
    if links:
        (a, b), count = links[0]
        steps.append(f"Follow up the connection {a} - {b}, which {count} branches found independently.")
    fresh = max(tally.outcomes, key=lambda outcome: (outcome.novelty, -outcome.branch_index), default=None)
    if fresh is not None and fresh.novelty > 0 and (not ranked or fresh.branch_index != ranked[0].branch_index):
        steps.append(
            f"Read branch {fresh.branch_index} ({_quoted(fresh.task)}): it is the most novel ({fresh.novelty:.2f})."
        )
    if not steps:
        steps.append("Nothing needs attention; the results of the branches are listed with the session.")
    return steps


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= TASK_CHARS_MAX else line[: TASK_CHARS_MAX - 1] + "…"


def _quoted(task: str) -> str:
    return f'"{task}"'


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _is(number: int) -> str:
    return "is" if number == 1 else "are"
