"""All faults that are planted."""

from tests.simulation import planted_consensus, planted_mesh

PLANTED = [*planted_consensus.PLANTED, *planted_mesh.PLANTED]
