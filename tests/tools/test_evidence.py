"""What docs/evidence.md compares: the plan of its runs, and how tables and pictures follow."""

import itertools
import re
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate

import compare
import evidence
import evidence_figures
import evidence_plan as plan
import evidence_rates
import evidence_tables
from sampling_free.comparison.plan import runs_of_variants
from sampling_free.config.load import load_config
from sampling_free.counting.estimate import estimate_prior
from sampling_free.data.datasets import load_dataset
from sampling_free.method.prior import optimal_prior
from sampling_free.utils.errors import BadInput

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs/evidence").glob("*.py"))
RATE_OF = {plan.FULL: 0.08, plan.GRADIENT: 0.04, plan.BCE: 0.02, plan.FOCAL: 0.02}
TUNED = f"{plan.FOCAL}:model.focal_loss_alpha=0.5,model.focal_loss_gamma=1.0"
CONSTANT = f"{plan.BCE}:model.guide=0.12"


def record(data, word, rate, seed, split, ap, **more):
    """A record as tools/compare.py writes it; without ``ap`` it has diverged."""
    variant, _, override = word.partition(":")
    made = {
        "config": plan.config("retinanet", data),
        "variant": variant,
        "override": override or None,
        "learning_rate": rate,
        "optimizer_lr": rate,
        "seed": seed,
        "train_split": "train",
        "test_split": split,
        "max_iter": 200,
        "device": "a CPU",
        "digest": "d",
        "test_score_thresh": 0.001,
        "course": {"iteration": [9, 19], "guide/r": [0.1, 0.14]},
        **({"failed": "not finite"} if ap is None else {"bbox/AP": ap, "bbox/AP50": 2 * ap}),
        **more,
    }
    if split == "val":
        made["choosing"] = True
    elif ap is not None:
        made["bootstrap"] = [ap - 1, ap, ap + 1]
    return made


def made_up(data="bccd"):
    """The four main variants: each is best at another rate; 30 to 33 AP at the end."""
    found = []
    for n, (word, best) in enumerate(RATE_OF.items()):
        for rate in plan.RATES:
            ap = 20.0 - abs(rate - best)
            found.append(record(data, word, rate, 0, "val", ap))
        found += [record(data, word, best, s, "test", 30.0 + n + s / 10) for s in plan.SEEDS]
    return found


def long_record(word, rate, ap):
    word = plan._with(word, f"optimizer.lr={rate}")
    return record("bccd", word, None, 0, "test", ap, max_iter=800, optimizer_lr=rate)


def words_of(name, records):
    (block,) = [b for b in plan.blocks() if b.name == name]
    return block.words(records)


# --- the plan -------------------------------------------------------------------------------------


def test_blocks_have_names_of_their_own_and_are_understood():
    records = made_up("bccd") + made_up("hard")
    names = [b.name for b in plan.blocks()]
    assert len(set(names)) == len(names)
    given = {b.name: b.words(records) for b in plan.blocks()}
    known = {name: words for name, words in given.items() if words}
    assert len(known) > len(names) / 2
    for words in known.values():
        assert compare.parse_args(words).variants
    runs = sum(
        len(a.variants) * len(a.seeds) + len(a.variants) * len(a.rates or []) * bool(a.choose)
        for a in map(compare.parse_args, known.values())
    )
    assert runs > 150


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_of_the_plan_and_takes_its_variants(path):
    records = made_up("bccd") + made_up("hard")
    blocks = [b for b in plan.blocks() if b.name != "investigation"]  # other numbers of the same
    calls = [compare.parse_args(words) for b in blocks if (words := b.words(records))]
    mine = [a for a in calls if a.config_file.endswith(f"/{path.name}") and not a.opts]
    words = {word for args in mine for word in args.variants}
    assert words >= {plan.FULL}
    for run in runs_of_variants(str(path), sorted(words), []):
        cfg = load_config(str(path), run.changes(), variant=run.variant)
        with torch.device("meta"):
            instantiate(cfg.model)
        assert not cfg.train.clip_gradients.enabled


