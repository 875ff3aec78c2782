"""Strong inside a region, eventual and causal across regions: a Raft group for each region, whose logs are streams."""

from nova.consensus.hybrid.core import Hybrid
from nova.consensus.hybrid.options import HybridOptions

__all__ = ["Hybrid", "HybridOptions"]
