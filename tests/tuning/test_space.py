"""What is searched, as data."""

from __future__ import annotations

import pytest

from rismusic.errors import InputError
from rismusic.nn.spec import TrainSpec
from rismusic.spec import LocateSpec
from rismusic.tuning.space import Knob, Space, apply, load_space

HYBRID = LocateSpec(method="hybrid")


@pytest.mark.parametrize("name", ["narrow", "wide"])
def test_shipped_spaces_fit_the_settings(name):
    space = load_space(name)
    space.check(TrainSpec.search(), HYBRID)
    assert space.locate


def test_the_wide_space_holds_every_weight_of_the_search():
    names = {name.removeprefix("loss.") for name in load_space("wide").training if name.startswith("loss.")}
    # Off in the search of settings: the contrast.
    assert names == TrainSpec.search().loss.weights.keys() - {"peak_contrast"}


def test_the_wide_space_holds_what_older_pipelines_tuned():
    space = load_space("wide")
    assert {f"network.{name}" for name in ("width", "depth", "heads", "dropout")} <= space.training.keys()
    wanted = {
        *("beta", "shrinkage", "newton_steps", "max_evaluations", "model_order"),
    }
    assert {f"hybrid.{name}" for name in wanted} <= space.locate.keys()


@pytest.mark.parametrize("name", ["narrow", "wide"])
@pytest.mark.parametrize("part", ["training", "locate"])
def test_every_knob_turns_something(name, part):
    """Its ends make settings that differ."""
    knobs, spec = getattr(load_space(name), part), {"training": TrainSpec.search(), "locate": HYBRID}[part]
    for knob, held in knobs.items():
        made = [apply(spec, knobs, {knob: end}) for end in held.ends]
        assert len({one.model_dump_json() for one in made}) == len(held.ends)


def test_values_reach_their_settings():
    knobs = {
        "network.width": Knob(choices=(48, 96)),
        "network.heads": Knob(choices=(3, 6)),
        "loss.subspace": Knob(low=0.01, high=0.2, also=("loss.subspace_last",)),
        "batch": Knob(low=16, high=64, step=16),
    }
    values = {"network.width": 48, "network.heads": 6, "loss.subspace": 0.07, "batch": 32}
    spec = apply(TrainSpec.search(), knobs, values)
    assert (spec.network.width, spec.network.heads, spec.batch) == (48, 6, 32)
    assert spec.loss.subspace == 0.07
    assert spec.loss.subspace_last == (0.07, 0.07)
    assert spec.loss.count == TrainSpec.search().loss.count


def test_settings_that_bear_on_each_other_are_set_at_once():
    """Width 30 does not fit the 4 heads that were there before, nor 5 heads the width."""
    knobs = {name: Knob(choices=(1, 2)) for name in ("network.width", "network.heads")}
    spec = apply(TrainSpec(), knobs, {"network.width": 30, "network.heads": 5})
    assert (spec.network.width, spec.network.heads) == (30, 5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[training."network.widht"]\nchoices = [8]', "space.training.network.widht: expected a known"),
        ("[training.network]\nchoices = [8]", "space.training.network: expected the name of one setting"),
        ('[training."batch.size"]\nchoices = [8]', "space.training.batch.size: expected a setting without"),
        ('[training."loss.count"]\nlow = 0.1\nhigh = 2.0', "space.training.loss.count: expected less than"),
        (
            '[training.batch]\nchoices = [8]\n[locate."hybrid.beta"]\nlow = 0.0\nhigh = 1.5',
            "space.locate.hybrid.beta: expected",
        ),
        ('[training.batch]\nchoices = [8]\nalso = ["seeed"]', "space.training.batch: expected a known"),
        ("[training.batch]\nlow = 8", "low, high: expected both limits"),
        ("[training.batch]\nlow = 8\nhigh = 4", "high: expected at least low = 8"),
        ("[training.batch]\nlow = 0\nhigh = 4\nlog = true", "log: expected a positive low"),
        ("[training.batch]\nlow = 1\nhigh = 4\nchoices = [8]", "choices: expected no limits"),
        ("[training.batch]\nlow = 1\nhigh = 4\nsteps = 2", "steps: unknown setting"),
        ("[trainings.batch]\nlow = 1\nhigh = 4", "trainings: unknown setting"),
        ("[training.batch\n", "is not a valid TOML file"),
        ("", "space: expected at least one setting"),
    ],
)
def test_bad_spaces_are_said_in_a_sentence(tmp_path, text, said):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_space(str(path)).check(TrainSpec.search(), HYBRID)
    assert said in str(error.value)


def test_unknown_spaces_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"narrow, wide or a \.toml file, found 'narow'"):
        load_space("narow")
    with pytest.raises(InputError, match="cannot be read: no such file"):
        load_space(str(tmp_path / "none.toml"))


def test_a_space_survives_being_stored():
    space = load_space("wide")
    assert Space.model_validate_json(space.model_dump_json()) == space
    assert isinstance(Space.model_validate_json(space.model_dump_json()).training["network.depth"].low, int)
