"""Faults in the package as source edits, made by someone who had not seen the doctor.

Each is one mistake of the kind that a refactoring or a new idea brings in, replaces one string that occurs
exactly once in its file, and changes a short training (``blind_doctor_faults.py --check`` verifies both). The
classes follow the taxonomies of Humbatova et al. (ICSE 2020), Islam et al. (FSE 2019) and Zhang et al.
(ISSTA 2018), and the usual mistakes of array processing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SourceFault:
    """One edit.

    Args:
        name: short name.
        kind: class of the fault.
        file: path below ``src/rismusic``.
        function: the function or method that is edited.
        old: the text, which occurs once.
        new: what replaces it.
        cause: what is wrong and why it harms the training.
        settings: options of ``rismusic doctor`` under which the fault takes effect.
    """

    name: str
    kind: str
    file: str
    function: str
    old: str
    new: str
    cause: str
    settings: tuple[str, ...] = ()


FAULTS = (
    # Random numbers.
    SourceFault(
        "normal_variance_two",
        "units",
        "simulation/random_numbers.py",
        "Draws.complex_normal",
        "radius = _unit(words[:, :count], real).log_().neg_().sqrt_()",
        "radius = _unit(words[:, :count], real).log_().mul_(-2).sqrt_()",
        "The Box-Muller radius of real numbers is used for complex ones, so |z|^2 has mean 2. The noise is "
        "twice as strong as the noise variance in the recording says.",
    ),
    SourceFault(
        "normal_same_words",
        "randomness",
        "simulation/random_numbers.py",
        "Draws.complex_normal",
        "angle = _unit(words[:, count:], real)",
        "angle = _unit(words[:, :count], real)",
        "Radius and angle of the Box-Muller transform come from the same words. Complex numbers lie on a "
        "curve: symbols and noise are neither Gaussian nor circular.",
    ),
    SourceFault(
        "seeds_repeat",
        "randomness",
        "simulation/random_numbers.py",
        "Draws.__init__",
        "self._key = threefry(*key, _word(scenes), _word(scenes >> 32))",
        "self._key = threefry(*key, _word(scenes & 0xFF), _word(scenes >> 32))",
        "The scene number is cut to a byte, so the scenes repeat after 256 and the network memorises them.",
    ),
    SourceFault(
        "noise_from_symbol_stream",
        "randomness",
        "simulation/simulator.py",
        "Simulator._receive",
        "noise = draws.complex_normal(Stream.NOISE, *signal.shape[1:], dtype=signal.dtype)",
        "noise = draws.complex_normal(Stream.SYMBOLS, *signal.shape[1:], dtype=signal.dtype)",
        "The noise is drawn from the stream of the symbols and repeats them, so it is not independent of the "
        "signal.",
    ),
    # Simulated scenes.
    SourceFault(
        "noise_amplitude",
        "units",
        "simulation/simulator.py",
        "Simulator._receive",
        "noise_variance.sqrt()[:, None, None] * noise",
        "noise_variance[:, None, None] * noise",
        "The noise is scaled by its variance in place of its standard deviation, so SNR and noise variance "
        "of the recordings are wrong.",
    ),
    SourceFault(
        "power_per_real_part",
        "normalisation",
        "simulation/simulator.py",
        "Simulator._receive",
        "power = 2 * torch.view_as_real(signal)",
        "power = torch.view_as_real(signal)",
        "The mean runs over real and imaginary parts, which halves the signal power: every scene has 3 dB "
        "more SNR than the settings say.",
    ),
    SourceFault(
        "field_conjugated",
        "array",
        "simulation/simulator.py",
        "Simulator._receive",
        "field = symbols.mT @ A.mT",
        "field = symbols.mT @ A.mH",
        "The simulated field has conjugated steering vectors, so the labels belong to other wavefronts.",
    ),
    SourceFault(
        "codes_one_snapshot_late",
        "target shift",
        "simulation/simulator.py",
        "Simulator.__call__",
        "            codes=nominal.codes,\n",
        "            codes=None if nominal.codes is None else nominal.codes.roll(1, -2),\n",
        "The recording has the configurations one snapshot late, so the network is given another link than "
        "the data came through.",
    ),
    SourceFault(
        "channel_conjugated",
        "array",
        "operator.py",
        "Link.apply",
        "coded @ self.channel.mT",
        "coded @ self.channel.mH",
        "The simulated signal passes the conjugated channel, every statistic uses the channel itself.",
    ),
    SourceFault(
        "same_code_each_snapshot",
        "data",
        "simulation/scene.py",
        "_random",
        "level = draws.octets(Stream.CODES, 2**spec.bits, L, size)",
        "level = draws.octets(Stream.CODES, 2**spec.bits, 1, size).repeat(1, L, 1)",
        "All snapshots of a scene have the same RIS configuration, so they add no new view of the panel.",
    ),
    SourceFault(
        "separation_ignored",
        "data",
        "simulation/scene.py",
        "_positions",
        "chosen[left] = sets[torch.arange(len(left), device=left.device), first.long()]",
        "chosen[left] = sets[:, 0]",
        "The first candidate is taken in place of the first with the required separation: sources are closer "
        "than the settings say.",
    ),
    SourceFault(
        "elevation_drawn_as_azimuth",
        "copy and paste",
        "simulation/scene.py",
        "_positions",
        "high = torch.tensor([spec.azimuth_max_deg, spec.elevation_max_deg, spec.range_max_m], dtype=dtype)",
        "high = torch.tensor([spec.azimuth_max_deg, spec.azimuth_max_deg, spec.range_max_m], dtype=dtype)",
        "Elevations are drawn up to the limit of the azimuth; many sources lie outside the search grid.",
    ),
    SourceFault(
        "never_most_sources",
        "index",
        "simulation/scene.py",
        "draw_sources",
        "draws.integers(Stream.COUNT, most - fewest + 1)",
        "draws.integers(Stream.COUNT, max(1, most - fewest))",
        "The number of sources never reaches its upper limit (off by one), so the network never learns it.",
    ),
    SourceFault(
        "symbols_times_power",
        "units",
        "simulation/scene.py",
        "complete_sources",
        "symbols = unit * power.sqrt()[..., None]",
        "symbols = unit * power[..., None]",
        "Symbols are scaled by the power in place of its root: the powers in the labels are not those of the "
        "data.",
        ("--system.scene.power-spread-db", "12"),
    ),
    SourceFault(
        "decibel_of_amplitudes",
        "units",
        "array.py",
        "from_db",
        "return (level_db * (math.log(10) / 10)).exp()",
        "return (level_db * (math.log(10) / 20)).exp()",
        "dB are converted as amplitudes, with 20 in place of 10: the SNR range is half as wide in dB.",
    ),
    SourceFault(
        "wave_of_other_sign",
        "array",
        "array.py",
        "_Rays.unit_wave",
        "return torch.complex(phase.cos() * gain, phase.sin() * gain)",
        "return torch.complex(phase.cos() * gain, -phase.sin() * gain)",
        "Steering vectors have the other sign of the phase: consistent within the simulation, wrong on real "
        "data, and against the derivatives.",
    ),
    SourceFault(
        "direction_without_cosine",
        "array",
        "array.py",
        "direction",
        "return azimuth.sin() * elevation.cos(), elevation.sin(), azimuth.cos() * elevation.cos()",
        "return azimuth.sin(), elevation.sin(), azimuth.cos() * elevation.cos()",
        "u_x lacks the cosine of the elevation: direction vectors are too long, and positions do not survive "
        "the way to grid coordinates and back.",
    ),
    SourceFault(
        "azimuth_from_arcsine",
        "array",
        "estimation/grid.py",
        "from_cosines",
        "return torch.atan2(u_x, u_z), torch.asin(u_y), 1 / q",
        "return torch.asin(u_x), torch.asin(u_y), 1 / q",
        "The azimuth is the arcsine of u_x as for a linear array: wrong away from elevation 0, in the grid "
        "and in the predicted positions.",
    ),
    SourceFault(
        "unused_slots_have_steering",
        "masking",
        "sources.py",
        "Sources.steering",
        "return steering(panel, *self.filled()) * self.active.unsqueeze(-2)",
        "return steering(panel, *self.filled())",
        "Unused slots keep the steering vector of their filler position, so the subspace target has a source "
        "on the axis in every scene with fewer sources.",
    ),
    # What the network is given.
    SourceFault(
        "validation_on_training_scenes",
        "validation",
        "nn/data.py",
        "TrainingScenes.__init__",
        '"validation" if spec.fresh else "train"',
        '"validation" if not spec.fresh else "train"',
        "The condition is inverted: fresh trainings are validated on their training scenes.",
    ),
    SourceFault(
        "epochs_share_scenes",
        "data",
        "nn/data.py",
        "TrainingScenes.scene_ranges",
        "(epoch * spec.scenes_per_epoch if spec.fresh else 0)",
        "(epoch if spec.fresh else 0)",
        "Each epoch starts one scene later in place of one epoch later: all epochs have the same scenes but "
        "one.",
    ),
    SourceFault(
        "batches_overlap",
        "index",
        "nn/data.py",
        "TrainingScenes.scene_ranges",
        "first = step * spec.accumulation * spec.batch + (",
        "first = step * spec.batch + (",
        "The accumulation is forgotten in the first scene of a step, so consecutive steps share batches and "
        "a part of the epoch's scenes is never used.",
        ("--accumulation", "4"),
    ),
    SourceFault(
        "inputs_shuffled_alone",
        "label order",
        "nn/data.py",
        "TrainingScenes.step",
        "            yield self._network_input(self._train.scenes(scenes.start, scenes.stop), hide)\n",
        "            drawn = self._train.scenes(scenes.start, scenes.stop)\n"
        "            order = torch.randperm(len(drawn), device=drawn.snapshots.device)\n"
        "            yield self._network_input(replace(drawn, snapshots=drawn.snapshots[order]), hide)\n",
        "The scenes of a training batch are shuffled in the snapshots but not in labels and links.",
    ),
    SourceFault(
        "augmented_without_channel",
        "augmentation",
        "nn/data.py",
        "TrainingScenes.step",
        "            yield self._network_input(self._train.scenes(scenes.start, scenes.stop), hide)\n",
        "            drawn = self._train.scenes(scenes.start, scenes.stop)\n"
        "            drawn = replace(drawn, snapshots=drawn.snapshots.flip(-1))\n"
        "            yield self._network_input(drawn, hide)\n",
        "An augmentation mirrors the receiver's outputs but not the channel: training data do not fit their "
        "link, validation data do.",
    ),
    SourceFault(
        "hidden_noise_as_deviation",
        "units",
        "nn/data.py",
        "with_estimated_noise",
        "return replace(recording, noise_variance=noise.to(recording.snapshots.real.dtype))",
        "return replace(recording, noise_variance=noise.sqrt().to(recording.snapshots.real.dtype))",
        "The estimated noise is passed on as a standard deviation where a variance is expected.",
    ),
    SourceFault(
        "dropout_inverted",
        "regularisation",
        "nn/data.py",
        "channel_dropout",
        "return (uniform >= spec.dropout).to(uniform.dtype) / (1 - spec.dropout)",
        "return (uniform < spec.dropout).to(uniform.dtype) / spec.dropout",
        "Keep and drop are swapped: 80 % of the channels are dropped where the settings say 20 %.",
        ("--network.dropout", "0.2"),
    ),
    SourceFault(
        "noise_over_amplitude",
        "units",
        "nn/statistics.py",
        "GridStatistics.observe",
        "return ScaledScenes(B, data, (noise / power).float()",
        "return ScaledScenes(B, data, (noise / power.sqrt()).float()",
        "The noise variance is divided by the amplitude of the data in place of their power, so the "
        "network's statistics weigh the noise wrongly.",
    ),
    # Schedules.
    SourceFault(
        "beta_without_its_value",
        "schedule",
        "nn/data.py",
        "beta_at",
        "return spec.beta * epoch / (ramp - 1)",
        "return epoch / (ramp - 1)",
        "Beta rises to 1 in place of schedule.beta, so that at the end of the ramp R_blend no longer depends "
        "on the network.",
    ),
    SourceFault(
        "beta_of_first_epoch",
        "schedule",
        "nn/train.py",
        "Trainer.train",
        "            while not state.stopped:\n"
        "                beta = beta_at(spec.schedule, state.epoch, spec.seed)\n",
        "            beta = beta_at(spec.schedule, state.epoch, spec.seed)\n"
        "            while not state.stopped:\n",
        "Beta is computed once before the loop over epochs and stays at 0 in the whole training.",
    ),
    SourceFault(
        "cosine_without_pi",
        "schedule",
        "nn/data.py",
        "learning_rate_factor",
        "(1 + math.cos(math.pi * progress)) / 2",
        "(1 + math.cos(progress)) / 2",
        "The cosine lacks its pi: the learning rate ends at 77 % of its peak in place of 1 %.",
    ),
    SourceFault(
        "schedule_of_one_epoch",
        "schedule",
        "nn/learner.py",
        "Learner.__init__",
        "steps = spec.steps_per_epoch * spec.schedule.epochs",
        "steps = spec.steps_per_epoch",
        "The learning rate schedule is as long as one epoch; all later epochs run at its floor.",
    ),
    SourceFault(
        "learning_rate_compounds",
        "schedule",
        "nn/learner.py",
        "Learner._set_learning_rate",
        'group["lr"] = group["highest"] * factor',
        'group["lr"] = group["lr"] * factor',
        "The factor of the schedule is applied to the current rate in place of the peak, so the rate falls "
        "to 0 within the warm-up.",
    ),
    SourceFault(
        "scheduled_weights_unused",
        "schedule",
        "nn/learner.py",
        "Learner.prediction_losses",
        "self.spec.loss, beta=beta, weights=weights, oracle=oracle)",
        "self.spec.loss, beta=beta, oracle=oracle)",
        "The loss weights of the schedule are not passed on, so subspace and peak contrast never get theirs.",
    ),
    # Optimizer step.
    SourceFault(
        "zero_grad_in_each_part",
        "optimizer step",
        "nn/learner.py",
        "Learner.step",
        "        for part, recording in enumerate(recordings):\n",
        "        for part, recording in enumerate(recordings):\n"
        "            self.optimizer.zero_grad(set_to_none=True)\n",
        "Gradients are cleared before each accumulated batch: only the last batch of a step counts.",
        ("--accumulation", "4"),
    ),
    SourceFault(
        "zero_grad_forgotten",
        "optimizer step",
        "nn/learner.py",
        "Learner.step",
        "        self.optimizer.zero_grad(set_to_none=True)\n",
        "",
        "Gradients are never cleared and add up over all steps.",
    ),
    SourceFault(
        "skips_finite_steps",
        "optimizer step",
        "nn/learner.py",
        "Learner.step",
        "self.optimizer.found_inf = (~finite).float()",
        "self.optimizer.found_inf = finite.float()",
        "The flag is inverted: steps with finite gradients are skipped, the weights never change.",
    ),
    SourceFault(
        "adam_betas_swapped",
        "optimizer",
        "nn/learner.py",
        "Learner.__init__",
        "torch.optim.AdamW(parameter_groups(self.network, spec), fused=True)",
        "torch.optim.AdamW(parameter_groups(self.network, spec), betas=(0.999, 0.9), fused=True)",
        "The two decays of AdamW are swapped: a momentum over 1000 steps, and step sizes that follow the "
        "last ten gradients.",
    ),
    SourceFault(
        "average_never_warms_up",
        "averaging",
        "nn/learner.py",
        "Learner._update_average",
        ".clamp_max(self.spec.average_decay)",
        ".clamp_min(self.spec.average_decay)",
        "The bound of the decay is on the wrong side: the averaged weights, which are validated and saved, "
        "stay near the initial ones and stop following.",
    ),
    SourceFault(
        "learning_rates_swapped",
        "optimizer",
        "nn/learner.py",
        "parameter_groups",
        "zip(GROUPS, (spec.backbone_learning_rate, spec.head_learning_rate), strict=True)",
        "zip(GROUPS, (spec.head_learning_rate, spec.backbone_learning_rate), strict=True)",
        "Backbone and head have each other's learning rate.",
    ),
    # Losses and targets.
    SourceFault(
        "elevation_against_azimuth",
        "copy and paste",
        "nn/losses.py",
        "match_heads",
        "_huber(wrapped(prediction.elevation[..., None] - elevation) / scale)",
        "_huber(wrapped(prediction.elevation[..., None] - azimuth) / scale)",
        "The predicted elevation is compared with the true azimuth.",
    ),
    SourceFault(
        "range_sign",
        "sign",
        "nn/losses.py",
        "match_heads",
        "prediction.inverse_range[..., None].log() + distance.log()",
        "prediction.inverse_range[..., None].log() - distance.log()",
        "log(1/r) is compared with log r, so the range heads are driven to the inverse of the range.",
    ),
    SourceFault(
        "absent_sources_exist",
        "masking",
        "nn/losses.py",
        "match_heads",
        ".scatter(1, partner, active)",
        ".scatter(1, partner, True)",
        "Heads that the assignment gives to absent sources count as existing: the existence label is 1 for "
        "all K_max heads in every scene.",
    ),
    SourceFault(
        "mean_over_slots",
        "normalisation",
        "nn/losses.py",
        "_mean",
        "return torch.where(active, paired, 0).sum(-1) / active.sum(-1).clamp_min(1)",
        "return torch.where(active, paired, 0).mean(-1)",
        "The position losses are divided by the number of slots in place of sources: scenes with few sources "
        "count little.",
    ),
    SourceFault(
        "greedy_assignment",
        "matching",
        "nn/losses.py",
        "match_heads",
        "partner = assign(torch.where(active[:, None, :], cost.detach(), 0))",
        "partner = torch.where(active[:, None, :], cost.detach(), 0).argmin(1)",
        "Each source takes its nearest head, so that two sources can share one head and the others get no "
        "target.",
    ),
    SourceFault(
        "target_over_sources",
        "axis",
        "nn/losses.py",
        "heat_map_target",
        "spread.append((-away.square() / 2).softmax(-1))",
        "spread.append((-away.square() / 2).softmax(-2))",
        "The softmax of the target runs over the sources in place of the grid points.",
    ),
    SourceFault(
        "target_axes_exchanged",
        "axis",
        "nn/losses.py",
        "heat_map_target",
        '"sk,skx,sky,skz->sxyz"',
        '"sk,skx,sky,skz->syxz"',
        "The target heat map is stored with y before x, so it is flattened in another order than the grid.",
    ),
    SourceFault(
        "heat_map_softmax_twice",
        "activation",
        "nn/losses.py",
        "heat_map_divergence",
        "logits.masked_fill(~grid.inside, -torch.inf).log_softmax(-1)",
        "logits.masked_fill(~grid.inside, -torch.inf).softmax(-1).log_softmax(-1)",
        "The heat map passes through a softmax twice, which leaves it nearly uniform and its gradient tiny.",
    ),
    SourceFault(
        "count_off_by_one",
        "index",
        "nn/losses.py",
        "count_divergence",
        "(numbers == count[..., None])",
        "(numbers == count[..., None] - 1)",
        "The label of the number of sources is one too small.",
    ),
    SourceFault(
        "last_stage_only",
        "loss",
        "nn/losses.py",
        "total_loss",
        "stages = [heat_map_divergence(logits, target, targets.grid) for logits in maps]",
        "stages = [heat_map_divergence(logits, target, targets.grid) for logits in maps[-1:]]",
        "Only the last heat map has a loss; those of earlier stages get no gradient and do not learn.",
    ),
    SourceFault(
        "projector_without_conjugate",
        "array",
        "nn/losses.py",
        "subspace_leakage",
        "outside = F - basis @ (basis.mH @ F)",
        "outside = F - basis @ (basis.mT @ F)",
        "The projector uses a transpose in place of a conjugate transpose, so the subspace loss is not 0 at "
        "the truth.",
    ),
    SourceFault(
        "factor_two_missing",
        "formula",
        "nn/losses.py",
        "covariance_error",
        "overlap = _overlap(F, F) - 2 * _overlap(F, G) + _overlap(G, G)",
        "overlap = _overlap(F, F) - _overlap(F, G) + _overlap(G, G)",
        "The mixed term of |R - T|^2 lacks its 2: the loss is not 0 at R = T, and its minimum is elsewhere.",
    ),
    SourceFault(
        "eigenvalues_ascending",
        "index",
        "nn/losses.py",
        "eigenvalue_gap",
        "torch.nn.functional.pad(ascending.flip(-1), (0, 1))",
        "torch.nn.functional.pad(ascending, (0, 1))",
        "Eigenvalues stay in ascending order, so the gap is taken between the smallest ones.",
    ),
    # Covariances.
    SourceFault(
        "blend_reversed",
        "formula",
        "covariance.py",
        "blend",
        "share = torch.zeros_like(predicted.loading) + given",
        "share = torch.ones_like(predicted.loading) - given",
        "The shares of R_pred and R_samp are exchanged: at beta = 0, R_blend is R_samp and the covariance "
        "loss has no gradient.",
    ),
    SourceFault(
        "loading_of_trace",
        "normalisation",
        "covariance.py",
        "load_and_shrink",
        "keep * unit.loading + conditioning.identity / covariance.size)",
        "keep * unit.loading + conditioning.identity)",
        "The identity is not divided by N, so the loading is N times too large and the trace is not 1.",
    ),
    SourceFault(
        "sample_conjugated",
        "array",
        "covariance.py",
        "BackProjection.covariance",
        "factor = self.field.mT / L**0.5",
        "factor = self.field.mH / L**0.5",
        "R_samp is conjugated: its sources are those of the mirrored directions.",
    ),
    SourceFault(
        "true_power_squared",
        "units",
        "covariance.py",
        "true_covariance",
        "Covariance(steering * present.sqrt()[..., None, :],",
        "Covariance(steering * present[..., None, :],",
        "Steering vectors are scaled by the power in place of its root, so R_true has squared powers.",
        ("--system.scene.power-spread-db", "12"),
    ),
    # The network.
    SourceFault(
        "stage_features_detached",
        "gradient cut",
        "nn/network.py",
        "Network.predict",
        "inputs.append(features)",
        "inputs.append(features.detach())",
        "The features of the previous stage are detached, so later losses do not train earlier stages.",
    ),
    SourceFault(
        "range_factor_detached",
        "gradient cut",
        "nn/network.py",
        "Network._sources",
        "B = steering(panel, azimuth.detach(), elevation.detach(), distance) if A.requires_grad else A",
        "B = steering(panel, azimuth.detach(), elevation.detach(), distance.detach())",
        "The range is detached in the range factor, which then gets no gradient of the range.",
    ),
    SourceFault(
        "same_powers_in_each_stage",
        "stale variable",
        "nn/network.py",
        "Network.predict",
        "                power = self._statistics.scale_power(scenes, share)\n",
        "                powers = self._statistics.scale_power(scenes, share)\n",
        "The powers of the last stage are assigned to another name: every stage has the statistics of the "
        "first one.",
    ),
    SourceFault(
        "constant_weights",
        "initialisation",
        "nn/network.py",
        "Network._reset",
        "nn.init.normal_(module.weight, std=fan**-0.5, generator=generator)",
        "nn.init.constant_(module.weight, fan**-0.5)",
        "All weights of a layer start equal, so that all its channels compute and learn the same.",
    ),
    SourceFault(
        "residual_lost",
        "architecture",
        "nn/network.py",
        "Block.forward",
        "x = x + _dropout(change, mask, 0).view_as(x)",
        "x = _dropout(change, mask, 0).view_as(x)",
        "The residual connection around the feed-forward branch is lost; features shrink with each block.",
    ),
    SourceFault(
        "attention_over_heads",
        "axis",
        "nn/network.py",
        "Attention.forward",
        "            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)\n"
        "            for part in self.ask(self.norm(x)).chunk(3, dim=-1)\n"
        "        )\n"
        "        return self.answer("
        "scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2))",
        "            part.unflatten(-1, (self.heads, -1))\n"
        "            for part in self.ask(self.norm(x)).chunk(3, dim=-1)\n"
        "        )\n"
        "        return self.answer(scaled_dot_product_attention(queries, keys, values).flatten(2))",
        "The transposes of the attention are lost: each cell attends over its own heads, never over other "
        "cells.",
    ),
    SourceFault(
        "channels_reshaped",
        "axis",
        "nn/network.py",
        "Block.forward",
        "flat = self.near(x).flatten(2).mT  # [S, X Y, C]",
        "flat = self.near(x).flatten(2).reshape(len(x), -1, x.shape[1])  # [S, X Y, C]",
        "A reshape in place of a transpose mixes channels and cells before the norm.",
    ),
    SourceFault(
        "input_maps_reshaped",
        "axis",
        "nn/network.py",
        "Network.predict",
        "                .view(S, _MAPS, X, Y, Z)\n                .movedim(-1, 2)\n",
        "                .view(S, _MAPS, Z, X, Y)\n",
        "The flat maps, q fastest, are viewed as if q were slowest: the network's input maps are scrambled.",
    ),
    SourceFault(
        "heat_map_order",
        "axis",
        "nn/network.py",
        "Stage.forward",
        "values = self.write(features).movedim(1, -1).flatten(1)",
        "values = self.write(features).flatten(1)",
        "The heat map is flattened with q slowest, while the grid has it fastest.",
    ),
    SourceFault(
        "peak_index_exchanged",
        "index",
        "nn/network.py",
        "interpolated",
        "cell = torch.stack((index // (Y * Z), index // Z % Y, index % Z), dim=-1)",
        "cell = torch.stack((index // (Y * Z), index // Y % Z, index % Z), dim=-1)",
        "The y index of a peak is computed with Y and Z exchanged, so sources stand at wrong elevations.",
    ),
    SourceFault(
        "offset_reversed",
        "sign",
        "nn/network.py",
        "interpolated",
        "axis.to(mean.dtype)[cell[..., i]] + grid.step[i] * mean[..., i]",
        "axis.to(mean.dtype)[cell[..., i]] - grid.step[i] * mean[..., i]",
        "The offset between grid points has the wrong sign: interpolation moves away from the peak.",
    ),
    SourceFault(
        "angles_unpacked_in_wrong_order",
        "copy and paste",
        "nn/network.py",
        "Network._sources",
        "azimuth, elevation, distance = interpolated(grid, logits, index, at_peaks[:, :3].mT.tanh())",
        "elevation, azimuth, distance = interpolated(grid, logits, index, at_peaks[:, :3].mT.tanh())",
        "Azimuth and elevation of the peaks are exchanged, in the heads and in both factors.",
    ),
    SourceFault(
        "range_not_inverted",
        "units",
        "nn/network.py",
        "Network._sources",
        "            inverse_range=1 / distance,\n            existence_logits=at_peaks",
        "            inverse_range=distance,\n            existence_logits=at_peaks",
        "The head outputs the range where the inverse range is expected.",
    ),
    SourceFault(
        "count_softmax_twice",
        "activation",
        "nn/network.py",
        "Network._sources",
        "count_logits=self.count(count_input),",
        "count_logits=self.count(count_input).softmax(-1),",
        "The count head outputs probabilities, and the loss takes the softmax of them again.",
    ),
    SourceFault(
        "common_logarithm",
        "units",
        "nn/network.py",
        "_log",
        "return value.clamp_min(1e-30).log().clamp(_LOWEST, _HIGHEST)",
        "return value.clamp_min(1e-30).log10().clamp(_LOWEST, _HIGHEST)",
        "The maps are common logarithms, but are added to logits whose softmax needs natural ones: the heat "
        "map starts 2.3 times too flat.",
    ),
    SourceFault(
        "autocast_inverted",
        "precision",
        "nn/network.py",
        "Stage.forward",
        "torch.autocast(maps.device.type, self.precision, enabled=self.precision is not None)",
        "torch.autocast(maps.device.type, self.precision, enabled=self.precision is None)",
        "Autocast is on exactly when float32 is asked for: stages compute in bfloat16, in validation too.",
    ),
    # Validation, files and resuming.
    SourceFault(
        "worst_is_best",
        "checkpoint",
        "nn/train.py",
        "Trainer._save_weights",
        "(state.best is None or loss < state.best)",
        "(state.best is None or loss > state.best)",
        "The weights with the largest validation loss are kept as the best ones.",
    ),
    SourceFault(
        "saves_unaveraged_weights",
        "checkpoint",
        "nn/train.py",
        "Trainer._save_weights",
        "learner.network, learner.average, training=spec, notes=notes)",
        "learner.network, training=spec, notes=notes)",
        "The files hold the current weights, while the averaged ones were validated.",
    ),
    SourceFault(
        "optimizer_state_under_wrong_keys",
        "resume",
        "nn/checkpoint.py",
        "restore_optimizer",
        "state.setdefault(int(number), {})[key] = value",
        "state.setdefault(number, {})[key] = value",
        "Parameter numbers stay strings, so a resumed optimizer finds none of its moments and starts anew.",
    ),
    SourceFault(
        "progress_not_resumed",
        "resume",
        "nn/train.py",
        "Trainer.resume",
        "            self.state, tensors = checkpoint\n",
        "            _, tensors = checkpoint\n",
        "A resumed training starts again at epoch 0, with the learning rates of its end.",
    ),
    SourceFault(
        "validates_current_weights",
        "validation",
        "nn/validation.py",
        "validate",
        "prediction = learner.predict(recording)\n        losses",
        "prediction = learner.predict(recording, averaged=False)\n        losses",
        "The validation loss is that of the current weights, while the averaged ones are saved.",
    ),
    SourceFault(
        "gate_in_degrees",
        "units",
        "metrics.py",
        "match",
        "gate = math.radians(gate_deg)",
        "gate = gate_deg",
        "The gate of 5 degrees is used as 5 radians, so every found source is a hit and recall hides all "
        "errors.",
    ),
)
