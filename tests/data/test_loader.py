"""The training order: a function of the seed and the batch number, and of nothing else."""

import itertools
import logging
import random
import struct

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from PIL import Image, features

from sampling_free.data import loader as loader_module
from sampling_free.data.loader import ReadOrName, build_replayable_train_loader
from sampling_free.utils.errors import BadInput

# Every third image is tall.
IMAGES = [
    {"file_name": f"{i}.png", "index": i, "height": 30 if i % 3 == 0 else 10, "width": 20}
    for i in range(10)
]


def mapper(record):
    """Draws from all three generators that augmentations draw from."""
    draws = random.random(), float(np.random.rand()), float(torch.rand(()))
    return {**record, "draws": draws}


def build(dataset=IMAGES, mapper=mapper, total_batch_size=4, **kwargs):
    return build_replayable_train_loader(
        dataset, mapper=mapper, total_batch_size=total_batch_size, **kwargs
    )


def batches(count, loader=None, start=0, **kwargs):
    loader = loader or build(**kwargs)
    loader.start_iter = start
    return list(itertools.islice(iter(loader), count))


def indices(found):
    return [[record["index"] for record in batch] for batch in found]


def stream(count, seed=0):
    """The first indices of Detectron2's own endless shuffle."""
    return list(itertools.islice(iter(TrainingSampler(len(IMAGES), seed=seed)), count))


@pytest.mark.parametrize("grouping", [True, False])
def test_the_number_of_workers_has_no_influence(grouping):
    one, two = (batches(9, num_workers=n, seed=3, aspect_ratio_grouping=grouping) for n in (0, 2))
    assert one == two
    draws = [record["draws"] for batch in one for record in batch]
    assert len(set(draws)) == len(draws), "each image has augmentations of its own"


@pytest.mark.parametrize("start, num_workers", [(1, 0), (3, 2), (8, 0)])
def test_a_loader_that_starts_later_continues_the_same_order(start, num_workers):
    whole = batches(12)
    assert batches(12 - start, start=start, num_workers=num_workers) == whole[start:]


def test_it_can_be_told_where_to_start_after_its_iterator_was_made():
    # Detectron2 v0.6 makes the iterator before the checkpoint is read.
    loader = build()
    iterator = iter(loader)
    loader.start_iter = 5
    assert loader.start_iter == 5 and next(iterator) == batches(6)[5]


def test_without_groups_the_order_is_that_of_detectron2s_sampler():
    found = indices(batches(10, aspect_ratio_grouping=False, seed=7))
    assert sum(found, []) == stream(40, seed=7)
    assert sorted(sum(found[:5], [])) == sorted(list(range(10)) * 2), "each epoch holds all images"


def test_groups_hold_one_orientation_each_in_the_order_of_the_sampler():
    found = indices(batches(30, seed=7))
    is_tall = [{IMAGES[i]["height"] > IMAGES[i]["width"] for i in batch} for batch in found]
    assert all(len(kinds) == 1 for kinds in is_tall)
    assert {kind for kinds in is_tall for kind in kinds} == {True, False}
    for tall in (True, False):
        drawn = [i for batch, kinds in zip(found, is_tall) if tall in kinds for i in batch]
        expected = [i for i in stream(200, seed=7) if (i % 3 == 0) == tall]
        assert len(drawn) >= 32 and drawn == expected[: len(drawn)]


def test_without_known_sizes_there_is_one_group():
    dataset = [{"index": i} for i in range(10)]
    assert sum(indices(batches(5, dataset=dataset, seed=7)), []) == stream(20, seed=7)


