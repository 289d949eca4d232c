#!/usr/bin/env python
"""Trains variants or configs side by side, over seeds, and says which is better by how much.

    python tools/compare.py --config-file configs/bccd/retinanet_R_18_FPN.py \\
        --variants sampling_free focal ohem "all_samples:model.prior=0.5" --seeds 0 1 2 \\
        --jobs 2 --output results/variants.json --report output/compare/variants.html \\
        train.max_iter=150

    python tools/compare.py --configs configs/bccd/retinanet_R_18_FPN*.py \\
        --rates 0.02 0.04 0.08 --choose train val --final trainval test --output results/bccd.json
    python tools/compare.py --configs configs/demo/retinanet.py --seeds 0 1 2 \\
        --output results/demo.json
    python tools/compare.py --configs configs/bccd/retinanet_R_18_FPN.py \\
        --vary model.guide=iteration model.guide=gradient --output results/bccd_guides.json

What is compared is one config in several --variants, each with overrides of its own behind a
colon, or several --configs as they are, so that --sampling-free has no place here. The first is
the reference. All runs get the same data order, schedule and seeds. All variants are tested at the
score threshold of the sampling-free one; focal, sampled, ohem and ghm at their usual threshold too,
in a row of its own. With --rates and --choose each learning rate is chosen on those splits, with
the first seed; with --rates alone there is a row for each rate. With --best-only the variants are
one that is tuned: of all of them and all rates only the best on those splits is run on.

Every run is a call of train_net.py in a process of its own, in a folder of its own, whose
result.json is whole or absent. A second call does only what is missing, on another machine too if
the folder is copied there; runs of other settings stay beside it. One --output is for one
comparison: records of others in it stay, but its summary is that of the last one to end.
dev/render_tables.py puts it into the documentation. An --output that ends in / is a folder that
gets one JSON for each run, of as many comparisons as you like.
"""

import argparse
import math
import os
import signal
import sys
from pathlib import Path

from sampling_free.cli import add_config_options, one_line_errors, parse
from sampling_free.comparison.execute import Workshop
from sampling_free.comparison.plan import (
    PICTURES,
    plan,
    runs_of_configs,
    runs_of_variants,
    with_rates,
    with_seeds,
)
from sampling_free.comparison.precision_recalls import Detections
from sampling_free.comparison.records import Records, is_packed, pack
from sampling_free.comparison.schedule import POLL, SideBySide
from sampling_free.comparison.store import Output
from sampling_free.comparison.subprocesses import Processes
from sampling_free.comparison.summary import of_best_ap, summarize
from sampling_free.comparison.table import markdown, summary_table
from sampling_free.config.convert import VARIANTS
from sampling_free.utils.errors import BadInput, require_writable, require_writable_folder

TRAIN_NET = str(Path(__file__).resolve().parents[1] / "train_net.py")


def parse_args(words):
    """
    Args:
        words (list[str]): the command line.

    Returns:
        argparse.Namespace: with ``opts``, the overrides of all runs.

    Raises:
        BadInput: what does not go together.
    """
    parser = argparse.ArgumentParser(
        usage="%(prog)s (--config-file FILE --variants NAME ... | --configs FILE ...) [options] "
        "[key=value ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(["variants:", *(f"  {n}: {what}" for n, what in VARIANTS.items())]),
    )
    add_config_options(parser, variants=False)
    parser.add_argument("--variants", nargs="+", metavar="NAME[:KEY=VALUE,...]")
    parser.add_argument("--configs", nargs="+", metavar="FILE")
    parser.add_argument(
        "--vary", nargs="+", default=[None], metavar="KEY=VALUE", help="run each config with each"
    )
    parser.add_argument("--rates", nargs="+", type=float, help="default: the config's own")
    parser.add_argument("--seeds", nargs="+", default=[0], type=int)
    parser.add_argument("--choose", nargs=2, metavar=("TRAIN", "TEST"), help="splits")
    parser.add_argument(
        "--final", nargs=2, default=[None, None], metavar=("TRAIN", "TEST"), help="splits"
    )
    parser.add_argument("--best-only", action="store_true", help="run on with the best one alone")
    parser.add_argument("--output", metavar="JSON", help="the records and the summary; or FOLDER/")
    parser.add_argument("--pack", action="store_true", help="pack FOLDER/ into one file")
    parser.add_argument("--folder", default="output/compare", help="of the runs")
    parser.add_argument("--report", metavar="HTML", help="a page with curves and pictures")
    parser.add_argument("--jobs", default=1, type=int, help="runs side by side")
    parser.add_argument("--threads", default=1, type=int, help="CPU threads of a run")
    args = parse(parser, words, own=("--vary",))
    _check(args)
    args.seeds = list(dict.fromkeys(args.seeds))
    args.rates = args.rates and list(dict.fromkeys(args.rates))
    return args


