"""Can the network learn a few hundred scenes by heart? Minutes, so only where it is asked for."""

from __future__ import annotations

from rismusic.doctor.case import Case, told
from rismusic.nn.monitors import Report, at_most

SCENES, EPOCHS = 512, 20
_BATCH = 32
# Share of the covariance error that may be left.
_LEFT = 0.5


def overfit(case: Case, scenes: int = SCENES, epochs: int = EPOCHS) -> Report:
    """Train on the same scenes again and again; what is left of the covariance error of R_pred alone?"""
    batch = min(_BATCH, case.spec.batch, scenes)
    spec = case.spec.replace(
        schedule=case.spec.schedule.replace(epochs=epochs),
        scenes_per_epoch=scenes // batch * batch,
        batch=batch,
        accumulation=1,
        fresh=False,
        hidden_noise=0.0,
        validation_scenes=4,
        scored_scenes=2,
        patience=0,
    )
    trainer = case.begin(spec)
    trainer.train()
    epochs_logged = trainer.run.records("epoch")
    first, last = (
        float(line["training"]["covariance_predicted"])  # type: ignore[index]
        for line in (epochs_logged[0], epochs_logged[-1])
    )
    finding = at_most(
        f"covariance error of R_pred left after {epochs} epochs on the same {scenes} scenes, over the first "
        "epoch's",
        last / first,
        _LEFT,
        "the network cannot learn a few scenes by heart: factors that learn nothing, too small a network, "
        "or labels "
        "that do not belong to the scenes.",
        "Look at [GRADPATH], [CONSTANT] and [TRUTH]; then try a wider network or a higher learning rate.",
    )
    return told("OVERFIT", f"covariance error {first:.3f} -> {last:.3f}", [finding])
