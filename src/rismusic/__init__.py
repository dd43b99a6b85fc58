"""rismusic: several radio sources in 3-D in the near field of a RIS or antenna panel.

The public API in one page. Names are imported when they are first used, so that ``import rismusic`` and the
command line's help do not wait for torch, and an interruption at once finds the command line's handlers.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING

from rismusic.errors import InputError, renamed_name
from rismusic.version import __version__

if TYPE_CHECKING:
    from rismusic.array import Panel, steering, steering_with_derivatives
    from rismusic.benchmark.planning import PlanResult, bound_table, plan
    from rismusic.benchmark.run import Benchmark, bench
    from rismusic.benchmark.spec import BenchSpec
    from rismusic.checks import check
    from rismusic.crb import Bound, RoomBound, conditional_crb, recording_crb, room_crb, unconditional_crb
    from rismusic.doctor.diagnose import diagnose
    from rismusic.doctor.module import diagnose_module
    from rismusic.doctor.report import Diagnosis, write_diagnosis
    from rismusic.doctor.run_log import diagnose_run
    from rismusic.doctor.watch import watch
    from rismusic.estimation.estimate import Estimate, Estimator, log_likelihood
    from rismusic.estimation.grid import SearchGrid, Volume
    from rismusic.estimation.model_order import aic, mdl
    from rismusic.estimation.spectra import Spectrum, SpectrumMethod
    from rismusic.hybrid import locate
    from rismusic.io import (
        Recording,
        RecordingWriter,
        load_sample,
        open_recording,
        read,
        to_room_frame,
        write,
    )
    from rismusic.io.calibration import PanelCalibration
    from rismusic.link_budget import LinkBudget, compute_link_budget
    from rismusic.locator import Locator
    from rismusic.metrics import Match, Score, match, score
    from rismusic.nn.checkpoint import load_network
    from rismusic.nn.network import GridNetwork, Prediction
    from rismusic.nn.spec import TrainSpec
    from rismusic.nn.train import TrainingResult, train
    from rismusic.operator import Link
    from rismusic.panel_calibration import calibrate_panel
    from rismusic.plots import plot_panel_calibration, plot_scene
    from rismusic.registry import register_estimator, register_network, register_spectrum
    from rismusic.report import write_bench_report, write_report
    from rismusic.room import RoomEstimate, locate_room
    from rismusic.simulation.simulator import Simulator, simulate
    from rismusic.sources import Sources
    from rismusic.spec import LinkBudgetSpec, SystemSpec
    from rismusic.spectrum_map import SpectrumMap, spectrum
    from rismusic.tuning.results import TuneResult
    from rismusic.tuning.spec import TuneSpec
    from rismusic.tuning.study import tune

_HOME = {
    name: module
    for module, names in (
        # describe a system
        ("spec", "SystemSpec LinkBudgetSpec"),
        ("array", "Panel steering steering_with_derivatives"),
        ("operator", "Link"),
        ("sources", "Sources"),
        # simulate it
        ("simulation.simulator", "Simulator simulate"),
        # recordings and files
        ("io", "Recording RecordingWriter open_recording load_sample to_room_frame read write"),
        ("checks", "check"),
        # locate the sources
        ("hybrid", "locate"),
        ("locator", "Locator"),
        ("room", "locate_room RoomEstimate"),
        ("panel_calibration", "calibrate_panel"),
        ("io.calibration", "PanelCalibration"),
        ("plots", "plot_panel_calibration plot_scene"),
        ("estimation.estimate", "Estimate Estimator log_likelihood"),
        ("spectrum_map", "spectrum SpectrumMap"),
        ("estimation.spectra", "Spectrum SpectrumMethod"),
        ("estimation.grid", "SearchGrid Volume"),
        ("estimation.model_order", "mdl aic"),
        # the best that physics allows
        ("crb", "Bound conditional_crb unconditional_crb recording_crb room_crb RoomBound"),
        ("benchmark.planning", "bound_table"),
        # plan a system
        ("link_budget", "LinkBudget compute_link_budget"),
        ("benchmark.planning", "plan PlanResult"),
        # compare methods
        ("metrics", "match Match score Score"),
        ("benchmark.spec", "BenchSpec"),
        ("benchmark.run", "bench Benchmark"),
        # add methods and networks of one's own
        ("registry", "register_estimator register_spectrum register_network"),
        # train a network
        ("nn.spec", "TrainSpec"),
        ("nn.train", "train TrainingResult"),
        ("nn.checkpoint", "load_network"),
        ("nn.network", "GridNetwork Prediction"),
        # why it does not learn
        ("doctor.diagnose", "diagnose"),
        ("doctor.report", "Diagnosis write_diagnosis"),
        ("doctor.run_log", "diagnose_run"),
        ("doctor.module", "diagnose_module"),
        ("doctor.watch", "watch"),
        # search settings
        ("tuning.spec", "TuneSpec"),
        ("tuning.study", "tune"),
        ("tuning.results", "TuneResult"),
        # what came of it, as one HTML file
        ("report", "write_report write_bench_report"),
    )
    for name in names.split()
}

__all__ = ["InputError", "__version__", *_HOME]

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    if name not in _HOME:
        changed = renamed_name(name)
        if changed is not None:
            raise AttributeError(f"rismusic.{name} {changed}")
        raise AttributeError(f"module 'rismusic' has no attribute {name!r}")
    return getattr(import_module(f"rismusic.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