def _check(args):
    if bool(args.variants) == bool(args.configs) or args.config_file and args.configs:
        raise BadInput(
            "what is compared? give --config-file FILE with --variants NAME ..., or --configs FILE "
            f"...; variants: {', '.join(VARIANTS)}"
        )
    if args.vary != [None] and args.variants:
        raise BadInput("--vary is for --configs; write --variants NAME:KEY=VALUE")
    if args.vary != [None] and args.rates:
        raise BadInput("--vary and --rates: one at a time; each config's own rate is taken")
    if args.choose and not args.rates or args.rates and args.configs and not args.choose:
        raise BadInput("--rates and --choose go together: the splits on which a rate is chosen")
    if args.pack and not _is_folder(args.output):
        raise BadInput("--pack needs --output FOLDER/: the records to be packed")
    if args.best_only and not args.choose:
        raise BadInput("--best-only needs --choose: the splits on which the best one is found")
    for option in ("jobs", "threads"):
        if getattr(args, option) < 1:
            raise BadInput(f"--{option} {getattr(args, option)}: give a whole number from 1 up")
    for rate in args.rates or []:
        if not 0 < rate < math.inf:
            raise BadInput(f"--rates {rate:g}: give numbers above 0")
    for seed in args.seeds:
        if seed < 0:
            raise BadInput(f"--seeds {seed}: give whole numbers from 0 up")


def _is_folder(output):
    return output is not None and (output.endswith("/") or os.path.isdir(output))


def _require_places(args):
    """Raises BadInput unless all that is written can be, before hours of training."""
    if _is_folder(args.output):
        require_writable_folder("--output", args.output)
    else:
        require_writable("--output", args.output)
    require_writable("--report", args.report)
    require_writable_folder("--folder", args.folder)


def chosen_rates(runs, records, best_only=False):
    """Each run with the learning rate of best AP.

    Args:
        runs (list[Run]): without a rate.
        records (list[dict]): of the runs that tried rates.
        best_only (bool): of all runs only the best.

    Returns:
        tuple[list[Run], list[str]]: and a line for each run of which no rate led to an AP.

    Raises:
        BadInput: there is no run with an AP.
    """
    chosen, lost = {}, []
    for run in runs:
        key = run.config, run.variant, run.override
        tried = [r for r in records if (r["config"], r.get("variant"), r.get("override")) == key]
        best = of_best_ap(tried)
        if best is None:
            lost.append(f"{run.title}: no learning rate led to an AP; give smaller --rates")
            continue
        chosen[with_rates([run], [best["learning_rate"]])[0]] = best["bbox/AP"]
    if not chosen:
        raise BadInput(lost[0])
    return [max(chosen, key=chosen.get)] if best_only else list(chosen), lost


def compare(args, poll=POLL):
    """Does what is missing, and writes and prints what follows.

    Args:
        args (argparse.Namespace): of :func:`parse_args`.
        poll (float): seconds until a run is asked for again that another comparison is doing.

    Returns:
        list[str]: a line for each run that failed.
    """
    if args.variants:
        runs = runs_of_variants(args.config_file, args.variants, args.opts)
    else:
        runs = runs_of_configs(args.configs, args.vary, args.opts)
    in_records = _is_folder(args.output) or is_packed(args.output or "")
    output = Records(args.output) if in_records else Output(args.output)
    pictures = PICTURES if args.report or isinstance(output, Output) else 0
    choosing, rates, lost = [], [None], []
    if args.choose:
        tried = with_rates(runs, args.rates)
        choosing = plan(with_seeds(tried, args.seeds[:1], args.choose, True), args.folder)
    elif args.rates:
        rates = args.rates
    # Before the first run, though the rates may not be chosen yet: a mistake is known now.
    finals = plan(
        with_seeds(with_rates(runs, rates), args.seeds, args.final), args.folder, pictures
    )

    _require_places(args)
    workshop = Workshop(TRAIN_NET, args.threads, args.jobs, Processes(), Detections())
    work = SideBySide(workshop, output, poll)
    tried = work.run(choosing, "choosing learning rates", lambda: output.write(work.done(choosing)))
    if choosing:
        runs, lost = chosen_rates(runs, tried, args.best_only)
        finals = plan(with_seeds(runs, args.seeds, args.final), args.folder, pictures)
    records = work.run(finals, "final runs", lambda: output.write(tried + work.done(finals)))
    rows = summarize(records)
    print(markdown(*summary_table(rows)))
    if len(args.seeds) == 1:
        print("One seed each: nothing follows from one seed.")
    if any(record.get("jobs", 1) > 1 for record in records):
        print("Runs shared the machine with others: read seconds and memory with care.")
    output.write(tried + records, rows)
    if args.pack:
        print(f"Packed into {pack(args.output)}")
    if args.report:
        from sampling_free.comparison.report import write_report

        write_report(args.report, records, args.folder)
        print(f"Written to {args.report}")
    return [*lost, *work.failures.values()]


@one_line_errors
def main():
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the runs too
    failures = compare(parse_args(sys.argv[1:]))
    if failures:
        for line in failures:
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
