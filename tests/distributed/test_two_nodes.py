"""Two machines, as namespaces of the network: one is lost, comes again, and the run ends as if nothing had been.

The oracle is the first life of the two, which is let be. `make bench-reliability ROWS=nodes` does it more often.
"""

import shutil

import lives
import nodes
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.distributed,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not nodes.possible(), reason="needs root and iproute2, to make namespaces of the network"),
]


@pytest.fixture
def both():
    made = nodes.Nodes()
    yield made
    made.close()


@pytest.mark.parametrize(("step", "lost"), [("ppo", 1), ("reward-2", 0)])
def test_a_machine_that_was_lost_comes_again_and_the_end_is_the_same(undisturbed, both, tmp_path, step, lost):
    folder = lives.without(undisturbed, step, tmp_path)
    artefact = folder / "runs" / "tiny" / step
    nodes.to_the_end(both, folder, step)
    end = lives.outcome(artefact)
    shutil.rmtree(artefact)
    nodes.to_the_end(both, folder, step, lost=lost, after=2)
    assert lives.events(folder, "resume") == 1
    assert lives.outcome(artefact) == end
