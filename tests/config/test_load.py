"""LazyConfig files and overrides: what is accepted is in effect, what is not is named."""

import builtins

import pytest
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog
from omegaconf import OmegaConf

from helpers.tiny_run import REPO, write_config
from sampling_free.config import load as config_module
from sampling_free.config.load import TRAIN_DEFAULTS, load_config
from sampling_free.utils.errors import BadInput

R50 = str(REPO / "configs" / "retinanet" / "retinanet_R_50_FPN_1x.py")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config"))


def message(*arguments):
    """The one line of the refusal."""
    with pytest.raises(BadInput) as e:
        load_config(*arguments)
    assert len(str(e.value).splitlines()) == 1
    return str(e.value)


def test_absent_keys_of_train_get_their_defaults_and_given_ones_stay(tmp_path):
    path = write_config(tmp_path, "\ntrain = dict(amp=dict(enabled=True), max_iter=7)\n")
    train = load_config(path).train
    detectron2 = model_zoo.get_config("common/train.py").train
    assert set(train) == set(detectron2) | set(TRAIN_DEFAULTS)
    assert train.max_iter == 7 and train.checkpointer == detectron2.checkpointer
    assert train.amp.enabled is True and train.amp.dtype == "float16"


@pytest.mark.parametrize(
    "override, suggestion",
    [
        ("train.max_itr=5", "train.max_iter"),
        ("train.amp.dtyp=bfloat16", "train.amp.dtype"),
        ("model.backbone.bottom_up.stem.nrom=BN", "model.backbone.bottom_up.stem.norm"),
        ("modle.num_classes=3", "model"),
        ("dataloader.train.unreadble=skip", "dataloader.train.unreadable"),
        ("dataloader.test.num_worker=0", "dataloader.test.num_workers"),
        ("optimizer.momentun=0.5", "optimizer.momentum"),
        ("+train.max_itr=5", "train.max_iter"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(config, override, suggestion):
    text = message(config, [override])
    assert override.split("=")[0].lstrip("+") in text
    assert f"did you mean {suggestion}?" in text


def test_where_nothing_is_near_the_known_keys_are_listed(config):
    text = message(config, ["model.head.zzzz=1"])
    assert "'zzzz' in model.head" in text and "num_anchors" in text and "_target_" not in text


def test_a_parameter_of_the_callable_need_not_be_in_the_config(config):
    overrides = ["model.max_detections_per_image=7", "optimizer.nesterov=True"]
    cfg = load_config(config, [*overrides, "model.backbone.bottom_up.stem.norm=''"])
    assert cfg.optimizer.nesterov is True and cfg.model.backbone.bottom_up.stem.norm == ""
    assert instantiate(cfg.model).max_detections_per_image == 7
    # A callable that takes any keyword is given any.
    cfg = load_config(R50, ["model.backbone.bottom_up.stages.num_groups=2"])
    assert cfg.model.backbone.bottom_up.stages.num_groups == 2


@pytest.mark.parametrize(
    "override, parts",
    [
        ("train.max_iter", ["'train.max_iter' is no override", "key=value"]),
        ("model.anchor_generator.sizes.9=[1]", ["is a list of 5", "'9'"]),
        ("model.anchor_generator.sizes.-1=[1]", ["is a list of 5", "'-1'"]),
        ("train.max_iter.a=1", ["train.max_iter is the value 6"]),
        ("model.num_classes=[1", ["'model.num_classes=[1' cannot be applied"]),
        ("=3", ["unknown key ''"]),
        ("~train.max_iter=6", ["~train"]),
        ("model._target_=nothing.here", ["nothing.here"]),
    ],
)
def test_a_malformed_override_is_named(config, override, parts):
    text = message(config, [override])
    assert all(part in text for part in parts), text


def test_values_keep_their_types_in_order_and_through_references(config):
    overrides = [
        "train.max_iter=100",
        "optimizer.lr=1e-3",
        "model.anchor_generator.sizes.1=[9,10]",
        "dataloader.train.mapper.augmentations.0.horizontal=False",
        "train.seed=1",
        "train.seed=2",
    ]
    cfg = load_config(config, overrides)
    assert cfg.train.max_iter == 100 and cfg.optimizer.lr == 0.001
    assert cfg.model.anchor_generator.sizes[1] == [9, 10]
    assert cfg.dataloader.train.mapper.augmentations[0].horizontal is False
    assert cfg.train.seed == 2 and cfg.dataloader.train.seed == 2


def test_a_key_in_the_file_that_the_callable_lacks_is_refused(tmp_path):
    path = write_config(tmp_path, "\nmodel.anchor_generator.size = [[1]]\n")
    text = message(path)
    assert "model.anchor_generator.size" in text and "did you mean sizes?" in text


MAPPER = """
def my_mapper(record):
    return record
dataloader.train.mapper = my_mapper
"""
FORMAT = "dataloader.test.mapper.image_format"


@pytest.mark.parametrize(
    "extra, key, reason",
    [
        (MAPPER, FORMAT, "dataloader.train.mapper is now my_mapper and has no 'image_format'"),
        ("del dataloader.train.mapper", FORMAT, "but dataloader.train has no 'mapper'"),
        ("train.output_dir = '${..cfg.OUT}'", "train.output_dir", "to cfg.OUT, which is not there"),
        ("train.output_dir = '${.dir}'", "train.output_dir", "train has no 'dir'"),
        ("train.output_dir = '${train.output_dir}'", "train.output_dir", "Recursive"),
        ("train.output_dir = 'out/${cfg.OUT}'", "train.output_dir", "'cfg.OUT' not found"),
    ],
)
def test_a_reference_that_lost_its_aim_is_named_until_its_key_is_set(tmp_path, extra, key, reason):
    path = write_config(tmp_path, f"\n{extra}\n")
    line = message(path)
    assert line.startswith(f"{key}: ") and reason in line and line.endswith(f"; set {key}")
    cfg = load_config(path, [f"{key}=BGR"])
    assert OmegaConf.select(cfg, key) == "BGR"


def test_a_reference_to_nothing_is_named_though_an_override_goes_through_it(tmp_path):
    key = "dataloader.train.mapper.augmentations"
    path = write_config(tmp_path, f"\n{key}[0] = '${{..none}}'\n")
    for overrides in ([], [f"{key}.0.prob=0.5"]):
        line = message(path, overrides)
        mapper = "dataloader.train.mapper"
        assert f"{key}.0: refers to {mapper}.none, but {mapper} has no 'none'; set" in line


def test_a_missing_mandatory_value_is_named_until_it_is_given(tmp_path):
    path = write_config(tmp_path, "\nmodel.num_classes = '???'\n")
    assert "model.num_classes" in message(path)
    assert load_config(path, ["model.num_classes=4"]).model.num_classes == 4


def test_a_missing_file_is_named_with_the_nearest_one():
    assert "--config-file" in message("")
    text = message(R50.replace("1x", "2x"))
    assert "retinanet_R_50_FPN_2x.py: no such config file" in text
    assert f"did you mean {R50}?" in text
    assert "no such config file" in message("/no/such/folder/a.py")


@pytest.mark.parametrize(
    "text, parts",
    [
        ("a = (1\nb = 2\n", ["SyntaxError", "line 1"]),
        ("raise RuntimeError('one\\ntwo')", ["RuntimeError: one two"]),
        ("import no_such_module", ["ModuleNotFoundError", "no_such_module"]),
        ("from .absent import model", ["ImportError", "absent.py"]),
        ("{}['key']", ["KeyError", "key"]),
        ("", ["has no 'model'"]),
    ],
)
def test_a_broken_config_is_named_and_leaves_the_import_function_alone(tmp_path, text, parts):
    path = tmp_path / "broken.py"
    path.write_text(text)
    before = builtins.__import__
    line = message(str(path))
    assert builtins.__import__ is before
    assert str(path) in line and all(part in line for part in parts), line


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: ["])
def test_a_yaml_file_that_is_no_config_is_named(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    assert str(path) in message(str(path))


def test_a_part_of_a_config_is_not_a_config():
    path = str(REPO / "configs" / "common" / "retinanet.py")
    assert f"{path}: has no 'dataloader'" in message(path)


def test_a_tilde_is_the_home_folder_wherever_a_path_may_be(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    lines = """
train.output_dir = "~/runs"
dataloader.evaluator.output_dir = "~"
dataloader.mine = ["~/a", {"b": "~/c", "d": "${train.output_dir}/e~", "f": None}]
"""
    cfg = load_config(write_config(tmp_path, lines), ["train.prior_file=~/prior.json"])
    assert cfg.train.output_dir == f"{tmp_path}/runs"
    assert cfg.train.prior_file == f"{tmp_path}/prior.json"
    assert cfg.dataloader.evaluator.output_dir == str(tmp_path)
    assert cfg.dataloader.mine == [
        f"{tmp_path}/a",
        {"b": f"{tmp_path}/c", "d": f"{tmp_path}/runs/e~", "f": None},
    ]
    assert load_config("~/config.py") == load_config(str(tmp_path / "config.py"))


@pytest.mark.parametrize("path", ["~/a", "runs/lr=0.1/seed 0", "a (1)/50%/x,y:b/c!"])
def test_a_path_on_the_command_line_needs_no_quotes(config, path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    expected = path.replace("~", "/home/me")
    cfg = load_config(config, [f"train.output_dir={path}", f"train.init_checkpoint='{path}'"])
    assert cfg.train.output_dir == cfg.train.init_checkpoint == expected
    pairs = ["OUTPUT_DIR", path, f"MODEL.WEIGHTS={path}"]
    cfg = load_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml", pairs)
    assert cfg.train.output_dir == cfg.train.init_checkpoint == cfg.cfg.OUTPUT_DIR == expected


# --- config files that register data sets --------------------------------------------------

REGISTERS = """
from detectron2.data import DatasetCatalog
def records():
    return {records}

DatasetCatalog.register("{name}", records)
"""


@pytest.fixture
def free_names():
    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.pop(name)
        config_module._of_configs.pop(name, None)


def test_a_config_that_registers_a_set_can_be_read_again_and_the_newest_counts(
    tmp_path, free_names
):
    for records in ([1], [2]):
        path = write_config(tmp_path, REGISTERS.format(name="read again", records=records))
        load_config(path)
        load_config(path)
        assert DatasetCatalog.get("read again") == records


def test_so_can_what_it_imports_in_either_way(tmp_path, monkeypatch, free_names):
    (tmp_path / "sets_of_python.py").write_text(REGISTERS.format(name="by Python", records=[1]))
    (tmp_path / "sets_of_config.py").write_text(REGISTERS.format(name="by a config", records=[2]))
    monkeypatch.syspath_prepend(str(tmp_path))
    lines = "import sets_of_python\nfrom .sets_of_config import records\n"
    path = write_config(tmp_path, lines)
    other = write_config(tmp_path, lines, name="other.py")
    for file in (path, other, path):
        load_config(file)
        assert DatasetCatalog.get("by Python") == [1]
        assert DatasetCatalog.get("by a config") == [2]


def test_names_that_others_have_registered_stay_taken(tmp_path, free_names):
    load_config(write_config(tmp_path, REGISTERS.format(name="shared", records=[1])))
    DatasetCatalog.register("there before", lambda: [0])
    for name, reason in (
        ("shared", "other.py: registers the data set 'shared', as .*config.py"),
        ("there before", "'there before' is already registered"),
    ):
        lines = REGISTERS.format(name=name, records=[1])
        with pytest.raises(BadInput, match=reason):
            load_config(write_config(tmp_path, lines, name="other.py"))
    assert DatasetCatalog.get("there before") == [0]
