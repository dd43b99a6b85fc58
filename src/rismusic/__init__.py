"""rismusic: several radio sources in 3-D in the near field of a RIS or antenna panel.

The public API in one page. Names are imported when they are first used, so that ``import rismusic`` and the
command line's help do not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from rismusic.errors import InputError
from rismusic.spec import SystemSpec
from rismusic.version import __version__

if TYPE_CHECKING:
    from rismusic.array import Panel, steering, steering_with_derivatives
    from rismusic.checking import check
    from rismusic.crb import Bound, conditional_crb, recording_crb, unconditional_crb
    from rismusic.doctor.diagnose import diagnose
    from rismusic.doctor.module import diagnose_module
    from rismusic.doctor.report import Diagnosis, write_diagnosis
    from rismusic.doctor.run_log import diagnose_run
    from rismusic.estimation.locate import Located
    from rismusic.evaluate.bench.run import Benchmark, bench, merge_benchmarks
    from rismusic.evaluate.bench.spec import BenchSpec
    from rismusic.evaluate.bound_table import bound_table
    from rismusic.evaluate.report import write_bench_report, write_report
    from rismusic.hybrid import locate
    from rismusic.io import Recording, RecordingWriter, open_recording, read, write
    from rismusic.nn.spec import TrainSpec
    from rismusic.nn.train import TrainingResult, train
    from rismusic.nn.weights import load_network
    from rismusic.operator import Link
    from rismusic.simulation.simulator import Simulator, simulate
    from rismusic.sources import Sources
    from rismusic.tuning.results import TuneResult
    from rismusic.tuning.study import tune
    from rismusic.tuning.spec import TuneSpec

_HOME = {
    # describe a system
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
    "read": "io",
    "write": "io",
    "check": "checking",
    # locate the sources
    "locate": "hybrid",
    "Located": "estimation.locate",
    # the best that physics allows
    "Bound": "crb",
    "conditional_crb": "crb",
    "unconditional_crb": "crb",
    "recording_crb": "crb",
    "bound_table": "evaluate.bound_table",
    # compare methods
    "BenchSpec": "evaluate.bench.spec",
    "bench": "evaluate.bench.run",
    "Benchmark": "evaluate.bench.run",
    "merge_benchmarks": "evaluate.bench.run",
    # train a network
    "TrainSpec": "nn.spec",
    "train": "nn.train",
    "TrainingResult": "nn.train",
    "load_network": "nn.weights",
    # why it does not learn
    "diagnose": "doctor.diagnose",
    "Diagnosis": "doctor.report",
    "diagnose_run": "doctor.run_log",
    "diagnose_module": "doctor.module",
    "write_diagnosis": "doctor.report",
    # search settings
    "TuneSpec": "tuning.spec",
    "tune": "tuning.study",
    "TuneResult": "tuning.results",
    # what came of it, as one HTML file
    "write_report": "evaluate.report",
    "write_bench_report": "evaluate.report",
}

__all__ = ["InputError", "SystemSpec", "__version__", *_HOME]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'rismusic' has no attribute {name!r}")
    return getattr(import_module(f"rismusic.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