@pytest.mark.parametrize("num_processes, start", [(2, 0), (4, 3)])
def test_the_slices_of_several_processes_are_the_batches_of_one(monkeypatch, num_processes, start):
    whole = batches(6, start=start)
    monkeypatch.setattr(comm, "get_world_size", lambda: num_processes)
    slices = []
    for rank in range(num_processes):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        slices.append(batches(6, start=start))
    assert [sum(parts, []) for parts in zip(*slices)] == whole
    assert {len(batch) for part in slices for batch in part} == {4 // num_processes}


def test_the_seed_decides_order_and_augmentations():
    assert batches(4, seed=1) == batches(4, seed=1)
    assert indices(batches(4, seed=1)) != indices(batches(4, seed=2))
    sampler = TrainingSampler(len(IMAGES), seed=5)
    one, two = (batches(4, sampler=sampler, seed=s) for s in (1, 2))
    assert indices(one) == indices(two) and one != two


def test_a_negative_seed_is_none():
    one, two = batches(5, seed=-1), batches(5, seed=-1)
    assert one != two and {len(batch) for batch in one + two} == {4}


def test_one_of_detectron2s_other_samplers_can_be_given():
    factors = torch.tensor([3.0] + [1.0] * 9)
    sampler = RepeatFactorTrainingSampler(factors, seed=0)
    found = batches(9, sampler=sampler, aspect_ratio_grouping=False)
    counts = np.bincount(sum(indices(found), []), minlength=10)
    assert counts.tolist() == [9] + [3] * 9


def test_loading_leaves_the_random_generators_alone():
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = states()
    batches(3)
    assert states() == before


def fails_on(*broken, error=OSError):
    def read(record):
        if record["index"] in broken:
            raise error("image file is truncated")
        return mapper(record)

    return read


@pytest.mark.parametrize("error", [OSError, SyntaxError, struct.error])
def test_an_unreadable_image_stops_with_one_line_that_names_it(error):
    # With workers: test_train_net.py (after an error PyTorch takes seconds to end its workers).
    with pytest.raises(BadInput) as e:
        batches(5, mapper=fails_on(4, error=error))
    assert str(e.value) == (
        f"4.png: cannot be read ({error.__name__}: image file is truncated); mend or remove it, "
        "or set dataloader.train.unreadable=skip"
    )


def test_a_broken_avif_is_an_unreadable_image(tmp_path):
    if not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    path = tmp_path / "4.avif"
    record = {"file_name": str(path), "height": 48, "width": 64, "annotations": []}
    Image.new("RGB", (64, 48), "gray").save(path)
    read = ReadOrName(DatasetMapper(True, augmentations=[], image_format="BGR"))
    assert read(record)["image"].shape == (3, 48, 64)
    content = path.read_bytes()
    start = content.index(b"mdat") + 4
    path.write_bytes(content[:start] + bytes(len(content) - start))
    with pytest.raises(BadInput, match="4.avif: cannot be read .RuntimeError: Failed to decode"):
        read(record)


@pytest.mark.parametrize("path", [None, "4.png"])
def test_a_runtime_error_beside_a_sound_image_is_no_unreadable_image(tmp_path, path):
    Image.new("RGB", (64, 48)).save(tmp_path / "4.png")
    record = {"file_name": str(tmp_path / path)} if path else {}
    with pytest.raises(RuntimeError, match="image file is truncated"):
        ReadOrName(fails_on(4, error=RuntimeError))({**record, "index": 4})


@pytest.mark.parametrize("largest, is_read", [(255, True), (9000, False)])
def test_an_image_of_more_than_8_bits_is_not_read_as_white(tmp_path, largest, is_read):
    pixels = np.linspace(0, largest, 100).reshape(10, 10).astype(np.uint16)
    Image.fromarray(pixels).save(tmp_path / "x.TIFF")
    record = {"file_name": str(tmp_path / "x.TIFF"), "height": 10, "width": 10, "annotations": []}
    read = ReadOrName(DatasetMapper(True, augmentations=[], image_format="BGR"))
    if is_read:
        assert np.array_equal(read(record)["image"], np.broadcast_to(pixels, (3, 10, 10)))
    else:
        with pytest.raises(BadInput, match="x.TIFF: cannot be read .*scale them to 0 to 255"):
            read(record)


@pytest.mark.parametrize(
    "module, package", [("shapely.geometry", "shapely"), ("cv2", "opencv-python-headless")]
)
def test_a_package_that_an_augmentation_lacks_is_named_and_no_image_is_skipped(module, package):
    def read(record):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    with pytest.raises(BadInput, match=f"which is not installed: pip install {package}$"):
        batches(1, mapper=read, unreadable="skip")


def test_a_mapper_of_a_users_own_may_read_16_bits(tmp_path):
    class Mine(DatasetMapper):
        def __call__(self, record):
            return Image.open(record["file_name"]).mode

    Image.new("I;16", (10, 10)).save(tmp_path / "x.png")
    mapper = Mine(True, augmentations=[], image_format="BGR")
    assert ReadOrName(mapper)({"file_name": str(tmp_path / "x.png")}) == "I;16"


MASK = {"segmentation": [[1, 1, 9, 1, 9, 9]]}


@pytest.mark.parametrize(
    "annotations", [[MASK, {}], [{}, MASK, {"iscrowd": 1}]], ids=["the last", "the first"]
)
def test_an_image_with_masks_for_some_objects_is_named(annotations):
    dataset = [*IMAGES, {"file_name": "mixed.png", "annotations": annotations}]
    mapper = DatasetMapper(True, augmentations=[], image_format="BGR", use_instance_mask=True)
    with pytest.raises(BadInput, match="mixed.png: only some.*mapper.use_instance_mask=False"):
        build(dataset, mapper)
    build([{"annotations": a} for a in ([MASK, MASK], [{}, {}], [MASK, {"iscrowd": 1}])], mapper)
    mapper.use_instance_mask = False
    build(dataset, mapper)


def test_a_mistake_in_the_mapper_is_no_unreadable_image():
    with pytest.raises(ZeroDivisionError):
        batches(5, mapper=fails_on(4, error=ZeroDivisionError), unreadable="skip")


def test_skipping_takes_the_next_image_and_leaves_the_others_where_they_were():
    whole = batches(8)
    found = batches(8, mapper=fails_on(4, 5), unreadable="skip")
    assert found == batches(8, mapper=fails_on(4, 5), unreadable="skip", num_workers=2)
    replaced = {4: 6, 5: 6}
    expected = [[replaced.get(i, i) for i in batch] for batch in indices(whole)]
    assert indices(found) == expected != indices(whole)
    kept = [(a, b) for x, y in zip(whole, found) for a, b in zip(x, y) if a["index"] not in (4, 5)]
    assert kept and all(a == b for a, b in kept)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_skipped_file_is_reported_once(tmp_path, num_workers):
    # A file, as the workers are other processes.
    handler = logging.FileHandler(tmp_path / "log", delay=True)
    logger = logging.getLogger(loader_module.__name__)
    logger.addHandler(handler)
    try:
        batches(30, mapper=fails_on(4, 9), unreadable="skip", num_workers=num_workers)
    finally:
        logger.removeHandler(handler)
        handler.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert sorted(line.split(": ")[0] for line in lines) == [
        f"skipped {n} of 10 images so far" for n in (1, 2)
    ]
    assert sorted(line.split(": ")[1] for line in lines) == ["4.png", "9.png"]


def test_if_nothing_can_be_read_it_stops():
    with pytest.raises(BadInput, match="none of the images can be read"):
        batches(1, mapper=fails_on(*range(10)), unreadable="skip")


@pytest.mark.parametrize(
    "arguments, processes, parts",
    [
        ({"unreadable": "ignore"}, 1, ["dataloader.train.unreadable='ignore'", "'stop', 'skip'"]),
        ({"total_batch_size": -4}, 2, ["dataloader.train.total_batch_size=-4"]),
        ({"total_batch_size": 4}, 3, ["dataloader.train.total_batch_size=4", "3 processes"]),
    ],
)
def test_bad_arguments_are_named(monkeypatch, arguments, processes, parts):
    monkeypatch.setattr(comm, "get_world_size", lambda: processes)
    with pytest.raises(BadInput) as e:
        build(**arguments)
    assert all(part in str(e.value) for part in parts)
