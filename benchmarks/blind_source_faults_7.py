"""A seventh set of faults in the package as source edits, made by someone who had not seen the doctor.

Like :mod:`blind_source_faults`: each replaces one string that occurs exactly once in its file and changes a
short training. All do with the panel of 8 x 8 elements that the doctor is run with. With the larger one of
``blind_doctor_faults.py --check --set 7``, ``false_alarms_are_free`` changes nothing: the few epochs of that
training never find too many sources.

So that no convenient ones are chosen, the place and the class of mistake of each were drawn at random first,
without replacement within the areas below, and the edit was written for the pair; where a class cannot occur
at a place (a complex conjugate of real numbers), would change nothing, or gives an edit of an earlier set,
the next class of the drawn order was taken. What is drawn may be plain or subtle.
"""

from __future__ import annotations

from blind_source_faults import SourceFault

_SPREAD = ("--system.scene.power-spread-db", "12")

FAULTS = (
    # Simulation.
    SourceFault(
        "uniform_up_to_a_half",
        "factor or unit",
        "simulation/random_numbers.py",
        "_unit",
        "return (words & 0x7FFFFF).to(dtype).add_(0.5).mul_(2.0**-23)",
        "return (words & 0x7FFFFF).to(dtype).add_(0.5).mul_(2.0**-24)",
        "Random numbers of 23 bits are scaled as if they had 24: uniform ones end at 1/2. Sources are on one "
        "side only, phases of symbols and noise in half a turn.",
    ),
    SourceFault(
        "spread_to_either_side",
        "factor or unit",
        "simulation/scene.py",
        "_powers",
        "level = level + spec.power_spread_db * spread",
        "level = level + 2 * spec.power_spread_db * spread",
        "The whole width of the spread of powers is taken for the part to either side: powers spread over "
        "24 dB where the settings say 12.",
        _SPREAD,
    ),
    SourceFault(
        "one_configuration_for_all_snapshots",
        "stale or shared state",
        "simulation/scene.py",
        "_random",
        "level = draws.octets(Stream.CODES, 2**spec.bits, L, size)",
        "level = draws.octets(Stream.CODES, 2**spec.bits, 1, size).expand(-1, L, -1)",
        "All snapshots of a scene share one RIS configuration, so that 16 outputs are all that is seen of "
        "the panel.",
    ),
    SourceFault(
        "positions_from_the_global_generator",
        "randomness",
        "simulation/scene.py",
        "_positions",
        "fraction = draws[left].uniform(Stream.POSITIONS, attempts, most, 3, dtype=dtype, skip=passed)",
        "fraction = torch.rand(len(left), attempts, most, 3, dtype=dtype, device=active.device)",
        "Positions come from the global generator of torch: a scene has others each time it is drawn, also "
        "the scenes of the validation.",
    ),
    SourceFault(
        "noise_is_real",
        "dtype or precision",
        "simulation/simulator.py",
        "Simulator._receive",
        "noise = draws.complex_normal(Stream.NOISE, *signal.shape[1:], dtype=signal.dtype)",
        "noise = draws.normal(Stream.NOISE, *signal.shape[1:], dtype=self.dtype)",
        "The receiver noise is real: it has its variance in the real part of the snapshots, and none in the "
        "imaginary part.",
    ),
    # Labels.
    SourceFault(
        "steering_from_the_fresnel_distance",
        "limit or clamp",
        "sources.py",
        "Sources.steering",
        "return steering(panel, *self.filled()) * self.active.unsqueeze(-2)",
        "azimuth, elevation, distance = self.filled()\n"
        "        distance = distance.clamp_min(panel.fresnel_distance)\n"
        "        return steering(panel, azimuth, elevation, distance) * self.active.unsqueeze(-2)",
        "The waves of sources nearer than the Fresnel distance are those of one at that distance, while the "
        "labels keep the range.",
    ),
    SourceFault(
        "large_errors_are_clipped",
        "limit or clamp",
        "nn/losses.py",
        "_huber",
        'return huber_loss(x, torch.zeros_like(x), reduction="none")',
        'return huber_loss(x.clamp(-1, 1), torch.zeros_like(x), reduction="none")',
        "Errors of angles and range are clipped where the Huber loss turns linear: large errors have no "
        "gradient.",
    ),
    SourceFault(
        "true_powers_up_to_one",
        "limit or clamp",
        "covariance.py",
        "true_covariance",
        "present = torch.where(power.isnan(), 0, power)",
        "present = torch.where(power.isnan(), 0, power).clamp(0, 1)",
        "Powers are clipped to 1, which is their mean and not their largest value: the strong sources are "
        "too weak in R_true.",
        _SPREAD,
    ),
    # Statistics, the input of the network.
    SourceFault(
        "fold_divides_like_parts",
        "normalisation",
        "estimation/symmetry.py",
        "Symmetry.fold",
        "return (self.signs @ images.flatten(1)).unflatten(1, images.shape[1:])",
        "return (self.signs @ images.flatten(1)).unflatten(1, images.shape[1:]) / len(self)",
        "The sums over an orbit are divided by the number of reflections, as components are: the covariance "
        "of the current powers is a quarter of what it should be.",
    ),
    SourceFault(
        "no_noise_in_the_model",
        "missing term",
        "nn/statistics.py",
        "GridStatistics._whitened",
        "factor = torch.linalg.cholesky_ex(BC @ B.mH + noise * identity).L",
        "factor = torch.linalg.cholesky_ex(BC @ B.mH + _MIN_NOISE * identity).L",
        "The modelled covariance of a snapshot lacks the noise, but for what keeps it invertible: noise is "
        "explained by sources.",
    ),
    SourceFault(
        "limit_divided_by_the_loading",
        "factor or unit",
        "covariance.py",
        "conditioning",
        "torch.minimum(shrinkage, 1 - (1 - IDENTITY_MAX) * (1 + loading))",
        "torch.minimum(shrinkage, 1 - (1 - IDENTITY_MAX) / (1 + loading))",
        "The largest shrinkage is computed with the reciprocal of the factor of the loading, so that up to "
        "half of R_blend and R_true is the identity, not a quarter.",
    ),
    SourceFault(
        "separation_to_either_side",
        "factor or unit",
        "estimation/grid.py",
        "_chosen",
        "reach = max(1, int(separation * grid.oversampling))",
        "reach = max(1, int(2 * separation * grid.oversampling))",
        "The least distance of two peaks of a map is twice what is asked for, so that of two sources a beam "
        "width apart one is not found.",
    ),
    # Network.
    SourceFault(
        "inverse_range_from_one_step",
        "limit or clamp",
        "nn/network.py",
        "interpolated",
        "return from_cosines(u_x, u_y, q.clamp_min(grid.step[2] / 4))",
        "return from_cosines(u_x, u_y, q.clamp_min(grid.step[2]))",
        "The inverse range is at least a whole step of the grid: far sources are placed too near, without a "
        "gradient.",
    ),
    SourceFault(
        "last_stage_starts_large",
        "off by one",
        "nn/network.py",
        "Network._reset",
        "            for stage in self._each_stage():\n                stage.write.weight.mul_(0.1)",
        "            for stage in self._each_stage()[:-1]:\n                stage.write.weight.mul_(0.1)",
        "The output layer of the last stage is left out: its first heat maps are noise of standard deviation "
        "1 or more on top of the SBL step.",
    ),
    SourceFault(
        "positions_leave_the_map",
        "gradient cut or leaked",
        "nn/network.py",
        "Network._sources",
        "interpolated(grid, logits, index, at_peaks",
        "interpolated(grid, logits.detach(), index, at_peaks",
        "The map is detached for the positions as it is for the peaks: no gradient of positions or factors "
        "reaches the heat map by the interpolation.",
    ),
    SourceFault(
        "planes_viewed_as_channels",
        "broadcast or shape",
        "nn/network.py",
        "Network.predict",
        ".view(S, _MAPS, X, Y, Z)\n                .movedim(-1, 2)\n                .flatten(1, 2)",
        ".view(S, _MAPS * Z, X, Y)",
        "The maps are viewed with the range as a channel, but not moved there: the cells of the network's "
        "input are not those of its output.",
    ),
    # Losses.
    SourceFault(
        "share_without_root",
        "factor or unit",
        "covariance.py",
        "blend",
        "second.factor * share.sqrt()[..., None, None]",
        "second.factor * share[..., None, None]",
        "The factor of R_samp is scaled by beta and not its root: R_samp has beta^2 of the blend, 0.09 for "
        "0.3.",
    ),
    SourceFault(
        "maps_against_all_targets",
        "broadcast or shape",
        "nn/losses.py",
        "heat_map_divergence",
        "return (torch.special.xlogy(target, target) - target * log_share).sum(-1)",
        "return (torch.special.xlogy(target, target) - target[:, None] * log_share).sum(-1)",
        "The target has one axis more, which broadcasts: each heat map is compared with the targets of all "
        "scenes of the batch.",
    ),
    SourceFault(
        "hinge_over_own_gap",
        "normalisation",
        "nn/losses.py",
        "eigengap_hinge",
        "return (gap - eigenvalue_gap(covariance, count)).relu() / (gap + _FLOOR)",
        "return (gap - (own := eigenvalue_gap(covariance, count))).relu() / (own + _FLOOR)",
        "The hinge is relative to the gap of R, not to the margin: it is huge where the gap is closed.",
    ),
    SourceFault(
        "diagonal_without_gradient",
        "gradient cut or leaked",
        "nn/losses.py",
        "covariance_error",
        "ours, theirs = squared_modulus(F).sum(-1), squared_modulus(G).sum(-1)",
        "ours, theirs = squared_modulus(F).sum(-1).detach(), squared_modulus(G).sum(-1)",
        "The diagonal of R is detached like that of the target: its error has no gradient, and the gradient "
        "of the off-diagonal error holds that of the diagonal.",
    ),
    # Optimizer, schedules and batches.
    SourceFault(
        "noise_hidden_by_epochs",
        "missing term",
        "nn/data.py",
        "TrainingScenes.noise_hidden",
        "batches = torch.arange(parts) + parts * (epoch * self.spec.steps_per_epoch + step)",
        "batches = torch.arange(parts) + parts * epoch * self.spec.steps_per_epoch",
        "The step is left out: the noise variance is hidden in all batches of an epoch, or in none.",
    ),
    SourceFault(
        "steps_with_weights_of_settings",
        "wrong variable",
        "nn/learner.py",
        "Learner.step",
        "                self._predict_with_dropout(recording, part), recording, beta, weights\n",
        "                self._predict_with_dropout(recording, part), recording, beta, spec.loss.weights\n",
        "Steps take the loss weights of the settings, not those of the epoch: the schedule has no effect, "
        "and the peak contrast is never trained.",
    ),
    SourceFault(
        "ramp_condition_reversed",
        "condition",
        "nn/data.py",
        "weights_at",
        'if epoch < _ramp(spec):\n        weights["subspace"] = loss.subspace_warm_up',
        'if epoch >= _ramp(spec):\n        weights["subspace"] = loss.subspace_warm_up',
        "The warm-up weight holds after the ramp of beta instead of during it, which leaves out the last "
        "phase.",
    ),
    SourceFault(
        "rate_set_once_an_epoch",
        "condition",
        "nn/learner.py",
        "Learner._set_learning_rate",
        '        for group in self.optimizer.param_groups:\n            group["lr"] = ',
        "        if self.taken % self.spec.steps_per_epoch:\n            return\n"
        '        for group in self.optimizer.param_groups:\n            group["lr"] = ',
        "The learning rate is set at the first step of an epoch only: the first epoch is trained with that "
        "of the first step, and one resumed within an epoch with the full rates.",
    ),
    # Validation and scores.
    SourceFault(
        "false_alarms_are_free",
        "condition",
        "metrics.py",
        "gospa",
        "values.append(math.sqrt(assigned + cutoff_m**2 / 2 * abs(len(X) - len(Y))))",
        "values.append(math.sqrt(assigned + cutoff_m**2 / 2 * max(0, len(X) - len(Y))))",
        "Only missed sources count in GOSPA; sources that are found in excess cost nothing.",
    ),
    SourceFault(
        "least_probable_number",
        "sign",
        "nn/validation.py",
        "_score",
        "count = prediction.count_logits.argmax(-1)",
        "count = prediction.count_logits.argmin(-1)",
        "The scores are those with the least probable number of sources.",
    ),
    SourceFault(
        "scores_kept_with_the_scenes",
        "stale or shared state",
        "nn/validation.py",
        "validate",
        "scores, covariance = _score(learner, scenes, beta)",
        'if not hasattr(scenes, "scores"):\n'
        "        scenes.scores = _score(learner, scenes, beta)  # type: ignore[attr-defined]\n"
        "    scores, covariance = scenes.scores  # type: ignore[attr-defined]",
        "The scores are computed once and kept with the validation scenes: they are those of the initial "
        "network in every epoch.",
    ),
    # Files.
    SourceFault(
        "average_not_in_checkpoint",
        "missing term",
        "nn/learner.py",
        "Learner.tensors",
        '            ("average", self.average),\n',
        "",
        "The moving average is not saved: a resumed training goes on with the initial weights in it, which "
        "are validated and saved.",
    ),
    SourceFault(
        "best_is_asked_before_it_is_set",
        "stale or shared state",
        "nn/train.py",
        "Trainer._save_weights",
        "        if math.isfinite(loss) and (state.best is None or loss < state.best):\n"
        "            state.best, state.best_epoch = loss, state.epoch\n"
        '        notes = {"epoch": str(state.epoch), "validation_loss": json.dumps(loss)}\n'
        "        is_best = state.best is None or state.best_epoch == state.epoch\n",
        "        is_best = state.best is None or state.best_epoch == state.epoch\n"
        "        if math.isfinite(loss) and (state.best is None or loss < state.best):\n"
        "            state.best, state.best_epoch = loss, state.epoch\n"
        '        notes = {"epoch": str(state.epoch), "validation_loss": json.dumps(loss)}\n',
        "Whether an epoch is the best is asked before its loss is compared: after the first epoch none is, "
        "and the weights of the first are kept as the best ones.",
    ),
    # Settings.
    SourceFault(
        "snr_from_the_rician_factor",
        "wrong variable",
        "simulation/simulator.py",
        "Simulator._receive",
        "low, high = limits(self.spec.snr_db)",
        "low, high = limits(self.spec.channel.rician_factor_db)",
        "The SNR is drawn between the limits of the Rician factor, -3 and 10 dB, not those of the settings.",
    ),
)
