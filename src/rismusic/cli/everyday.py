"""The options that the plain ``--help`` of each command lists, in this order; all others are expert options.

Expert options are listed by ``--help-all``. They work on the command line and in TOML files like the others.
"""

from __future__ import annotations

EVERYDAY: dict[str, tuple[str, ...]] = {
    "simulate": (
        *("output", "scenes", "sources", "snr_db", "seed", "one_link", "link_from", "device", "config"),
        *("overwrite", "panel.rows", "panel.columns", "panel.wavelength_m", "channel.kind"),
        *("channel.antennas", "codebook.kind", "codebook.snapshots", "codebook.bits"),
    ),
    "check": ("file", "as_json", "fit", "plot", "scene", "overwrite"),
    "locate": (
        *("file", "sources", "method", "weights", "panel_error", "range_min_m", "range_max_m"),
        *("azimuth_max_deg", "elevation_max_deg", "output", "plot", "scene", "report", "device", "config"),
        *("overwrite", "plugins"),
    ),
    "bound": ("sources", "snr_db", "scenes", "seed", "kind", "output", "plot", "config", "overwrite"),
    "bench": (
        *("methods", "sources", "snr_db", "scenes", "seed", "count", "sweep", "sweep_values", "out"),
        *("resume", "workers", "device", "shard", "merge", "output", "report", "config", "overwrite"),
        "locate.plugins",
    ),
    "train": (
        *("config", "preset", "epochs", "out", "resume", "start", "device", "tensorboard", "seed", "batch"),
        *("scenes_per_epoch", "backbone_learning_rate", "head_learning_rate", "precision", "network.plugins"),
    ),
    "doctor": ("config", "preset", "folder", "overfit", "json_file", "report", "overwrite"),
    "tune": (
        *("config", "training_config", "space", "trials", "epochs_per_trial", "sampler", "pruner"),
        *("finalists", "final_seeds", "final_epochs", "seed", "out", "storage", "study", "resume", "device"),
    ),
}
