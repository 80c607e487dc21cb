"""Batches: what they hold, where from, and in which order."""

import dataclasses

import numpy as np
import pytest
import torch

from services.engines.rvc.batches import SliceStore, epoch_order
from services.engines.rvc.mel import linear_spectrogram

CPU = torch.device("cpu")


@pytest.fixture(params=["kept with spectrograms", "brought one by one"])
def store(request, features, nano):
    room = None if request.param.startswith("kept") else 0
    return SliceStore(features.slices, nano, CPU, room_bytes=room)


def test_batches_pad_with_zeros_and_repeat_content(store, features, nano):
    batch = store.batch([0, 1])
    assert batch.lengths.tolist() == [40, 51]
    assert batch.content.shape == (2, 52, 6)
    assert batch.samples.shape == (2, 52 * nano.hop)
    assert batch.spectrogram.shape == (2, nano.spec_channels, 52)
    np.testing.assert_array_equal(batch.content[1, 7], features.slices[1].content[3])
    assert not batch.samples[0, 40 * nano.hop :].any()
    assert not batch.f0_hz[0, 40:].any()
    assert batch.pitch.min() >= 0
    assert batch.pitch[0, :40].min() >= 1


def test_spectrograms_are_those_of_the_samples(store, nano):
    batch = store.batch([3, 1])
    wanted = linear_spectrogram(batch.samples, nano)
    # At the end of a shorter slice one sees the mirrored sound and the other the padding: both are masked.
    torch.testing.assert_close(batch.spectrogram[0], wanted[0])
    torch.testing.assert_close(batch.spectrogram[1, :, :50], wanted[1, :, :50])


def test_a_plan_is_brought_in_order(features, nano):
    plan = [[0, 1], [], [4], [2, 3]]
    for room in (None, 0):
        got = list(SliceStore(features.slices, nano, CPU, room_bytes=room).batches(plan))
        assert [None if batch is None else batch.lengths.tolist() for batch in got] == [
            [40, 51],
            None,
            [47],
            [33, 60],
        ]


def test_rows_of_a_batch_are_padded_as_the_whole(store):
    batch = store.batch([0, 1, 2])
    rows = batch.rows(1, 3)
    for field in dataclasses.fields(rows):
        assert torch.equal(getattr(rows, field.name), getattr(batch, field.name)[1:3])


def test_order_depends_on_seed_and_epoch_alone():
    lengths = np.random.default_rng(0).integers(30, 400, 50)
    assert sorted(epoch_order(0, 0, lengths)) == list(range(50))
    assert epoch_order(0, 1, lengths).tolist() == epoch_order(0, 1, lengths).tolist()
    assert epoch_order(0, 1, lengths).tolist() != epoch_order(0, 2, lengths).tolist()
    assert epoch_order(1, 0, lengths).tolist() != epoch_order(0, 1, lengths).tolist()


def test_like_lengths_come_together_in_another_order_every_epoch():
    lengths = np.random.default_rng(1).integers(30, 400, 320)

    def padding(order):
        eights = lengths[order].reshape(-1, 8)
        return 1 - eights.sum() / (eights.max(axis=1) * 8).sum()

    orders = [epoch_order(0, epoch, lengths) for epoch in range(5)]
    shuffled = np.mean([padding(np.random.default_rng(n).permutation(320)) for n in range(5)])
    assert np.mean([padding(order) for order in orders]) < 0.5 * shuffled
    assert all(sorted(order) == list(range(320)) for order in orders)
    together = [{frozenset(eight) for eight in order.reshape(-1, 8).tolist()} for order in orders]
    assert not together[0] & together[1]
