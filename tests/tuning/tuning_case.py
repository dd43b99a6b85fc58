"""A search whose trainings take a second each."""

from __future__ import annotations

from rismusic.nn.spec import NetworkSpec, ScheduleSpec, TrainSpec
from rismusic.spec import LocateSpec, SystemSpec
from rismusic.tuning.spec import TuneSpec

SYSTEM = SystemSpec(
    panel={"rows": 6, "columns": 6},
    channel={"antennas": 4},
    codebook={"snapshots": 5},
    sources=(1, 2),
    snr_db=(5.0, 20.0),
)
TRAINING = TrainSpec(
    system=SYSTEM,
    network=NetworkSpec(sources_max=2, oversampling=1.3, stages=1, depth=1, width=8, kernel=3, heads=2),
    schedule=ScheduleSpec(epochs=2),
    scenes_per_epoch=8,
    batch=4,
    validation_scenes=4,
    scored_scenes=2,
    average_decay=0.9,
)
# Without the polish, which takes most of the time and leads different networks to the same estimates.
LOCATE = LocateSpec(polish=False, hybrid={"model_order": "network", "recheck_p_value": 0.0})
SPEC = TuneSpec(
    training=TRAINING,
    locate=LOCATE,
    epochs_per_trial=1,
    inference_trials=1,
    inference_scenes=3,
    objective_scenes=6,
    test_scenes=6,
    finalists=1,
    final_seeds=1,
    final_epochs=1,
)
SPACE = """
[training."network.width"]
choices = [8, 16]

[training.head_learning_rate]
low = 1e-4
high = 1e-2
log = true

[locate."hybrid.beta"]
low = 0.0
high = 0.8
"""
