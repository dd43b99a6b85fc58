"""The search space."""

from __future__ import annotations

import pytest

from rismusic.errors import InputError
from rismusic.nn.spec import TrainSpec
from rismusic.spec import LocateSpec
from rismusic.tuning.spec import Parameter, Space, apply, load_space

HYBRID = LocateSpec(method="hybrid")


@pytest.mark.parametrize("name", ["narrow", "wide"])
def test_shipped_spaces_fit_the_settings(name):
    space = load_space(name)
    space.check(TrainSpec.search(), HYBRID)
    assert space.locate


def test_the_wide_space_holds_every_weight_of_the_search():
    names = {name.removeprefix("loss.") for name in load_space("wide").training if name.startswith("loss.")}
    # The contrast has weight 0 during a search.
    assert names == TrainSpec.search().loss.weights.keys() - {"peak_contrast"}


def test_the_wide_space_holds_what_older_pipelines_tuned():
    space = load_space("wide")
    assert {f"network.{name}" for name in ("width", "depth", "heads", "dropout")} <= space.training.keys()
    wanted = {
        *("beta", "shrinkage", "newton_steps", "max_evaluations", "tolerance", "model_order"),
    }
    assert {f"hybrid.{name}" for name in wanted} <= space.locate.keys()
    assert {"schedule.beta", "schedule.curriculum"} <= space.training.keys()


@pytest.mark.parametrize("name", ["narrow", "wide"])
@pytest.mark.parametrize("part", ["training", "locate"])
def test_every_parameter_has_an_effect(name, part):
    """Its extreme values give different settings."""
    parameters, spec = (
        getattr(load_space(name), part),
        {"training": TrainSpec.search(), "locate": HYBRID}[part],
    )
    for name, held in parameters.items():
        made = [apply(spec, parameters, {name: end}) for end in held.extremes]
        assert len({one.model_dump_json() for one in made}) == len(held.extremes)


def test_values_reach_their_settings():
    parameters = {
        "network.width": Parameter(choices=(48, 96)),
        "network.heads": Parameter(choices=(3, 6)),
        "loss.subspace": Parameter(low=0.01, high=0.2, also=("loss.subspace_last",)),
        "batch": Parameter(low=16, high=64, step=16),
    }
    values = {"network.width": 48, "network.heads": 6, "loss.subspace": 0.07, "batch": 32}
    spec = apply(TrainSpec.search(), parameters, values)
    assert (spec.network.width, spec.network.heads, spec.batch) == (48, 6, 32)
    assert spec.loss.subspace == 0.07
    assert spec.loss.subspace_last == (0.07, 0.07)
    assert spec.loss.count == TrainSpec.search().loss.count


def test_settings_that_constrain_each_other_are_set_at_once():
    """Width 30 does not fit the 4 heads that were there before, nor 5 heads the width."""
    parameters = {name: Parameter(choices=(1, 2)) for name in ("network.width", "network.heads")}
    spec = apply(TrainSpec(), parameters, {"network.width": 30, "network.heads": 5})
    assert (spec.network.width, spec.network.heads) == (30, 5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[training."network.widht"]\nchoices = [8]',
            "space.training.network.widht: unknown setting",
        ),
        ("[training.network]\nchoices = [8]", "space.training.network: expected a table of settings"),
        (
            '[training."batch.size"]\nchoices = [8]',
            "space.training.batch.size: expected an integer",
        ),
        ('[training."loss.count"]\nlow = 0.1\nhigh = 2.0', "space.training.loss.count: expected at most 1"),
        (
            '[training.batch]\nchoices = [8]\n[locate."hybrid.beta"]\nlow = 0.0\nhigh = 1.5',
            "space.locate.hybrid.beta: expected",
        ),
        (
            '[training.batch]\nchoices = [8]\nalso = ["seeed"]',
            "space.training.batch: unknown setting",
        ),
        ("[training.batch]\nlow = 8", "low, high: give both limits, or choices"),
        ("[training.batch]\nlow = 8\nhigh = 4", "high: must be at least low = 8; got 4"),
        ("[training.batch]\nlow = 0\nhigh = 4\nlog = true", "log: needs a positive low and no step"),
        ("[training.batch]\nlow = 1\nhigh = 4\nchoices = [8]", "choices: cannot be combined with low"),
        ("[training.batch]\nlow = 1\nhigh = 4\nsteps = 2", "steps: unknown setting"),
        ("[trainings.batch]\nlow = 1\nhigh = 4", "trainings: unknown setting"),
        ("[training.batch\n", "is not a valid TOML file"),
        ("", "space: must contain at least one setting under [training]"),
    ],
)
def test_invalid_spaces_are_refused_with_a_sentence(tmp_path, text, said):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_space(str(path)).check(TrainSpec.search(), HYBRID)
    assert said in str(error.value)


def test_the_file_of_an_invalid_space_is_named(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[training.batch]\nlow = 8")
    with pytest.raises(InputError, match=r"low, high: give both limits, .*mine\.toml"):
        load_space(str(path))


def test_unknown_spaces_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"must be one of narrow, wide, or a \.toml file; got 'narow'"):
        load_space("narow")
    with pytest.raises(InputError, match="cannot be read: no such file"):
        load_space(str(tmp_path / "none.toml"))


def test_a_space_survives_being_stored():
    space = load_space("wide")
    assert Space.model_validate_json(space.model_dump_json()) == space
    assert isinstance(Space.model_validate_json(space.model_dump_json()).training["network.depth"].low, int)
