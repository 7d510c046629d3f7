"""Reads a text and says what it is about: key phrases, concepts that go together, and how much of it is new.

Patterns are key phrases by RAKE (Rose, Engel, Cramer, Cowley 2010, "Automatic keyword extraction from individual
documents"): runs of words between stop words and punctuation, a word's weight is its degree over its frequency, a
phrase's the sum of its words'. Here a phrase also gains with the logarithm of how often it occurs, because documents
repeat what matters. Connections are pairs of concepts that share sentences more often than chance, by normalised
pointwise mutual information (Bouma 2009). Novelty is the share of key phrases that the mesh has not recorded before.

Written for English; other languages in scripts that separate words work with less precision. A file is read on the node
that executes, and only below the folders named in the environment variable `REFLECT_ROOTS` of its daemon (separated by
`:`): whoever may submit could otherwise read every file of that node.
"""

import math
import os
import re
import stat
from collections import Counter
from pathlib import Path
from typing import Any

from node.rituals import Context, Knowledge, Parameter, ritual

PATTERNS_MAX = 16
"""As many patterns of a result as the mesh remembers."""

CONCEPTS_MAX = 40
"""Among which connections are sought: the heaviest phrases that occur at least twice."""

CONNECTIONS_MAX = 24
CONNECTION_NPMI_MIN = 0.2
CONNECTION_SENTENCES_MIN = 2
PHRASE_WORDS_MAX = 3
RUN_WORDS_MAX = 6
"""Longer runs between stop words are cut into phrases up to here; beyond, they are lists or code and left out."""

SINGLE_WEIGHT = 0.3
"""Of a phrase that occurs once, against 1.0 of one that occurs twice: so that in a long text repeated phrases come
first, while a short one is ranked as RAKE would."""

ONE_WORD_WEIGHT = 0.4
"""A word alone says less than a phrase, and the frequent ones are the least telling."""

TEXT_BYTES_MAX = 2 * 1024 * 1024
"""Read of one file or folder; about 0.5 s of work."""

ROOTS_VARIABLE = "REFLECT_ROOTS"
_SUFFIXES_TEXT = """
    .adoc .c .cfg .cpp .css .csv .go .h .html .ini .java .js .json .log .md .org .py .rs .rst .sh .sql .tex .toml
    .ts .txt .xml .yaml .yml
"""
SUFFIXES = frozenset(_SUFFIXES_TEXT.split())

EMBED_BYTES_MAX = 40_000
"""Text of one branch; its parameters may take 64 KiB."""

EMBED_TOTAL_BYTES_MAX = 700_000
"""Text of one session; its submission may take 1 MiB."""

BRANCHES_MAX = 10_000

_STOP_WORDS_TEXT = """
    a about above after again against all almost also although always am among an and another any are around as at
    away b back be because become been before being below between both but by c can cannot could d did do does doing
    done down during e each either else enough even ever every f few for from further g get give given gives go got
    h had has have having he her here hers herself him himself his how however i if in instead into is it its itself
    j just k kept know known l last least less let like likely ll long look m made make makes many may me might more
    most much must my myself n near need needs never next no non none nor not now o of off often on once one only
    onto or other others otherwise our ours ourselves out over own p per perhaps put q quite r rather re really s
    said same say says see seem seen several shall she should since so some something still such t take taken than
    that the their theirs them themselves then there therefore these they thing things this those though through
    thus to together too toward towards two u under unless until up upon us use used uses using v ve very via w want
    was way we well were what when where whether which while who whole whom whose why will with within without would
    x y yes yet you your yours yourself z
"""
STOP_WORDS = frozenset(_STOP_WORDS_TEXT.split())

