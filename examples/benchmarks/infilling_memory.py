"""How much memory do scoring, sampling and masks take beside the model, and how long is a vocabulary read?

    python examples/benchmarks/infilling_memory.py --model DIR

The floor is the model's own work on a bounded number of tokens. With a vocabulary of 262,144 the logits of one
position take 1 MiB in float32, so that nothing may hold those of all labels, or of all spans, at once. The bytes of
every tensor are counted as it is made and let go; weights are not counted, and neither is what a kernel uses inside,
which the growth of the process' resident memory includes (on Linux). Times are CPU seconds of one call, after a first
one that reads the vocabulary.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# A script finds its own folder alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from examples.benchmarks.measuring import machine
from examples.benchmarks.training_memory import MIB, PeakBytes
from examples.command_line import OneLineParser, add_dtype, add_model, start
from modeling_magnet import AutoMagnetForCausalLM
from modeling_magnet.spans_magnet import read_vocabulary
from trainer.whole_files import write_json

NUM_TEXTS = 16
FILL_TOKENS = 100  # of a scored fill, about
ANSWERS = 10
MASK_TOKENS = 1500
SENTENCE = "The river runs through the old town and its bridges were built in the last century."


def scored(model: Any) -> Any:
    """Score one long fill in each text."""
    words = SENTENCE.split()
    fill = " ".join(words[index % len(words)] for index in range(FILL_TOKENS))
    while len(model.tokenizer(fill, add_special_tokens=False)["input_ids"]) > FILL_TOKENS:
        fill = fill.rpartition(" ")[0]
    texts = [f"Text {number}." for number in range(NUM_TEXTS)]
    return model.score_infill(texts, [[fill]] * NUM_TEXTS, [f" {SENTENCE}"] * NUM_TEXTS)


def filled(model: Any, **options: Any) -> Any:
    """Fill one gap in each text."""
    texts = [f"Text {number}: {SENTENCE} The mayor said that [blank]. {SENTENCE}" for number in range(NUM_TEXTS)]
    return model.infill_blanks(texts, **{"max_new_tokens": 16, **options})


@torch.no_grad()
def masked(model: Any) -> int:
    """Make the infill masks of long rows; returns their own bytes."""
    segments = torch.zeros(NUM_TEXTS, MASK_TOKENS, dtype=torch.long)
    segments[:, MASK_TOKENS // 2 : MASK_TOKENS // 2 + 100] = 1
    states = torch.empty(NUM_TEXTS, MASK_TOKENS, 1, dtype=model.dtype)
    masks = model._prepare_4d_causal_attention_mask(
        torch.ones(NUM_TEXTS, MASK_TOKENS),
        states.shape[:2],
        states,
        0,
        position_ids=torch.arange(MASK_TOKENS).repeat(NUM_TEXTS, 1),
        segment_ids=segments,
        mode="infill",
    )
    kinds = masks.values() if isinstance(masks, dict) else [masks]
    return sum({mask.untyped_storage().data_ptr(): mask.nbytes for mask in kinds}.values())


def measure(call: Callable[[], Any]) -> dict[str, float]:
    """Bytes of tensors at most, growth of the resident memory at most, and CPU seconds of one call."""
    call()  # reads the vocabulary, and looks at attention
    before, started = _resident("VmRSS", reset=True), time.process_time()
    call()
    seconds, grown = time.process_time() - started, _resident("VmHWM") - before
    with PeakBytes() as counted:
        call()
    return {"bytes": counted.most, "resident_bytes": grown, "cpu_seconds": seconds}


def _resident(field: str, *, reset: bool = False) -> int:
    """What Linux says of this process' memory in bytes; 0 elsewhere. `reset` lets the highest be the current one."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, write."""
    parser = OneLineParser(description=__doc__)
    add_model(parser, help="a plain decoder or a MAGNET checkpoint")
    add_dtype(parser)
    parser.add_argument("--attn_implementation", default="sdpa", choices=["sdpa", "eager"], help="the back-end")
    parser.add_argument("--name", default="infilling_memory", help="name of the JSON file")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="where it goes")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    model: Any = AutoMagnetForCausalLM.from_pretrained(
        args.model, dtype=getattr(torch, args.dtype), attn_implementation=args.attn_implementation
    ).eval()
    started = time.process_time()
    read_vocabulary(model.tokenizer, model.config.vocab_size)
    report: dict[str, Any] = {"vocabulary_cpu_seconds": time.process_time() - started, "calls": {}}
    print(f"reading a vocabulary of {model.config.vocab_size:,}: {report['vocabulary_cpu_seconds']:.2f} s of CPU\n")
    sampled = {"do_sample": True, "num_return_sequences": ANSWERS, "max_new_tokens": 8}
    calls: dict[str, Callable[[], Any]] = {
        f"score_infill, {NUM_TEXTS} fills of {FILL_TOKENS} tokens": partial(scored, model),
        f"{NUM_TEXTS} gaps of 16 tokens, greedy": partial(filled, model),
        f"{ANSWERS} sampled answers to {NUM_TEXTS} gaps": partial(filled, model, **sampled),
        f"{ANSWERS} answers, top_p=0.9, top_k=0": partial(filled, model, **sampled, top_k=0, top_p=0.9),
        f"{ANSWERS} answers, whole vocabulary": partial(filled, model, **sampled, top_k=0),
        f"{NUM_TEXTS} gaps, best of 3 lengths": partial(filled, model, max_new_tokens=None, num_tokens=[2, 4, 8]),
        f"infill masks, {NUM_TEXTS} x {MASK_TOKENS}": partial(masked, model),
    }
    print(f"{'call':44s}{'tensors, MiB':>14s}{'resident, MiB':>15s}{'CPU, s':>9s}")
    for name, call in calls.items():
        one = report["calls"][name] = measure(call)
        held, grown = one["bytes"] / MIB, one["resident_bytes"] / MIB
        print(f"{name:44s}{held:14,.0f}{grown:15,.0f}{one['cpu_seconds']:9.2f}", flush=True)
    report["mask_bytes"] = masked(model)
    print(f"the masks themselves: {report['mask_bytes'] / MIB:,.0f} MiB")
    report |= {"model": Path(args.model).name, "attention": args.attn_implementation}
    report |= machine(torch.device("cpu"), dtype=args.dtype)
    file = args.results / f"{args.name}.json"
    write_json(file, report)
    print(f"infilling_memory: OK ({file.name})")
    return report


if __name__ == "__main__":
    start(main)
