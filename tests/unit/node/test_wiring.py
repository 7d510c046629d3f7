"""Which data directories a node opens."""

from pathlib import Path

import pytest

from mesh.identity import Identity
from node.common import STORE_DIRECTORY
from node.config import Config, load
from node.wiring import open_store
from storage.errors import CorruptStore


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load(None, {"MESHNODE_NODE_DATA_DIR": str(tmp_path / "data")})


def test_a_node_whose_store_is_gone_does_not_begin_anew_under_its_id(config: Config) -> None:
    open_store(config).close()
    own = Identity.load_or_create(config.data_dir / "identity").node_id
    store = config.data_dir / STORE_DIRECTORY
    store.rename(config.data_dir / "elsewhere")
    for _ in range(2):
        with pytest.raises(CorruptStore, match="missing, though it was here"):
            open_store(config)
    (config.data_dir / "elsewhere").rename(store)
    open_store(config).close()
    assert Identity.load_or_create(config.data_dir / "identity").node_id == own


def test_a_leaf_that_becomes_an_edge_keeps_its_id(config: Config) -> None:
    Identity.load_or_create(config.data_dir / "identity")
    open_store(config).close()
