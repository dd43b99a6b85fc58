"""From findings to causes: which findings follow from others, and the function in which to look first."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rismusic import covariance
from rismusic.doctor.case import Case
from rismusic.doctor.state import names
from rismusic.nn import data, learner, losses, network, validation
from rismusic.nn.monitors import Report
from rismusic.simulation import scene, simulator

# Functions of losses by name of the term, as in the settings.
_TERMS: Mapping[str, Callable[..., Any]] = {
    "covariance": losses.covariance_error,
    "covariance_predicted": losses.covariance_error,
    "subspace": losses.subspace_leakage,
    "eigengap": losses.eigengap_hinge,
    "peak_contrast": losses.peak_contrast,
    "orthogonality": losses.factor_coherence,
    "cross": losses.cross_coherence,
    "heat_map": losses.heat_map_divergence,
    "count": losses.count_divergence,
    "angle": losses.match_heads,
    "log_range": losses.match_heads,
    "existence": losses.match_heads,
}
_Suspect = Callable[[Case], Any]

# Check, regular expression of name and meaning, and where to look. The first that matches counts.
_SUSPECTS: tuple[tuple[str, str, _Suspect], ...] = (
    ("PANEL", "network", lambda case: type(case.learner.network).__init__),
    ("PANEL", "", lambda case: type(case.trainer.scenes).__init__),
    ("TRUTH", "", lambda _: scene.draw_sources),
    ("POSITIONS", "", lambda _: scene.draw_sources),
    ("LINK", "channel", lambda _: scene.draw_channel),
    ("LINK", "", lambda _: scene.draw_codes),
    ("DRAWS", "held constant", lambda _: scene.draw_symbols),
    ("DRAWS", "SNR|noise|snapshots of a scene", lambda _: simulator.Simulator._receive),
    ("DRAWS", "hidden", lambda case: case.trainer.scenes.noise_hidden),
    ("DRAWS", "symbols", lambda _: scene.draw_symbols),
    ("DRAWS", "", lambda _: scene.draw_sources),
    ("LEAK", "training and validation", lambda case: case.trainer.scenes.validation),
    ("LEAK", "", lambda case: case.trainer.scenes.scene_ranges),
    ("R_SAMP", "", lambda _: covariance.recording_covariance),
    ("STAGES", "of the heat map of stage 1 from", lambda _: network.Stage.forward),
    ("STAGES", "of the heat map of stage", lambda _: network.Network.predict),
    ("STAGES", "", lambda _: network.Network._sources),
    ("SYMMETRY", "heads|sources", lambda _: losses.match_heads),
    ("SYMMETRY", "", lambda _: losses.total_loss),
    ("OPTIMIZER", "", lambda case: type(case.learner).__init__),
    ("INSIDE|INPUT|CONSTANT", "", lambda case: type(case.learner.network).forward),
    ("SCHEDULE", "beta", lambda _: data.beta_at),
    ("SCHEDULE", "", lambda _: data.learning_rate_factor),
    ("STEP|FINITE", "", lambda case: type(case.learner).step),
    ("REPLAY", "per epoch|logged steps", lambda case: type(case.trainer).train),
    ("REPLAY", "beta|scenes", lambda case: type(case.trainer)._step),
    ("REPLAY", "loss weights", lambda _: data.weights_at),
    ("REPLAY", "another weight decay", lambda _: learner.parameter_groups),
    ("REPLAY", "average", lambda case: type(case.learner)._update_average),
    ("REPLAY", "", lambda case: type(case.learner).step),
    ("HELDOUT", "several times|set|SNR|sources|scenes of", lambda case: case.trainer.scenes.validation),
    ("HELDOUT", "", lambda _: validation.validate),
    ("FILES", "resume", lambda case: type(case.trainer).resume),
    ("FILES", "", lambda case: type(case.trainer)._save_weights),
)


def place_of(function: Any) -> str:
    """Name, file and first line of a function, such as ``Learner.step (learner.py:133)``."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    code = getattr(function, "__code__", None)
    if code is None:
        return ""
    return f"{function.__qualname__} ({Path(code.co_filename).name}:{code.co_firstlineno})"


