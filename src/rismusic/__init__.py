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
    # describe a system
    "SystemSpec": "spec",
    "LinkBudgetSpec": "spec",
    "Panel": "array",
    "steering": "array",
    "steering_with_derivatives": "array",
    "Link": "operator",
    "Sources": "sources",
    # simulate it
    "Simulator": "simulation.simulator",
    "simulate": "simulation.simulator",
    # recordings and files
    "Recording": "io",
    "RecordingWriter": "io",
    "open_recording": "io",
    "load_sample": "io",
    "to_room_frame": "io",
    "read": "io",
    "write": "io",
    "check": "checks",
    # locate the sources
    "locate": "hybrid",
    "Locator": "locator",
    "locate_room": "room",
    "RoomEstimate": "room",
    "calibrate_panel": "panel_calibration",
    "PanelCalibration": "io.calibration",
    "plot_panel_calibration": "plots",
    "plot_scene": "plots",
    "Estimate": "estimation.estimate",
    "Estimator": "estimation.estimate",
    "spectrum": "spectrum_map",
    "SpectrumMap": "spectrum_map",
    "Spectrum": "estimation.spectra",
    "SpectrumMethod": "estimation.spectra",
    "SearchGrid": "estimation.grid",
    "Volume": "estimation.grid",
    "log_likelihood": "estimation.estimate",
    "mdl": "estimation.model_order",
    "aic": "estimation.model_order",
    # the best that physics allows
    "Bound": "crb",
    "conditional_crb": "crb",
    "unconditional_crb": "crb",
    "recording_crb": "crb",
    "room_crb": "crb",
    "RoomBound": "crb",
    "bound_table": "benchmark.planning",
    # plan a system
    "LinkBudget": "link_budget",
    "compute_link_budget": "link_budget",
    "plan": "benchmark.planning",
    "PlanResult": "benchmark.planning",
    # compare methods
    "match": "metrics",
    "Match": "metrics",
    "score": "metrics",
    "Score": "metrics",
    "BenchSpec": "benchmark.spec",
    "bench": "benchmark.run",
    "Benchmark": "benchmark.run",
    # add methods and networks of one's own
    "register_estimator": "registry",
    "register_spectrum": "registry",
    "register_network": "registry",
    # train a network
    "TrainSpec": "nn.spec",
    "train": "nn.train",
    "TrainingResult": "nn.train",
    "load_network": "nn.checkpoint",
    "GridNetwork": "nn.network",
    "Prediction": "nn.network",
    # why it does not learn
    "diagnose": "doctor.diagnose",
    "Diagnosis": "doctor.report",
    "diagnose_run": "doctor.run_log",
    "diagnose_module": "doctor.module",
    "watch": "doctor.watch",
    "write_diagnosis": "doctor.report",
    # search settings
    "TuneSpec": "tuning.spec",
    "tune": "tuning.study",
    "TuneResult": "tuning.results",
    # what came of it, as one HTML file
    "write_report": "report",
    "write_bench_report": "report",
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
