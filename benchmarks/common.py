"""What the benchmarks share: interleaved timing, a table, a record."""
import argparse
import statistics
import time


def arguments(description, **numbers):
    "Arguments of a benchmark: `--json`, `--threads` and one for each of `numbers`."
    parser = argparse.ArgumentParser(description=description.strip().splitlines()[0])
    parser.add_argument('--json', metavar='PATH', help='write the rows with their provenance to this file')
    parser.add_argument('--threads', type=int, help="torch's threads; default: all cores")
    for name, value in numbers.items():
        parser.add_argument(f'--{name}', type=int, default=value, help=f'default {value}')
    return parser.parse_args()


def seconds(run):
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def interleaved(runs, rounds, warm=1):
    """Seconds of each of `runs` in each round, one after another.

    Whatever slows the machine slows neighbours alike: ratios within a round hold where times do not.
    """
    for _ in range(warm):
        for run in runs: run()
    return [[seconds(run) for run in runs] for _ in range(rounds)]


def spread(ratios):
    "Median and quartiles of the ratios, as columns of a table."
    if len(ratios) == 1: ratios = ratios * 2
    low, middle, high = statistics.quantiles(ratios, n=4, method='inclusive')
    return dict(ratio=round(middle, 2), quartiles=f'{low:.2f} to {high:.2f}')


def report(title, rows, args, **more):
    "Print the rows as a table and, with `--json`, write them."
    from ltpa.files import provenance, save_result
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([str(row.get(name, '-')) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    print(f'{title} ({args.rounds} rounds)')
    for line in cells: print('  ' + '  '.join(f'{cell:>{width}}' for cell, width in zip(line, widths)))
    if args.json:
        chosen = {k: v for k, v in vars(args).items() if k != 'json'}
        save_result(args.json, title, rows, provenance(arguments=chosen, **more))
        print(f'written to {args.json}')
