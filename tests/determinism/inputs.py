"""Write the inputs of the commands: tiny models, texts, and files in the format of the paper's corpora."""

import copy
import gzip
import json
import lzma
import random
from pathlib import Path

import nbformat
import torch
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from examples.evaluate import human_evaluation
from modeling_magnet import MagnetLlamaForCausalLM

from ..examples.evaluation_files import write_rocstories, write_story_cloze, write_wikitext
from ..examples.report_records import whole_study
from ..examples.report_records import write as write_records
from ..examples.test_mmlu import make_rows, write
from ..examples.tiny_run import WORDS, save_plain_llama, write_corpus

LOG = [
    {"step": 0, "epoch": 0, **dict.fromkeys(("eval_loss", "eval_masked_accuracy", "eval_infilling_perplexity"), 2.0)},
    {"step": 2, "epoch": 1, **dict.fromkeys(("eval_loss", "eval_masked_accuracy", "eval_infilling_perplexity"), 1.0)},
]


def write_inputs(folder: Path, model: MagnetLlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Write everything that any command reads.

    Args:
        folder (`Path`): Empty.
        model (`MagnetLlamaForCausalLM`): The tiny model.
        tokenizer (`PreTrainedTokenizerFast`): Its tokenizer; neither is changed.
    """
    save_plain_llama(folder / "plain", tokenizer)
    model = copy.deepcopy(model)
    model.tokenizer = copy.deepcopy(tokenizer)
    model.config.max_position_embeddings = model.tokenizer.model_max_length = 2048  # prompts are long in bytes
    for name in ("base", "magnet"):
        model.lm_head.weight.data = model.lm_head.weight.data.roll(1, 0)  # another token each time
        model.save_pretrained(folder / name)
    write_corpus(folder / "train.jsonl.xz", num_texts=40, seed=0)
    write_corpus(folder / "held_out.jsonl.xz", num_texts=6, seed=1)
    _write_texts(folder)
    (folder / "data").mkdir()
    _write_data(folder / "data")
    for name in ("one", "other"):
        (folder / name).mkdir()
        run = {"arguments": {"seed": 7, "max_length": 64}, "log_history": LOG, "torch": "2.0"}
        (folder / name / "adapt.json").write_text(json.dumps(run))
    write_records(folder / "records", whole_study())
    _write_paraphraser(folder / "t5", model)
    _write_form(folder)
    _write_plan(folder)
    _write_notebook(folder)
    return folder


def _write_paraphraser(folder: Path, model: MagnetLlamaForCausalLM) -> None:
    """Save a random T5 that reads and writes the tokens of the tiny Llama."""
    torch.manual_seed(0)
    size = len(model.tokenizer)
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=size, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    t5.generation_config.decoder_start_token_id = model.tokenizer.pad_token_id
    t5.save_pretrained(folder)
    model.tokenizer.save_pretrained(str(folder))


def _write_form(folder: Path) -> None:
    """Write a form as `human_evaluation.py sample` does, and the answers of two people."""
    human_evaluation.main([
        "sample", "--model", f"base={folder / 'base'}", f"MAGNET={folder / 'magnet'}", f"--data={folder / 'data'}",
        "--preset=smoke", "--shots=1", "--max_new_tokens=6", "--device=cpu", f"--output={folder / 'form'}",
    ])  # fmt: skip
    key = json.loads((folder / "form" / "key.json").read_text())
    for annotator in ("1", "2"):
        answers = {item: (place + int(annotator)) % 3 > 0 for place, item in enumerate(key["items"])}
        whole = {"form": key["form"], "annotator": annotator, "answers": answers}
        (folder / "form" / f"answers_{annotator}.json").write_text(json.dumps(whole))


def _write_plan(folder: Path) -> None:
    """Write a study of one run with two training steps and one driver call."""
    training = {
        **{"use_cpu": True, "train_texts": str(folder / "train.jsonl.xz"), "max_length": 64, "max_span_tokens": 8},
        **{"eval_texts": str(folder / "held_out.jsonl.xz"), "lora_r": 2},
        **{"loss_phases": ["2:1,0,1"], "per_device_train_batch_size": 4, "report_to": "none", "disable_tqdm": True},
        **{"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1},
    }
    call = {"driver": "repetition", "systems": ["b=base", "f=first"], "arguments": ["--limit", "2"]}
    plan = {
        **{"title": "A trial", "base": str(folder / "plain"), "data": str(folder / "data")},
        **{"training": training, "runs": {"first": {}}, "calls": [call], "presets": {"smoke": {}}},
    }
    (folder / "plan.json").write_text(json.dumps(plan))


def _write_notebook(folder: Path) -> None:
    """Write cells that open the model, fill a blank, and draw vectors; warnings and bars contain times."""
    cells = [
        "%%capture\nimport matplotlib.pyplot as plt\nfrom modeling_magnet import AutoMagnetForCausalLM\n"
        "model = AutoMagnetForCausalLM.from_pretrained('magnet')",
        "print(model.infill('the old dog', 'then', max_new_tokens=4))",
        "plt.imshow(model.encode(['the old dog', 'sat then'], convert_to_numpy=True));",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(notebook, folder / "notebook.ipynb")


def _write_texts(folder: Path) -> None:
    """Write long texts, paragraphs of sentences, and pairs."""
    draw = random.Random(2)
    sentences = [" ".join(draw.choices([*WORDS, "breakfast", "yellow"], k=12)).capitalize() + "." for _ in range(600)]
    long = [" ".join(sentences[start : start + 75]) for start in range(0, 600, 75)]
    (folder / "long.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in long))
    paragraphs = [" ".join(sentences[start : start + 3]) for start in range(0, 120, 3)]
    (folder / "paragraphs.txt").write_text("\n".join(paragraphs) + "\n")
    blanks = [{"text": f"{first} [blank] {last}"} for first, last in zip(sentences[:6], sentences[6:12], strict=True)]
    (folder / "blanks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in blanks))
    pairs = "".join(f"the old dog ran {n}\tthe dog sat then {n}\n" for n in range(20))
    (folder / "pairs.tsv").write_text("first\tsecond\n" + pairs)


def _write_data(folder: Path) -> None:
    """Write the corpora of the tables under the names that the drivers look for."""
    draw = random.Random(3)
    write_rocstories(folder)
    write_story_cloze(folder)
    write_wikitext(folder)
    tags = {"the": "DT I-NP O", "cat": "NN I-NP I-PER", "sat": "VBD I-VP O", ".": ". O I-LOC"}
    for name, number in (("train", 40), ("testa", 12)):
        rows = [[draw.choice(list(tags)) for _ in range(draw.randint(2, 8))] for _ in range(number)]
        text = "\n\n".join("\n".join(f"{word} {tags[word]}" for word in row) for row in rows)
        (folder / f"eng.{name}.gz").write_bytes(gzip.compress(f"-DOCSTART- -X- O O\n\n{text}\n".encode()))
    texts = [" ".join(draw.choices(WORDS, k=6)) for _ in range(60)]
    scored = "".join(
        f"news\t{draw.uniform(0, 5):.1f}\t{one}\t{two}\n" for one, two in zip(texts, reversed(texts), strict=True)
    )
    (folder / "sts12.test.tsv.gz").write_bytes(gzip.compress(f"genre\tscore\tsentence1\tsentence2\n{scored}".encode()))
    (folder / "stsb.dev.csv.gz").write_bytes(
        gzip.compress(
            "".join(
                f"{one},{two},{place % 5}\n"
                for place, (one, two) in enumerate(zip(texts, reversed(texts), strict=True))
            ).encode()
        )
    )
    topics = "".join(json.dumps({"label": draw.choice("abc"), "subject": text, "text": "-"}) + "\n" for text in texts)
    (folder / "20news_bydate_train.jsonl.xz").write_bytes(lzma.compress(topics.encode()))
    write(folder / "mmlu_dev.jsonl.gz", make_rows(count=lambda place: 5))
    write(folder / "mmlu_test.jsonl.xz", make_rows(count=lambda place: 1))
