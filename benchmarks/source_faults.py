"""Faults as source edits, the development set of :mod:`doctor_faults`.

Each fault replaces text in one file of a copy of the package, as a user's edit would: the doctor imports the
edited package, and so do its own references. The classes follow published studies of faults in deep learning
(Zhang et al., ISSTA 2018; Islam et al., FSE 2019; Humbatova et al., ICSE 2020; the symptoms of UMLAUT,
AutoTrainer, DeepLocalize and DeepDiagnosis).
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class SourceFault:
    """A fault as an edit of one source file.

    Args:
        name: short name.
        file: path below ``src/rismusic``.
        old: text that occurs in the file.
        new: text that replaces its first occurrence.
        names: regular expression; a finding whose text matches it names the cause.
        settings: settings of the training to change, so that it runs through the faulty line.
    """

    name: str
    file: str
    old: str
    new: str
    names: str
    settings: dict[str, object] = field(default_factory=dict)


_LEARNER, _TRAIN, _DATA = "nn/learner.py", "nn/train.py", "nn/data.py"
_LOSSES, _VALIDATION, _CHECKPOINT = "nn/losses.py", "nn/validation.py", "nn/checkpoint.py"
_NETWORK, _SCENE, _SIMULATOR = "nn/network.py", "simulation/scene.py", "simulation/simulator.py"
_COVARIANCE, _METRICS = "covariance.py", "metrics.py"

FAULTS = (
    # The optimizer step.
    SourceFault(
        "zero_grad forgotten",
        _LEARNER,
        "        self.optimizer.zero_grad(set_to_none=True)\n",
        "",
        r"zero_grad|gradients? of (the |an )?earlier step|accumulat\w+ over steps",
    ),
    SourceFault(
        "zero_grad after backward",
        _LEARNER,
        "        numbers = self.group.average_gradients(",
        "        self.optimizer.zero_grad(set_to_none=False)\n"
        "        numbers = self.group.average_gradients(",
        r"zero_grad|gradient .* (is|are) (zero|0)|without a gradient",
    ),
    SourceFault(
        "accumulation divides twice",
        _LEARNER,
        "self.scaler.scale(losses.total / spec.accumulation)",
        "self.scaler.scale(losses.total / spec.accumulation**2)",
        r"gradient is (scaled|.* too small)|accumulat",
    ),
    SourceFault(
        "accumulation not divided",
        _LEARNER,
        "self.scaler.scale(losses.total / spec.accumulation)",
        "self.scaler.scale(losses.total)",
        r"gradient is (scaled|.* too large)|accumulat",
    ),
    SourceFault(
        "step only after the last epoch's batches",
        _LEARNER,
        "        self.optimizer.step()\n        self.scaler.update()\n",
        "        if int(self.taken) % 2 == 0:\n            self.optimizer.step()\n"
        "        self.scaler.update()\n",
        r"optimizer (does not step|steps?)|outside the batch loop",
    ),
    SourceFault(
        "parameters replaced after the optimizer was made",
        _LEARNER,
        "        dtype = precision_on(device, spec.precision)\n",
        "        self.network = build_network(spec.network, self.grid, generator).to(device)\n"
        "        self.weights = dict(self.network.named_parameters())\n"
        "        dtype = precision_on(device, spec.precision)\n",
        r"another network|stale|missing from the optimizer",
    ),
    SourceFault(
        "average skips the head",
        _LEARNER,
        "        for name, weight in self.weights.items():\n            self.average[name].lerp_",
        "        for name, weight in self.weights.items():\n"
        "            if is_head(name):\n                continue\n            self.average[name].lerp_",
        r"moving average.*(skip|not updated|never updated|does not follow|left out)",
    ),
    SourceFault(
        "average with the share the wrong way round",
        _LEARNER,
        "        share = (1 - decay) * finite\n",
        "        share = decay * finite\n",
        r"moving average",
    ),
    SourceFault(
        "average aliases the weights",
        _LEARNER,
        "{name: weight.detach().clone() for name, weight in self.weights.items()}",
        "{name: weight.detach() for name, weight in self.weights.items()}",
        r"moving average",
    ),
    SourceFault(
        "clip by the wrong norm",
        _LEARNER,
        "        nn.utils.clip_grads_with_norm_(trained, spec.clip_norm, norm)\n",
        "        nn.utils.clip_grads_with_norm_(trained, spec.clip_norm, norms.max() ** 2)\n",
        r"clip",
    ),
    SourceFault(
        "gradient clipped by value",
        _LEARNER,
        "        nn.utils.clip_grads_with_norm_(trained, spec.clip_norm, norm)\n",
        "        nn.utils.clip_grad_value_(trained, 1e-3)\n",
        r"clip|gradient is scaled|gradient of the loss",
    ),
    SourceFault(
        "clipping removed",
        _LEARNER,
        "        nn.utils.clip_grads_with_norm_(trained, spec.clip_norm, norm)\n",
        "",
        r"clip",
        {"clip_norm": 0.05},
    ),
    SourceFault(
        "schedule advances before the step",
        _LEARNER,
        "        self.optimizer.step()\n        self.scaler.update()\n",
        "        self.taken += 1\n        self._set_learning_rate()\n        self.taken -= 1\n"
        "        self.optimizer.step()\n        self.scaler.update()\n",
        r"schedule (advances|ticks)|ahead of the optimizer|before the optimizer",
    ),
    SourceFault(
        "schedule never applied",
        _LEARNER,
        '            group["lr"] = group["highest"] * factor\n',
        '            group["lr"] = group["highest"]\n',
        r"does not follow the schedule|schedule",
    ),
    SourceFault(
        "learning rates of the groups swapped",
        _LEARNER,
        "dict(zip(GROUPS, (spec.backbone_learning_rate, spec.head_learning_rate), strict=True))",
        "dict(zip(GROUPS, (spec.head_learning_rate, spec.backbone_learning_rate), strict=True))",
        r"learning rate of (the )?(backbone|head).*(settings|swapped|exchanged)|settings.*learning rate",
    ),
    SourceFault(
        "weight decay on everything times ten",
        _LEARNER,
        "        decay = spec.weight_decay if parameter.ndim > 1 else 0.0\n",
        "        decay = 10 * spec.weight_decay\n",
        r"weight decay",
    ),
    SourceFault(
        "skipped step still counts",
        _LEARNER,
        "        self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]\n",
        "",
        r"non-finite gradient|not finite",
    ),
    SourceFault(
        "optimizer without momentum decay",
        _LEARNER,
        "torch.optim.AdamW(parameter_groups(self.network, spec), fused=True)",
        "torch.optim.AdamW(parameter_groups(self.network, spec), fused=True, betas=(0.0, 0.0))",
        r"Adam|betas|momentum",
    ),
    SourceFault(
        "gradient of half the batch",
        _LEARNER,
        "        for part, recording in enumerate(recordings):\n",
        "        for part, recording in enumerate(recordings):\n"
        "            recording = recording[: max(1, len(recording) // 2)]\n",
        r"part of the batch|scenes? (is|are) left out|batch left out|gradient of the loss",
    ),
    SourceFault(
        "first batch only, reused",
        _LEARNER,
        "        for part, recording in enumerate(recordings):\n",
        "        self._kept = getattr(self, '_kept', None) or list(recordings)\n"
        "        for part, recording in enumerate(self._kept):\n",
        r"same batch|first batch|another batch|gradient of (this|the) batch|other data",
    ),
    # The loop.
    SourceFault(
        "every step gets the first batch",
        _TRAIN,
        "self.scenes.step(state.epoch, state.step), beta",
        "self.scenes.step(state.epoch, 0), beta",
        r"same (batch|scenes)|repeat",
    ),
    SourceFault(
        "every epoch has the scenes of the first",
        _TRAIN,
        "self.scenes.step(state.epoch, state.step), beta",
        "self.scenes.step(0, state.step), beta",
        r"same (batch|scenes)|every epoch uses",
    ),
    SourceFault(
        "beta of the epoch not used",
        _TRAIN,
        "self.scenes.step(state.epoch, state.step), beta, weights)",
        "self.scenes.step(state.epoch, state.step), 0.0, weights)",
        r"beta",
    ),
    SourceFault(
        "beta counted in steps",
        _TRAIN,
        "                beta = beta_at(spec.schedule, state.epoch, spec.seed)\n",
        "                beta = beta_at(spec.schedule, min(state.epoch * spec.steps_per_epoch + 1, "
        "spec.schedule.epochs - 1), spec.seed)\n",
        r"beta",
    ),
    SourceFault(
        "loss weights of the settings only",
        _TRAIN,
        "                weights = weights_at(spec.loss, spec.schedule, state.epoch, beta)\n",
        "                weights = spec.loss.weights\n",
        r"loss weights?|weights? of (the )?loss",
    ),
    SourceFault(
        "best is the worst",
        _TRAIN,
        "loss < state.best)",
        "loss > state.best)",
        r"best",
    ),
    SourceFault(
        "current weights saved, not the average",
        _TRAIN,
        "learner.network, learner.average, training=spec",
        "learner.network, training=spec",
        r"sav|file|written",
    ),
    SourceFault(
        "best file not rewritten",
        _TRAIN,
        "        for name in (BEST, LAST) if is_best else (LAST,):\n",
        "        for name in (BEST, LAST) if state.epoch == 0 else (LAST,):\n",
        r"best",
    ),
    SourceFault(
        "resume forgets the optimizer",
        _LEARNER,
        "        restore_optimizer(self.optimizer, optimizer)\n",
        "",
        r"resum",
    ),
    SourceFault(
        "resume forgets the average",
        _LEARNER,
        '                "average": self.average,\n',
        '                "average": {k: v.clone() for k, v in self.average.items()},\n',
        r"resum",
    ),
    SourceFault(
        "resume starts the epoch again",
        _TRAIN,
        "            self.learner.restore(tensors)\n",
        "            self.learner.restore(tensors)\n            self.state.step = 0\n",
        r"resum",
    ),
    SourceFault(
        "checkpoint before the last step",
        _TRAIN,
        "save_checkpoint(self.run, self.spec, self.state, self.learner.tensors())",
        "save_checkpoint(self.run, self.spec, self.state, getattr(self, '_kept', self.learner.tensors()))\n"
        "            self._kept = {k: v.clone() for k, v in self.learner.tensors().items()}",
        r"resum|checkpoint",
    ),
    SourceFault(
        "log counts steps from one epoch too many",
        _TRAIN,
        '{"kind": "epoch", "epoch": state.epoch, "beta"',
        '{"kind": "epoch", "epoch": state.epoch + 1, "beta"',
        r"the log ",
    ),
    SourceFault(
        "last step of every epoch left out",
        _TRAIN,
        "while state.step < spec.steps_per_epoch:",
        "while state.step < spec.steps_per_epoch - 1:",
        r"optimizer steps per epoch|left out",
    ),
    # Data and labels.
    SourceFault(
        "validation set is the training set",
        _DATA,
        '"validation" if spec.fresh else "train"',
        '"train"',
        r"validation set contains training scenes|leak",
    ),
    SourceFault(
        "validation set overlaps late epochs",
        _DATA,
        "        scenes = self.spec.validation_scenes\n",
        "        scenes = self.spec.validation_scenes\n        self._validation = self._train\n",
        r"validation set contains training scenes|leak",
    ),
    SourceFault(
        "validation set too small",
        _DATA,
        "        scenes = self.spec.validation_scenes\n",
        "        scenes = min(8, self.spec.validation_scenes)\n",
        r"validation (set|scenes)",
    ),
    SourceFault(
        "validation at a higher SNR",
        _DATA,
        '            for split in ("train", "validation" if spec.fresh else "train")\n        )\n',
        '            for split in ("train", "validation" if spec.fresh else "train")\n        )\n'
        "        self._validation = Simulator(spec.system.replace(snr_db=20.0), seed=spec.seed, "
        'split="validation")\n',
        r"validation.*SNR|SNR.*validation",
    ),
    SourceFault(
        "validation with one source",
        _DATA,
        '            for split in ("train", "validation" if spec.fresh else "train")\n        )\n',
        '            for split in ("train", "validation" if spec.fresh else "train")\n        )\n'
        "        self._validation = Simulator(spec.system.replace(sources=1), seed=spec.seed, "
        'split="validation")\n',
        r"validation.*(number of sources|K)|number of sources.*validation",
    ),
    SourceFault(
        "noise never hidden",
        _DATA,
        "        return [value < self.spec.hidden_noise for value in uniform.tolist()]\n",
        "        return [False for value in uniform.tolist()]\n",
        r"hidden|noise variance",
    ),
    SourceFault(
        "labels shifted by one scene",
        _SIMULATOR,
        "            truth=truth,\n        )\n\n    def _truth",
        "            truth=truth.each(lambda value: value.roll(1, 0)),\n        )\n\n    def _truth",
        r"labels belong to other scenes|shuffled|shifted",
    ),
    SourceFault(
        "azimuth and elevation swapped in the labels",
        _SCENE,
        "Sources(azimuth=azimuth, elevation=elevation, range=distance)",
        "Sources(azimuth=elevation, elevation=azimuth, range=distance)",
        r"azimuth|elevation",
    ),
    SourceFault(
        "one source too few",
        _SCENE,
        "draws.integers(Stream.COUNT, most - fewest + 1)",
        "draws.integers(Stream.COUNT, most - fewest)",
        r"number of sources|every K|K =",
        {"system.sources": (1, 2)},
    ),
    SourceFault(
        "label of the count off by one",
        _LOSSES,
        "        return self.truth.active.sum(-1)\n",
        "        return self.truth.active.sum(-1) - 1\n",
        r"number of sources|count|off by one",
    ),
    SourceFault(
        "decibel with factor 20",
        "array.py",
        "    return (level_db * (math.log(10) / 10)).exp()\n",
        "    return (level_db * (math.log(10) / 20)).exp()\n",
        r"SNR|decibel|dB",
    ),
    SourceFault(
        "natural logarithm for decibel",
        "array.py",
        "    return (level_db * (math.log(10) / 10)).exp()\n",
        "    return (level_db / 10).exp()\n",
        r"SNR|decibel|dB",
    ),
    SourceFault(
        "noise of half the variance",
        "simulation/random_numbers.py",
        "log_().neg_().sqrt_()",
        "log_().neg_().mul_(0.5).sqrt_()",
        r"noise|variance",
    ),
    SourceFault(
        "noise repeats the symbols' numbers",
        "simulation/random_numbers.py",
        "    NOISE = 4\n",
        "    NOISE = 3\n",
        r"noise|symbols|correlat|independen",
    ),
    SourceFault(
        "azimuth and elevation from one number",
        _SCENE,
        "        sets = low + (high - low) * fraction\n",
        "        fraction = fraction[..., (0, 0, 2)]\n        sets = low + (high - low) * fraction\n",
        r"azimuth and elevation|independen|correlat",
    ),
    SourceFault(
        "sources share their symbols",
        _SCENE,
        "        own = draws.complex_normal(Stream.SYMBOLS, sources, snapshots, dtype=dtype)\n",
        "        own = draws.complex_normal(Stream.SYMBOLS, 1, snapshots, dtype=dtype)"
        ".expand(-1, sources, -1)\n",
        r"symbols|coherent|correlat|independen",
    ),
    SourceFault(
        "range in half its volume",
        _SCENE,
        "spec.range_max_m], dtype=dtype)",
        "spec.range_max_m / 2], dtype=dtype)",
        r"range",
    ),
    SourceFault(
        "noise in the recorded variance is a standard deviation",
        _SIMULATOR,
        "return signal + noise_variance.sqrt()[:, None, None] * noise, noise_variance",
        "return signal + noise_variance.sqrt()[:, None, None] * noise, noise_variance.sqrt()",
        r"noise variance|recorded noise",
    ),
    SourceFault(
        "channel recorded as its conjugate",
        _SIMULATOR,
        "            channel=nominal.channel,\n",
        "            channel=None if nominal.channel is None else nominal.channel.conj(),\n",
        r"channel|link|labels do not explain",
    ),
    # Steering, covariances, losses: the doctor's copies break with them.
    SourceFault(
        "sine and cosine of the elevation swapped",
        "array.py",
        "_rays(panel, direction(azimuth, elevation), range).unit_wave().mT",
        "_rays(panel, direction(elevation, azimuth), range).unit_wave().mT",
        r"steering|exp\(j k|azimuth and elevation",
    ),
    SourceFault(
        "R_pred with the range factor at full weight",
        _COVARIANCE,
        "RANGE_WEIGHT**0.5 * range_factor",
        "range_factor",
        r"R_pred|range.factor|0\.3",
    ),
    SourceFault(
        "R_true without the powers",
        _COVARIANCE,
        "steering * present.sqrt()[..., None, :]",
        "steering * (present > 0).to(present.dtype)[..., None, :]",
        r"R_true|powers",
        {"system.scene.power_spread_db": 12.0},
    ),
    SourceFault(
        "blend mixes the wrong way round",
        _COVARIANCE,
        "(first.factor * (1 - share).sqrt()[..., None, None], second.factor * share.sqrt()[..., None, None])",
        "(first.factor * share.sqrt()[..., None, None], second.factor * (1 - share).sqrt()[..., None, None])",
        r"R_blend|beta|blend",
    ),
    SourceFault(
        "blend with beta squared",
        _COVARIANCE,
        "    share = torch.zeros_like(predicted.loading) + given\n",
        "    share = torch.zeros_like(predicted.loading) + given**2\n",
        r"R_blend|beta|blend",
    ),
    SourceFault(
        "identity limit raised to 0.9",
        _COVARIANCE,
        "IDENTITY_MAX = 0.25",
        "IDENTITY_MAX = 0.9",
        r"identity|loading",
        {"system.snr_db": (-5.0, 5.0)},
    ),
    SourceFault(
        "eigengap margin raised",
        _LOSSES,
        "EIGENGAP_MARGIN = 0.1",
        "EIGENGAP_MARGIN = 0.9",
        r"eigengap|margin",
    ),
    SourceFault(
        "label smoothing of one half",
        _LOSSES,
        "COUNT_SMOOTHING = 0.05",
        "COUNT_SMOOTHING = 0.5",
        r"count|smooth",
    ),
    SourceFault(
        "heat map of twenty cells",
        _LOSSES,
        "HEAT_MAP_WIDTH = 0.6",
        "HEAT_MAP_WIDTH = 6.0",
        r"heat.map",
    ),
    SourceFault(
        "angle loss in degrees",
        _LOSSES,
        "    scale = math.radians(_ANGLE_SCALE_DEG)\n",
        "    scale = _ANGLE_SCALE_DEG\n",
        r"angle",
    ),
    SourceFault(
        "range loss with the wrong sign",
        _LOSSES,
        "prediction.inverse_range[..., None].log() + distance.log()",
        "prediction.inverse_range[..., None].log() - distance.log()",
        r"range",
    ),
    SourceFault(
        "existence of unmatched heads ignored",
        _LOSSES,
        "softplus(torch.where(exists, -logits, logits)).mean(-1)",
        "(softplus(-logits) * exists).mean(-1)",
        r"existence",
    ),
    SourceFault(
        "count loss of the softmax twice",
        _LOSSES,
        "t * logits.log_softmax(-1)",
        "t * logits.softmax(-1).log_softmax(-1)",
        r"count|softmax",
    ),
    SourceFault(
        "loss summed over the batch",
        _LOSSES,
        "    terms = {name: losses[name].mean() for name in used}\n",
        "    terms = {name: losses[name].sum() for name in used}\n",
        r"sum|mean",
    ),
    SourceFault(
        "one loss term left out of the total",
        _LOSSES,
        "[weight * terms[name] for name, weight in used.items()]",
        '[weight * terms[name] for name, weight in used.items() if name != "count"]',
        r"weighted sum|missing term|count",
    ),
    # The network.
    SourceFault(
        "hidden truth reaches the network",
        _NETWORK,
        "        scenes, maps, power = self.initial_statistics(recording)\n",
        "        scenes, maps, power = self.initial_statistics(recording)\n"
        "        maps = maps + recording.truth.azimuth.nan_to_num().sum(-1)[:, None, None]\n",
        r"truth|labels|leak",
    ),
    SourceFault(
        "stage features detached",
        _NETWORK,
        "                inputs.append(features)\n",
        "                inputs.append(features.detach())\n",
        r"detach|gradient",
    ),
    SourceFault(
        "scenes of a batch share a norm",
        _NETWORK,
        "            features = self.read(maps)\n",
        "            features = self.read(maps)\n            features = features - features.mean(0)\n",
        r"scenes of a batch|batch",
    ),
    SourceFault(
        "dead activation",
        _NETWORK,
        "self.narrow(gelu(self.widen(self.norm(flat)))).mT",
        "self.narrow((self.widen(self.norm(flat)) - 20).relu()).mT",
        r"dead|same for every|saturat|without a gradient|do not learn",
    ),
    SourceFault(
        "saturated activation",
        _NETWORK,
        "self.narrow(gelu(self.widen(self.norm(flat)))).mT",
        "self.narrow((100 * self.widen(self.norm(flat))).sigmoid()).mT",
        r"saturat|vanish",
    ),
    SourceFault(
        "weights of the residual branches zero",
        _NETWORK,
        "                nn.init.normal_(module.weight, std=fan**-0.5, generator=generator)\n",
        "                nn.init.zeros_(module.weight)\n",
        r"zero|without a gradient|initial weights|symmetr",
    ),
    SourceFault(
        "initial weights ten times too large",
        _NETWORK,
        "nn.init.normal_(module.weight, std=fan**-0.5, generator=generator)",
        "nn.init.normal_(module.weight, std=10 * fan**-0.5, generator=generator)",
        r"initial weights|activations|input of .* not normalised|explod|order 1",
    ),
    # Validation and metrics.
    SourceFault(
        "validation with the beta of the start",
        _VALIDATION,
        "    beta = spec.schedule.beta\n    weights = weights_at",
        "    beta = 0.0\n    weights = weights_at",
        r"validation differs|beta",
    ),
    SourceFault(
        "validation of the current weights",
        _VALIDATION,
        "        prediction = learner.predict(recording)\n        losses",
        "        prediction = learner.predict(recording, averaged=False)\n        losses",
        r"validat.*(average|other weights|current weights)",
    ),
    SourceFault(
        "mean of batch means with unequal batches",
        _VALIDATION,
        "        sizes.append(len(recording))\n",
        "        sizes.append(1 + len(sizes))\n",
        r"validation",
    ),
    SourceFault(
        "gate of fifty degrees",
        _METRICS,
        "gate_deg: float = 5.0) -> Match",
        "gate_deg: float = 50.0) -> Match",
        r"gate|hit|5 deg|match does not give",
    ),
    SourceFault(
        "recall for precision",
        _METRICS,
        "        precision=hits / found if found else 1.0,\n        recall=hits / true if true else 1.0,\n",
        "        precision=hits / true if true else 1.0,\n        recall=hits / found if found else 1.0,\n",
        r"recall|precision|misses|false alarms",
    ),
    SourceFault(
        "F1 without the factor 2",
        _METRICS,
        "f1=2 * hits / (true + found)",
        "f1=hits / (true + found)",
        r"F1|score does not give.* 0\.5 times",
    ),
    SourceFault(
        "count right within one",
        _METRICS,
        "(matched.true_count == matched.found_count)",
        "((matched.true_count - matched.found_count).abs() <= 1)",
        r"number of sources|count",
    ),
)
