"""How much faster is a training step than in another checkout of this repository?

    python examples/benchmarks/checkout_step.py --model DIR --texts FILES --against FOLDER

FOLDER is a worktree of another commit, as `git worktree add` makes it. Both take the steps that `examples/adapt.py
--bf16 true` takes with LoRA and the objectives MNTP and MSG, on the same rows, each in a process of its own, in turns:
this one with the weights in `--dtype` and, with `--torch_compile`, compiled layers; the other in `--against_dtype`,
which was the default. Losses and the size of the gradients are compared before anything is timed. The floor is counted
as in `training_step.py`; its time is that of one large product of the same run.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[2]
# Relative difference of losses and of the gradients' norms; weights and products are rounded to half precision.
MOST_APART = 0.03


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a step, the same in both processes."""
    parser.add_argument(
        "--model_name_or_path", "--model", dest="model", required=True, help="a plain decoder or a MAGNET checkpoint"
    )
    parser.add_argument("--texts", nargs="+", required=True, help="texts to train on")
    parser.add_argument("--batch_size", type=int, default=8, help="rows a step")
    parser.add_argument("--max_length", type=int, default=512, help="tokens a row")
    parser.add_argument("--lora_r", type=int, default=16, help="rank of the adapters")
    parser.add_argument("--dtype", default="bfloat16", help="dtype of the weights")
    parser.add_argument("--torch_compile", action="store_true", help="compile the layers of this checkout")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Compare, time, print."""
    from examples.command_line import OneLineParser  # which another checkout may not have

    parser = OneLineParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--against", type=Path, required=True, help="folder of the other checkout")
    parser.add_argument("--against_dtype", default="float32", help="dtype of the weights there")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each")
    args = parser.parse_args(arguments)
    options = ["--model", args.model, "--texts", *args.texts]
    for name in ("batch_size", "max_length", "lora_r"):
        options += [f"--{name}", str(getattr(args, name))]
    compiled = ["--torch_compile"] if args.torch_compile else []
    checkouts = {
        "this": (HERE, ["--dtype", args.dtype, *compiled]),
        "other": (args.against.resolve(), ["--dtype", args.against_dtype]),
    }
    workers = {name: _start(folder, [*options, *own]) for name, (folder, own) in checkouts.items()}
    try:
        first = {name: _ask(worker) for name, worker in workers.items()}
        for value in ("loss", "gradient_norm"):
            ours, theirs = first["this"][value], first["other"][value]
            print(f"{value}: {ours:.5f} here, {theirs:.5f} there", flush=True)
            if not abs(ours - theirs) <= MOST_APART * abs(theirs):  # nor where one is not a number
                raise SystemExit("The steps differ: there is nothing to compare.")
        steps: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
        for _ in range(args.rounds):
            for name, worker in workers.items():
                steps[name].append(_ask(worker))
    finally:
        for worker in workers.values():
            worker.stdin.close()  # type: ignore[union-attr]
            worker.wait()
    return summary(steps, floor=first["this"]["floor_flop"], tokens=first["this"]["tokens"])


def summary(steps: dict[str, list[dict[str, float]]], *, floor: float, tokens: float) -> dict[str, Any]:
    """Print the table and return its values: medians, and ratios of pairs of steps."""
    report: dict[str, Any] = {"steps": steps, "floor_flop": floor}
    print(f"{'checkout':10s}{'seconds':>9s}{'CPU s':>8s}{'system s':>10s}{'tokens/s':>10s}{'of the floor':>14s}")
    for name, found in steps.items():
        middle = {key: statistics.median(step[key] for step in found) for key in found[0]}
        report[name] = {**middle, "of_the_floor": floor / middle["rate"] / middle["seconds"]}
        print(
            f"{name:10s}{middle['seconds']:9.2f}{middle['cpu']:8.2f}{middle['system']:10.2f}"
            f"{tokens / middle['seconds']:10,.0f}{report[name]['of_the_floor']:14.0%}"
        )
    pairs = list(zip(steps["other"], steps["this"], strict=True))
    for key in ("seconds", "cpu"):
        report[f"faster, {key}"] = statistics.median(slow[key] / fast[key] for slow, fast in pairs)
        print(f"faster by, {key}: {report[f'faster, {key}']:.2f}")
    print(f"a large product in bfloat16: {report['this']['rate'] / 1e9:,.0f} GFLOP/s; floor {floor / 1e12:.2f} TFLOP")
    print("checkout_step: OK")
    return report


def _start(folder: Path, options: list[str]) -> "subprocess.Popen[str]":
    """A process that reads the code of a checkout and takes a step for each line that it is sent."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), "worker", *options],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
    )


