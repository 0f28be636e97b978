"""The long jobs of this library on tiny things, each as a command that is given again until it ends.

Inputs lie in one folder; the other is the job's, in which it is disturbed, its caches included. For each job there is
what prepares its inputs, what runs it, and what reads the files that it made.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig

from examples import adapt, encode_corpus
from examples.evaluate import text_perplexity
from examples.evaluate.records import read_records
from modeling_magnet import AutoMagnetForCausalLM
from tests.byte_tokenizer import byte_tokenizer
from tests.examples.evaluation_files import write_wikitext
from tests.examples.tiny_corpus import make_texts, write_jsonl
from tests.examples.tiny_run import save_plain_llama, tiny_options
from tests.faults.disturbing import Job, nothing
from tests.trainer.test_pairs import sentences
from tests.trainer.tiny import tiny_args, tiny_model, tiny_pairs, tiny_rows, tiny_trainer
from tests.trainer.tiny_t5 import save_tiny_t5
from trainer import paraphrase_pairs
from trainer.checkpoints import last_complete_checkpoint

ATTEMPT = "an attempt begins"
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


def save_model(inputs: Path) -> Any:
    """Save a tiny MAGNET model."""
    plain = save_plain_llama(inputs / "plain", byte_tokenizer())
    model = AutoMagnetForCausalLM.from_pretrained(plain)
    model.save_pretrained(inputs / "model")
    return model


def files_below(folder: Path) -> dict[str, bytes]:
    """Read all files of a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# ---- Training ----


def train(inputs: Path, folder: Path) -> None:
    """Train for thirty steps with a checkpoint every five; record the rows of every step beside the folder."""
    torch.set_num_threads(1)
    saving = {"save_strategy": "steps", "save_steps": 5, "save_total_limit": 2}
    phases = ["18:1,0,1", "12:1,9,1"]
    args = tiny_args(folder / "run", loss_phases=phases, gradient_accumulation_steps=2, **saving)
    trainer = tiny_trainer(args, model=tiny_model(), train_dataset=tiny_rows(40), pair_dataset=tiny_pairs(20))
    compute = trainer.compute_loss
    with (folder.parent / "rows.jsonl").open("a", encoding="utf-8") as record:
        record.write(f"\n{ATTEMPT}\n")  # starts a new line, also after a truncated one

        def compute_and_record(model: Any, batch: Any, *arguments: Any, **more: Any) -> Any:
            step = [trainer.state.global_step, batch["row_ids"], batch["epochs"], batch.get("pair_micro_batch")]
            record.write(json.dumps(step) + "\n")
            record.flush()
            return compute(model, batch, *arguments, **more)

        trainer.compute_loss = compute_and_record
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder / "run") is not None or None)
    trainer.save_model(str(folder / "run" / "end"))


def trained(folder: Path) -> dict[str, bytes]:
    """Read the checkpoints, the final model, and the last micro-batches of each step."""
    steps: dict[int, list[str]] = {}
    begins = False
    for line in (folder.parent / "rows.jsonl").read_text().splitlines():
        if line == ATTEMPT:
            begins = True
            continue
        try:
            step = json.loads(line)[0]
        except (ValueError, IndexError):
            continue  # truncated with the process
        if begins:  # an attempt repeats steps of earlier attempts
            steps = {number: made for number, made in steps.items() if number < step}
            begins = False
        steps.setdefault(step, []).append(line)
    attempt = {"training_args.bin", "trainer_state.json"}  # contain times and paths
    files = {name: data for name, data in files_below(folder / "run").items() if Path(name).name not in attempt}
    return files | {"rows of all steps": json.dumps(sorted(steps.items())).encode()}


# ---- The command that adapts ----


def prepare_adaptation(inputs: Path) -> None:
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


# ---- Pairs by a paraphraser ----


def prepare_pairs(inputs: Path) -> None:
    save_tiny_t5(inputs / "t5")


def build_pairs(inputs: Path, folder: Path) -> None:
    """Paraphrase forty batches, appended one by one."""
    own_caches(folder)
    sizes = {"min_words": 3, "max_length": 8, "batch_size": 2, "num_candidates": 2}
    output = {"output_path": folder / "pairs.jsonl", "model_id": str(inputs / "t5"), "device": "cpu"}
    paraphrase_pairs(sentences(80), **output, **sizes)


def pairs_file(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("pairs.jsonl", "pairs.jsonl.settings.json")}


# ---- Encoding a corpus ----


def prepare_corpus(inputs: Path) -> None:
    save_model(inputs)
    texts: list[str | None] = [*make_texts(400)]
    texts[123] = None  # a corrupt row
    write_jsonl(inputs / "texts.jsonl", texts)


def encode(inputs: Path, folder: Path) -> None:
    """Encode fifty chunks."""
    own_caches(folder)
    output = folder / "out.parquet"
    if (folder / "out.parquet.json").exists() and not (folder / "out.parquet.parts").exists():
        return  # killed after its last operation; the command would report that the output exists
    named = [f"--model_name_or_path={inputs / 'model'}", f"--texts={inputs / 'texts.jsonl'}", f"--output={output}"]
    encode_corpus.main([*named, "--chunk_size=8", "--threads=1", "--prompt=", "--id_column=key"])


def encoded(folder: Path) -> dict[str, bytes]:
    """Read vectors, ids and report; any other file is a difference."""
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "cache"}
    report = files["out.parquet.json"].decode().replace(str(folder), "")
    return files | {"out.parquet.json": json_bytes(json.loads(report))}


# ---- Measuring the cells of a table ----


def prepare_tables(inputs: Path) -> None:
    save_model(inputs)
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


# ---- Saving ----


def prepare_models(inputs: Path) -> None:
    model = save_model(inputs)
    torch.manual_seed(1)
    model.add_adapter(LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2, init_lora_weights=False))
    model.save_pretrained(inputs / "adapter")


def save(inputs: Path, folder: Path) -> None:
    """Save merged and sharded over another checkpoint eight times, because a single save is too short."""
    torch.set_num_threads(1)
    model: Any = AutoMagnetForCausalLM.from_pretrained(inputs / "adapter")
    old: Any = AutoMagnetForCausalLM.from_pretrained(inputs / "model")
    for _ in range(8):
        old.save_pretrained(folder / "saved")
        model.save_pretrained(folder / "saved", merge_adapter=True, max_shard_size="20KB")


JOBS = {
    "training": Job(nothing, train, trained),
    "adapt": Job(prepare_adaptation, run_adaptation, adapted),
    "pairs": Job(prepare_pairs, build_pairs, pairs_file),
    "encode corpus": Job(prepare_corpus, encode, encoded),
    "evaluation": Job(prepare_tables, evaluate, cells),
    "save": Job(prepare_models, save, files_below),
}