def suspected(report: Report, case: Case) -> Report:
    """The report, each finding outside its limit with the function to look at first."""
    findings = []
    for one in report.findings:
        text = f"{one.name} {one.meaning}"
        term = re.search(r"\bloss (\w+)", one.name)
        suspect = _TERMS.get(term.group(1)) if term is not None and "R_blend" not in text else None
        for tag, words, get in _SUSPECTS if suspect is None else ():
            if re.fullmatch(tag, report.tag) and re.search(words, text):
                suspect = get(case)
                break
        known = not one.fine and not one.where and suspect is not None
        findings.append(replace(one, where=place_of(suspect)) if known else one)
    return replace(report, findings=tuple(findings))


_LEARNING = "LITMUS CONSTANT COURSE PROGRESS VALIDATION VAL UPDATES LEARNED"
_LOSSES = "TERMS SLOPE SYMMETRY LOSS HELDOUT"
# The other checks of the package's own training.
_PACKAGE = (
    "PANEL WAVE TRUTH POSITIONS LINK DRAWS LEAK R_SAMP STAGES BACKWARD OPTIMIZER INSIDE INPUT GRADPATH GRAD "
    "SCHEDULE STEP DECAY FINITE REPLAY FILES"
)
EFFECTS: dict[str, frozenset[str]] = {
    tag: names(effects)
    for tags, effects in (
        ("FUNCTIONS", f"{_PACKAGE} {_LOSSES} {_LEARNING}"),
        ("PANEL WAVE", f"WAVE TRUTH R_SAMP DRAWS INSIDE INPUT {_LOSSES} {_LEARNING}"),
        ("POSITIONS TRUTH", f"TRUTH DRAWS LEAK R_SAMP HELDOUT {_LOSSES} {_LEARNING}"),
        ("DRAWS LINK LEAK", f"TRUTH LINK LEAK R_SAMP HELDOUT REPLAY {_LEARNING}"),
        ("OPTIMIZER", f"GRAD STEP REPLAY FILES {_LEARNING}"),
        ("REPLAY", f"STEP FINITE SCHEDULE FILES HELDOUT {_LEARNING}"),
        ("SCHEDULE", f"LR STEP {_LEARNING}"),
        ("FINITE", f"STEP STEPS LOSS SLOPE LAYERS {_LEARNING}"),
        ("CALLS", f"BATCH MODES LAYERS SLOPE {_LEARNING}"),
        ("INPUT", f"LAYERS SLOPE PRECISION MODES {_LEARNING}"),
        ("R_SAMP", f"{_LOSSES} {_LEARNING}"),
        ("STAGES", f"INSIDE CONSTANT {_LOSSES} {_LEARNING}"),
        ("TERMS", f"{_LOSSES} {_LEARNING}"),
        ("BACKWARD", f"INSIDE GRADPATH GRAD {_LEARNING}"),
        ("SLOPE", f"BACKWARD STEP GRADPATH GRAD {_LEARNING}"),
        ("GRAD GRADPATH", f"SLOPE INSIDE {_LEARNING}"),
        ("LAYERS INSIDE", f"GRAD GRADPATH {_LEARNING}"),
        ("DATA", _LEARNING),
        ("BATCH", f"USAGE MODES {_LEARNING}"),
        ("TARGET BOUND", f"CONSTANT {_LEARNING}"),
        ("EXCHANGE RANGE USAGE TERMS VALUES LINEAR", _LEARNING),
        ("LOOP RETRAIN", "COURSE UPDATES LEARNED"),
        ("STEP DECAY", f"REPLAY {_LEARNING}"),
        ("MODES", "VALIDATION VAL"),
        ("HELDOUT", "VALIDATION VAL FILES"),
        ("LOSS", "LITMUS"),
        ("UPDATES LITMUS", "CONSTANT COURSE LEARNED VALIDATION VAL"),
        ("LEARNED", "COURSE CONSTANT"),
    )
    for tag in tags.split()
}
"""Checks whose findings may follow from a finding of a check; in the order in which causes come first."""