def _ask(worker: "subprocess.Popen[str]") -> dict[str, float]:
    """One step of a process."""
    assert worker.stdin is not None and worker.stdout is not None
    try:
        worker.stdin.write("step\n")
        worker.stdin.flush()
    except BrokenPipeError:
        raise SystemExit("A step failed; see above.") from None
    for line in worker.stdout:  # libraries may print, too
        if line.startswith("{"):
            found: dict[str, float] = json.loads(line)
            return found
    raise SystemExit("A step failed; see above.")


def work(arguments: list[str]) -> None:
    """Take a step for each line of the input. Uses only what both checkouts have."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(arguments)
    try:
        from trainer.allocator import keep_freed_memory
    except ImportError:
        pass
    else:
        keep_freed_memory()
    import torch

    import modeling_magnet
    from modeling_magnet import AutoMagnetForCausalLM
    from trainer import LoraArguments, MagnetTrainer, MagnetTrainingArguments, apply_lora, load_texts, texts_to_blocks

    if not Path(str(modeling_magnet.__file__)).is_relative_to(Path.cwd()):
        raise SystemExit(f"{modeling_magnet.__file__} was imported instead of the code of {Path.cwd()}.")
    torch.manual_seed(0)
    model = AutoMagnetForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype))
    texts = load_texts(args.texts if len(args.texts) > 1 else args.texts[0], limit=60 * args.batch_size)
    rows = texts_to_blocks(texts, model.tokenizer, max_length=args.max_length, concatenate=True)
    torch.manual_seed(0)  # of the adapters
    adapted = apply_lora(model, LoraArguments(lora_r=args.lora_r))
    with tempfile.TemporaryDirectory() as folder:
        training = MagnetTrainingArguments(
            output_dir=folder,
            loss_phases=["1:0.5,0,1"],
            per_device_train_batch_size=args.batch_size,
            max_spans=6,
            min_span_tokens=4,
            max_span_tokens=40,
            bf16=True,
            use_cpu=True,
            torch_compile=args.torch_compile,
            report_to="none",
        )
        trainer = MagnetTrainer(model=adapted, args=training, train_dataset=rows, processing_class=model.tokenizer)
    batch = trainer.data_collator([{**rows[index], "row_id": index, "epoch": 0} for index in range(args.batch_size)])
    trainer.model.train()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    labels = sum(int((batch[name] != -100).sum()) for name in ("mntp_labels", "msg_labels"))
    for _ in sys.stdin:
        print(json.dumps(_step(trainer, batch, optimizer, trained, floor=_floor(adapted, batch, labels))), flush=True)


def _step(trainer: Any, batch: Any, optimizer: Any, trained: list[Any], *, floor: float) -> dict[str, float]:
    """One step: what it cost, and what it computed."""
    import torch

    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    with trainer.layers_for_training():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = trainer.compute_loss(trainer.model, dict(batch))
        loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(trained, float("inf"))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    left, right = torch.randn(2, 2048, 2048).to(torch.bfloat16)
    rates = []
    for _ in range(6):
        started = time.perf_counter()
        left @ right
        rates.append(2 * 2048**3 / (time.perf_counter() - started))
    return {
        "loss": loss.item(),
        "gradient_norm": norm.item(),
        "seconds": seconds,
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "system": after.ru_stime - before.ru_stime,
        "rate": max(rates),
        "floor_flop": floor,
        "tokens": float(batch["attention_mask"].sum()),
    }


def _floor(model: Any, batch: Any, labels: int) -> float:
    """Operations that a step cannot do without: see `training_step.py`."""
    config, head = model.config, model.get_output_embeddings().weight
    layers = [weight for name, weight in model.named_parameters() if weight.dim() == 2 and ".layers." in name]
    of_token = sum((6 if weight.requires_grad else 4) * weight.numel() for weight in layers)
    scores = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    lengths = batch["attention_mask"].sum(1).double()
    return float(of_token * lengths.sum() + scores * lengths.square().sum() + 4 * head.numel() * labels)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        # Not this script's own folder: the modules are those of the checkout in PYTHONPATH.
        sys.path = [path for path in sys.path if path != str(Path(__file__).resolve().parent)]
        work(sys.argv[2:])
    else:
        sys.path.insert(0, str(HERE))
        from examples.command_line import start

        start(main)
