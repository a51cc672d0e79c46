"""A starting point is trained once, kept, and made again if what was kept is damaged."""

import shutil
from functools import partial

import numpy as np
import pytest

from lacuna import setups, trees
from lacuna.errors import InvalidInput
from lacuna.tasks import digits
from lacuna.training import TrainConfig

SHORT = TrainConfig(num_steps=3, warmup_steps=1)
Config = partial(setups.SetupConfig, batch_size=20, train=SHORT, undertrained_steps=2, forget=SHORT)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def prepare(cache):
    """`prepare(config)` gives the setup, the trainings it ran, and what it had to say."""

    def call(config, cache=cache):
        trained, notices = [], []
        setup = setups.prepare(
            config,
            eval_batch_size=8,
            cache=cache,
            advance=lambda stage, step, num_steps, loss: trained.append(stage),
            notice=notices.append,
        )
        return setup, trained, notices

    return call


def test_the_second_time_nothing_is_trained_and_the_bits_are_the_same(prepare):
    first, trained, _ = prepare(Config(state="trained"))
    again, trained_again, notices = prepare(Config(state="trained"))
    assert set(trained) == {"training"}
    assert (trained_again, notices) == ([], [])
    assert trees.content_digest(first.params) == trees.content_digest(again.params)


def test_forgetting_starts_from_the_trained_model_that_is_kept(prepare):
    base, _, _ = prepare(Config(state="trained"))
    setup, trained, _ = prepare(Config(state="forgotten", task="reverse"))
    assert set(trained) == {"forgetting reverse"}
    assert setup.task.name == "reverse"
    assert trees.content_digest(setup.params) != trees.content_digest(base.params)


@pytest.mark.parametrize("change", [{"seed": 1}, {"state": "undertrained"}, {"train": TrainConfig(4, warmup_steps=1)}])
def test_another_recipe_is_another_point(prepare, change):
    base, _, _ = prepare(Config(state="trained"))
    other, trained, _ = prepare(Config(**({"state": "trained"} | change)))
    assert trained
    assert trees.content_digest(other.params) != trees.content_digest(base.params)


def test_a_damaged_cache_is_named_and_made_again(prepare, tmp_path):
    first, _, _ = prepare(Config(state="trained"), cache=tmp_path)
    (kept,) = tmp_path.iterdir()
    for file in kept.rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(b"damage")
    again, trained, notices = prepare(Config(state="trained"), cache=tmp_path)
    assert set(trained) == {"training"}
    assert len(notices) == 1
    assert str(kept) in notices[0]
    assert trees.content_digest(again.params) == trees.content_digest(first.params)
    assert prepare(Config(state="trained"), cache=tmp_path)[1:] == ([], [])


def test_the_task_can_be_scored_at_the_point(prepare):
    setup, _, _ = prepare(Config(state="trained"))
    batch = setup.task.held_out(0)
    assert batch.tokens.shape == (8, digits.row_length(8))
    assert np.isfinite(setup.task.objective.loss(setup.params, batch))


def test_a_file_in_place_of_what_was_kept_is_named_and_replaced(prepare, tmp_path):
    first, _, _ = prepare(Config(state="trained"), cache=tmp_path)
    (kept,) = tmp_path.iterdir()
    shutil.rmtree(kept)
    kept.write_text("no folder")
    again, _, notices = prepare(Config(state="trained"), cache=tmp_path)
    assert str(kept) in notices[0]
    assert trees.content_digest(again.params) == trees.content_digest(first.params)
    assert prepare(Config(state="trained"), cache=tmp_path)[1:] == ([], [])


@pytest.mark.parametrize(("name", "wrong"), [("state", "forgot"), ("task", "sorted")])
def test_an_unknown_state_or_task_is_refused_before_anything_is_trained(tmp_path, name, wrong):
    config = Config()
    object.__setattr__(config, name, wrong)  # as untyped code may make it
    with pytest.raises(InvalidInput, match=f"got `{wrong}`"):
        setups.prepare(config, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
