"""List a minimal command for every script under `examples/`, and the parts of its output that contain times."""

from collections.abc import Sequence
from typing import NamedTuple

# Timings in the logs of a Trainer, in an evaluation, and in a record.
LOGGED = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
EVALUATED = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
RECORDED = ("seconds", "time")
PRINTED = "printed.log"


class Command(NamedTuple):
    """Describe how to call a script."""

    script: str  # below `examples/`, without its suffix
    writes: str  # a file that it must have written; `PRINTED` keeps what it prints
    options: str  # with `{inputs}` and `{output}` for the two folders
    dropped: Sequence[str] = ()  # fields of its JSON with times
    unread: Sequence[str] = ()  # names of files with times or paths that are not JSON
    name: str = ""  # if a script has several entries

    @property
    def label(self) -> str:
        """Return the name of the test."""
        return " ".join([self.script, self.name]).strip()


def _table(script: str, file: str, options: str) -> Command:
    """Return a table driver's command for two models."""
    models = "--model base={inputs}/base magnet={inputs}/magnet"
    return Command(
        f"evaluate/{script}",
        f"{file}.jsonl",
        f"{models} --data={{inputs}}/data --results={{output}} --device=cpu {options}",
        RECORDED,
    )


def _adapt(name: str, options: str) -> Command:
    """Return an `adapt.py` run of six steps, the last two with pairs."""
    return Command(
        "adapt",
        "run/adapt.json",
        "--model_name_or_path={inputs}/plain --train_texts={inputs}/train.jsonl.xz --output_dir={output}/run "
        "--eval_texts={inputs}/held_out.jsonl.xz --loss_phases 4:1,0,1 2:1,9,1 --pairs=dropout --view_dropout=0.3 "
        "--contrastive_batch_size=4 --contrastive_max_length=96 --max_length=64 --max_span_tokens=8 "
        "--per_device_train_batch_size=4 --learning_rate=1e-3 --logging_steps=2 "
        "--save_strategy=steps --save_steps=4 --keep_checkpoints=true "
        f"--report_to=none --use_cpu --disable_tqdm=true {options}",
        ("seconds", *LOGGED, *EVALUATED),
        ("training_args.bin",),
        name,
    )


COMMANDS = [
    Command("quickstart", "table.md", "--smoke --output_dir={output}"),
    _adapt("all weights", "--lora_r=0"),
    _adapt(
        "adapters", "--lora_r=2 --lora_dropout=0.1 --contrastive_recompute=true --contrastive_mini_batch_tokens=200"
    ),
    _adapt("unmerged", "--lora_r=2 --adapter_modes bidirectional infill"),
    _adapt(
        "paraphrases",
        "--lora_r=2 --pairs=paraphrase --view_dropout=0 --pair_limit=12 --paraphraser={inputs}/t5 "
        "--dataloader_num_workers=2 --gradient_accumulation_steps=2",
    ),
    Command(
        "encode_corpus",
        "vectors.npy",
        "--model_name_or_path={inputs}/magnet --texts={inputs}/train.jsonl.xz --output={output}/vectors.npy "
        "--chunk_size=8 --threads=1",
        ("seconds", "rows_per_second"),
    ),
    Command(
        "infill_stories",
        "fills.jsonl",
        "--model_name_or_path={inputs}/magnet --texts={inputs}/blanks.jsonl --output={output}/fills.jsonl "
        "--html={output}/fills.html --num_tokens 2 5 --do_sample --num_return_sequences=2 --batch_size=2",
    ),
    Command("fill", PRINTED, "--model={inputs}/magnet 'the old dog [blank] then the cat sat.'"),
    Command("tour/run_notebook", "out.ipynb", "{inputs}/notebook.ipynb --output={output}/out.ipynb --folder={inputs}"),
    Command(
        "doctor",
        "doctor.json",
        "--model={inputs}/magnet --output={output}/doctor.json",
        ["opening_seconds", "seconds"],
    ),
    Command("reference", "trainer.html", "--output={output}"),
    _table("word_probes", "words", "--steps=20"),
    _table("sts", "sts", "--tasks=STS12 --mteb"),
    _table("clustering", "clustering", "--tasks=TwentyNewsgroupsClustering --subsets=2 --subset_size=30"),
    _table("infilling_perplexity", "infilling", "--max_length=200"),
    _table("story_cloze", "story_cloze", "--limit=4"),
    _table("text_perplexity", "perplexity", "--max_length=128"),
    _table("mmlu", "mmlu", "--num_fewshot=0 --limit=1"),
    _table("repetition", "repetition", "--preset=smoke --max_new_tokens=9 --limit=4"),
    _table("side_by_side", "side_by_side", "--preset=smoke --shots=1 --max_new_tokens=6 --continuation_tokens=5"),
    _table(
        "long_fills",
        "long_fills",
        "--judge={inputs}/base --texts={inputs}/long.txt --limit=2 --span_tokens=16 --chunks 16 8",
    ),
    Command(
        "evaluate/human_evaluation",
        "form.html",
        "sample --model base={inputs}/base MAGNET={inputs}/magnet --data={inputs}/data --preset=smoke "
        "--shots=1 --max_new_tokens=6 --device=cpu --output={output}",
    ),
    Command(
        "evaluate/study",
        "page/report.md",
        "{inputs}/plan.json --output={output} --preset=smoke",
        [*RECORDED, *LOGGED, *EVALUATED],
        # The page contains the time of its newest record.
        ["first-0.log", "report.md", "report.html"],
    ),
]

# Labels that CI runs, by activity: train, adapt, encode, fill, measure, execute. The nightly run covers all.
OFTEN = {
    "quickstart",
    "adapt all weights",
    "adapt paraphrases",
    "encode_corpus",
    "infill_stories",
    "fill",
    "tour/run_notebook",
    "evaluate/infilling_perplexity",
}

# Scripts without an entry, with the reason.
LEFT_OUT = {
    "app": "a server: it writes nothing but the model that the quickstart's own entry checks",
    "benchmarks/encoding_throughput": "it measures times",
    "benchmarks/infill_decoding": "it measures times",
    "benchmarks/training_step": "it measures times",
    "benchmarks/on_gpu": "it calls the other benchmarks",
    "evaluate/report": "tests/examples/test_report.py compares its pages",
    "evaluate/story_texts": "tests/examples/test_stories.py reads its texts",
    "evaluate/training_curves": "it draws the logs of finished runs",
}
