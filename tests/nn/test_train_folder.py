"""The folder of a training: bad input is one sentence, and nothing is lost."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from train_case import NETWORK, SPEC, checkpoint_of, finished, log_of, resumed, trainer

import rismusic
from rismusic.array import Panel
from rismusic.cli import COMMANDS, main
from rismusic.cli.parser import parse
from rismusic.errors import InputError
from rismusic.estimation.grid import SearchGrid
from rismusic.nn import checkpoint, validation
from rismusic.nn.checkpoint import load_network, save_network
from rismusic.nn.learner import Learner
from rismusic.nn.monitors import TensorBoardLog, plot_losses, plot_scores, plot_terms, save_curves
from rismusic.nn.network import Network
from rismusic.nn.run_folder import RunFolder
from rismusic.nn.spec import TrainSpec
from rismusic.nn.train import start_from, train
from rismusic.simulation.simulator import simulate
from rismusic.spec import dump_spec, read_spec

pytestmark = pytest.mark.usefixtures("quick_validation")


@pytest.fixture(scope="module")
def network():
    panel = Panel.from_spec(SPEC.system.panel)
    grid = SearchGrid.cover(panel, rismusic.estimation.grid.Volume.from_spec(SPEC.system.scene), 1.3)
    return Network(NETWORK, grid, torch.Generator().manual_seed(0))


@pytest.fixture
def configuration(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(dump_spec(SPEC.replace(schedule=SPEC.schedule.replace(epochs=1))))
    return path


def test_from_the_command_line_and_from_python(configuration, tmp_path, capfd):
    """The same training, its settings, log, curves and weights; then its network in use."""
    out = tmp_path / "run"
    assert main(["train", str(configuration), "--out", str(out), "--batch=2"]) == 0
    said = capfd.readouterr()
    assert said.out == ""
    for tag in ("LR", "GRADPATH", "GRAD", "OPT", "STEP", "VAL", "LOSS", "BETA"):
        assert f"[{tag}] " in said.err
        assert any(line["tag"] == tag for line in log_of(out, "probe"))
    spec = read_spec(TrainSpec, out / "settings.toml")
    assert spec == SPEC.replace(batch=2, schedule=SPEC.schedule.replace(epochs=1))
    assert (out / "curves.png").stat().st_size > 10_000
    done = []
    trained = rismusic.train(spec, out=tmp_path / "twin", device="cpu", progress=lambda *at: done.append(at))
    assert log_of(out) == log_of(tmp_path / "twin")
    assert done[-1] == (16, 16)
    assert len(trained.epochs) == 1
    recording = simulate(SPEC.system, scenes=2)
    loaded = rismusic.load_network(out / "best.safetensors", panel=recording.panel)
    assert torch.equal(loaded(recording).count_logits, trained.network(recording).count_logits)
    # Weights to start from.
    learner = Learner(spec)
    start_from(out / "last.safetensors", learner)
    for name, weight in load_network(out / "last.safetensors").named_parameters():
        assert torch.equal(learner.weights[name], weight)
        assert torch.equal(learner.average[name], weight)


def test_flags_win_over_the_configuration_and_this_over_the_preset(configuration):
    made = parse(["train", "--preset", "tiny", str(configuration), "--seed", "5"], COMMANDS).settings
    assert made == read_spec(TrainSpec, configuration).replace(seed=5)
    path = configuration.with_name("part.toml")
    path.write_text("batch = 16\n[network]\nheads = 3\n")
    made = parse(["train", "--preset", "tiny", "--config", str(path), "--network.depth=1"], COMMANDS).settings
    tiny = TrainSpec.tiny()
    assert made == tiny.replace(batch=16, network=tiny.network.replace(heads=3, depth=1))


@pytest.mark.parametrize("preset", ["tiny", "search", "final"])
def test_presets_survive_the_command_line(preset, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("rismusic.cli.train.Train.run", lambda self: seen.append(self.settings) or 0)
    assert main(["train", "--preset", preset]) == 0
    path = tmp_path / "all.toml"
    path.write_text(dump_spec(seen[0].replace(schedule={"curriculum": True}, fresh=False)))
    assert main(["train", str(path)]) == 0
    assert seen == [getattr(TrainSpec, preset)(), read_spec(TrainSpec, path)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("bacth = 3", "bacth: unknown setting"),
        ("[network]\nwidht = 3", "network.widht: unknown setting"),
        ("[system.panel]\nrows = 0", "panel.rows: expected at least 1, found 0"),
        ("batch = 7", "scenes_per_epoch: must be a multiple of batch x accumulation = 7; got 25600"),
        (
            "[network]\nsources_max = 2",
            "network.sources_max: must be at least 5, the maximum of system.sources; got 2",
        ),
        (
            "[system.panel]\ncolumns = 1",
            "system.panel.columns: must be at least 2, since networks estimate two",
        ),
        (
            "[system.scene]\nsymbols = 'constant'",
            "system.scene.symbols: must be gaussian or qpsk, since networks",
        ),
        ("[loss]\ncovariance = 0.0", "loss.covariance: expected at least 0.1, found 0.0"),
        ("batch = ", "is not a valid TOML file"),
    ],
)
def test_bad_configurations(text, sentence, tmp_path, capfd):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    assert main(["train", str(path), "--out", str(tmp_path / "run")]) == 2
    assert sentence in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_bad_flags(tmp_path, capfd):
    RunFolder(tmp_path / "run").create(SPEC)
    (tmp_path / "link").symlink_to("nowhere")
    for args, sentence in (
        (["--resume", str(tmp_path / "none")], "none: not the folder of a training: it does not exist"),
        (["--resume", str(tmp_path)], "not the folder of a training: it has no settings.toml"),
        (["--resume", str(tmp_path / "run"), "--batch", "8"], "(found --batch)"),
        (["--resume", str(tmp_path / "run"), "--epochs=40"], "(found --epochs)"),
        (["--resume", str(tmp_path / "run"), "-o", "other"], "(found --out)"),
        (["--resume", str(tmp_path / "run"), "--preset", "tiny"], "(found --preset)"),
        (["some.toml", "--resume", str(tmp_path / "run")], "(found --config)"),
        (["--epochs", "2", "--schedule.epochs", "3"], "--epochs: give either --epochs or --schedule.epochs"),
        (["--out", str(tmp_path / "run")], "run: the folder already contains a training"),
        (["--out", str(tmp_path)], "the output must be a new or empty folder"),
        (
            ["--out", str(tmp_path / "link")],
            f"error: {tmp_path / 'link'}: is a symbolic link to nothing; remove it",
        ),
        (["--out", str(tmp_path / "a"), "--start", str(tmp_path / "no")], "no: cannot be read: no such file"),
        (["--out", str(tmp_path / "b"), "--device", "cuda"], "device: 'cuda' is not available"),
        ([str(tmp_path / "none.toml")], "none.toml: cannot be read: no such file"),
    ):
        assert main(["train", *args]) == 2
        said = capfd.readouterr().err
        assert sentence in said
        assert "Traceback" not in said


def test_ctrl_c_says_how_to_go_on(monkeypatch, tmp_path, capfd):
    def interrupted(spec, *, out, **_):
        if begun:
            RunFolder(out).create(spec)
        raise KeyboardInterrupt

    monkeypatch.setattr("rismusic.nn.train.train", interrupted)
    begun = False
    assert main(["train", "--out", str(tmp_path / "x")]) == 130
    assert "continue" not in capfd.readouterr().err
    begun = True
    assert main(["train", "--out", str(tmp_path / "x")]) == 130
    assert f"continue with rismusic train --resume {tmp_path / 'x'}" in capfd.readouterr().err


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    one = trainer(tmp_path / "run", save_steps=2)
    whole, count = Path.write_bytes, 0

    def full(path, data):
        nonlocal count
        count += 1
        if count > 4:  # the first checkpoint, and that after two steps
            whole(path, data[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="no space left on the disk"):
        one.train()
    monkeypatch.setattr(Path, "write_bytes", whole)
    state, tensors = checkpoint_of(tmp_path / "run")
    assert (state.epoch, state.step) == (0, 2)
    assert int(tensors["taken"]) == 2
    assert not list((tmp_path / "run").glob(".*part*"))
    resumed(tmp_path / "run").train()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr("rismusic.nn.run_folder.check_not_link", lambda path: None)
    one = trainer(tmp_path / "run")
    (tmp_path / "run" / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"log.jsonl: cannot write: no space left on the disk"):
        one.train()


@pytest.mark.skipif("fcntl" in os.environ.get("HIDDEN_MODULES", ""), reason="needs fcntl")
def test_a_folder_in_use(tmp_path):
    """By another process, which is named; free again once that has ended."""
    run = RunFolder(tmp_path / "run")
    run.create(SPEC)
    code = (
        "import fcntl, os, sys\n"
        "file = open(sys.argv[1], 'a+')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "file.write(str(os.getpid())); file.flush()\n"
        "print('held', flush=True); sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run" / "lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=rf"in use by another training \(process {other.pid}\)$"), run.lock():
        pass
    other.kill()
    other.communicate()
    with run.lock():
        pass


def test_damaged_and_foreign_checkpoints(tmp_path):
    one = trainer(tmp_path / "run")
    one._checkpoint()
    state, path = (tmp_path / "run" / "state.json"), tmp_path / "run" / "state-0000-0000000.safetensors"
    whole, record = path.read_bytes(), json.loads(state.read_text())
    for data, sentence in (
        (whole[:-7], "not a safetensors file, or it is truncated"),
        (b"", "not a safetensors file"),
        (b"\xff" * 64, "not a safetensors file"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=sentence):
            resumed(tmp_path / "run")
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(InputError, match="the tensors are not those of a training checkpoint"):
        resumed(tmp_path / "run")
    path.unlink()
    with pytest.raises(InputError, match="cannot be read: no such file"):
        resumed(tmp_path / "run")
    path.write_bytes(whole)
    inside = record["state"]
    for change in (
        {"format": "other"},
        {"state": inside | {"epoch": None}},
        {"state": inside | {"epoch": "1"}},
        {"state": inside | {"extra": 1}},
        {"state": [1]},
        {"settings": [1]},
    ):
        state.write_text(json.dumps(record | change))
        with pytest.raises(InputError, match="is not a training checkpoint, or it is damaged"):
            resumed(tmp_path / "run")
    state.write_text(json.dumps(record | {"version": "0.0.0"}))
    with pytest.raises(InputError, match=r"was written by rismusic 0\.0\.0"):
        resumed(tmp_path / "run")
    state.write_text(json.dumps(record))
    state.write_text("{" + state.read_text())
    with pytest.raises(InputError, match="is not a training checkpoint, or it is damaged"):
        resumed(tmp_path / "run")


def test_a_validation_that_is_not_finite_is_no_best_one(tmp_path, monkeypatch):
    """In the first epoch: its weights are kept until better ones come, and the state can be written."""
    whole, count = validation.validate, 0

    def nan_at_first(*given):
        nonlocal count
        count += 1  # one before the first step
        return replace(whole(*given), loss=math.nan if count <= 2 else 0.9)

    monkeypatch.setattr("rismusic.nn.train.validate", nan_at_first)
    one = trainer(tmp_path / "run", schedule=SPEC.schedule.replace(epochs=3))
    one.train()
    assert (one.state.best, one.state.best_epoch) == (0.9, 1)
    _, metadata = checkpoint.read_tensors(tmp_path / "run" / "best.safetensors")
    assert (metadata["epoch"], metadata["validation_loss"]) == ("1", "0.9")
    assert log_of(tmp_path / "run", "epoch")[0]["validation"]["loss"] == "nan"


def test_a_checkpoint_of_another_network():
    tensors = Learner(SPEC.replace(network=NETWORK.replace(width=16))).tensors()
    with pytest.raises(InputError, match=r"the tensor (average|weights)/\S+ does not fit"):
        Learner(SPEC).restore(tensors)
    tensors = Learner(SPEC).tensors()
    missing = {name: value for name, value in tensors.items() if name != "average/count.0.bias"}
    with pytest.raises(InputError, match=r"the tensor average/count\.0\.bias of this network is missing"):
        Learner(SPEC).restore(missing)
    with pytest.raises(InputError, match="the tensor weights/more does not fit"):
        Learner(SPEC).restore(tensors | {"weights/more": torch.ones(1)})


def test_settings_that_were_changed_after_the_begin(tmp_path):
    """Another panel has the same weights; nothing but the settings tells."""
    one = trainer(tmp_path / "run")
    one._checkpoint()
    settings = tmp_path / "run" / "settings.toml"
    whole = settings.read_text()
    for changed, name in (
        (
            SPEC.replace(system=SPEC.system.replace(panel={"rows": 6, "columns": 5})),
            "system.panel.columns was 6",
        ),
        (SPEC.replace(seed=1), "seed was 0"),
        (SPEC.replace(schedule=SPEC.schedule.replace(epochs=9)), "schedule.epochs was 2"),
    ):
        settings.write_text(dump_spec(changed))
        with pytest.raises(InputError, match=rf"settings.toml: {name} when the training was started"):
            resumed(tmp_path / "run")
    settings.write_text(whole)
    resumed(tmp_path / "run")


def test_a_state_that_is_gone_is_not_begun_anew(tmp_path):
    finished(tmp_path / "run", schedule=SPEC.schedule.replace(epochs=1))
    (tmp_path / "run" / "state.json").unlink()
    log = (tmp_path / "run" / "log.jsonl").read_text()
    with pytest.raises(InputError, match=r"state.json: the file is missing"):
        resumed(tmp_path / "run")
    assert (tmp_path / "run" / "log.jsonl").read_text() == log


def test_damaged_logs(tmp_path):
    """Half a last line is what a full disk leaves; anything else is said before the training goes on."""
    one = finished(tmp_path / "run", schedule=SPEC.schedule.replace(epochs=1))
    log = tmp_path / "run" / "log.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"kind": "st')
    assert len(one.run.records("epoch")) == 1
    for bad in (b"{}", b"3", b"\xff\xfe", b"[1, 2]"):
        log.write_bytes(bad + whole[whole.index(b"\n") :])
        with pytest.raises(InputError, match=r"line 1 is not a log record"):
            resumed(tmp_path / "run")
    said = []
    save_curves(one.run, said.append)
    assert "line 1 is not a log record" in said[0]
    log.unlink()
    resumed(tmp_path / "run").train()


def test_a_refused_resume_changes_no_file(tmp_path):
    """A log with more in it than at the checkpoint is cut only when the training goes on."""
    one = trainer(tmp_path / "run")
    one._check_start()
    log, settings = tmp_path / "run" / "log.jsonl", tmp_path / "run" / "settings.toml"
    record, text = log.read_bytes().split(b"\n", 1)[0] + b"\n", settings.read_text()
    begun = log.read_bytes()
    for content, sentence in (
        (begun + record + b"a note\n", "is not a log record"),
        (record[:-5] + begun, "line 1 is not a log record"),
        (begun[:-2] + record, "is not a log record"),
        (begun.replace(b'"epoch"', b'"epoch" '), "has changed since the last checkpoint"),
        (b"mine", "line 1 is not a log record"),
    ):
        log.write_bytes(content)
        before = contents(tmp_path)
        with pytest.raises(InputError, match=sentence):
            train(out=tmp_path / "run", resume=True, device="cpu")
        assert contents(tmp_path) == before
    log.write_bytes(begun + record + record[:9])
    for change in (
        lambda: settings.write_text(dump_spec(SPEC.replace(seed=1))),
        lambda: (tmp_path / "run" / "tensorboard").write_text("mine"),
    ):
        change()
        before = contents(tmp_path)
        with pytest.raises(InputError, match=r"seed was 0|^tensorboard: |tensorboard: cannot write"):
            train(out=tmp_path / "run", resume=True, device="cpu", tensorboard=True)
        assert contents(tmp_path) == before
        settings.write_text(text)
    (tmp_path / "run" / "tensorboard").unlink()
    resumed(tmp_path / "run")
    assert log.read_bytes() == begun + record + record[:9]
    resumed(tmp_path / "run").train()
    assert log.read_bytes().startswith(begun)
    assert log_of(tmp_path / "run") == log_of(finished(tmp_path / "other").run.folder)


def contents(folder):
    """Every file but the lock, which names the last process."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def test_a_log_that_lost_its_end_is_refused(tmp_path, capsys):
    """No power cut does that: the log is on the disk before the checkpoint. Without it, this is said."""
    finished(tmp_path / "run", schedule=SPEC.schedule.replace(epochs=1))
    log = tmp_path / "run" / "log.jsonl"
    whole = log.read_bytes()
    for content in (b"", whole[:20], whole[: whole.index(b"\n") + 1], whole[:-1]):
        log.write_bytes(content)
        assert main(["train", "--resume", str(tmp_path / "run"), "--device", "cpu"]) == 2
        assert "log.jsonl: has changed since the last checkpoint; without" in capsys.readouterr().err
        assert log.read_bytes() == content
    log.unlink()
    assert main(["train", "--resume", str(tmp_path / "run"), "--device", "cpu"]) == 0
    said = "".join(capsys.readouterr().err.split("\n"))
    assert "log.jsonl is missing; the learning curves up to here are lost" in said


