"""`hf-gpt estimate RECIPE.yaml`"""

import argparse
import dataclasses
from typing import Any

from .arguments import Parser, add_json, add_recipe
from .output import print_json, say

HELP = "forecast the parameters, FLOPs, memory and time of a run"


def add_arguments(parser: Parser) -> None:
    recipe = add_recipe(parser, "[--device NAME [--devices N]] [--json]")
    parser.epilog = (
        "Memory is counted while the run is tried with tensors that have a shape and no contents. Time is measured in"
        " some real steps on this machine, for about a minute at most. Nothing is written into the run's folder. With"
        " --device, time follows from the maker's figure for dense bf16, and train.batch_size is that of each device."
        " The memory a device under DDP and FSDP2 is calculated; it was not checked on several devices."
    )
    parser.add_argument(
        "--device",
        action=_DeviceAction,
        recipe=recipe,
        metavar="NAME",
        help="forecast for this device, such as H100, instead of this machine; list shows the known ones",
    )
    parser.add_argument("--devices", metavar="N", type=int, default=1, help="number of such devices (default: 1)")
    parser.add_argument(
        "--utilization",
        metavar="U",
        type=float,
        default=0.4,
        help="assumed part of the device's peak that training reaches (default: 0.4)",
    )
    add_json(parser)


class _DeviceAction(argparse.Action):
    """`--device list` needs no recipe."""

    def __init__(self, *args: Any, recipe: argparse.Action, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.recipe = recipe

    def __call__(self, parser: Any, namespace: argparse.Namespace, value: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, value)
        self.recipe.required = value != "list"


def run(arguments: argparse.Namespace) -> None:
    if arguments.device == "list":
        _list_devices(arguments)
        return
    from ..estimate.devices import check_plan

    check_plan(arguments.device, arguments.devices, arguments.utilization)  # before the seconds that imports take
    from ..estimate.forecast import estimate
    from ..recipe import Recipe

    found = estimate(
        Recipe.from_yaml(arguments.recipe, arguments.overrides),
        arguments.device,
        arguments.devices,
        arguments.utilization,
    )
    if arguments.json:
        print_json(found.to_dict())
        return
    for line in found.describe():
        say(line)


def _list_devices(arguments: argparse.Namespace) -> None:
    from ..estimate.devices import DEVICES

    if arguments.json:
        print_json({name: dataclasses.asdict(device) for name, device in DEVICES.items()})
        return
    print(f"{'device':12}{'TFLOP/s':>9}{'GB':>6}   dense bf16, as published")
    for name, device in DEVICES.items():
        print(f"{name:12}{device.tflops:>9,.0f}{device.gigabytes:>6}")