def test_the_variants_that_are_asked_for():
    words = set(words_of("bccd-short", [])) | set(words_of("bccd-rest", []))
    assert set(plan.VARIANTS) <= words and len(plan.VARIANTS) == 10
    assert len(plan.ALPHAS_GAMMAS) == len(plan.RATES) == len(plan.ADAMW_RATES) == 5


def test_the_long_schedule_is_four_times_the_short_one():
    for data, iterations in plan.LONG.items():
        assert load_config(plan.config("retinanet", data), []).train.max_iter * 4 == iterations


def test_a_rate_is_that_of_best_ap_on_the_split_for_choosing():
    records = made_up()
    assert {w: plan.chosen_rate(records, "bccd", w) for w in RATE_OF} == RATE_OF
    assert plan.chosen_rate(records, "hard", plan.FULL) is None
    assert plan.chosen_rate(records, "bccd", "ghm") is None
    lost = [record("bccd", "ohem", rate, 0, "val", None) for rate in plan.RATES]
    assert plan.chosen_rate(lost, "bccd", "ohem") is None
    assert len(plan.tried(lost, "bccd", "ohem")) == 5


def test_the_constant_is_the_mean_of_r_and_focal_loss_is_tuned_at_its_rate():
    records = made_up()
    assert words_of("bccd-constant", records)[3] == CONSTANT
    assert words_of("bccd-constant", []) is None and words_of("bccd-tuned", []) is None
    args = compare.parse_args(words_of("bccd-tuned", records))
    assert args.best_only and args.rates == [RATE_OF[plan.FOCAL]] and len(args.variants) == 5


def test_the_other_box_loss_has_a_constant_and_a_tuned_focal_loss_of_its_own():
    records = made_up()
    assert words_of("bccd-smooth-l1-constant", records) is None, "it waits for its own runs"
    path = plan.config("retinanet", "bccd", "_smooth_l1")
    course = {s: {"iteration": [9], "guide/r": [0.3 if s < 3 else 0.9]} for s in plan.SEEDS}
    own = [{**r, "config": path, "course": course[r["seed"]]} for r in made_up()]
    args = compare.parse_args(words_of("bccd-smooth-l1-constant", records + own))
    assert (args.config_file, args.variants) == (path, [f"{plan.BCE}:model.guide=0.3"]), (
        "of its three seeds: more of the method do not move it"
    )
    args = compare.parse_args(words_of("bccd-smooth-l1-tuned", records + own))
    assert args.config_file == path and args.seeds == list(plan.SEEDS)
    own.append({**record("bccd", TUNED, 0.02, 0, "test", 31.0), "config": path})
    tables = evidence_tables.settings(records + own, "bccd").split("RetinaNet, AdamW")
    assert ["focal loss, alpha 0.5" in table for table in tables] == [True, False]


def test_the_long_runs_have_the_rates_of_the_short_ones():
    records = made_up()
    args = compare.parse_args(words_of("bccd-long", records))
    assert args.variants == [
        plan._with(word, f"optimizer.lr={rate}") for word, rate in RATE_OF.items()
    ]
    assert args.opts == ["train.max_iter=800"] and args.choose is None
    without = [r for r in records if r["variant"] != plan.FOCAL]
    assert words_of("bccd-long", without) is None, "it waits for all"
    lost = [record("bccd", plan.FOCAL, rate, 0, "val", None) for rate in plan.RATES]
    assert len(compare.parse_args(words_of("bccd-long", without + lost)).variants) == 3