def test_the_log_is_on_the_disk_before_the_checkpoint(tmp_path, monkeypatch):
    synced, save = [], checkpoint.save_checkpoint
    one = trainer(tmp_path / "run")
    monkeypatch.setattr("rismusic.nn.run_folder.sync", synced.append)
    monkeypatch.setattr(
        "rismusic.nn.train.save_checkpoint", lambda *args: (synced.append("checkpoint"), save(*args))
    )
    one._check_start()
    assert synced == [tmp_path / "run" / "log.jsonl", "checkpoint"]


def test_a_log_that_cannot_be_cut(tmp_path, monkeypatch):
    one = trainer(tmp_path / "run")
    one._check_start()

    def refuses(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("os.truncate", refuses)
    one.run.log([{"kind": "step", "epoch": 0, "step": 0, "taken": 1.0}])
    with pytest.raises(InputError, match=r"log.jsonl: cannot write: Read-only file system"):
        resumed(tmp_path / "run").train()


@pytest.mark.skipif("fcntl" in os.environ.get("HIDDEN_MODULES", ""), reason="needs fcntl")
def test_a_lock_that_cannot_be_written(tmp_path, monkeypatch):
    one = trainer(tmp_path / "run")

    def refuses(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuses)
    with (
        pytest.raises(InputError, match=r"lock: cannot write: Read-only file system"),
        one.run.lock(),
    ):
        pass


def test_weights_of_another_panel(network, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_network(path, network)
    panel = network.grid.panel
    wider = Panel(1.2 * panel.elements, panel.wavelength)
    for other, sentence in (
        (Panel.uniform_planar(4, 4), "with N = 36 elements; this one has N = 16"),
        (Panel(panel.elements, 0.1), "for a wavelength of 0.3 m, the panel has 0.1 m"),
        (wider, "another panel, with elements up to 0.25 wavelengths away"),
    ):
        with pytest.raises(InputError, match=sentence):
            load_network(path, panel=other)
    loaded = load_network(path, panel=panel)
    assert loaded.grid.shape == network.grid.shape
    for name, weight in loaded.named_parameters():
        assert torch.equal(weight, dict(network.named_parameters())[name])


def test_foreign_weights(network, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_network(path, network)
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(InputError, match="not a safetensors file"):
        load_network(path)
    save_file({"layer.weight": torch.ones(2)}, path)
    with pytest.raises(InputError, match="not a weights file of rismusic"):
        load_network(path)
    larger = Network(NETWORK.replace(width=16), network.grid, torch.Generator().manual_seed(0))
    weights = {name: value.detach() for name, value in larger.named_parameters()}
    save_network(path, network, weights)
    with pytest.raises(InputError, match=r"weight \S+: shape .* in the network"):
        load_network(path)
    weights = {name: value.detach() for name, value in network.named_parameters()}
    save_network(path, network, weights | {"more": torch.ones(1)})
    with pytest.raises(InputError, match="weight more: shape absent in the network"):
        load_network(path)
    broken = weights["count.0.bias"].clone()
    broken[1] = torch.nan
    save_network(path, network, weights | {"count.0.bias": broken})
    with pytest.raises(InputError, match=r"weight count\.0\.bias: has non-finite values"):
        load_network(path)
    tensors, metadata = checkpoint.read_tensors(path)
    checkpoint.write_tensors(path, tensors, metadata | {"grid": "[1, 2, 3]"})
    with pytest.raises(InputError, match=r"the weights are for the grid \[1, 2, 3\]"):
        load_network(path)


def test_tensorboard_is_asked_for_where_it_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="pip install 'rismusic\\[tensorboard\\]'"):
        TensorBoardLog(tmp_path, 2)


def test_tensorboard_is_given_the_numbers(tmp_path, monkeypatch):
    """By a writer of its kind: steps at their count, an epoch's numbers after its last step."""
    written = []

    class Writer:
        def __init__(self, folder, purge_step):
            assert folder == str(tmp_path / "tensorboard")
            written.append(("from", purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def flush(self):
            written.append("flushed")

        def close(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    board = TensorBoardLog(tmp_path, 2)
    for step in range(2):
        board({"kind": "step", "epoch": 0, "step": step, "loss": 1.0 - step, "taken": "nan"})
    board({"kind": "epoch", "epoch": 0, "validation": {"loss": 0.5, "terms": {"count": 0.1}}})
    # Resumed after three steps, the fourth is told again.
    board = TensorBoardLog(tmp_path, 2, 3)
    board({"kind": "probe", "tag": "LR", "epoch": 1, "head": 0.1, "findings": [{"value": 1.0}]})
    board({"kind": "step", "epoch": 1, "step": 1, "loss": 0.2})
    assert written == [
        ("from", None),
        ("step/loss", 1.0, 1),
        ("step/loss", 0.0, 2),
        ("epoch/validation/loss", 0.5, 2),
        ("epoch/validation/terms/count", 0.1, 2),
        "flushed",
        ("from", 4),
        ("probe/LR/head", 0.1, 3),
        ("step/loss", 0.2, 4),
    ]
    with pytest.raises(InputError, match=r"tensorboard: cannot write: no space left on the disk"):
        board.close()


def test_curves_of_numbers_that_are_not_finite():
    """As the log has them: text, or nothing where every step was skipped."""
    scores = {name: {"recall": "nan", "count_right": 0.5} for name in ("blend", "predicted")}
    lines = [
        {
            "epoch": 0,
            "training": {},
            "validation": {"loss": "inf", "terms": {"count": "nan"}, "scores": scores},
        },
        {"epoch": 1, "training": {"loss": 1.0}, "validation": {"loss": 2.0, "terms": {}, "scores": scores}},
    ]
    drawn = [line.get_ydata() for line in plot_losses(lines).lines]
    assert [list(map(str, values)) for values in drawn] == [["nan", "1.0"], ["inf", "2.0"]]
    assert plot_losses(lines).lines[0].get_xdata().tolist() == [0, 1]  # as in the log
    assert plot_scores(lines).lines[2].get_ydata().tolist() == [50.0, 50.0]
    assert len(plot_terms(lines[:1]).lines) == 1


def test_curves_without_matplotlib(tmp_path, monkeypatch):
    one = finished(tmp_path / "run", schedule=SPEC.schedule.replace(epochs=1))
    said = []
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    save_curves(one.run, said.append)
    assert "pip install 'rismusic[report]'" in said[0]
    assert replace(one.state).best_epoch == 0


def test_a_finished_training_with_damaged_weights_changes_no_file(tmp_path):
    """It trains no further, so that the weights would be read after the curves were drawn again."""
    finished(tmp_path / "run", schedule=SPEC.schedule.replace(epochs=1))
    (tmp_path / "run" / "curves.png").write_bytes(b"mine")
    (tmp_path / "run" / "best.safetensors").write_bytes(b"\xff" * 64)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"best.safetensors: .*not a safetensors file"):
        train(out=tmp_path / "run", resume=True, device="cpu")
    assert contents(tmp_path) == before
