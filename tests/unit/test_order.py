"""Which examples a step sees, and batches made ahead: functions of the seed and the step alone."""

import threading
import time

import numpy as np
import pytest

from ldmscale.data import order
from ldmscale.data.loader import batches
from ldmscale.data.order import epoch_batch
from ldmscale.errors import UserError


@pytest.fixture(params=["permutation", "index shuffle"])
def shuffled(request, monkeypatch):
    """Both ways to an epoch's order: that of small sets, and that of sets whose permutation would be too long."""
    if request.param == "index shuffle":
        monkeypatch.setattr(order, "PERMUTED", 0)


@pytest.mark.parametrize(("count", "batch"), [(12, 4), (13, 4), (8, 8), (7, 1), (100, 33)])
def test_an_epoch_sees_every_example_once_but_for_the_remainder(shuffled, count, batch):
    per_epoch = count // batch
    for epoch in range(3):
        seen = np.concatenate([epoch_batch(count, batch, 0, epoch * per_epoch + i) for i in range(per_epoch)])
        assert len(set(seen)) == len(seen) == per_epoch * batch
        assert set(seen) <= set(range(count))


def test_epochs_and_seeds_have_their_own_orders(shuffled):
    def epoch(number, seed):
        return tuple(np.concatenate([epoch_batch(40, 8, seed, 5 * number + i) for i in range(5)]))

    assert len({epoch(n, seed) for n in range(2) for seed in range(2)}) == 4
    # Over many epochs nothing is left out for good.
    assert len(set(np.concatenate([epoch_batch(13, 4, 0, step) for step in range(15)]))) == 13


def test_a_batch_is_a_function_of_the_step_alone(shuffled):
    forward = [epoch_batch(20, 8, 5, step).tolist() for step in range(6)]
    backward = [epoch_batch(20, 8, 5, step).tolist() for step in reversed(range(6))]
    assert forward == backward[::-1]


@pytest.mark.parametrize("count", [3, 40])
def test_the_rows_of_hosts_make_up_the_batch(shuffled, count):
    for step in (0, 3):
        whole = epoch_batch(count, 12, 9, step)
        for hosts in (1, 3, 4):
            part = 12 // hosts
            shares = [epoch_batch(count, 12, 9, step, slice(h * part, (h + 1) * part)) for h in range(hosts)]
            np.testing.assert_array_equal(np.concatenate(shares), whole)


def test_fewer_examples_than_a_batch_are_repeated():
    rows = epoch_batch(3, 64, 0, 0)
    assert rows.shape == (64,) and set(rows) == {0, 1, 2}
    assert rows.tolist() == epoch_batch(3, 64, 0, 0).tolist() != epoch_batch(3, 64, 0, 1).tolist()


def test_the_order_of_small_sets_is_as_it_always_was():
    assert epoch_batch(10, 5, 0, 0).tolist() == np.random.default_rng((0, 0)).permutation(10)[:5].tolist()


def test_a_set_of_hundreds_of_millions_takes_no_memory_and_looks_random():
    count = 600_000_000
    seen = np.concatenate([epoch_batch(count, 2048, 1, step) for step in range(8)])
    assert len(set(seen)) == len(seen) and seen.min() >= 0 and seen.max() < count
    assert abs(seen.mean() / count - 0.5) < 0.01
    for lag in (1, 2, 1024):  # chance: 0.008
        assert abs(np.corrcoef(seen[:-lag], seen[lag:])[0, 1]) < 0.03


# ---------------------------------------------------------------- batches made ahead


def test_batches_come_in_order_whoever_makes_them():
    def batch(step):
        time.sleep(0.01 * (step % 3 == 0))  # some take longer than the ones after them
        return {"x": epoch_batch(50, 8, 3, step)}

    alone = [b["x"].tolist() for b in batches(batch, 4, 20, threads=0)]
    assert alone == [epoch_batch(50, 8, 3, step).tolist() for step in range(4, 20)]
    for threads in (1, 4):
        assert [b["x"].tolist() for b in batches(batch, 4, 20, threads)] == alone


def test_batches_are_made_ahead_by_other_threads_but_not_without_end():
    made = []

    def batch(step):
        made.append((step, threading.current_thread() is threading.main_thread()))
        return step

    ahead = batches(batch, 0, 1000, threads=3)
    assert next(ahead) == 0
    time.sleep(0.2)
    assert 1 < len(made) <= 12 and not any(here for _, here in made)
    ahead.close()
    assert list(batches(batch, 0, 0, threads=3)) == []


def test_what_a_batch_raises_comes_in_its_turn():
    def batch(step):
        if step == 3:
            raise UserError("latents/00002/mean.npy is cut short")
        return step

    seen = []
    with pytest.raises(UserError, match="00002/mean.npy is cut short"):
        for step in batches(batch, 0, 9, threads=4):
            seen.append(step)
    assert seen == [0, 1, 2]
