"""The seam to PySyncObj: that the private members we rely on are those of the installed version."""

import ast
import inspect
import random
import re
from pathlib import Path

import pysyncobj.syncobj
import pytest
from pysyncobj.version import VERSION

import consensus.engine
from consensus.engine import Engine
from tests.unit.consensus.cluster import IDS, Cluster

ROOT = Path(consensus.engine.__file__).parents[1]
_SOURCE = inspect.getsource(consensus.engine)


def test_the_version_is_one_that_was_read() -> None:
    assert VERSION.split(".")[:2] == ["0", "3"]
    assert int(VERSION.split(".")[2]) >= 17


@pytest.mark.parametrize("name", sorted(set(re.findall(r"_SyncObj(__\w+)", _SOURCE))))
def test_private_members_exist(name: str) -> None:
    assert re.search(rf"\b(self\.|def ){name}\b", inspect.getsource(pysyncobj.syncobj))


@pytest.mark.parametrize("name", ["monotonicTime", "random", "createPoller", "createJournal"])
def test_replaced_globals_are_used(name: str) -> None:
    assert re.search(rf"\b{name}\b[.(]", inspect.getsource(pysyncobj.syncobj.SyncObj))
    assert getattr(pysyncobj.syncobj, name).__module__ in ("consensus.engine", "consensus.surroundings")


def test_overrides_keep_their_signatures() -> None:
    for name, member in vars(Engine).items():
        stock = getattr(pysyncobj.syncobj.SyncObj, name, None)
        if inspect.isfunction(member) and stock is not None and name != "__init__":
            assert len(inspect.signature(member).parameters) == len(inspect.signature(stock).parameters), name


def test_the_product_imports_no_pickle_and_touches_the_engine_in_one_module() -> None:
    for package in ("node", "mesh", "consensus", "storage"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                roots = {name.split(".")[0] for name in names}
                assert not roots & {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}, path
                assert "pysyncobj" not in roots or path.name == "engine.py", path


def test_dice_and_clock_are_those_of_the_step() -> None:
    Engine.enter(12.5, random.Random(3))
    assert pysyncobj.syncobj.monotonicTime() == 12.5
    assert pysyncobj.syncobj.random.random() == random.Random(3).random()


def test_nodes_hash_by_their_id() -> None:
    nodes = Cluster().replicas[IDS[0]].engine.nodes
    assert [hash(nodes[i]) for i in IDS] == [3904355907, 1908338681, 112844655]
