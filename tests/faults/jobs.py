"""The long jobs of this library on tiny things, each as a command that is given again until it ends.

Inputs lie in one folder; the other is the job's, in which it is disturbed, its caches included.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import safetensors.torch
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
from tests.faults.harness import Job
from tests.trainer.test_pairs import sentences
from tests.trainer.tiny import tiny_args, tiny_model, tiny_pairs, tiny_rows, tiny_trainer
from tests.trainer.tiny_t5 import save_tiny_t5
from trainer import paraphrase_pairs
from trainer.checkpoints import last_complete_checkpoint

ATTEMPT = "an attempt begins"
# What tells of the attempt and not of what was made: times, and what it was left to do.
OF_THE_ATTEMPT = {"time", "rows_encoded", "train_loss", "resume_from_checkpoint", "eval_on_start"}


def without_attempt(value: Any) -> Any:
    """JSON without what differs between two attempts at the same."""
    if isinstance(value, list):
        return [without_attempt(one) for one in value]
    if not isinstance(value, dict):
        return value
    ends = ("_runtime", "_per_second", "_dir", "seconds")
    kept = {name: one for name, one in value.items() if name not in OF_THE_ATTEMPT and not name.endswith(ends)}
    return {name: without_attempt(one) for name, one in kept.items()}


def json_bytes(value: Any) -> bytes:
    """One form of equal values."""
    return json.dumps(without_attempt(value), sort_keys=True).encode()


def own_caches(folder: Path) -> None:
    """What `datasets` keeps is disturbed, too."""
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    datasets.config.HF_HUB_OFFLINE = True
    datasets.disable_progress_bars()
    torch.set_num_threads(1)


# ---- Training ----


def no_inputs(inputs: Path) -> None:
    """All is made in memory."""


def train(inputs: Path, folder: Path) -> None:
    """Thirty steps with a checkpoint at every fifth; the rows of every step go on record beside the folder."""
    torch.set_num_threads(1)
    args = tiny_args(
        folder / "run",
        loss_phases=["18:1,0,1", "12:1,9,1"],
        save_strategy="steps",
        save_steps=5,
        save_total_limit=2,
        gradient_accumulation_steps=2,
    )
    trainer = tiny_trainer(args, model=tiny_model(), train_dataset=tiny_rows(40), pair_dataset=tiny_pairs(20))
    compute = trainer.compute_loss
    with (folder.parent / "rows.jsonl").open("a", encoding="utf-8") as record:
        record.write(f"\n{ATTEMPT}\n")  # a line of its own, also behind one that was cut off

        def compute_and_record(model: Any, batch: Any, *arguments: Any, **more: Any) -> Any:
            step = [trainer.state.global_step, batch["row_ids"], batch["epochs"], batch.get("pair_micro_batch")]
            record.write(json.dumps(step) + "\n")
            record.flush()
            return compute(model, batch, *arguments, **more)

        trainer.compute_loss = compute_and_record
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder / "run") is not None or None)
    trainer.save_model(str(folder / "run" / "end"))


def trained(folder: Path) -> dict[str, bytes]:
    """All files of the checkpoints and the model at the end, but those with times and paths."""
    files = [file for file in sorted((folder / "run").rglob("*")) if file.is_file()]
    told = {"training_args.bin", "trainer_state.json", "checksums.json"}
    return {str(file.relative_to(folder)): file.read_bytes() for file in files if file.name not in told}


def rows_of_steps(folder: Path) -> list[str]:
    """Each micro-batch with its step, as it was made last: an attempt undoes what it makes again."""
    steps: dict[int, list[str]] = {}
    begins = False
    for line in (folder.parent / "rows.jsonl").read_text().splitlines():
        if line == ATTEMPT:
            begins = True
            continue
        try:
            step = json.loads(line)[0]
        except (ValueError, IndexError):
            continue  # cut off with the process
        if begins:
            steps = {number: made for number, made in steps.items() if number < step}
            begins = False
        steps.setdefault(step, []).append(line)
    return [line for lines in steps.values() for line in lines]


# ---- The command that adapts ----


def prepare_adaptation(inputs: Path) -> None:
    """A plain Llama and two corpora."""
    options = tiny_options(inputs, model=save_plain_llama(inputs / "base", byte_tokenizer()))
    (inputs / "options.json").write_text(json.dumps(options))


def run_adaptation(inputs: Path, folder: Path) -> None:
    """Six steps, a checkpoint at each second one, then the merged model with its card."""
    own_caches(folder)
    options = json.loads((inputs / "options.json").read_text())
    options += [f"--output_dir={folder / 'run'}", "--save_strategy=steps", "--save_steps=2", "--save_total_limit=2"]
    if last_complete_checkpoint(folder / "run") is not None:
        options.append("--resume_from_checkpoint=true")
    else:  # as its message says, where the first checkpoint was not written to its end
        for checkpoint in (folder / "run").glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    if not (folder / "run" / "adapt.json").exists():
        adapt.main(options)


def adapted(folder: Path) -> dict[str, bytes]:
    """The checkpoint that is handed on, with its card and report."""
    files = {file.name: file.read_bytes() for file in (folder / "run").iterdir() if file.is_file()}
    return {
        name: json_bytes(json.loads(content)) if name == "adapt.json" else content
        for name, content in files.items()
        if name not in {"training_args.bin"}
    }


def logged_steps(folder: Path) -> list[str]:
    """The entries of the log."""
    history = json.loads((folder / "run" / "adapt.json").read_text())["log_history"]
    return [json_bytes(entry).decode() for entry in history]


# ---- Pairs by a paraphraser ----


def prepare_pairs(inputs: Path) -> None:
    """A random T5."""
    save_tiny_t5(inputs / "t5")


def build_pairs(inputs: Path, folder: Path) -> None:
    """Forty batches, appended one by one."""
    own_caches(folder)
    paraphrase_pairs(
        sentences(80),
        output_path=folder / "pairs.jsonl",
        model_id=str(inputs / "t5"),
        min_words=3,
        max_length=8,
        batch_size=2,
        num_candidates=2,
        device="cpu",
    )


def pairs_file(folder: Path) -> dict[str, bytes]:
    """The file, and what it was made from."""
    return {name: (folder / name).read_bytes() for name in ("pairs.jsonl", "pairs.jsonl.settings.json")}


def lines_of_pairs(folder: Path) -> list[str]:
    """Each pair."""
    return (folder / "pairs.jsonl").read_text().splitlines()


# ---- Encoding a corpus ----


def save_model(inputs: Path) -> Any:
    """A tiny model of ours and its folder."""
    plain = save_plain_llama(inputs / "plain", byte_tokenizer())
    model = AutoMagnetForCausalLM.from_pretrained(plain)
    model.save_pretrained(inputs / "model")
    return model


def prepare_corpus(inputs: Path) -> None:
    """Texts with ids, one of them corrupt."""
    save_model(inputs)
    texts: list[str | None] = [*make_texts(400)]
    texts[123] = None
    write_jsonl(inputs / "texts.jsonl", texts)


def encode(inputs: Path, folder: Path) -> None:
    """Fifty chunks."""
    own_caches(folder)
    if (folder / "out.parquet.json").exists() and not (folder / "out.parquet.parts").exists():
        return  # killed behind its last deed; the command would say that the output is there
    encode_corpus.main(
        [
            f"--model_name_or_path={inputs / 'model'}",
            f"--texts={inputs / 'texts.jsonl'}",
            f"--output={folder / 'out.parquet'}",
            "--chunk_size=8",
            "--threads=1",
            "--prompt=",
            "--id_column=key",
        ]
    )


def encoded(folder: Path) -> dict[str, bytes]:
    """Vectors, ids, report, and nothing else."""
    files = [file for file in folder.iterdir() if file.name != "cache"]
    return {
        file.name: json_bytes(json.loads(file.read_text().replace(str(folder), "")))
        if file.suffix == ".json"
        else file.read_bytes()
        for file in files
    }


def encoded_ids(folder: Path) -> list[str]:
    """The id of each row."""
    return [str(one) for one in datasets.Dataset.from_parquet(str(folder / "out.parquet"))["id"]]


# ---- Measuring the cells of a table ----


def prepare_tables(inputs: Path) -> None:
    """A model before and after, and a corpus."""
    save_model(inputs)
    for name in "abcd":
        write_jsonl(inputs / f"{name}.jsonl", [text or "and" for text in make_texts(40, seed=ord(name))])
    write_wikitext(inputs, number=40)


def evaluate(inputs: Path, folder: Path) -> None:
    """Two models, five cells each."""
    own_caches(folder)
    text_perplexity.main(
        [
            *("--model", f"base={inputs / 'plain'}", f"MAGNET={inputs / 'model'}", "--data", str(inputs)),
            *("--texts", *(f"{name}={inputs / name}.jsonl" for name in "abcd")),
            *("--results", str(folder / "results"), "--device", "cpu", "--max_length", "40"),
        ]
    )


def cells(folder: Path) -> list[str]:
    """Each record without times, and without half a line."""
    records = read_records(folder / "results" / "perplexity.jsonl")
    return [json_bytes(asdict(record)).decode() for record in records]


def table(folder: Path) -> dict[str, bytes]:
    """The records in their order."""
    return {"perplexity.jsonl": "\n".join(cells(folder)).encode()}


# ---- Saving ----


def prepare_models(inputs: Path) -> None:
    """A model with an adapter, and the checkpoint that its merged weights are saved over."""
    model = save_model(inputs)
    torch.manual_seed(1)
    model.add_adapter(LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2, init_lora_weights=False))
    model.save_pretrained(inputs / "adapter")


def save(inputs: Path, folder: Path) -> None:
    """Merged and in shards over another checkpoint, eight times, for one time is soon over."""
    torch.set_num_threads(1)
    model: Any = AutoMagnetForCausalLM.from_pretrained(inputs / "adapter")
    old: Any = AutoMagnetForCausalLM.from_pretrained(inputs / "model")
    for _ in range(8):
        old.save_pretrained(folder / "saved")
        model.save_pretrained(folder / "saved", merge_adapter=True, max_shard_size="20KB")


def saved(folder: Path) -> dict[str, bytes]:
    """All files, also any that should not be there."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def saved_weights(folder: Path) -> list[str]:
    """The names of the weights in all shards."""
    shards = (folder / "saved").glob("*.safetensors")
    return [name for shard in shards for name in safetensors.torch.load_file(shard)]


JOBS = {
    job.name: job
    for job in (
        Job("training", no_inputs, train, trained, rows_of_steps),
        Job("adapt", prepare_adaptation, run_adaptation, adapted, logged_steps),
        Job("pairs", prepare_pairs, build_pairs, pairs_file, lines_of_pairs),
        Job("encode corpus", prepare_corpus, encode, encoded, encoded_ids),
        Job("evaluation", prepare_tables, evaluate, table, cells),
        Job("save", prepare_models, save, saved, saved_weights),
    )
}