def test_the_tuned_focal_loss_goes_on_to_the_long_schedule():
    records = made_up()
    assert words_of("bccd-long-tuned", records) is None, "it waits for its choice"
    records += [record("bccd", TUNED, 0.02, 0, split, 31.0) for split in ("val", "test")]
    args = compare.parse_args(words_of("bccd-long-tuned", records))
    assert args.variants == [plan._with(TUNED, "optimizer.lr=0.02")]
    assert args.opts == ["train.max_iter=800"] and args.seeds == list(plan.SEEDS)

    def long_rows(records):
        table = rows(evidence_tables.against_usual(records))
        return [x[2] for x in table if x[:2] == ["BCCD", "RetinaNet, long"]]

    tuned = "focal loss, alpha 0.5, gamma 1.0"
    assert tuned not in long_rows(records)
    assert long_rows([*records, long_record(TUNED, 0.02, 41.0)]).count(tuned) == 2


def test_a_rate_of_the_long_schedule_is_chosen_at_its_length_too():
    records = made_up()
    args = compare.parse_args(words_of("bccd-long-rates", records))
    assert len(args.variants) == 20 and args.final == ["train", "val"] and args.choose is None
    assert args.opts == ["train.max_iter=800"] and args.seeds == [0]
    of_val = {"test_split": "val", "bootstrap": None}
    long = [
        {**long_record(word, rate, 50.0 - abs(rate - 0.01)), **of_val}
        for word, rate in itertools.product(plan.MAIN, plan.RATES)
    ]
    assert words_of("bccd-long-own", records + long[1:]) is None, "it waits for all"
    args = compare.parse_args(words_of("bccd-long-own", records + long))
    assert args.variants == [plan._with(word, "optimizer.lr=0.01") for word in plan.MAIN]
    assert args.opts == ["train.max_iter=800"] and args.seeds == list(plan.SEEDS)
    # The choice of the short schedule is as before, and so are the runs that follow from it.
    assert {w: plan.chosen_rate(records + long, "bccd", w) for w in RATE_OF} == RATE_OF
    ends = [long_record(plan.FULL, rate, ap) for rate, ap in ((0.08, 40.0), (0.01, 41.0))]
    assert plan.finals(records + long + ends, "bccd", plan.FULL, long=True) == ends[:1]
    table = cells(evidence_tables.own_rates(records + long + ends, "bccd"))
    assert table[plan.VARIANTS[plan.FULL]][:3] == ["0.01", "1", "41.0"]
    assert table[plan.VARIANTS[plan.BCE]][-1] == "not run"
    bce = [long_record(plan.BCE, rate, ap) for rate, ap in ((0.02, 38.0), (0.01, 39.0))]
    table = rows(evidence_tables.against_usual(records + long + ends + bce))
    (row,) = (
        x for x in table if x[1:3] == ["RetinaNet, long", plan.VARIANTS[plan.BCE]] and "39.0" in x
    )
    assert row[5:8] == ["39.0", "41.0", "+2.0 (one seed: no interval)"], (
        "at the rate of this length"
    )
    table = cells(evidence_rates.rates_long(records + long, "bccd"))
    assert table[plan.VARIANTS[plan.FOCAL]] == ["50.0", "50.0", "50.0", "50.0", "49.9"]


def test_final_runs_are_told_from_those_at_other_rates_and_lengths():
    records = made_up()
    other = record("bccd", plan.FULL, 0.02, 0, "test", 99.0)
    long = long_record(plan.FULL, 0.08, 50.0)
    records += [other, long, long_record(plan.FULL, plan.BEYOND, 60.0)]
    found = plan.finals(records, "bccd", plan.FULL)
    assert [r["seed"] for r in found] == list(plan.SEEDS) and all(r["bbox/AP"] < 40 for r in found)
    assert plan.finals(records, "bccd", plan.FULL, long=True) == [long]
    mean = long_record(CONSTANT, 0.08, 40.0)
    assert plan.finals([*records, mean], "bccd", CONSTANT, long=True) == [mean]


def test_an_unknown_block_is_named_with_those_known():
    with pytest.raises(BadInput, match="--only x: unknown block; known: bccd-short, "):
        evidence.parse_args(["--only", "x"])


