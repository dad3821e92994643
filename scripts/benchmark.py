"""How fast this package is, beside what people use now.

    python scripts/benchmark.py [NAME ...] [--json]

Each benchmark runs ours and the peer's in turn, A B A B ..., so that a machine that slows down slows both, and reports
the median of each and their ratio; `muon` gives both the same time instead, and compares what they learned in it.
Weights are random and seeded: speed does not depend on them. Nothing is downloaded but, by tiktoken for `tokens`, the
gpt2 encoding. Real text (`tinyshakespeare.txt`, `wikitext/`) comes from the folder that HF_GPT_TEST_DATA names;
without it the benchmarks that need it are left out. Whole processes are timed from outside.

--json prints one line a benchmark: {"name", "ours", "peer", "unit", "ratio"}, ratio = ours / peer, and what else is
known.
"""

import argparse
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable

import torch
from benchmarks import data, evaluation, generation, training
from benchmarks.timing import NotMeasured, Result, say

BENCHMARKS: dict[str, Callable[[], Result]] = {
    "time-to-loss": training.time_to_loss,
    "muon": training.muon,
    "same-loss": training.same_loss,
    "train-throughput": training.train_throughput,
    "train-step-124m": training.train_step_124m,
    "generate-124m": generation.generate_124m,
    "generate-int8": generation.generate_int8,
    "generate-bf16": generation.generate_bf16,
    "generate-small": generation.generate_small,
    "tokens": data.tokens,
    "evaluate": evaluation.evaluate,
    "load": generation.load,
    "estimate": training.estimate,
}


# Of a processor, what decides the figures.
_FEATURES = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16", "neon", "sve", "bf16")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--json", action="store_true", help="one JSON object a line on stdout")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"unknown benchmark {min(unknown)}; there are {', '.join(BENCHMARKS)}")
    say(describe_machine())
    results = []
    for name in arguments.names or BENCHMARKS:
        try:
            results.append(BENCHMARKS[name]())
        except NotMeasured as missing:
            say(f"{name}: left out, {missing}")
            continue
        if arguments.json:
            print(results[-1].as_json(), flush=True)
    if not arguments.json:
        print("\n".join(table(results)))
    return 0


def describe_machine() -> str:
    """Hardware and versions, without which a figure says nothing."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    features = [name for name in _FEATURES if capabilities.get(name)]
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "datasets"))
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{platform.machine()} ({' '.join(features)}), {os.cpu_count()} cores{gpu};"
        f" Python {platform.python_version()}, {', '.join(versions)}"
    )


def table(results: list[Result]) -> list[str]:
    """The results as Markdown, as the README shows them."""
    lines = ["| benchmark | ours | peer | unit | ours / peer | to reach | more |", "|---|---|---|---|---|---|---|"]
    for result in results:
        more = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result.more.items())
        figures = f"{result.ours:.4g} | {result.peer:.4g} | {result.unit} | {result.ratio:.2f}"
        lines.append(f"| {result.name} | {figures} | {result.target} | {more} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
