"""rismusic: several radio sources in 3-D in the near field of a RIS or antenna panel.

The public API in one page. Names are imported when they are first used, so that ``import rismusic`` and the
command line's help do not wait for torch.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING

from rismusic.errors import InputError
from rismusic.registry import register_estimator, register_network, register_spectrum
from rismusic.spec import SystemSpec
from rismusic.version import __version__

if TYPE_CHECKING:
    from rismusic.array import Panel, steering, steering_with_derivatives
    from rismusic.checking import check
    from rismusic.crb import Bound, conditional_crb, recording_crb, unconditional_crb
    from rismusic.doctor.after import diagnose_run
    from rismusic.doctor.diagnose import Diagnosis, diagnose
    from rismusic.doctor.generic import diagnose_module
    from rismusic.doctor.report import write_diagnosis
    from rismusic.estimation.estimate import Estimate, Estimator, log_likelihood
    from rismusic.estimation.grid import SearchGrid
    from rismusic.estimation.model_order import aic, mdl
    from rismusic.estimation.spectra import Spectrum, SpectrumMethod
    from rismusic.evaluate.bench.run import Benchmark, bench, merge_benchmarks
    from rismusic.evaluate.bench.spec import BenchSpec
    from rismusic.evaluate.bound_table import bound_table
    from rismusic.evaluate.metrics import Match, Score, match, score
    from rismusic.evaluate.report import write_bench_report, write_report
    from rismusic.hybrid import locate
    from rismusic.io import Recording, RecordingWriter, open_recording, read, write
    from rismusic.nn.network import GridNetwork, Prediction
    from rismusic.nn.spec import TrainSpec
    from rismusic.nn.train import TrainingResult, train
    from rismusic.nn.weights import load_network
    from rismusic.operator import Link
    from rismusic.simulation.simulator import Simulator, simulate
    from rismusic.sources import Sources
    from rismusic.spectrum_map import SpectrumMap, spectrum
    from rismusic.tuning.outcome import Tuned
    from rismusic.tuning.run import tune
    from rismusic.tuning.spec import TuneSpec

_HOME = {
    # describe a system
    "Panel": "panel",
    "steering": "wave",
    "steering_with_derivatives": "wave",
    "Link": "link",
    "Sources": "scene",
    # simulate it
    "Simulator": "simulator",
    "simulate": "simulator",
    # recordings and files
    "Recording": "recording",
    "RecordingWriter": "recording",
    "open_recording": "recording",
    "read": "recording",
    "write": "recording",
    "check": "checking",
    # locate the sources
    "locate": "hybrid.locate",
    "Estimate": "estimate.estimate",
    "Estimator": "estimate.estimate",
    "spectrum": "hybrid.spectrum",
    "SpectrumMap": "hybrid.spectrum",
    "Spectrum": "estimate.spectrum",
    "SpectrumMethod": "estimate.spectrum",
    "SearchGrid": "estimate.grid",
    "log_likelihood": "estimate.estimate",
    "mdl": "estimate.eigencount",
    "aic": "estimate.eigencount",
    # the best that physics allows
    "Bound": "bounds",
    "conditional_crb": "bounds",
    "unconditional_crb": "bounds",
    "recording_crb": "bounds",
    "bound_table": "evaluate.bound_table",
    # compare methods
    "match": "evaluate.metrics",
    "Match": "evaluate.metrics",
    "score": "evaluate.metrics",
    "Score": "evaluate.metrics",
    "BenchSpec": "evaluate.bench.spec",
    "bench": "evaluate.bench.run",
    "Benchmark": "evaluate.bench.run",
    "merge_benchmarks": "evaluate.bench.run",
    # train a network
    "TrainSpec": "learn.spec",
    "train": "learn.run",
    "Trained": "learn.run",
    "load_network": "learn.weights",
    "GridNetwork": "learn.network",
    "Prediction": "learn.prediction",
    # why it does not learn
    "diagnose": "doctor.diagnose",
    "Diagnosis": "doctor.diagnose",
    "diagnose_run": "doctor.after",
    "diagnose_module": "doctor.generic",
    "write_diagnosis": "doctor.report",
    # search settings
    "TuneSpec": "tuning.spec",
    "tune": "tuning.run",
    "Tuned": "tuning.outcome",
    # what came of it, as one HTML file
    "write_report": "evaluate.report",
    "write_bench_report": "evaluate.report",
}

__all__ = [
    "InputError",
    "SystemSpec",
    "__version__",
    "register_estimator",
    "register_network",
    "register_spectrum",
    *_HOME,
]

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'rismusic' has no attribute {name!r}")
    return getattr(import_module(f"rismusic.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
