"""A training run that is killed, told to end, or finds no room on the disk at random moments: same rows and bits."""

import json
import resource
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.faults.harness import SEEDS, limited, run_until_done, sent
from tests.trainer.tiny import tiny_args, tiny_model, tiny_pairs, tiny_rows, tiny_trainer
from trainer.checkpoints import last_complete_checkpoint

ATTEMPT = "an attempt begins"


def train(folder: Path) -> None:
    """Thirty steps with a checkpoint at every fifth, and the rows of every step on record."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file that is too large is an error of writing, as a full disk
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
    with (folder / "rows.jsonl").open("a", encoding="utf-8") as record:
        record.write(f"\n{ATTEMPT}\n")  # a line of its own, also behind one that was cut off

        def compute_and_record(model, inputs, *arguments, **more):
            step = [trainer.state.global_step, inputs["row_ids"], inputs["epochs"], inputs.get("pair_micro_batch")]
            record.write(json.dumps(step) + "\n")
            record.flush()
            return compute(model, inputs, *arguments, **more)

        trainer.compute_loss = compute_and_record
        (folder / "started").touch()
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder / "run") is not None or None)
    torch.save(trainer.model.state_dict(), folder / "end.pt")


def rows_of_steps(folder: Path) -> dict[int, list]:
    """The micro-batches that each step was made of, as it was made last: an attempt undoes what it makes again."""
    steps: dict[int, list] = {}
    begins = False
    for line in (folder / "rows.jsonl").read_text().splitlines():
        if line == ATTEMPT:
            begins = True
            continue
        try:
            step, *rows = json.loads(line)
        except ValueError:
            continue  # cut off with the process
        if begins:
            steps = {number: made for number, made in steps.items() if number < step}
            begins = False
        steps.setdefault(step, []).append(rows)
    return steps


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run that was left alone, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    outcome = run_until_done(train, folder, disturb=lambda *_: None, seed=0)
    assert outcome.attempts == 1
    return folder, outcome.seconds


FAULTS = {
    "SIGKILL": partial(sent, signal.SIGKILL),
    "SIGTERM": partial(sent, signal.SIGTERM),
    "full disk": partial(limited, resource.RLIMIT_FSIZE, (0, 30_000)),
}


@pytest.mark.long
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_disturbed_run_ends_as_an_undisturbed_one(tmp_path, undisturbed, fault, seed):
    whole, seconds = undisturbed
    outcome = run_until_done(train, tmp_path, disturb=FAULTS[fault](within=seconds / 2), seed=seed)
    assert outcome.disturbed >= 1, "no attempt met the fault: nothing was shown"
    expected, found = (torch.load(folder / "end.pt", weights_only=True) for folder in (whole, tmp_path))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert rows_of_steps(tmp_path) == rows_of_steps(whole), "a row was lost or read twice"
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == sorted(
        path.name for path in (whole / "run").glob("checkpoint-*")
    )