_WORD = re.compile(r"[^\W\d_](?:[\w'\u2019-]*\w)?")
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n\s*\n|\n\s*[-*#>|•]+\s*")
_FRAGMENT = re.compile(r"[^\w\s'\u2019-]+|\n|_{2,}|\s-+\s")
_MARKUP = re.compile(r"```.*?```|<[^>\n]{1,200}>|https?://\S+|\[([^\]\n]*)\]\([^)\n]*\)", re.DOTALL)


@ritual(
    version="1",
    timeout_s=60.0,
    parameters=[
        Parameter("text", "str", "the text to read", default="", length_max=64 * 1024),
        Parameter("path", "str", "a file or folder on the node that executes", default="", length_max=4096),
        Parameter("name", "str", "what to call the text", default="", length_max=300),
    ],
)
def reflect(context: Context) -> Knowledge:
    """Reads a text, a file or a folder: key phrases, concepts that occur together, and novelty against what the mesh
    has seen."""
    parameters = context.parameters
    path, text = str(parameters.get("path", "")), str(parameters.get("text", ""))
    files = 0
    if path:
        context.progress(0.0, f"reading {path}")
        text, files = read_documents(Path(path), allowed_roots(os.environ.get(ROOTS_VARIABLE, "")))
    elif not text:
        text = context.task
    name = str(parameters.get("name") or path or "the text")
    context.progress(0.1, "finding key phrases")
    sentences = sentences_of(text)
    ranked = key_phrases(sentences)
    context.progress(0.6, "finding connections")
    links = connections_of(sentences, [phrase for phrase, _, times in ranked if times > 1][:CONCEPTS_MAX])
    top = ranked[:PATTERNS_MAX]
    patterns = [phrase for phrase, _, _ in top]
    context.progress(0.9, "asking what the mesh has seen")
    seen = context.seen(patterns) if patterns else {}
    unseen = [phrase for phrase in patterns if not seen.get(phrase)]
    novelty = len(unseen) / len(patterns) if patterns else 0.0
    words = sum(1 for sentence in sentences for _ in _WORD.finditer(sentence))
    about = ", ".join(patterns[:4]) or "nothing that stands out"
    return Knowledge(
        patterns=patterns,
        connections=[(a, b) for a, b, _, _ in links],
        novelty=round(novelty, 4),
        score=float(len(unseen)),
        summary=f"{name}: {words} words, about {about}; {len(unseen)} of {len(patterns)} key phrases are new",
        result={
            "name": name,
            "words": words,
            "sentences": len(sentences),
            "files": files,
            "key_phrases": [{"phrase": p, "weight": round(w, 2), "times": n} for p, w, n in top],
            "connections": [{"a": a, "b": b, "npmi": round(v, 3), "sentences": n} for a, b, v, n in links],
            "seen_before": {phrase: count for phrase, count in seen.items() if count},
        },
    )


def branches(folder: str) -> list[dict[str, Any]]:
    """One branch a document of `folder`, for a session over all of it. ValueError if there is nothing to read.

    The texts travel with the submission if they are small enough together, and then any node can execute them;
    otherwise the branches carry paths, and the folder must be readable and allowed on every node.
    """
    root = Path(folder).expanduser().resolve()
    if not root.exists():
        raise ValueError(f"{root} does not exist")
    files = _documents(root)
    if not files:
        raise ValueError(f"no text documents in {root}; looked for {' '.join(sorted(SUFFIXES))}")
    if len(files) > BRANCHES_MAX:
        raise ValueError(f"{root} holds {len(files)} documents, a session takes {BRANCHES_MAX}; choose a sub-folder")
    base = root if root.is_dir() else root.parent
    embeds = sum(file.stat().st_size for file in files) <= EMBED_TOTAL_BYTES_MAX
    made: list[dict[str, Any]] = []
    for file in files:
        name = str(file.relative_to(base))[-300:]
        if not embeds:
            made.append(_branch(f"reflect on {name}", {"path": str(file), "name": name}))
            continue
        parts = _parts(_read(file, TEXT_BYTES_MAX))
        for number, part in enumerate(parts, 1):
            label = name if len(parts) == 1 else f"{name} (part {number} of {len(parts)})"
            made.append(_branch(f"reflect on {label}", {"text": part, "name": label[-300:]}))
    return made


def sentences_of(text: str) -> list[str]:
    """Split at full stops, blank lines and list items, without markup, code blocks and addresses."""
    plain = _MARKUP.sub(lambda match: match.group(1) or " \n", text)
    return [stripped for sentence in _SENTENCE.split(plain) if sentence and (stripped := sentence.strip())]


def key_phrases(sentences: list[str]) -> list[tuple[str, float, int]]:
    """(phrase, weight, times), heaviest first; ties in alphabetical order."""
    times: Counter[tuple[str, ...]] = Counter()
    for sentence in sentences:
        for fragment in _FRAGMENT.split(sentence):
            times.update(_candidates(fragment))
    frequency: Counter[str] = Counter()
    degree: Counter[str] = Counter()
    for phrase, count in times.items():
        for word in phrase:
            frequency[word] += count
            degree[word] += count * len(phrase)
    weighed = []
    for phrase, count in times.items():
        weight = sum(degree[word] / frequency[word] for word in phrase) * (SINGLE_WEIGHT + math.log(count))
        if len(phrase) == 1:
            weight *= ONE_WORD_WEIGHT
        weighed.append((" ".join(phrase), weight, count))
    return sorted(weighed, key=lambda item: (-item[1], item[0]))


def connections_of(sentences: list[str], concepts: list[str]) -> list[tuple[str, str, float, int]]:
    """(concept, concept, NPMI, shared sentences) for pairs above the thresholds, strongest first."""
    alone: Counter[str] = Counter()
    together: Counter[tuple[str, str]] = Counter()
    for sentence in sentences:
        spaced = f" {' '.join(word.lower() for word in _WORD.findall(sentence))} "
        present = sorted(concept for concept in concepts if f" {concept} " in spaced)
        alone.update(present)
        together.update((a, b) for i, a in enumerate(present) for b in present[i + 1 :])
    total = len(sentences)
    links = []
    for (a, b), count in together.items():
        if count < CONNECTION_SENTENCES_MIN or a in b or b in a:
            continue
        joint = count / total
        npmi = 1.0 if joint == 1.0 else math.log(joint * total * total / (alone[a] * alone[b])) / -math.log(joint)
        if npmi >= CONNECTION_NPMI_MIN:
            links.append((a, b, npmi, count))
    links.sort(key=lambda link: (-link[2] * math.log1p(link[3]), link[0], link[1]))
    return links[:CONNECTIONS_MAX]


def allowed_roots(text: str) -> list[Path]:
    return [Path(entry).resolve() for entry in text.split(os.pathsep) if entry]


def read_documents(path: Path, roots: list[Path]) -> tuple[str, int]:
    """Text of a file, or of the documents of a folder, and how many files that were. PermissionError if it is not
    below one of `roots`, with symbolic links resolved."""
    real = path.resolve()
    if not any(real.is_relative_to(root) for root in roots):
        raise PermissionError(
            f"{path} may not be read on this node: put its folder into {ROOTS_VARIABLE} in the daemon's environment, "
            "or submit the text itself"
        )
    texts: list[str] = []
    left = TEXT_BYTES_MAX
    for file in _documents(real):
        if left <= 0 or not any(file.resolve().is_relative_to(root) for root in roots):
            continue
        texts.append(_read(file, left))
        left -= len(texts[-1].encode())
    if not texts:
        raise FileNotFoundError(f"{path} holds no text document")
    return "\n\n".join(texts), len(texts)


def _documents(path: Path) -> list[Path]:
    """`path` itself if it is a file, otherwise the text documents below it, hidden ones left out."""
    if path.is_file():
        return [path]
    found = []
    for directory, folders, names in os.walk(path):
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        for name in sorted(names):
            file = Path(directory, name)
            if (
                file.suffix.lower() in SUFFIXES
                and not name.startswith(".")
                and file.is_file()
                and os.access(file, os.R_OK)
            ):
                found.append(file)
    return found


def _read(file: Path, bytes_max: int) -> str:
    # Not blocking, so that a named pipe that took the file's place cannot hold us; checked after opening for the same.
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as opened:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"{file} is not a regular file")
        data = opened.read(bytes_max)
    if b"\0" in data[:8192]:
        raise ValueError(f"{file} is not text")
    return data.decode("utf-8", errors="replace")


