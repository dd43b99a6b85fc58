"""``watch`` around the loops of Lightning and of Hugging Face; without these packages nothing is tested."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import rismusic

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


class Net(nn.Module):
    """A classifier, with a softmax too many if it is broken."""

    def __init__(self, broken):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
        self.broken = broken

    def forward(self, x):
        return self.body(x).softmax(1) if self.broken else self.body(x)


def with_lightning(broken):
    lightning = pytest.importorskip("lightning")

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net(broken)

        def training_step(self, batch, _):
            return cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-2)

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=16)
    silent = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    model = Model()
    with rismusic.watch(model, say=lambda _: None) as w:
        lightning.Trainer(max_epochs=6, accelerator="cpu", **silent).fit(model, loader)
    return w


def with_transformers(broken, folder):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Model(Net):
        def forward(self, x=None, labels=None):
            logits = super().forward(x)
            return {"loss": cross_entropy(logits, labels), "logits": logits}

    settings = transformers.TrainingArguments(
        str(folder),
        num_train_epochs=6,
        per_device_train_batch_size=16,
        learning_rate=1e-2,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    rows = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    model = Model(broken)
    with rismusic.watch(model, say=lambda _: None) as w:
        transformers.Trainer(model, settings, train_dataset=rows).train()
    return w


@pytest.mark.parametrize("framework", ["lightning", "transformers"])
def test_the_same_fault_is_found_and_no_other(framework, tmp_path):
    run = with_lightning if framework == "lightning" else lambda broken: with_transformers(broken, tmp_path)
    first = run(broken=True).diagnosis.causes[0]
    assert "double softmax" in first.finding.meaning
    assert ".py:" in first.finding.where
    sound = run(broken=False)
    assert [one.sentence for one in sound.diagnosis.wrong] == []
    assert sound._steps == len(sound.losses) == 24
