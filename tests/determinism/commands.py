"""Every script under `examples/` with the least that makes it do all it does, and what of its files is time."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Command:
    """How a script is called.

    Args:
        script (`str`): Below `examples/`, without its suffix.
        arguments (`Callable`): From the folder of inputs and that of its results to what stands behind the script.
        dropped (`Sequence[str]`): Fields of its JSON, or whole files, that hold times.
        writes (`str`): A file it must have written, so that nothing is not equal to nothing.
        unread (`Sequence[str]`): Names of files that hold times or paths and are no JSON.
        name (`str`): Where a script has several entries.
    """

    script: str
    arguments: Callable[[Path, Path], list[str]]
    writes: str
    dropped: Sequence[str] = ()
    unread: Sequence[str] = ()
    name: str = ""

    @property
    def id(self) -> str:
        return self.name or self.script


# Of a Trainer's logs.
LOGGED = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_tokens_per_second")
EVALUATED = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_model_preparation_time")
RECORDED = ("seconds", "time")
# Of the two files of a training checkpoint that hold times and the name of the folder.
CHECKSUMS = ("trainer_state.json", "training_args.bin")


def _table(script: str, file: str, *options: str, dropped: Sequence[str] = RECORDED) -> Command:
    """A driver of a table, asked about two models."""

    def arguments(inputs: Path, output: Path) -> list[str]:
        models = [f"base={inputs / 'base'}", f"magnet={inputs / 'magnet'}"]
        given = ["--model", *models, "--data", str(inputs / "data"), "--results", str(output), "--device", "cpu"]
        return [*given, *(option.format(inputs=inputs) for option in options)]

    return Command(f"evaluate/{script}", arguments, f"{file}.jsonl", dropped)


def _asked(
    script: str,
    writes: str,
    *options: str,
    dropped: Sequence[str] = (),
    unread: Sequence[str] = (),
    name: str = "",
) -> Command:
    """A script whose options name `{inputs}` and `{output}`."""

    def arguments(inputs: Path, output: Path) -> list[str]:
        return [option.format(inputs=inputs, output=output) for option in options]

    return Command(script, arguments, writes, dropped, unread, name)


def _adapt(name: str, *options: str) -> Command:
    """A run of `adapt.py` of six steps, the last two with pairs."""
    return _asked(
        "adapt",
        "run/adapt.json",
        *("--model_name_or_path={inputs}/plain", "--train_texts={inputs}/train.jsonl.xz"),
        *(
            "--eval_texts={inputs}/held_out.jsonl.xz",
            "--output_dir={output}/run",
            "--loss_phases",
            "4:1,0,1",
            "2:1,9,1",
        ),
        *("--pairs=dropout", "--view_dropout=0.3", "--contrastive_batch_size=4", "--contrastive_max_length=96"),
        *("--max_length=64", "--max_span_tokens=8", "--eval_max_span_tokens=8", "--per_device_train_batch_size=4"),
        *("--learning_rate=1e-3", "--logging_steps=2", "--save_strategy=steps", "--save_steps=4"),
        *("--report_to=none", "--use_cpu", "--disable_tqdm=true", *options),
        dropped=("seconds", *LOGGED, *EVALUATED, *CHECKSUMS),
        unread=("training_args.bin",),
        name=name,
    )


# Of the benchmarks of a training step.
STEP = (
    *("--model={inputs}/plain", "--texts={inputs}/train.jsonl.xz", "--pairs={inputs}/pairs.tsv", "--results={output}"),
    *("--batch_size=3", "--max_length=200", "--pairs_a_step=4", "--lora_r=2"),
)

COMMANDS: list[Command] = [
    _asked("quickstart", "table.md", "--smoke", "--output_dir={output}"),
    _adapt("adapt, all weights", "--use_lora=false"),
    _adapt("adapt, adapters", "--lora_r=2", "--lora_dropout=0.1", "--contrastive_recompute=true"),
    _adapt(
        "adapt, paraphrases, workers",
        "--lora_r=2",
        "--pairs=paraphrase",
        "--view_dropout=0",
        "--pair_limit=12",
        "--paraphraser={inputs}/t5",
        "--dataloader_num_workers=2",
        "--gradient_accumulation_steps=2",
    ),
    _asked(
        "encode_corpus",
        "vectors.npy",
        "--model_name_or_path={inputs}/magnet",
        "--texts={inputs}/train.jsonl.xz",
        "--output={output}/vectors.npy",
        "--chunk_size=8",
        "--threads=1",
        dropped=("seconds", "rows_per_second"),
    ),
    _asked(
        "encode_corpus",
        "vectors.parquet",
        "--model_name_or_path={inputs}/magnet",
        "--texts={inputs}/train.jsonl.xz",
        "--output={output}/vectors.parquet",
        "--chunk_size=8",
        "--num_processes=2",
        "--threads=1",
        dropped=("seconds", "rows_per_second"),
        name="encode_corpus, two processes",
    ),
    _asked(
        "infill_stories",
        "fills.jsonl",
        "--model={inputs}/magnet",
        "--texts={inputs}/blanks.jsonl",
        "--output={output}/fills.jsonl",
        "--html={output}/fills.html",
        "--num_tokens",
        "2",
        "5",
        "--do_sample",
        "--num_return_sequences=2",
        "--batch_size=2",
    ),
    _asked("doctor", "doctor.json", "{inputs}/magnet", "--json={output}/doctor.json", dropped=["seconds"]),
    _table("word_probes", "words", "--steps=20"),
    _table("sts", "sts", "--tasks=STS12", "--mteb"),
    _table(
        "clustering",
        "clustering",
        "--tasks=TwentyNewsgroupsClustering",
        "--subsets=2",
        "--subset_size=30",
    ),
    _table("infilling_perplexity", "infilling", "--max_length=200"),
    _table("text_perplexity", "perplexity", "--max_length=128", "--texts=More={inputs}/paragraphs.txt"),
    _table("mmlu", "mmlu", "--num_fewshot=0", "--limit=1"),
    _table("repetition", "repetition", "--preset=smoke", "--new_tokens=9", "--limit=4"),
    _table(
        "side_by_side",
        "side_by_side",
        "--masked=BERT={inputs}/bert",
        "--preset=smoke",
        "--shots=1",
        "--max_new_tokens=6",
        "--new_tokens=5",
    ),
    _table(
        "long_gaps",
        "long_fills",
        "--judge={inputs}/base",
        "--texts={inputs}/long.jsonl",
        "--number=2",
        "--gap_tokens=16",
        "--chunks",
        "16",
        "8",
    ),
    _asked(
        "evaluate/human_evaluation",
        "form.html",
        "sample",
        "--base={inputs}/base",
        "--magnet={inputs}/magnet",
        "--data={inputs}/data",
        "--preset=smoke",
        "--shots=1",
        "--max_new_tokens=6",
        "--device=cpu",
        "--output={output}",
        name="evaluate/human_evaluation sample",
    ),
    _asked(
        "evaluate/human_evaluation",
        "people.jsonl",
        "score",
        "--key={inputs}/form/key.json",
        "--answers",
        "{inputs}/form/answers_1.json",
        "{inputs}/form/answers_2.json",
        "--results={output}",
        dropped=RECORDED,
        name="evaluate/human_evaluation score",
    ),
    _asked(
        "evaluate/story_cloze",
        "cloze.json",
        "--magnet={inputs}/magnet",
        "--base={inputs}/base",
        "--stories={inputs}/data/storycloze_spring2016_val.csv.gz",
        "--output={output}/cloze.json",
    ),
    _asked(
        "evaluate/gap_lengths",
        "lengths.json",
        "--magnet={inputs}/magnet",
        "--judge={inputs}/base",
        "--texts={inputs}/long.jsonl",
        "--number=3",
        "--output={output}/lengths.json",
    ),
    _asked(
        "evaluate/broken_words",
        "words.json",
        "--magnet={inputs}/magnet",
        "--texts={inputs}/long.jsonl",
        "--number=3",
        "--output={output}/words.json",
    ),
    _asked(
        "evaluate/mixture",
        "mixture.jsonl",
        "--texts",
        "2:{inputs}/long.jsonl",
        "1:{inputs}/paragraphs.txt",
        "--characters=20000",
        "--output={output}/mixture.jsonl",
    ),
    _asked(
        "evaluate/pretrain",
        "out/config.json",
        "--tokenizer={inputs}/plain",
        "--texts={inputs}/train.jsonl.xz",
        "--eval_texts={inputs}/held_out.jsonl.xz",
        "--output={output}/out",
        "--hidden_size=16",
        "--steps=6",
        "--batch_size=4",
        "--max_length=64",
    ),
    _asked(
        "evaluate/training_curves",
        "curves.jsonl",
        "--run",
        "one={inputs}/one",
        "other={inputs}/other",
        "--results={output}",
    ),
    _asked("evaluate/report", "report.md", "--results={inputs}/records", "--output={output}"),
    _asked(
        "evaluate/study",
        "page/report.md",
        "{inputs}/plan.json",
        "--output={output}",
        "--preset=smoke",
        dropped=[*RECORDED, *LOGGED, *EVALUATED, *CHECKSUMS],
        unread=["training_args.bin"],
    ),
    _asked(
        "benchmarks/adaptation",
        "quality.json",
        "--base={inputs}/base",
        "--adapted={inputs}/magnet",
        "--texts=long={inputs}/long.jsonl",
        "--sts={inputs}/data/stsb.dev.csv.gz",
        "--max_rows=4",
        "--name=quality",
        "--results={output}",
        dropped=["seconds"],
    ),
    _asked(
        "benchmarks/adaptation_curves",
        "curves.png",
        "--runs",
        "one={inputs}/one",
        "other={inputs}/other",
        "--name=curves",
        "--results={output}",
    ),
    _asked(
        "benchmarks/adapter_cost",
        "cost.json",
        "--model={inputs}/magnet",
        "--texts={inputs}/paragraphs.txt",
        "--num_texts=4",
        "--rounds=1",
        "--output={output}/cost.json",
    ),
    _asked(
        "benchmarks/encoding_throughput",
        "speed.json",
        "--model={inputs}/plain",
        "--texts={inputs}/paragraphs.txt",
        "--number=12",
        "--rounds=1",
        "--name=speed",
        "--results={output}",
    ),
    _asked(
        "benchmarks/infill_decoding",
        "decoding.json",
        "--model={inputs}/magnet",
        "--rounds=1",
        "--name=decoding",
        "--results={output}",
    ),
    _asked("benchmarks/training_memory", "memory.json", "--vocab_sizes", "500", "800", "--name=memory", *STEP),
    _asked("benchmarks/training_step", "step.json", "--rounds=1", "--name=step", *STEP),
    _asked("benchmarks/scaling", "page.md", "--page={output}/page.md"),
]

__all__ = ["COMMANDS", "Command"]
