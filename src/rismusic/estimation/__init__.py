"""From a recording to positions: grid, spectra, peaks, and the searches and fits that work on snapshots."""
