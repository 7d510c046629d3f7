"""Key phrases, connections, novelty, and what may be read."""

import os
from pathlib import Path
from typing import Any

import pytest

from node.rituals import Context, Knowledge
from node.rituals.builtin import reflect as module
from node.rituals.builtin.reflect import branches, connections_of, key_phrases, read_documents, reflect, sentences_of
from node.rituals.registry import Registry

TEXT = """
# Storage

The write ahead log is flushed before an answer is given. A write ahead log makes restarts quick.
The leader election needs a majority. After a leader election the write ahead log is compared.
A leader election uses random timeouts, and the majority decides.
```
ignored = code_block
```
See <b>more</b> at https://example.org/leader and [the manual](https://example.org).
"""


class Seen:
    """A reporter that knows some phrases."""

    def __init__(self, known: dict[str, int]) -> None:
        self.known = known

    def progress(self, key: int, fraction: float | None, message: str) -> None: ...

    def log(self, key: int, line: str) -> None: ...

    def seen(self, key: int, phrases: list[str]) -> dict[str, int]:
        return {phrase: self.known[phrase] for phrase in phrases if phrase in self.known}

    async def seen_async(self, key: int, phrases: list[str]) -> dict[str, int]:
        return self.seen(key, phrases)


def read(known: dict[str, int] | None = None, **parameters: Any) -> Knowledge:
    definition = Registry.load(entry_points=False)["reflect"]
    assert definition.check(parameters) is None
    knowledge = reflect(Context(parameters=definition.complete(parameters), reporter=Seen(known or {})))
    assert isinstance(knowledge, Knowledge)
    return knowledge


def test_repeated_phrases_come_first() -> None:
    knowledge = read(text=TEXT, name="notes")
    assert set(knowledge.patterns[:2]) == {"leader election", "write ahead log"}
    assert "code_block" not in " ".join(knowledge.patterns)
    assert "example" not in " ".join(knowledge.patterns)
    assert knowledge.summary.startswith("notes: ")


def test_concepts_that_share_sentences_are_connected() -> None:
    sentences = ["The red fox met a grey wolf"] * 3 + ["The grey wolf met a red fox", "Snow fell", "Rain fell", "Sun"]
    links = connections_of(sentences, ["red fox", "grey wolf", "snow", "fell"])
    assert [(a, b) for a, b, _, _ in links] == [("grey wolf", "red fox")]
    assert links[0][2] == pytest.approx(1.0)
    assert links[0][3] == 4


def test_novelty_is_the_share_the_mesh_has_not_seen() -> None:
    fresh = read(text=TEXT)
    assert fresh.novelty == 1.0
    some = read({fresh.patterns[0]: 2, fresh.patterns[1]: 1}, text=TEXT)
    assert some.novelty == pytest.approx(1 - 2 / len(some.patterns), abs=1e-4)
    assert some.result["seen_before"] == {fresh.patterns[0]: 2, fresh.patterns[1]: 1}


@pytest.mark.parametrize("text", ["the of and", "1 2 3", "....", "a", "\n\n\n", "x" * 60_000, "é ü 漢字 кот"])
def test_odd_texts_do_no_harm(text: str) -> None:
    assert 0 <= read(text=text).novelty <= 1


def test_the_task_is_read_if_nothing_else_is_given() -> None:
    knowledge = reflect(Context(task="Raft consensus keeps replicated logs equal"))
    assert "raft consensus" in " ".join(knowledge.patterns)


def test_key_phrases_by_hand() -> None:
    # degree over frequency: deep 2, learning 2, alone 1; single words count less
    (first, weight, times), (second, lighter, once) = key_phrases(["deep learning. alone", "deep learning"])
    assert (first, times, second, once) == ("deep learning", 2, "alone", 1)
    assert weight == pytest.approx(4 * (0.3 + 0.6931), abs=1e-3)
    assert lighter == pytest.approx(0.3 * 0.4)
    assert sentences_of("One. Two; three\n\nfour\n- five") == ["One.", "Two;", "three", "four", "five"]


def test_files_are_read_only_below_allowed_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed, secret = tmp_path / "allowed", tmp_path / "secret"
    for folder in (allowed, secret):
        folder.mkdir()
        (folder / "text.md").write_text("deep learning and deep learning")
    (allowed / "link.md").symlink_to(secret / "text.md")
    (allowed / ".hidden.md").write_text("no")
    (allowed / "picture.png").write_bytes(b"\0")
    monkeypatch.delenv(module.ROOTS_VARIABLE, raising=False)
    with pytest.raises(PermissionError, match="REFLECT_ROOTS"):
        read(path=str(allowed))
    monkeypatch.setenv(module.ROOTS_VARIABLE, str(allowed))
    knowledge = read(path=str(allowed))
    assert (knowledge.result["files"], knowledge.patterns) == (1, ["deep learning"])
    assert read(path=str(allowed / "text.md")).patterns == ["deep learning"]
    for path in (secret, allowed / "link.md", allowed / ".." / "secret" / "text.md"):
        with pytest.raises(PermissionError):
            read(path=str(path))


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"\0\1\2")
    with pytest.raises(ValueError, match="is not text"):
        read_documents(tmp_path / "binary.txt", [tmp_path])
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(FileNotFoundError):
        read_documents(tmp_path / "pipe.txt", [tmp_path])
    with pytest.raises(FileNotFoundError):
        read_documents(tmp_path / "absent", [tmp_path])


def test_a_branch_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "one.md").write_text("deep learning")
    (tmp_path / "sub" / "two.txt").write_text("paragraph of words\n\n" * 5_000)
    made = branches(str(tmp_path))
    assert made[0]["task"] == "reflect on one.md"
    assert made[1]["task"] == "reflect on sub/two.txt (part 1 of 3)"
    definition = Registry.load(entry_points=False)["reflect"]
    assert all(definition.check(branch["parameters"]) is None for branch in made)
    whole = " ".join(branch["parameters"]["text"] for branch in made[1:])
    assert whole.split() == ("paragraph of words\n\n" * 5_000).split()
    monkeypatch.setattr(module, "EMBED_TOTAL_BYTES_MAX", 10)
    assert branches(str(tmp_path))[0]["parameters"]["path"] == str(tmp_path / "one.md")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no text documents"):
        branches(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="does not exist"):
        branches(str(tmp_path / "nowhere"))


def test_parts_never_cut_a_character() -> None:
    text = "漢" * 50_000
    parts = module._parts(text)
    assert "".join(parts) == text
    assert all(len(part.encode()) <= module.EMBED_BYTES_MAX for part in parts)
