"""The hybrid locator: MUSIC on a network's covariance, blended with that of the snapshots."""