def _parts(text: str) -> list[str]:
    """Pieces of at most `EMBED_BYTES_MAX`, cut between paragraphs or lines where possible."""
    parts = []
    data = text.encode()
    while len(data) > EMBED_BYTES_MAX:
        window = data[:EMBED_BYTES_MAX]
        cut = max(window.rfind(b"\n\n"), 0) or max(window.rfind(b"\n"), 0) or max(window.rfind(b" "), 0)
        cut = cut if cut > EMBED_BYTES_MAX // 2 else EMBED_BYTES_MAX
        while cut < len(data) and data[cut] & 0xC0 == 0x80:  # not inside a character
            cut -= 1
        parts.append(data[:cut].decode())
        data = data[cut:].lstrip()
    return [*parts, data.decode()] if data or not parts else parts


def _branch(task: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"ritual": "reflect", "task": task, "parameters": parameters}


def _candidates(fragment: str) -> list[tuple[str, ...]]:
    """Runs of content words."""
    found: list[tuple[str, ...]] = []
    run: list[str] = []
    for match in _WORD.finditer(fragment):
        word = match.group().lower().replace("\u2019", "'").removesuffix("'s")
        if word in STOP_WORDS or len(word) < 3:
            _close(run, found)
        else:
            run.append(word)
    _close(run, found)
    return found


def _close(run: list[str], found: list[tuple[str, ...]]) -> None:
    if len(run) <= RUN_WORDS_MAX:
        found.extend(tuple(run[i : i + PHRASE_WORDS_MAX]) for i in range(0, len(run), PHRASE_WORDS_MAX))
    run.clear()
