"""tools/check_imbalance.py: text, JSON, picture, and a line for each mistake."""

import json
import subprocess
import sys

import pytest
from matplotlib.image import imread

import check_imbalance as script
from helpers.tiny_run import FOCAL, REPO, call_main, environment, only_error, write_config
from helpers.yaml_files import FASTER


@pytest.fixture
def main(monkeypatch, capsys):
    """Runs the tool in this process; returns the exit code, stdout and stderr."""
    monkeypatch.setattr(script, "setup_logger", lambda *args, **kwargs: None)

    def call(config, *arguments):
        words = ["check_imbalance.py", "--config-file", config, *arguments]
        return call_main(script, words, monkeypatch, capsys)

    return call


@pytest.mark.parametrize("extra", ["", FOCAL], ids=["sampling_free", "focal"])
def test_text_json_and_picture(main, tmp_path, extra):
    numbers = tmp_path / "made" / "n.json"
    code, out, _ = main(write_config(tmp_path, extra), "--json", numbers)
    assert code == 0
    parts = ["12 images counted, of 12", "First batch (2 images; random weights)", "Verdict"]
    assert [out.find(x) for x in parts] == sorted(out.find(x) for x in parts)
    assert out.find(parts[0]) >= 0 and "best prior" in out and "loss_cls / localization" in out
    found = json.loads(numbers.read_text())
    assert all(f"  - {line}" in out for line in found["verdicts"]) and found["verdicts"]
    counts = found["counts"]
    assert found["prior"] == pytest.approx(counts["num_foreground"] / counts["num_valid"] / 5)
    assert found["batch"]["losses"].keys() == {"loss_cls", "loss_box_reg"}
    (head,) = found["batch"]["heads"]
    assert head["optimal_prior"] == found["prior"]
    assert imread(tmp_path / "out" / "imbalance.png").std() > 0.02
    assert f"Picture: {tmp_path / 'out' / 'imbalance.png'}" in out and f"Numbers: {numbers}" in out


def test_the_seed_makes_it_say_the_same_twice(main, tmp_path):
    config, found = write_config(tmp_path), []
    for seed in (3, 3, 4):
        assert main(config, "--json", tmp_path / "n.json", f"train.seed={seed}")[0] == 0
        found.append(json.loads((tmp_path / "n.json").read_text()))
    assert found[0] == found[1] != found[2]


def test_options(main, tmp_path):
    config, picture = write_config(tmp_path, FOCAL), tmp_path / "a" / "b.png"
    code, out, _ = main(config, "--images", 3, "--picture", picture, "train.seed=2")
    assert code == 0 and "3 images counted, of 12" in out and picture.exists()
    assert not (tmp_path / "out" / "imbalance.png").exists()
    options = "--variant", "sampling_free", "--json", tmp_path / "n.json"
    code, out, _ = main(config, *options, "--picture", picture)
    (head,) = json.loads((tmp_path / "n.json").read_text())["batch"]["heads"]
    assert code == 0 and "no explosion" in out and not head["is_focal"] and head["ratio"] > 0


def test_a_yaml_config_with_its_overrides(main, tiny, tmp_path):
    picture = tmp_path / "p.png"
    arguments = ["--picture", picture, "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "32"]
    code, out, _ = main(tiny(FASTER), *arguments)
    assert code == 0 and "loss_rpn_cls" in out and "loss_box_reg" in out and picture.exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["train.monitor_peroid=1"], "monitor_period"),
        (["--variant", "sampling_fre"], "sampling_free"),
        (["--images", "0"], "--images=0"),
        (["train.init_checkpoint=absent.pth"], "absent.pth"),
        (["train.prior_file=absent.json"], "absent.json"),
        (["dataloader.train.dataset.names=absent_set"], "absent_set"),
    ],
)
def test_a_mistake_is_one_line(main, tmp_path, arguments, words):
    code, _, err = main(write_config(tmp_path), *arguments)
    assert code == 2 and words in only_error(err)


def test_a_missing_file_is_one_line(main):
    code, _, err = main("configs/absent.py")
    assert code == 2 and "configs/absent.py" in only_error(err)


def test_as_a_command_from_elsewhere(tmp_path):
    words = [sys.executable, str(REPO / "tools" / "check_imbalance.py"), "--config-file"]
    done = subprocess.run(
        [*words, write_config(tmp_path)],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Verdict" in done.stdout and "Traceback" not in done.stderr
    assert (tmp_path / "out" / "imbalance.png").exists()
