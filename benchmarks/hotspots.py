"""Profile training steps (or a rollout) with PyTorch's profiler, as a table, on any device.

Examples: python benchmarks/hotspots.py --config cyclical --steps 2
          python benchmarks/hotspots.py --config robot train.batch_size=2 --rollout --trace trace.json
"""

from __future__ import annotations

import tools
import torch
from torch.profiler import ProfilerActivity, profile

from cvaecli.api.benchmark import WARM_UP, clip_rollout, new_trainer
from cvaecli.api.loading import load_data
from cvaecli.engine.device import prepare
from cvaecli.reporter import Silent


def main() -> None:
    """Profile, print the table."""
    parser = tools.parser(__doc__)
    parser.add_argument("--steps", type=int, default=2, help="training steps")
    parser.add_argument(
        "--rollout", action="store_true", help="profile a rollout of eval.chunk frames instead"
    )
    parser.add_argument("--rows", type=int, default=25, help="rows of the table")
    parser.add_argument("--shapes", action="store_true", help="print a row for every shape of the arguments")
    parser.add_argument("--trace", metavar="FILE", help="also write a trace for chrome://tracing")
    arguments = parser.parse_intermixed_args()
    config = tools.settings(arguments)
    device = prepare(config.runtime)
    data = load_data(config, ("train", "val"), Silent())
    trainer = new_trainer(config, arguments.steps, data, device)
    events, clip = trainer.events(), data.splits["val"][0]
    model = device.for_inference(trainer.trained.eval()) if arguments.rollout else trainer.model

    def work(steps: int) -> None:
        if arguments.rollout:
            for _ in clip_rollout(model, clip, config.eval.chunk, config, device):
                pass
        else:
            for _ in range(steps):
                next(events)
        device.synchronize()

    work(WARM_UP)
    cuda = device.torch.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities, record_shapes=arguments.shapes) as found:
        work(arguments.steps)
    key = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    averages = found.key_averages(group_by_input_shape=arguments.shapes)
    print(averages.table(sort_by=key, row_limit=arguments.rows, max_name_column_width=50))
    what = (
        f"a rollout of {config.eval.chunk} frames"
        if arguments.rollout
        else f"{arguments.steps} training steps"
    )
    print(f"{what}; {device.name}, {device.precision}, torch {torch.__version__}")
    if arguments.trace:
        found.export_chrome_trace(arguments.trace)


if __name__ == "__main__":
    tools.command(main)