def test_blocks_are_listed_as_calls_and_none_is_run(capsys, tmp_path):
    args = evidence.parse_args(["--list", "--records", str(tmp_path), "--only", "bccd-short"])
    assert evidence.evidence(args) == []
    out = capsys.readouterr().out
    assert out.startswith("bccd-short: python tools/compare.py --config-file configs/evidence/")
    args = evidence.parse_args(["--records", str(tmp_path), "--only", "bccd-tuned"])
    assert evidence.evidence(args) == []
    assert "bccd-tuned: needs the runs of blocks before it" in capsys.readouterr().out


@pytest.mark.parametrize("seed", [0])
def test_imbalance_of_the_80_classes_is_great(tmp_path, monkeypatch, seed):
    monkeypatch.setenv("SAMPLING_FREE_CACHE", str(tmp_path))
    name = "dataloader.train.dataset.names"
    path = plan.config("retinanet", "hard")
    cfg = load_config(path, [f"{name}.train_images=200", f"{name}.name=hard_few"])
    dicts = load_dataset(cfg.dataloader.train.dataset, cfg.model)
    mapper = instantiate(cfg.dataloader.train.mapper)
    counts = estimate_prior(instantiate(cfg.model), dicts, mapper, progress=False)
    assert counts.num_classes == 80
    assert 1 / optimal_prior(counts.num_foreground, counts.num_valid, 80) >= 50_000


# --- tables and pictures --------------------------------------------------------------------------


