"""`hf-gpt estimate RECIPE.yaml`"""

import argparse
import dataclasses
from typing import Any

from .arguments import Parser, real, whole
from .output import print_json, say

HELP = "forecast the parameters, FLOPs, memory and time of a run"


def add_arguments(parser: Parser) -> None:
    parser.add_recipe("[--device NAME [--devices N] [--utilization U]] [--json]")
    parser.epilog = (
        "For this machine, a few steps are run in a temporary folder, for about a minute at most. For another device,"
        " time is calculated from its maker's figure for dense bf16, and train.batch_size is per device. Memory per"
        " device under DDP and FSDP2 is calculated and was not checked on several devices."
    )
    parser.add_argument(
        "--device",
        action=_Device,
        metavar="NAME",
        help="forecast for a device such as H100 instead of this machine; --device list shows the known ones",
    )
    parser.add_argument("--devices", metavar="N", type=whole, default=1, help="number of such devices (default: 1)")
    parser.add_argument(
        "--utilization",
        metavar="U",
        type=real,
        default=0.4,
        help="assumed part of the device's peak that training reaches (default: 0.4)",
    )
    parser.add_shared("--json")


class _Device(argparse.Action):
    """`--device list` needs no recipe."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, value: Any, option_string: Any = None) -> None:
        namespace.device = value
        parser.recipe.required = value != "list"


def run(arguments: argparse.Namespace) -> None:
    from ..estimate.devices import DEVICES, check_plan

    if arguments.device == "list":
        if arguments.json:
            print_json({name: dataclasses.asdict(device) for name, device in DEVICES.items()})
            return
        print(f"{'device':12}{'TFLOP/s':>9}{'GB':>6}   dense bf16, as published")
        for name, device in DEVICES.items():
            print(f"{name:12}{device.tflops:>9,.0f}{device.gigabytes:>6}")
        return
    plan = (arguments.device, arguments.devices, arguments.utilization)
    check_plan(*plan)  # before the seconds that imports take
    from ..estimate.forecast import estimate
    from ..recipe import Recipe

    found = estimate(Recipe.from_yaml(arguments.recipe, arguments.overrides), *plan)
    if arguments.json:
        print_json(found.to_dict())
        return
    for line in found.describe():
        say(line)
