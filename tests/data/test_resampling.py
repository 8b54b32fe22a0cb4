"""Class-balanced resampling: which frames, how often, with which keys; and the replacement of empty frames."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest

from cmt_aqr.data.augmentation import SceneAugmentation
from cmt_aqr.data.dataset import FrameSampler, SampleKey
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.index import load_index
from cmt_aqr.data.resampling import balanced_frames, occurrences, resampled_frames
from tests.helpers.small_data import ready


def test_occurrences_count_earlier_entries() -> None:
    assert occurrences(np.array([7, 3, 7, 7, 0, 3])).tolist() == [0, 0, 1, 2, 0, 1]
    assert occurrences(np.zeros(0, dtype=np.int64)).tolist() == []


def test_every_class_is_drawn_equally_often_from_its_own_frames() -> None:
    """On trainval 12,810 times, from the number of frames with each class (CBGS, table 1)."""
    counts = (27558, 20120, 6770, 9156, 7276, 9269, 6435, 6263, 22923, 12336)
    present = np.arange(28130)[:, None] < np.array(counts)
    frames = balanced_frames(present, np.random.default_rng(0))
    for count, draws in zip(counts, frames.reshape(10, 12_810), strict=True):
        assert draws.max() < count and len(np.unique(draws)) < len(draws)
    one = balanced_frames(np.array([[True, True, False]]), np.random.default_rng(0))
    assert one.tolist() == [0, 0]  # not 0 frames, although N / 10 is


def test_missing_classes_are_named_and_boxes_without_points_count(
    small_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = load_index(small_root, "v1.0-mini", "mini_train", tmp_path)
    pairs = sum(len(set(labels)) for labels in np.split(index.labels, index.box_offsets[1:-1]))
    classes = len(set(index.labels))
    assert len(resampled_frames(index, "cbgs", seed=3)) == classes * max(1, pairs // 10)
    unseen = dataclasses.replace(index, box_points=np.zeros_like(index.box_points))
    assert np.array_equal(resampled_frames(unseen, "cbgs", seed=3), resampled_frames(index, "cbgs", seed=3))
    labels = np.where(index.labels == 7, 0, index.labels)
    with caplog.at_level(logging.WARNING):
        resampled_frames(type(index)(**{**vars(index), "labels": labels}), "cbgs", seed=3)
    assert "bicycle" in caplog.text and "car" not in caplog.text
    again, other = (resampled_frames(index, "cbgs", seed=seed) for seed in (3, 4))
    assert np.array_equal(again, resampled_frames(index, "cbgs", seed=3))
    assert not np.array_equal(again, other)
    assert resampled_frames(index, "none", seed=3) is None


@pytest.mark.parametrize("ranks", [1, 2])
def test_repeated_frames_have_distinct_keys_and_every_epoch_has_the_same(ranks: int) -> None:
    frames = np.array([5, 1, 5, 5, 0, 1, 2, 2])
    expected = {(frame, repeat) for frame, repeat in zip(frames, occurrences(frames), strict=True)}
    samplers = [FrameSampler(8, 2, True, 0, ranks, rank, resampled=frames) for rank in range(ranks)]
    orders = []
    for epoch in range(2):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        keys = [key for sampler in samplers for key in sampler]
        assert {(key.frame, key.repeat) for key in keys} == expected
        assert len(keys) == 8 and {key.epoch for key in keys} == {epoch}
        orders.append(keys)
    assert [key.frame for key in orders[0]] != [key.frame for key in orders[1]]
    samplers[0].set_position(1, 1)
    assert list(samplers[0]) == orders[1][2 : 8 // ranks]


def test_the_data_module_resamples_and_repeats_look_different(small_root: Path, tmp_path: Path) -> None:
    turn = SceneAugmentation(rotation=(-0.5, 0.5))
    data = ready("fit", small_root, tmp_path, resampling="cbgs", batch_size=1, scene_augmentation=turn)
    loader = data.train_dataloader()
    keys = list(loader.frame_sampler)
    assert len(loader) == len(keys) > len(data.dataset("train"))
    repeated = next(key for key in keys if key.repeat)
    first, second = (data.dataset("train")[key] for key in (repeated, repeated._replace(repeat=0)))
    assert first.token == second.token
    assert not np.array_equal(first.lidar2img, second.lidar2img)
    assert len(data.val_dataloader()) == 3
    assert loader.state_dict()["frames"] == len(keys)


def test_frames_without_a_box_are_replaced(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmt_aqr.data.dataset._MAX_TRIES", 50)
    data = ready("fit", small_root, tmp_path, cameras=False, replace_empty_frames=True)
    dataset = data.dataset("train")
    assert not data.dataset("val").replace_empty
    index = dataclasses.replace(dataset.reader.index, boxes=dataset.reader.index.boxes.copy())
    dataset.reader.index = index
    # Only frame 1 keeps its boxes.
    index.boxes[: index.box_offsets[1], 0] = index.boxes[index.box_offsets[2] :, 0] = 500.0
    for key in (SampleKey(0, 0), SampleKey(0, 2, 1), SampleKey(5, 1)):
        assert dataset[key].token == index.token(1)
        assert np.array_equal(dataset[key].points, dataset[key].points)
    index.boxes[:, 0] = 500.0
    with pytest.raises(DataError, match=r"data\.replace_empty_frames=false"):
        dataset[SampleKey(0, 0)]
