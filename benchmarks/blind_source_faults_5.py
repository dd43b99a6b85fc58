"""A fifth set of faults in the package as source edits, made by someone who had not seen the doctor.

Like :mod:`blind_source_faults`: each replaces one string that occurs exactly once in its file and changes a
short training (``blind_doctor_faults.py --check --set 5`` verifies both). A third of them should show in the
curves of a training, a third need a look at its parts, a third are found by reasoning only; each class is
named before its faults.
"""

from __future__ import annotations

from blind_source_faults import SourceFault

FAULTS = (
    # Obvious: a curve, a score or the end of the training is plainly wrong.
    SourceFault(
        "weights_start_at_zero",
        "initialisation",
        "nn/network.py",
        "Network._reset",
        "nn.init.normal_(module.weight, std=fan**-0.5, generator=generator)",
        "nn.init.zeros_(module.weight)",
        "All weights start at 0, like the biases: features are 0, and only biases of the last layers get a "
        "gradient.",
    ),
    SourceFault(
        "elevations_left_in_degrees",
        "units",
        "simulation/scene.py",
        "_positions",
        "to_radians = torch.tensor([math.pi / 180, math.pi / 180, 1.0], dtype=dtype)",
        "to_radians = torch.tensor([math.pi / 180, 1.0, 1.0], dtype=dtype)",
        "Elevations stay in degrees where radians are expected: sources are all round the panel, and labels "
        "are many turns away.",
    ),
    SourceFault(
        "cross_entropy_of_other_sign",
        "sign",
        "nn/losses.py",
        "count_divergence",
        "return (torch.special.xlogy(t, t) - t * logits.log_softmax(-1)).sum(-1)",
        "return (torch.special.xlogy(t, t) + t * logits.log_softmax(-1)).sum(-1)",
        "The cross-entropy of the number of sources lacks its minus: the right number is made improbable, "
        "and the loss falls without bound.",
    ),
    SourceFault(
        "silent_sources_are_labelled",
        "labels",
        "simulation/scene.py",
        "draw_sources",
        "drawn = Sources(azimuth=azimuth, elevation=elevation, range=distance).blank(~active)",
        "drawn = Sources(azimuth=azimuth, elevation=elevation, range=distance)",
        "Unused slots are not blanked: every scene is labelled with the largest number of sources, some of "
        "which send nothing.",
    ),
    SourceFault(
        "target_of_any_sum",
        "normalisation",
        "nn/losses.py",
        "heat_map_target",
        "return target / torch.where(total > 0, total, 1)",
        "return target",
        "The target heat map is not divided by its sum, which is the number of sources: the divergence from "
        "it has no minimum at 0, and scenes with many sources count more.",
    ),
    SourceFault(
        "weights_not_resumed",
        "resume",
        "nn/train.py",
        "Trainer.resume",
        "            self.learner.restore(tensors)\n",
        "",
        "A resumed training goes on at the epoch of its checkpoint, but with initial weights and an empty "
        "optimizer.",
    ),
    SourceFault(
        "rate_of_the_step_in_the_epoch",
        "schedule",
        "nn/learner.py",
        "Learner._learning_rate_factor",
        "return self.factors.take(self.taken.clamp_max(len(self.factors) - 1))",
        "return self.factors.take(self.taken % self.spec.steps_per_epoch)",
        "The schedule of the whole training is read at the number of the step within its epoch: each epoch "
        "repeats the warm-up, and the rate never decays.",
    ),
    SourceFault(
        "validated_on_the_last_batch",
        "validation",
        "nn/validation.py",
        "validate",
        "        totals.append(torch.stack(values).double())\n        sizes.append(len(recording))\n",
        "        totals, sizes = [torch.stack(values).double()], [len(recording)]\n",
        "The lists are made anew for each batch, so that the validation losses are those of the last one.",
    ),
    SourceFault(
        "logarithm_of_one_side",
        "formula",
        "nn/losses.py",
        "match_heads",
        "prediction.inverse_range[..., None].log() + distance.log()",
        "prediction.inverse_range[..., None].log() + distance",
        "The logarithm of the predicted inverse range is compared with the true range itself.",
    ),
    SourceFault(
        "scored_on_the_true_covariance",
        "leak",
        "nn/validation.py",
        "_score",
        '(("blend", blended), ("predicted", prediction.covariance))',
        '(("blend", targets.conditioned), ("predicted", prediction.covariance))',
        "Recall and GOSPA are those of MUSIC on R_true, not on R_blend; they do not depend on the training.",
    ),
    # Medium: the parts have to be looked at.
    SourceFault(
        "noise_in_the_real_part",
        "data",
        "simulation/simulator.py",
        "Simulator._receive",
        "return signal + noise_variance.sqrt()[:, None, None] * noise, noise_variance",
        "return signal + noise_variance.sqrt()[:, None, None] * noise.real, noise_variance",
        "Real noise is added to complex signals: it has half of the stated variance and is not circular.",
    ),
    SourceFault(
        "activation_left_out",
        "architecture",
        "nn/network.py",
        "Block.forward",
        "self.narrow(gelu(self.widen(self.norm(flat)))).mT",
        "self.narrow(self.widen(self.norm(flat))).mT",
        "There is no activation between the two layers of the feed-forward branch, which are then one.",
    ),
    SourceFault(
        "ratio_without_logarithm",
        "input",
        "nn/network.py",
        "Network.predict",
        "(_log(matched / expected), _log(expected * power), _log(power * scenes.gain)), dim=1",
        "(matched / expected, _log(expected * power), _log(power * scenes.gain)), dim=1",
        "The ratio of matched to expected energy enters the stages and the heat map itself, not its "
        "logarithm.",
    ),
    SourceFault(
        "snapshots_divided_by_their_power",
        "normalisation",
        "nn/statistics.py",
        "GridStatistics.observe",
        "data = (y / power.sqrt()[:, None, None]).unflatten(1, (R, L // R)).mT",
        "data = (y / power[:, None, None]).unflatten(1, (R, L // R)).mT",
        "The snapshots are divided by their power, not by its root, while the noise variance is made "
        "relative to it.",
    ),
    SourceFault(
        "range_not_searched",
        "inverted condition",
        "estimation/grid.py",
        "Volume.from_spec",
        'spec.range_min_m if "range" in unknowns else spec.range_max_m',
        'spec.range_min_m if "range" not in unknowns else spec.range_max_m',
        "The condition is inverted: the grid has one range only, the largest one.",
    ),
    SourceFault(
        "peaks_without_suppression",
        "missing step",
        "estimation/grid.py",
        "_chosen",
        "peak = _highest(box, reach, turn) & inside",
        "peak = inside.expand_as(box)",
        "Neighbours of a peak are not suppressed: the highest points are taken, most of which belong to the "
        "strongest source.",
    ),
    SourceFault(
        "outputs_and_snapshots_exchanged",
        "axis",
        "operator.py",
        "Link._matmul",
        "products.append((G.flatten(-3, -2) @ columns).unflatten(-2, G.shape[-3:-1]))",
        "products.append((G.flatten(-3, -2) @ columns).unflatten(-2, G.shape[-3:-1]).transpose(-3, -2))",
        "The products of many columns have snapshots and outputs of the receiver exchanged; both are 16.",
    ),
    SourceFault(
        "weights_left_out_of_the_total",
        "loss",
        "nn/losses.py",
        "total_loss",
        "torch.stack([weight * terms[name] for name, weight in used.items()]).sum()",
        "torch.stack([terms[name] for name in used]).sum()",
        "The total is the plain sum of the losses; the main one is a small part of it.",
    ),
    SourceFault(
        "scales_exchanged",
        "swapped arguments",
        "nn/losses.py",
        "match_heads",
        "_ANGLE_SCALE_DEG, _LOG_RANGE_SCALE = 5.0, 0.3",
        "_LOG_RANGE_SCALE, _ANGLE_SCALE_DEG = 5.0, 0.3",
        "The scales of angles and log-range are exchanged: every angle error is in the linear part of its "
        "loss and large, those of the range are next to nothing.",
    ),
    SourceFault(
        "steps_after_each_batch",
        "optimizer",
        "nn/learner.py",
        "Learner.step",
        "            self.scaler.scale(losses.total / spec.accumulation).backward()\n",
        "            self.scaler.scale(losses.total / spec.accumulation).backward()\n"
        "            self.optimizer.step()\n",
        "The optimizer takes a step after each accumulated batch, and another one at their end, with the sum "
        "of the gradients so far and unclipped.",
        ("--accumulation", "4"),
    ),
    # Subtle.
    SourceFault(
        "decay_through_the_gradient",
        "optimizer",
        "nn/learner.py",
        "Learner.__init__",
        "torch.optim.AdamW(parameter_groups(self.network, spec), fused=True)",
        "torch.optim.Adam(parameter_groups(self.network, spec), fused=True)",
        "Adam adds the weight decay to the gradient, where its step size normalises it away from the "
        "learning rate; small gradients are drowned by it.",
    ),
    SourceFault(
        "variance_of_the_real_part",
        "units",
        "simulation/simulator.py",
        "Simulator._receive",
        "return signal + noise_variance.sqrt()[:, None, None] * noise, noise_variance",
        "return signal + noise_variance.sqrt()[:, None, None] * noise, noise_variance / 2",
        "The recording states the noise variance per real dimension, half of that of a complex sample.",
    ),
    SourceFault(
        "stop_gradient_on_the_other",
        "gradient cut",
        "covariance.py",
        "blend",
        "first, second = predicted.normalised(), sample.detach().normalised()",
        "first, second = predicted.detach().normalised(), sample.normalised()",
        "R_pred is detached in place of R_samp, so that the main losses do not train the network.",
    ),
    SourceFault(
        "heads_joined_by_reshape",
        "axis",
        "nn/network.py",
        "Attention.forward",
        "scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2))",
        "scaled_dot_product_attention(queries, keys, values).reshape(x.shape))",
        "The outputs of the heads are reshaped in place of transposed, so that a cell gets those of other "
        "cells.",
    ),
    SourceFault(
        "basis_not_conjugated",
        "formula",
        "estimation/noise.py",
        "guess_noise",
        "turned = torch.view_as_real(data @ basis.conj())",
        "turned = torch.view_as_real(data @ basis)",
        "The snapshots are projected onto the conjugates of the eigenvectors, so that estimated noise "
        "variances take a large part of the signal for noise.",
    ),
    SourceFault(
        "noise_energy_of_the_batch",
        "wrong reduction",
        "nn/statistics.py",
        "ScaledScenes.signal",
        "numbers = self.data[0].numel()",
        "numbers = self.data.numel()",
        "The noise energy of the whole batch is subtracted from the energy of each scene, whose signal then "
        "is its lower limit; it depends on the size of the batch.",
    ),
    SourceFault(
        "spread_drawn_once",
        "data",
        "simulation/scene.py",
        "_powers",
        "spread = draws.uniform(Stream.POWERS, distance.shape[-1], dtype=distance.dtype) - 0.5",
        "spread = draws.uniform(Stream.POWERS, 1, dtype=distance.dtype) - 0.5",
        "All sources of a scene get the same level, which the normalisation of the powers removes: no scene "
        "has sources of different power.",
        ("--system.scene.power-spread-db", "12"),
    ),
    SourceFault(
        "blocks_are_one",
        "aliasing",
        "nn/network.py",
        "Stage.__init__",
        "*(Block(width, kernel, heads=heads if i == last else 0) for i in range(depth))",
        "*([Block(width, kernel, heads=heads)] * depth)",
        "The list is multiplied, so that all blocks of a stage are the same object with the same weights.",
    ),
    SourceFault(
        "same_mask_in_every_step",
        "randomness",
        "nn/learner.py",
        "Learner._predict_with_dropout",
        'draws = Draws(spec.seed, "train", self.taken * spec.batch * spec.accumulation + scenes)',
        'draws = Draws(spec.seed, "train", scenes)',
        "The dropout masks do not depend on the step: row k of a batch always lacks the same channels.",
        ("--network.dropout", "0.2"),
    ),
    SourceFault(
        "one_source_more",
        "off by one",
        "simulation/scene.py",
        "draw_sources",
        "active = torch.arange(most, device=count.device) < count[:, None]",
        "active = torch.arange(most, device=count.device) <= count[:, None]",
        "A scene has one source more than was drawn, up to the largest number: none has a single one, and "
        "the largest number occurs twice as often.",
    ),
)
