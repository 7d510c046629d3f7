"""What the default consolidation says about branches."""

import asyncio
import json

from node.executor.knowledge import encode_knowledge
from node.executor.limits import CONSOLIDATION_BYTES_MAX
from node.rituals import BranchInput, Context, Failure, Knowledge
from node.rituals.builtin.consolidate import consolidate


def branch(
    index: int, knowledge: Knowledge | None = None, *, theme: str | None = None, status: str = "completed"
) -> BranchInput:
    return BranchInput(
        index,
        f"task {index}",
        "echo",
        "1",
        f"node-{index % 2}",
        1,
        status,
        10,
        knowledge if status == "completed" else None,
        Failure("deadline_exceeded", "too long") if status == "failed" else None,
        {} if theme is None else {"theme": theme},
    )


def run(inputs: list[BranchInput], thought: str = "Is it so? I wonder.", **parameters: object) -> Knowledge:
    knowledge = asyncio.run(consolidate(Context(thought=thought, inputs=inputs, parameters=parameters)))
    assert isinstance(knowledge, Knowledge)
    encode_knowledge(knowledge, CONSOLIDATION_BYTES_MAX)
    assert json.dumps(knowledge.result)
    return knowledge


def test_totals_ranking_and_shared_patterns() -> None:
    inputs = [
        branch(0, Knowledge(patterns=["a", "b"], connections=[("x", "y")], novelty=0.2, score=1.0, summary="one")),
        branch(1, Knowledge(patterns=["b", "b"], connections=[("x", "y")], novelty=0.4, score=3.0, summary="two")),
        branch(2, Knowledge(patterns=["b", "a", "c"], novelty=0.9, score=2.0)),
    ]
    knowledge = run(inputs)
    result = knowledge.result
    assert result["emergent_patterns"] == ["b", "a"]
    assert result["pattern_support"] == [["b", 3], ["a", 2]]
    assert [entry["branch_index"] for entry in result["ranking"]] == [1, 2, 0]
    assert result["ranking"][0]["summary"] == "two"
    assert result["ranking"][0]["node_id"] == "node-1"
    assert result["totals"] == {"patterns": 7, "connections": 2}
    assert result["branches"] == {"used": 3, "failed": 0, "cancelled": 0, "nodes": 2}
    assert knowledge.novelty == 0.5
    assert knowledge.score == 3.0
    assert 'answer to "Is it so? I wonder." comes from 3 branches' in result["synthesis"]
    assert "branch 1" in result["synthesis"]
    assert "x - y (2 branches)" in result["synthesis"]
    assert any("most novel" in step for step in result["next_steps"])


def test_failures_are_labelled() -> None:
    inputs = [branch(index, Knowledge(score=float(index))) for index in range(98)]
    inputs += [branch(98, status="failed"), branch(99, status="failed")]
    result = run(inputs).result
    assert "from 98 of 100 branches" in result["synthesis"]
    assert "2 branches failed" in result["synthesis"]
    assert "deadline_exceeded (2)" in result["next_steps"][0]


def test_themes_are_compared() -> None:
    inputs = [branch(i, Knowledge(score=float(i)), theme="odd" if i % 2 else "even") for i in range(10)]
    result = run(inputs).result
    assert [theme["theme"] for theme in result["themes"]] == ["odd", "even"]
    assert result["themes"][0]["best_branch_index"] == 9
    assert "odd (5), even (4)" in result["synthesis"]
    from_result = [branch(i, Knowledge(score=1.0, result={"theme": f"t{i}"})) for i in range(2)]
    assert len(run(from_result).result["themes"]) == 2


def test_nothing_completed() -> None:
    result = run([branch(0, status="failed")]).result
    assert result["synthesis"] == "None of the 1 branch completed, so there is nothing to consolidate."
    assert result["ranking"] == []
    assert run([]).result["branches"]["used"] == 0


def test_one_plain_branch_is_told() -> None:
    result = run([branch(0, Knowledge(summary="hello"))], thought="").result
    assert result["synthesis"] == "This answer comes from 1 branch, executed on 1 node. The branches say: hello."


def test_ten_thousand_branches_fit_and_leave_the_loop_to_others() -> None:
    inputs = [
        branch(
            index,
            Knowledge(
                patterns=[f"pattern {index % 97} {'x' * 300}"],
                connections=[(f"c{index % 50}", f"d{index % 50}")],
                score=float(index % 1_000),
                summary="s" * 2_000,
            ),
        )._replace(task="t" * 5_000)
        for index in range(10_000)
    ]

    async def test() -> tuple[Knowledge, int]:
        turns = 0
        work = asyncio.create_task(consolidate(Context(inputs=inputs, parameters={"top": 200})))
        while not work.done():
            turns += 1
            await asyncio.sleep(0)
        return work.result(), turns

    knowledge, turns = asyncio.run(test())
    assert turns >= 50
    assert len(encode_knowledge(knowledge, CONSOLIDATION_BYTES_MAX)) < CONSOLIDATION_BYTES_MAX
    assert len(knowledge.result["ranking"]) == 200
