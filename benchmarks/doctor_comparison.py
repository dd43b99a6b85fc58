"""The small networks of ``module_faults.py`` under other tools' checks, as CSV.

Needs ``pip install torchtest lightning``, which the package itself does not need.

- torchtest: variables that do not change, NaN and infinity. Its message counts as the name of the cause if it
  says which parameters do not change, or that there is a NaN.
- Lightning: ``fast_dev_run``, then ``overfit_batches=1`` for 100 epochs. It names no cause. A fault is
  noticed if an exception is raised, or if the loss has not fallen by half.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import math
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from doctor_faults import MEASURED, Outcome, outcome_of, write

OUT = MEASURED / "doctor_comparison.csv"
EPOCHS = 100
Found = list[tuple[str, str]]


def arguments(case: Any, change: Callable[[Any], object]) -> dict[str, Any]:
    """The arguments of ``diagnose_module``, with a fault."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    given: dict[str, Any] = case.make()
    change(given)
    given["whole"] = importlib.import_module("rismusic.doctor.state").as_one(given["module"])
    return given


def optimizer_of(given: dict[str, Any]) -> torch.optim.Optimizer:
    made = given.get("optimizer")
    if made is None:
        return torch.optim.AdamW(given["whole"].parameters(), lr=1e-3)
    return made if isinstance(made, torch.optim.Optimizer) else made(given["whole"].parameters())


class _WithLoss(nn.Module):
    """The network and its loss as one module, since torchtest expects ``loss(model(x), y)``."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__()
        self.whole, self._given = given["whole"], given

    def forward(self, _: Tensor) -> Tensor:
        return self._given["loss"](self._given["module"], self._given["batch"])


def torchtest(given: dict[str, Any]) -> Found:
    """What torchtest finds."""
    suite = importlib.import_module("torchtest")
    suite.setup()
    model = _WithLoss(given)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    batch = [torch.zeros(1), torch.zeros(1)]
    try:
        suite.assert_vars_change(model, lambda out, _: out, optimizer_of(given), batch, "cpu", params=trained)
        with torch.enable_grad():
            value = model(batch[0])
        suite.assert_never_nan(value)
        suite.assert_never_inf(value)
    except Exception as error:  # Any exception is the finding.
        kind = type(error).__name__
        text = {
            "VariablesChangeException": "these parameters do not learn and never change",
            "NaNTensorException": "batch contains NaN, the loss is NaN",
        }.get(kind, "")
        return [(kind, f"{text} {error}")]
    return []


def lightning(given: dict[str, Any]) -> Found:
    """What Lightning's ``fast_dev_run`` and ``overfit_batches`` show."""
    pl = importlib.import_module("lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    losses: list[float] = []

    class Model(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.whole = given["whole"]

        def training_step(self, batch: Any, _: int) -> Tensor:
            value: Tensor = given["loss"](given["module"], batch)
            losses.append(float(value.detach()))
            return value

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer_of(given)

    batches: Any = [given["batch"]]
    loader: Any = torch.utils.data.DataLoader(batches, batch_size=None)
    silent = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    try:
        for settings in ({"fast_dev_run": True}, {"overfit_batches": 1, "max_epochs": EPOCHS}):
            losses.clear()
            pl.Trainer(**silent, **settings).fit(Model(), loader)
    except Exception as error:  # Any exception is the finding.
        return [("exception", " ".join(str(error).split())[:200])]
    first, last = losses[0], losses[-1]
    if not math.isfinite(last) or last > first - 0.5 * abs(first):
        return [("overfit_batches", f"loss {first:.4g} -> {last:.4g} in {EPOCHS} epochs")]
    return []


def rismusic(given: dict[str, Any]) -> Found:
    """What ``diagnose_module`` finds."""
    diagnose = importlib.import_module("rismusic.doctor.module").diagnose_module
    given = {key: value for key, value in given.items() if key != "whole"}
    diagnosis = diagnose(given.pop("module"), given.pop("loss"), given.pop("batch"), **given)
    return [(r.tag, f"{one.name}: {one.meaning}") for r in diagnosis.reports for one in r.wrong]


TOOLS: dict[str, Callable[[dict[str, Any]], Found]] = {
    "rismusic": rismusic,
    "torchtest": torchtest,
    "lightning": lightning,
}


def work(tool: str, case: Any, change: Callable[[Any], object]) -> Found:
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return TOOLS[tool](arguments(case, change))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--every", type=int, default=1, help="take every n-th network only")
    parser.add_argument("--out", type=Path, default=OUT, help="CSV file to write")
    given = parser.parse_args()
    for name in ("rismusic.doctor.module", *(("lightning",) if "lightning" in given.tools else ())):
        importlib.import_module(name)
    cases = importlib.import_module("module_faults").CASES[:: given.every]
    rows: list[Outcome] = []
    for case in cases:
        changes = [("healthy", None, lambda _: None), *case.faults]
        for tool in given.tools:
            for name, names, change in changes:
                row = outcome_of(
                    f"{tool}: {case.name}: {name}",
                    names,
                    lambda: work(tool, case, change),  # noqa: B023
                )
                rows.append(row)
                print(row, flush=True)
                write(given.out, rows)
    for tool in given.tools:
        number = Counter(row.outcome for row in rows if row.case.startswith(f"{tool}:"))
        print(tool, ", ".join(f"{count} {name}" for name, count in number.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
