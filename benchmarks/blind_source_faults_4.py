"""A fourth set of faults in the package as source edits, made by someone who had not seen the doctor.

Like :mod:`blind_source_faults`: each replaces one string that occurs exactly once in its file and changes a
short training (``blind_doctor_faults.py --check --set 4`` verifies both). A third of them should show in the
curves of a training, a third need a look at its parts, a third are found by reasoning only; each class is
named before its faults.
"""

from __future__ import annotations

from blind_source_faults import SourceFault

FAULTS = (
    # Obvious: a curve, a score or the end of the training is plainly wrong.
    SourceFault(
        "labels_of_another_scene",
        "labels",
        "simulation/simulator.py",
        "Simulator.__call__",
        "            truth=truth,\n",
        "            truth=truth.each(lambda value: value.roll(1, 0)),\n",
        "The labels are one scene late: each scene has the sources of the one before it in the batch.",
    ),
    SourceFault(
        "azimuths_sorted_alone",
        "labels",
        "nn/losses.py",
        "Targets.of",
        "truth = replace(recording.truth, symbols=None)",
        "truth = replace(recording.truth, symbols=None, azimuth=recording.truth.azimuth.sort(-1).values)",
        "Azimuths are sorted, elevations, ranges and powers are not: labels mix coordinates of different "
        "sources.",
    ),
    SourceFault(
        "azimuths_of_one_side",
        "data",
        "simulation/scene.py",
        "_positions",
        "low = torch.tensor([-spec.azimuth_max_deg, -spec.elevation_max_deg",
        "low = torch.tensor([0.0, -spec.elevation_max_deg",
        "The lower limit of the azimuth is 0, so that half of the volume has no source in any scene.",
    ),
    SourceFault(
        "heads_by_number",
        "matching",
        "nn/losses.py",
        "match_heads",
        "partner = assign(torch.where(active[:, None, :], cost.detach(), 0))",
        "partner = torch.arange(cost.shape[-1], device=cost.device).expand(len(cost), -1)",
        "Head k is compared with source k, although sources are in no order.",
    ),
    SourceFault(
        "count_over_the_batch",
        "axis",
        "nn/losses.py",
        "count_divergence",
        "t * logits.log_softmax(-1)).sum(-1)",
        "t * logits.log_softmax(0)).sum(-1)",
        "The softmax of the number of sources runs over the scenes of the batch in place of the numbers.",
    ),
    SourceFault(
        "heat_map_starts_large",
        "initialisation",
        "nn/network.py",
        "Network._reset",
        "stage.write.weight.mul_(0.1)",
        "stage.write.weight.div_(0.1)",
        "The output layers of the heat maps are divided by the factor: they start with weights that are a "
        "hundred times too large, and the maps with noise.",
    ),
    SourceFault(
        "plain_descent_at_rates_of_adam",
        "optimizer",
        "nn/learner.py",
        "Learner.__init__",
        "torch.optim.AdamW(parameter_groups(self.network, spec), fused=True)",
        "torch.optim.SGD(parameter_groups(self.network, spec), fused=True)",
        "Stochastic gradient descent with learning rates that are meant for AdamW hardly moves the weights.",
    ),
    SourceFault(
        "schedule_counts_scenes",
        "schedule",
        "nn/learner.py",
        "Learner.__init__",
        "steps = spec.steps_per_epoch * spec.schedule.epochs",
        "steps = spec.scenes_per_epoch * spec.schedule.epochs",
        "The schedule is as long as the training has scenes, but is read once per step: the rate is still "
        "rising when the training ends.",
    ),
    SourceFault(
        "cosine_rises",
        "schedule",
        "nn/data.py",
        "learning_rate_factor",
        "(1 + math.cos(math.pi * progress)) / 2",
        "(1 - math.cos(math.pi * progress)) / 2",
        "The sign of the cosine is wrong: after the warm-up the rate drops to its floor and rises to its "
        "peak at the end.",
    ),
    SourceFault(
        "validation_sums_over_batches",
        "wrong reduction",
        "nn/validation.py",
        "validate",
        "means = (torch.stack(totals) * share[:, None]).sum(0).tolist()",
        "means = torch.stack(totals).sum(0).tolist()",
        "Validation losses are summed over the batches, not averaged, and grow with the validation set.",
    ),
    SourceFault(
        "checkpoint_in_half_precision",
        "resume",
        "nn/learner.py",
        "Learner.tensors",
        'named |= {f"{kind}/{name}": value for name, value in tensors.items()}',
        'named |= {f"{kind}/{name}": value.half() for name, value in tensors.items()}',
        "Checkpoints are stored in half precision, in which second moments of AdamW become 0: the first "
        "steps after resuming are far too long.",
    ),
    # Medium: the parts have to be looked at.
    SourceFault(
        "wavenumber_without_two",
        "formula",
        "array.py",
        "Panel.wavenumber",
        "return 2 * math.pi / self.wavelength",
        "return math.pi / self.wavelength",
        "The wavenumber is pi / wavelength: all phases are half of theirs, as on a panel of half the size.",
    ),
    SourceFault(
        "norm_over_sources",
        "axis",
        "array.py",
        "_Rays.unit_wave",
        "norm = self.gain.norm(dim=-1, keepdim=True)",
        "norm = self.gain.norm(dim=-2, keepdim=True)",
        "Amplitudes are normalised over the sources in place of the elements: a steering vector depends on "
        "which others are computed with it.",
    ),
    SourceFault(
        "grid_begins_at_the_limit",
        "off by one",
        "estimation/grid.py",
        "SearchGrid.cover",
        "device=panel.elements.device) + 0.5\n            axes",
        "device=panel.elements.device)\n            axes",
        "Grid points stand at the lower ends of their cells, not in the middle: the grid is half a step off "
        "and no longer symmetric, which products with the steering vectors rely on.",
    ),
    SourceFault(
        "volume_as_wide_as_high",
        "copy and paste",
        "estimation/grid.py",
        "Volume.from_spec",
        'math.radians(spec.azimuth_max_deg) if "azimuth" in unknowns',
        'math.radians(spec.elevation_max_deg) if "azimuth" in unknowns',
        "The search volume has the limit of the elevation for the azimuth too; half of the sources are "
        "outside the grid.",
    ),
    SourceFault(
        "first_update_inverted",
        "swapped arguments",
        "nn/network.py",
        "Network.initial_statistics",
        "sbl_update(power, matched, expected), self.spec.sbl_iterations - 1",
        "sbl_update(power, expected, matched), self.spec.sbl_iterations - 1",
        "Matched and expected energy are exchanged in the first SBL step: powers fall where the sources are.",
    ),
    SourceFault(
        "triangle_of_the_other_side",
        "library call",
        "nn/statistics.py",
        "GridStatistics._whitened",
        "half = torch.linalg.solve_triangular(factor, identity, upper=False)",
        "half = torch.linalg.solve_triangular(factor, identity, upper=True)",
        "The lower Cholesky factor is solved as an upper one, so that only its diagonal counts; snapshots "
        "are not whitened.",
    ),
    SourceFault(
        "power_taken_for_amplitude",
        "units",
        "nn/network.py",
        "Network._sources",
        "amplitude = (height[:, None] / 2 + at_peaks[:, 3:5]).exp()",
        "amplitude = (height[:, None] + at_peaks[:, 3:5]).exp()",
        "The factors are scaled by the share of a source, not by its root, so R_pred starts with squared "
        "powers.",
    ),
    SourceFault(
        "offsets_to_one_side",
        "activation",
        "nn/network.py",
        "Network._sources",
        "interpolated(grid, logits, index, at_peaks[:, :3].mT.tanh())",
        "interpolated(grid, logits, index, at_peaks[:, :3].mT.sigmoid())",
        "Offsets from the grid come from a sigmoid: they are positive only, and half a step at the start.",
    ),
    SourceFault(
        "absent_sources_in_the_heat_map",
        "mask",
        "nn/losses.py",
        "heat_map_target",
        "active = truth.active.to(spread[0].dtype)",
        "active = torch.ones_like(truth.active, dtype=spread[0].dtype)",
        "Unused slots are not masked: in every scene with fewer sources the target has one on the axis.",
    ),
    SourceFault(
        "symbols_held",
        "data",
        "simulation/scene.py",
        "draw_symbols",
        "own = draws.complex_normal(Stream.SYMBOLS, sources, snapshots, dtype=dtype)",
        "own = draws.complex_normal(Stream.SYMBOLS, sources, 1, dtype=dtype).expand(-1, -1, snapshots)",
        "A source sends the same symbol in all snapshots of a scene, which recordings call independent.",
    ),
    SourceFault(
        "accumulates_one_batch",
        "data",
        "nn/data.py",
        "TrainingScenes.scene_ranges",
        "starts = [first + part * spec.batch + self.group.rank * share for part in range(spec.accumulation)]",
        "starts = [first + self.group.rank * share for _ in range(spec.accumulation)]",
        "The accumulated batches of a step are all the same one; three quarters of the scenes are not used.",
        ("--accumulation", "4"),
    ),
    # Subtle.
    SourceFault(
        "range_of_snr_forgotten",
        "formula",
        "simulation/simulator.py",
        "Simulator._receive",
        "noise_variance = power / from_db(low + (high - low) * fraction)",
        "noise_variance = power / from_db(low + high * fraction)",
        "The width of the range of SNRs is its upper limit: with -5 to 20 dB, scenes end at 15 dB.",
    ),
    SourceFault(
        "streams_share_numbers",
        "randomness",
        "simulation/random_numbers.py",
        "Draws.words",
        "key0, key1 = threefry(*self._key, zero, zero + int(stream))",
        "key0, key1 = threefry(*self._key, zero, zero)",
        "The stream is left out of the key: positions, symbols, channel, noise and codes of a scene are made "
        "from the same numbers.",
    ),
    SourceFault(
        "recorded_noise_for_hidden",
        "leak",
        "nn/data.py",
        "with_estimated_noise",
        "noise = guess_noise(replace(recording, noise_variance=None))",
        "noise = guess_noise(recording) if recording.noise_variance is None else recording.noise_variance",
        "The noise variance is estimated only where a recording has none. Simulated scenes have it, so that "
        "the network never sees an estimate, in training or validation.",
    ),
    SourceFault(
        "steps_twice",
        "optimizer",
        "nn/learner.py",
        "Learner.step",
        "        self.scaler.update()\n",
        "        self.scaler.step(self.optimizer)\n        self.scaler.update()\n",
        "The usual call of the scaler is added to the step that is taken already: two steps per gradient.",
    ),
    SourceFault(
        "trace_without_gradient",
        "gradient cut",
        "covariance.py",
        "Covariance.normalised",
        "safe = torch.where(empty, 1, trace)",
        "safe = torch.where(empty, 1, trace.detach())",
        "The trace is a constant for the gradient, which then also changes the scale of the factors, "
        "although no loss depends on it.",
    ),
    SourceFault(
        "heights_without_gradient",
        "gradient cut",
        "nn/network.py",
        "Network._sources",
        "height = logits.log_softmax(-1).gather(1, index)\n        amplitude",
        "height = logits.detach().log_softmax(-1).gather(1, index)\n        amplitude",
        "The heights of the peaks are detached: powers, existence and number of sources do not train the "
        "heat map.",
    ),
    SourceFault(
        "error_relative_to_the_prediction",
        "swapped arguments",
        "nn/losses.py",
        "_Structure.of",
        'losses["covariance"] = covariance_error(covariance, self._true)',
        'losses["covariance"] = covariance_error(self._true, covariance)',
        "The error is divided by the energy of the prediction, not of the truth, and falls as the prediction "
        "gets sharper.",
    ),
    SourceFault(
        "first_group_scheduled",
        "optimizer",
        "nn/learner.py",
        "Learner._set_learning_rate",
        "for group in self.optimizer.param_groups:",
        "for group in self.optimizer.param_groups[:1]:",
        "Only the first group of the optimizer follows the schedule; the others keep their peak rate from "
        "the first step to the last.",
    ),
    SourceFault(
        "dropout_in_validation",
        "mode",
        "nn/learner.py",
        "Learner.predict",
        "return functional_call(self.network, self.average, (recording,))",
        "scenes = torch.arange(len(recording), device=self.taken.device)\n"
        '            draws = Draws(self.spec.seed, "validation", scenes)\n'
        "            mask = channel_dropout(self.spec.network, draws)\n"
        "            return functional_call(self.network, self.average, (recording, mask))",
        "Channels are dropped in validation as in training.",
        ("--network.dropout", "0.2"),
    ),
    SourceFault(
        "sums_of_all_epochs",
        "stale state",
        "nn/train.py",
        "Trainer._end_epoch",
        "state.epoch, state.step, state.clipped, state.sums = state.epoch + 1, 0, 0, {}",
        "state.epoch, state.step, state.clipped = state.epoch + 1, 0, 0",
        "The sums of an epoch are not cleared: the training loss of an epoch is the mean since the start.",
    ),
)
