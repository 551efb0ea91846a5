"""The fixture that starts a real Slurm, once for all tests of a test process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from cluster import Cluster, missing


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes, n1 and n2, of eight pretended CPUs each. A test that harms a node starts it again."""
    if lacking := missing():
        lack = f"no Slurm here: {', '.join(lacking)} (make test-slurm installs it)"
        pytest.fail(lack) if os.environ.get("PYNAS_REQUIRE_SLURM") else pytest.skip(lack)
    with Cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture
def slurm(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster with this process as its client; every node is up before and no job is left after a test."""
    cluster.wait_for(cluster.idle, "the nodes are idle again")
    for name, value in cluster.variables.items():
        monkeypatch.setenv(name, value)
    yield cluster
    cluster.client("scancel", "--user=root", check=False)
    cluster.wait_for(lambda: not cluster.jobs().strip(), "the queue is empty")