def rows(table):
    """The cells of a Markdown table, row by row."""
    return [[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines()]


def cells(table):
    """The same by the first one of each row."""
    return {row[0]: row[1:] for row in rows(table)}


def test_the_table_of_variants():
    table = cells(evidence_tables.variants(made_up(), "bccd"))
    full = table[plan.VARIANTS[plan.FULL]]
    assert full[:2] == ["0.08*", "5"] and full[2].startswith("30.2 ± 0.2 (30.0 to 30.4)")
    bce = table[plan.VARIANTS[plan.BCE]]
    # Two more with every seed, and with every drawing.
    assert bce[4:] == ["+2.0 (+2.0 to +2.0)", "+2.0 to +2.0", "better"]
    assert table["GHM-C"][-1] == "not run"
    lost = [record("bccd", "ghm", rate, 0, "val", None) for rate in plan.RATES]
    table = cells(evidence_tables.variants(made_up() + lost, "bccd"))
    assert table["GHM-C"][-1] == "diverged at every rate"


def test_without_the_method_nothing_is_a_difference_to_it():
    others = [r for r in made_up() if plan.word_of(r) != plan.FULL]
    table = cells(evidence_tables.variants(others, "bccd"))
    assert table[plan.VARIANTS[plan.FULL]][-1] == "not run"
    assert table[plan.VARIANTS[plan.BCE]][4:] == ["-", "-", ""]


def test_pairs_are_counted_where_the_method_diverged():
    records = [r for r in made_up() if not (plan.word_of(r) == plan.FULL and r["seed"] == 0)]
    records += [r for r in made_up() if plan.word_of(r) == plan.FULL and r["test_split"] == "val"]
    records.append(record("bccd", plan.FULL, 0.08, 0, "test", None))
    table = cells(evidence_tables.variants(records, "bccd"))
    assert table[plan.VARIANTS[plan.FULL]][1] == "4 of 5"
    assert table[plan.VARIANTS[plan.BCE]][4] == "+2.0 (+2.0 to +2.0; 4 pairs)"


def test_what_followed_from_other_runs_has_rows_too():
    more = [record("bccd", CONSTANT, 0.04, s, "test", 29.0 + s / 10) for s in plan.SEEDS]
    more += [record("bccd", CONSTANT, 0.04, 0, "val", 20.0)]
    more += [record("bccd", TUNED, 0.02, s, "test", 31.0 + s / 7) for s in plan.SEEDS]
    more += [record("bccd", TUNED, 0.02, 0, "val", 20.0)]
    table = cells(evidence_tables.variants(made_up() + more, "bccd"))
    assert table["BCE, measured prior, times the mean r of 0.12"][-1] == "worse"
    assert table["focal loss, alpha 0.5, gamma 1.0"][1] == "5"


def test_the_table_of_classes():
    of_class = {"bbox/AP-RBC": 40.0, "bbox/AP-WBC": 50.0}
    long = [{**long_record(plan.FULL, 0.08, 45.0), **of_class}]
    long += [{**r, "seed": 1, "bbox/AP-RBC": 42.0} for r in long]
    table = cells(evidence_tables.classes([*made_up(), *long], "bccd", long=True))
    assert table["AP"] == ["RBC", "WBC"] and len(table) == 3
    assert table[plan.VARIANTS[plan.FULL]] == [
        "41.0 ± 1.4 (40.0 to 42.0)",
        "50.0 ± 0.0 (50.0 to 50.0)",
    ]


def test_the_table_of_rates():
    lost = record("bccd", "ghm", 0.08, 0, "val", None)
    table = cells(evidence_rates.rates([*made_up(), lost], "bccd"))
    assert table[plan.VARIANTS[plan.FULL]] == ["19.9", "19.9", "19.9", "20.0", "20.0"]
    assert table["GHM-C"] == ["-"] * 4 + ["diverged"] and "OHEM" not in table
    fcos = {**lost, "variant": plan.FOCAL, "config": plan.config("fcos", "bccd")}
    smooth = {**lost, "config": plan.config("retinanet", "bccd", "_smooth_l1")}
    table = cells(evidence_rates.rates_of_others([*made_up(), fcos, smooth], "bccd"))
    assert list(table)[2:] == ["FCOS: focal loss", "authors' box loss: GHM-C"]
    assert table["FCOS: focal loss"][-1] == "diverged"
    assert [rate / 20 for rate in plan.RATES] == pytest.approx(plan.ADAMW_RATES)
    adamw = {**lost, "config": plan.config("retinanet", "bccd", "_adamw"), "bbox/AP": 3.0}
    adamw = {**adamw, "variant": plan.FOCAL, "optimizer_lr": plan.ADAMW_RATES[1]}
    table = cells(evidence_rates.rates_of_others([adamw], "bccd"))
    assert table["AdamW, rate / 20: focal loss"] == ["-", "3.0", "-", "-", "-"]


def test_the_table_of_a_rate_beyond_those_tried():
    long = [long_record(plan.FULL, rate, ap) for rate, ap in ((0.08, 30.0), (plan.BEYOND, 31.0))]
    table = cells(evidence_tables.beyond([*made_up(), *long]))
    assert table[plan.VARIANTS[plan.FULL]][:2] == ["0.16", "1"], "the last of two rows"
    assert table[plan.VARIANTS[plan.FULL]][4].startswith("+1.0")
    assert table[plan.VARIANTS[plan.GRADIENT]][-1] == "not run"


def test_the_table_of_both_guides_against_the_usual_remedy():
    more = [record("bccd", TUNED, 0.02, s, "test", 31.0 + s / 10) for s in plan.SEEDS]
    more += [record("bccd", TUNED, 0.02, 0, "val", 20.0)]
    table = rows(evidence_tables.against_usual(made_up() + more))[2:]
    assert all(row[-1] == "not run" for row in table[6:])
    full, gradient, *tuned = table[:4]
    assert [row[2] for row in table[4:6]] == [plan.VARIANTS[plan.BCE]] * 2
    assert full[2:] == ["focal loss", plan.VARIANTS[plan.FULL], "5", "33.2", "30.2"] + [
        "-3.0 (-3.0 to -3.0)",
        "-3.0 to -3.0",
        "worse",
    ]
    assert gradient[-3].startswith("-2.0") and gradient[-1] == "worse"
    assert [row[2] for row in tuned] == ["focal loss, alpha 0.5, gamma 1.0"] * 2
    assert [row[-3][:4] for row in tuned] == ["-1.0", "+0.0"] and tuned[1][-1] == "open"
    smooth = plan.config("retinanet", "bccd", "_smooth_l1")
    more.append({**record("bccd", TUNED, 0.02, 0, "test", 31.0), "config": smooth})
    table = rows(evidence_tables.against_usual(made_up() + more))[2:]
    of_smooth = [x[2] for x in table if x[:2] == ["BCCD", "RetinaNet, the authors' box loss"]]
    others = ("focal loss", "focal loss, alpha 0.5, gamma 1.0", plan.VARIANTS[plan.BCE])
    assert of_smooth == [name for name in others for _ in range(2)], "each box loss has its own"


def test_the_table_of_the_investigation():
    def run(prior, weight, ap):
        word = f"{plan.BCE}:model.prior={prior},model.guide={weight}"
        return record("hard", word, plan.INVESTIGATED_AT, 0, "test", ap)

    records = [run("0.5", 1, None), run("0.5", 0.1, 3.0), run("auto", 1, 5.0)]
    table = cells(evidence_rates.investigation(records))
    assert table["0.5"][:3] == ["diverged", "3.0", "not run"]
    assert table["measured"][:2] == ["5.0", "not run"] and table["measured"][3:] == ["", ""]


def test_every_picture_is_drawn_of_what_there_is(tmp_path):
    assert evidence_figures.figures([]) == {}
    course = {
        "iteration": [9, 19],
        "guide/r": [0.1, 0.2],
        "monitor/score/cls/foreground": [0.1, 0.5],
        "monitor/score/cls/background": [0.01, 0.001],
        "monitor/outputs/cls": [3.0, 1.0],
        "monitor/ratio/cls": [0.3, 0.1],
    }
    records = [{**r, "course": course} for r in made_up("bccd") + made_up("hard")]
    prior = evidence_figures.PRIORS[0]
    records.append(record("hard", prior, plan.INVESTIGATED_AT, 0, "test", None, course=course))
    kinds = itertools.product(("rates", "ratio", "scores", "gradients"), plan.SPLITS)
    wanted = {f"{kind}_{data}.svg" for kind, data in kinds} | {"investigation.svg"}
    assert set(evidence_figures.figures(records)) == wanted


# --- what was found -------------------------------------------------------------------------------

PAGE = ROOT / "docs" / "evidence.md"


def test_the_page_names_every_table_and_picture():
    text = PAGE.read_text()
    for name in evidence_tables.EVIDENCE_TABLES:
        assert f"<!-- table {name} results/evidence -->" in text
    shown = set(re.findall(r"\]\(evidence/(\w+\.svg)\)", text))
    assert shown == {p.name for p in (ROOT / "docs" / "evidence").glob("*.svg")}


def test_every_number_of_the_readmes_findings_is_on_the_page():
    text = (ROOT / "README.md").read_text()
    findings = text.partition("## Does it hold?")[2].partition("\n## ")[0]
    prose = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", findings, flags=re.S)
    numbers = [x.rstrip(".,") for x in re.findall(r"[+-]?\d[\d,.]*", prose)]
    page = PAGE.read_text()
    missing = [x for x in numbers if not re.search(rf"(?<![\d.,]){re.escape(x)}(?![.,]?\d)", page)]
    assert len(numbers) > 10 and missing == []


def test_the_example_of_a_third_data_set_is_a_config(tmp_path):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    path = tmp_path / "configs/evidence/retinanet_voc.py"
    path.write_text(example)
    cfg = load_config(str(path), [], variant=plan.FOCAL)
    assert cfg.model.num_classes == 20 and cfg.train.max_iter == 4000
    with torch.device("meta"):
        assert instantiate(cfg.model).num_classes == 20
    for loader, split in ((cfg.dataloader.train, "trainval"), (cfg.dataloader.test, "test")):
        names = loader.dataset.names
        assert (names.root, names.split, len(names.classes)) == ("VOC2007", split, 20)
