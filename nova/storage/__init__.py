"""Storage: the log, snapshots and the catalogue, on real files. `nova.storage.base` has the seams."""
