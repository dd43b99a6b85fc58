"""An eighth set of faults in the package as source edits, made by someone who had not seen the doctor.

Like :mod:`blind_source_faults`: each replaces one string that occurs exactly once in its file and changes a
short training, with the panel of 8 x 8 elements that the doctor is run with.

As in the seventh set, the place and the class of mistake of each were drawn at random first
(``random.Random(8)``, places without replacement within each area, the classes of a place in a random order),
and the edit was written for the pair; where a class cannot occur at a place (a gradient of positions that are
drawn), would change nothing, or would end in a crash, the next class of the drawn order was taken. The
earlier sets were not read: ``heat_map_at_the_angles`` and ``attention_to_earlier_cells`` turned out to be
edits of the third one, ``errors_limited_before_huber`` of the seventh.

The last eight are of a second author, who had seen neither the doctor nor the first author's edits (but for
the last three, at the end of the file): one for each of eight parts of the training code, the place and the
order of the classes drawn by ``random.Random(88)`` from a table that was written first;
``powers_as_amplitudes`` turned out to be an edit of the fourth set.
"""

from __future__ import annotations

from blind_source_faults import SourceFault

_SPREAD = ("--system.scene.power-spread-db", "12")

FAULTS = (
    # Simulation.
    SourceFault(
        "one_symbol_for_two_sources",
        "index or off by one",
        "simulation/scene.py",
        "draw_symbols",
        "own = draws.complex_normal(Stream.SYMBOLS, sources, snapshots, dtype=dtype)",
        "own = draws.complex_normal(Stream.SYMBOLS, (sources + 1) // 2, snapshots, dtype=dtype)\n"
        "        own = own.repeat_interleave(2, dim=1)[:, :sources]",
        "The symbols of source k are those of number k // 2: sources in pairs are coherent, which the "
        "recording calls independent.",
    ),
    SourceFault(
        "azimuth_from_the_snr",
        "randomness",
        "simulation/scene.py",
        "_positions",
        "uniform(Stream.POSITIONS, attempts",
        "uniform(Stream.SNR, attempts",
        "Positions take the stream of the SNR: the azimuth of the first source rises with the SNR of the "
        "scene.",
    ),
    SourceFault(
        "whole_share_of_the_line_of_sight",
        "precision or rounding",
        "simulation/scene.py",
        "draw_channel",
        "mixed = (factor / (factor + 1)).sqrt() * sight",
        "mixed = (factor // (factor + 1)).sqrt() * sight",
        "The share of the line of sight is rounded down to 0: the Rician channel is a Rayleigh one.",
    ),
    SourceFault(
        "spread_powers_sent_equal",
        "condition",
        "simulation/scene.py",
        "complete_sources",
        "symbols = unit * power.sqrt()[..., None]",
        'symbols = unit * power.sqrt()[..., None] if spec.power == "path_loss" else unit',
        "Symbols are scaled to their powers with path loss only: with a spread of equal powers all sources "
        "send with power 1, whatever the truth says.",
        _SPREAD,
    ),
    # Labels.
    SourceFault(
        "heat_map_at_the_angles",
        "wrong variable",
        "nn/losses.py",
        "heat_map_target",
        "to_cosines(azimuth, elevation, distance), (grid.u_x,",
        "(azimuth, elevation, 1 / distance), (grid.u_x,",
        "The target of the heat map stands at the angles in radians, not at their direction cosines: too "
        "far out by up to a quarter of the axis.",
    ),
    SourceFault(
        "cells_around_not_converted_back",
        "missing or doubled step",
        "nn/losses.py",
        "Targets.around",
        "cosine.flatten(-2) for cosine in from_cosines(x, y, q[..., None].expand_as(x))",
        "cosine.flatten(-2) for cosine in (x, y, 1 / q[..., None].expand_as(x))",
        "The direction cosines of the cells around a source are taken for angles: the peak contrast looks "
        "beside sources away from the axis.",
    ),
    # Statistics and input.
    SourceFault(
        "columns_added_in_place",
        "stale or shared state",
        "nn/statistics.py",
        "GridStatistics.__init__",
        "torch.cat((a + b, b - a), dim=-1), torch.cat((a, b), dim=-1)",
        "torch.cat((a.add_(b), b - a), dim=-1), torch.cat((a, b), dim=-1)",
        "The sum of real and imaginary parts is formed in place, and the parts that follow are taken from "
        "it: the table of outer products is wrong, and with it the covariance of the data and the expected "
        "energy.",
    ),
    SourceFault(
        "uniform_power_of_the_batch",
        "reduction",
        "nn/network.py",
        "Network.initial_statistics",
        "power = statistics.uniform_power(scenes)",
        "power = statistics.uniform_power(scenes).mean(0, keepdim=True).expand_as(scenes.gain)",
        "The uniform powers that the statistics start from are the mean over the scenes of a batch: a scene "
        "depends on the others, and its powers do not explain its energy.",
    ),
    SourceFault(
        "matched_energy_per_snapshot",
        "factor or unit",
        "nn/statistics.py",
        "GridStatistics._energy",
        "return self.symmetry.to_points(self.symmetry.unfold(fields).square_().sum(2))",
        "return self.symmetry.to_points(self.symmetry.unfold(fields).square_().sum(2)) / rows.shape[1]",
        "The matched energy is divided by the number of snapshots and the expected one is not: their ratio "
        "is 16 times too small, and each SBL iteration lowers all powers.",
    ),
    # Network.
    SourceFault(
        "existence_offset_in_training_only",
        "condition",
        "nn/network.py",
        "Network._sources",
        "existence_logits=at_peaks[:, 5] + 4 + height,",
        "existence_logits=at_peaks[:, 5] + height + (4 if A.requires_grad else 0),",
        "The offset of the existence logits is added only with gradients: validation and inference see "
        "sources as e^4 times less likely than training.",
    ),
    SourceFault(
        "attention_to_earlier_cells",
        "sign or direction",
        "nn/network.py",
        "Attention.forward",
        "scaled_dot_product_attention(queries, keys, values)",
        "scaled_dot_product_attention(queries, keys, values, is_causal=True)",
        "Attention is causal, as in a language model: a cell sees only those before it in the order of the "
        "grid.",
    ),
    SourceFault(
        "first_stage_frozen",
        "gradient",
        "nn/network.py",
        "Network.__init__",
        "        self.details = nn.Conv2d(",
        "        self.stages[0].requires_grad_(False)\n        self.details = nn.Conv2d(",
        "The weights of the first stage are frozen, as for a fine-tuning, and stay at their random values.",
    ),
    SourceFault(
        "skip_of_the_convolved_map",
        "wrong variable",
        "nn/network.py",
        "Block.forward",
        "x = x + _dropout(self.attention(x.flatten(2).mT).mT, mask, 1).view_as(x)",
        "x = flat.mT.view_as(x) + _dropout(self.attention(x.flatten(2).mT).mT, mask, 1).view_as(x)",
        "Attention is added to the convolved map, not to the block's own: the skip connection of each stage "
        "is cut in its last block.",
    ),
    # Losses.
    SourceFault(
        "errors_limited_before_huber",
        "limit or clamp",
        "nn/losses.py",
        "_huber",
        'return huber_loss(x, torch.zeros_like(x), reduction="none")',
        'return huber_loss(x.clamp(-1, 1), torch.zeros_like(x), reduction="none")',
        "Errors of angles and range are limited to 5 degrees and 0.3: the loss has no gradient beyond, "
        "where a network begins, and the assignment cannot tell far heads apart.",
    ),
    SourceFault(
        "single_sources_left_out",
        "condition",
        "nn/losses.py",
        "total_loss",
        "occupied = (targets.count > 0).to(real)",
        "occupied = (targets.count > 1).to(real)",
        "Scenes of one source count as empty: they contribute nothing to the losses of the covariance.",
    ),
    SourceFault(
        "trace_of_the_batch",
        "reduction",
        "covariance.py",
        "Covariance.normalised",
        "        trace = self.trace\n        empty = trace == 0",
        "        trace = self.trace.mean()\n        empty = trace == 0",
        "Covariances are divided by the mean trace of the batch: their own trace is not 1, so that weak "
        "scenes hardly count in the losses and loud ones dominate them.",
    ),
    # Optimiser and schedules.
    SourceFault(
        "beta_of_the_end",
        "wrong variable",
        "nn/train.py",
        "Trainer._step",
        "learner.step(self.scenes.step(state.epoch, state.step), beta, weights)",
        "learner.step(self.scenes.step(state.epoch, state.step), spec.schedule.beta, weights)",
        "Steps take the beta of the settings, which is that of the end, not that of the epoch: the ramp in "
        "which the network learns alone, and the jitter, are logged but do not happen.",
    ),
    SourceFault(
        "hidden_noise_in_percent",
        "factor or unit",
        "nn/data.py",
        "TrainingScenes.noise_hidden",
        "return [value < self.spec.hidden_noise for value in uniform.tolist()]",
        "return [100 * value < self.spec.hidden_noise for value in uniform.tolist()]",
        "The share of batches with a hidden noise variance is taken for percent: practically none is hidden.",
    ),
    SourceFault(
        "sum_of_the_norms",
        "reduction",
        "nn/learner.py",
        "Learner._norms",
        "norms.append(nn.utils.get_total_norm(gradients) if gradients else self.factors.new_zeros(()))",
        "norms.append(sum((g.norm() for g in gradients), start=self.factors.new_zeros(())))",
        "The norm of the gradient is the sum of the norms of its tensors: it is logged too large, and steps "
        "are clipped that need not be, nearly all of them in a short training.",
    ),
    # Validation.
    SourceFault(
        "current_weights_for_a_thousand_steps",
        "condition",
        "nn/learner.py",
        "Learner.predict",
        "            if not averaged:\n",
        "            if not averaged or self.taken < 1000:\n",
        "Until a thousand steps are taken, validation uses the current weights; those that are saved, and "
        "whose best epoch it chooses, are the averaged ones.",
    ),
    SourceFault(
        "variety_of_the_columns",
        "axis or order",
        "nn/validation.py",
        "variety",
        "products = squared_modulus(flat.mH @ flat).view(S, R, S, R).sum((1, 3))",
        "products = squared_modulus(flat.mH @ flat).view(S, R, S, R).sum((0, 2))",
        "The products are summed over the scenes, not over the columns of the factors: the variety that is "
        "reported is that of the columns, and a network that gives every scene the same covariance passes.",
    ),
    # Files.
    SourceFault(
        "best_by_a_tenth_at_least",
        "limit or clamp",
        "nn/train.py",
        "Trainer._save_weights",
        "loss < state.best):",
        "loss < state.best - 0.1):",
        "An epoch is the best only if it lowers the loss by a tenth: the gains of later epochs are smaller, "
        "and the weights of an early one stay the best.",
    ),
    SourceFault(
        "average_not_saved",
        "missing or doubled step",
        "nn/checkpoint.py",
        "save_network",
        "    if weights is None:\n        weights = {name: value.detach() for",
        "    weights = {name: value.detach() for",
        "The weights that are passed are dropped: files hold the current ones, not the averages that were "
        "validated.",
    ),
    # Settings.
    SourceFault(
        "searched_up_to_45_degrees",
        "limit or clamp",
        "estimation/grid.py",
        "Volume.from_spec",
        'math.radians(spec.azimuth_max_deg) if "azimuth" in unknowns else 0.0,',
        'min(math.radians(spec.azimuth_max_deg), math.pi / 4) if "azimuth" in unknowns else 0.0,',
        "The search volume ends at 45 degrees of azimuth whatever the settings say: a quarter of the "
        "sources, up to 60 degrees, is outside of the grid.",
    ),
    # By a second author. Simulation.
    SourceFault(
        "eight_configurations_repeated",
        "limit or clamp",
        "simulation/scene.py",
        "draw_codes",
        "return _random(size, spec, draws, dtype)",
        "codes = _random(size, spec, draws, dtype)\n"
        "        return codes[:, torch.arange(L, device=codes.device) % 8]",
        "At most eight different random configurations are drawn, then they repeat: of 16 snapshots the last "
        "eight see the panel exactly as the first eight, and half of the diversity is gone.",
    ),
    # Operator.
    SourceFault(
        "codes_one_snapshot_late",
        "index or off by one",
        "operator.py",
        "Link.apply",
        "coded = field if self.codes is None else field * self._per_subcarrier(self.codes)",
        "coded = field if self.codes is None else field * self._per_subcarrier(self.codes.roll(1, -2))",
        "The panel takes the configuration of the snapshot before: received signals do not belong to the "
        "codes of the recording, which adjoint and matmul use.",
    ),
    # Covariance.
    SourceFault(
        "blend_a_quarter_at_most",
        "limit or clamp",
        "covariance.py",
        "blend",
        "share = torch.zeros_like(predicted.loading) + given",
        "share = (torch.zeros_like(predicted.loading) + given).clamp_max(IDENTITY_MAX)",
        "The share of R_samp is limited by the constant for the share of the identity: with beta = 0.3 the "
        "blend has only a quarter of R_samp.",
    ),
    # Input of the network.
    SourceFault(
        "whole_steps_of_the_noise_input",
        "precision or rounding",
        "nn/network.py",
        "Network.predict",
        "inputs = [maps, self.place.expand(S, -1, -1, -1), noise / 4]",
        "inputs = [maps, self.place.expand(S, -1, -1, -1), noise // 4]",
        "The noise input of the stages is rounded down to whole numbers, steps of 17 dB: within a step all "
        "noise levels look the same.",
    ),
    # Network.
    SourceFault(
        "powers_as_amplitudes",
        "units or scale",
        "nn/network.py",
        "Network._sources",
        "amplitude = (height[:, None] / 2 + at_peaks[:, 3:5]).exp()",
        "amplitude = (height[:, None] + at_peaks[:, 3:5]).exp()",
        "The amplitudes of the factors are shares of the heat map, not square roots of them: R_pred has the "
        "squares of the powers, and weak sources vanish from it.",
    ),
    # Losses.
    SourceFault(
        "contrast_loaded_for_each_element",
        "units or scale",
        "nn/losses.py",
        "peak_contrast",
        "loading = torch.full_like(which.loading, _LOADING)",
        "loading = torch.full_like(which.loading, _LOADING * which.size)",
        "The loading of the MVDR spectra, which is relative to the trace, is taken as one for each element: "
        "N times as much, both spectra are nearly flat, and the loss nearly 0 for every prediction.",
    ),
    # Schedules.
    SourceFault(
        "jitter_of_beta_upwards",
        "sign",
        "nn/data.py",
        "beta_at",
        "spec.beta + spec.beta_jitter * (2 * float(uniform) - 1)",
        "spec.beta + spec.beta_jitter * (2 * float(uniform) + 1)",
        "The jitter is J to 3 J upwards, not to either side: after the ramp beta is above its setting in "
        "every epoch, 0.35 to 0.45 for 0.3, while validation and inference use 0.3.",
    ),
    # Validation.
    SourceFault(
        "limits_of_the_angles_swapped",
        "swapped arguments",
        "estimation/grid.py",
        "Volume.clamp",
        "azimuth.clamp(-self.azimuth_max, self.azimuth_max),\n"
        "            elevation.clamp(-self.elevation_max, self.elevation_max),",
        "azimuth.clamp(-self.elevation_max, self.elevation_max),\n"
        "            elevation.clamp(-self.azimuth_max, self.azimuth_max),",
        "Each angle is clipped to the limits of the other: sources found beyond 30 degrees of azimuth are "
        "moved to 30 degrees, and validation counts them as missed.",
    ),
)
