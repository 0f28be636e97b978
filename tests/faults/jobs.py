"""Run the long jobs of this library on tiny things; started as a program with JOB, FAULT, INPUTS and FOLDER.

Each job is a command that is given again until it ends. Inputs are in one folder; the other is the job's, in which it
is disturbed, its caches included.
"""

import faulthandler
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import torch

from examples import adapt
from examples.evaluate import text_perplexity
from examples.evaluate.parts.records import read_records
from modeling_magnet import AutoMagnetForCausalLM
from tests.byte_tokenizer import byte_tokenizer
from tests.examples.evaluation_files import write_wikitext
from tests.examples.tiny_corpus import make_texts, write_jsonl
from tests.examples.tiny_run import save_plain_llama, tiny_options
from tests.faults.disturbing import FAULTS, LIMIT_SECONDS, Job, nothing
from tests.trainer.tiny import tiny_args, tiny_model, tiny_pairs, tiny_rows, tiny_trainer
from trainer.checkpoints import last_complete_checkpoint

# Times and remaining work, which depend on the attempt and not on the result.
OF_THE_ATTEMPT = {"time", "rows_encoded", "train_loss", "resume_from_checkpoint", "eval_on_start"}


def json_bytes(value: Any) -> bytes:
    """Serialize JSON in one form, without fields that differ between equal attempts."""

    def kept(value: Any) -> Any:
        if isinstance(value, list):
            return [kept(one) for one in value]
        if not isinstance(value, dict):
            return value
        ends = ("_runtime", "_per_second", "_dir", "seconds")
        names = [name for name in value if name not in OF_THE_ATTEMPT and not name.endswith(ends)]
        return {name: kept(value[name]) for name in names}

    return json.dumps(kept(value), sort_keys=True).encode()


def own_caches(folder: Path) -> None:
    """Put the caches of `datasets` into the job's folder, where they are disturbed, too."""
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    datasets.config.HF_HUB_OFFLINE = True
    datasets.disable_progress_bars()
    torch.set_num_threads(1)


# ---- Training ----


def train(inputs: Path, folder: Path) -> None:
    """Train for thirty steps with a checkpoint every five."""
    torch.set_num_threads(1)
    saving = {"save_strategy": "steps", "save_steps": 5, "save_total_limit": 2}
    phases = ["18:1,0,1", "12:1,9,1"]
    args = tiny_args(folder / "run", loss_phases=phases, gradient_accumulation_steps=2, **saving)
    trainer = tiny_trainer(args, model=tiny_model(), train_dataset=tiny_rows(40), pair_dataset=tiny_pairs(20))
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder / "run") is not None or None)
    trainer.save_model(str(folder / "run" / "end"))


def trained(folder: Path) -> dict[str, bytes]:
    """Read the checkpoints and the final model: their bits depend on the rows of all steps."""
    attempt = {"training_args.bin", "trainer_state.json"}  # contain times and paths
    files = {str(file.relative_to(folder)): file for file in (folder / "run").rglob("*") if file.is_file()}
    return {name: file.read_bytes() for name, file in files.items() if file.name not in attempt}


# ---- The command that adapts ----


def prepare_adaptation(inputs: Path) -> None:
    """Write the options with the texts that they name."""
    options = tiny_options(inputs, model=save_plain_llama(inputs / "base", byte_tokenizer()))
    (inputs / "options.json").write_text(json.dumps(options))


def run_adaptation(inputs: Path, folder: Path) -> None:
    """Train for six steps with a checkpoint every two, then save the merged model with its card."""
    own_caches(folder)
    options = json.loads((inputs / "options.json").read_text())
    options += [f"--output_dir={folder / 'run'}", "--save_strategy=steps", "--save_steps=2", "--save_total_limit=2"]
    if last_complete_checkpoint(folder / "run") is not None:
        options.append("--resume_from_checkpoint=true")
    else:  # as its message says, if the first checkpoint is incomplete
        for checkpoint in (folder / "run").glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    if not (folder / "run" / "adapt.json").exists():
        adapt.main(options)


def adapted(folder: Path) -> dict[str, bytes]:
    files = {file.name: file.read_bytes() for file in (folder / "run").iterdir() if file.is_file()}
    files.pop("training_args.bin", None)
    return files | {"adapt.json": json_bytes(json.loads(files["adapt.json"]))}


# ---- Measuring the cells of a table ----


def prepare_tables(inputs: Path) -> None:
    plain = save_plain_llama(inputs / "plain", byte_tokenizer())
    AutoMagnetForCausalLM.from_pretrained(plain).save_pretrained(inputs / "model")
    for name in "abcd":
        write_jsonl(inputs / f"{name}.jsonl", [text or "and" for text in make_texts(40, seed=ord(name))])
    write_wikitext(inputs, number=40)


def evaluate(inputs: Path, folder: Path) -> None:
    """Measure two models in five cells each."""
    own_caches(folder)
    models = ("--model", f"base={inputs / 'plain'}", f"MAGNET={inputs / 'model'}", "--data", str(inputs))
    texts = ("--texts", *(f"{name}={inputs / name}.jsonl" for name in "abcd"))
    output = ("--results", str(folder / "results"), "--device", "cpu", "--max_length", "40")
    text_perplexity.main([*models, *texts, *output])


def cells(folder: Path) -> dict[str, bytes]:
    """Read the records in order, without times and incomplete lines."""
    records = read_records(folder / "results" / "perplexity.jsonl")
    return {"perplexity.jsonl": b"\n".join(json_bytes(asdict(record)) for record in records)}


JOBS = {
    "training": Job(nothing, train, trained),
    "adapt": Job(prepare_adaptation, run_adaptation, adapted),
    "evaluation": Job(prepare_tables, evaluate, cells),
}


if __name__ == "__main__":
    job, fault, inputs, folder = sys.argv[1:]
    faulthandler.dump_traceback_later(0.9 * LIMIT_SECONDS)  # where it hangs
    FAULTS[fault].inside(Path(folder))
    print("started", flush=True)
    JOBS[job].run(Path(inputs), Path(folder))
