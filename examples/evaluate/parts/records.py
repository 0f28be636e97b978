"""Store records of measurements, one JSON line each, appended, never overwritten, and found by a resumed run.

A process that is killed while writing leaves an incomplete line, which readers skip with a warning and which the next
record does not continue.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers.utils.hub import extract_commit_hash

from modeling_magnet.bases import gemma3_270m
from modeling_magnet.sources_magnet import ADAPTER_CONFIG, ADAPTER_SETTINGS, CONFIG, ModelSource
from trainer.files import json_bytes, parse_json

# Further files of a folder that change the output of its weights.
_SETTINGS = (
    *(CONFIG, ADAPTER_CONFIG, ADAPTER_SETTINGS, "tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    *("modules.json", "sentence_bert_config.json", "*_Pooling/config.json"),
)
LIBRARIES = ("torch", "transformers", "peft", "datasets", "mteb", "lm_eval", "scikit-learn", "scipy", "seqeval")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One unit of a table, measured on one model.

    Args:
        table (`str`): What was measured, such as `"sts"`; also the name of the file.
        system (`str`): The row of the table.
        unit (`str`): The column, such as `"STS12"`.
        settings (`dict`): All that changes the figures: prompt, pooling, dtype, limits, preset.
        model (`dict`): See `identify`.
        seed (`int`): Of the measurement.
        replica (`int`): Which of several trainings of the system, such as its training seed.
        step (`int`, *optional*): Training step of the model, for curves.
        metrics (`dict[str, float]`): What was measured; empty where it could not be.
        counts (`dict[str, int]`): On how many sentences, tokens, ...
        by_text (`list[list[float]]`): For perplexities, the summed loss in nats and the number of tokens of each text.
        samples (`list[dict]`): Texts to show.
        unavailable (`str`, *optional*): Why it could not be measured here.
        seconds (`float`): How long it took.
        versions, hardware (`dict[str, str]`): With what.
        time (`str`): When it was done, UTC.
    """

    table: str
    system: str
    unit: str
    settings: dict[str, Any]
    model: dict[str, str | None]
    seed: int = 0
    replica: int = 0
    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    by_text: list[tuple[float, int]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    unavailable: str | None = None
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    time: str = ""

    @property
    def cell_key(self) -> str:
        """Return what identifies the cell of a table. A later record replaces it, even with other weights."""
        return _key(self)

    @property
    def measurement_key(self) -> str:
        """Return what identifies the measurement: two records with the same key have the same figures."""
        return _key(self, self.settings, self.model)


class RecordFile:
    """Manage the records of one table, `<folder>/<table>.jsonl`.

    Args:
        folder (`str` or `Path`): Made when the first record is written.
        table (`str`): Name of the table.
    """

    def __init__(self, folder: str | Path, table: str) -> None:
        if Path(folder).is_file():
            raise ValueError(f"`--results` {str(folder)!r} is a file; expected a folder, which may not exist yet.")
        self.path = Path(folder) / f"{table}.jsonl"

    def read(self) -> list[Record]:
        """Return all records, oldest first."""
        return list(read_records(self.path)) if self.path.is_file() else []

    def append(self, record: Record) -> None:
        """Append one record in one write, and wait until it is on disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json_bytes(asdict(record)) + b"\n"
        with open(self.path, "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)  # one write at the end of the file, because several processes may share it
            file.flush()
            os.fsync(file.fileno())


def read_records(path: Path) -> Iterator[Record]:
    """Yield the complete lines of a file of records."""
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            values = parse_json(line)
        except ValueError:
            warnings.warn(f"Line {number} of {str(path)!r} was not written to its end; it is skipped.", stacklevel=2)
            continue
        try:
            yield Record(**values)
        except TypeError as error:
            raise ValueError(f"Line {number} of {str(path)!r} is not a record ({error}). Remove it.") from error


def measured_records(records: Sequence[Record]) -> dict[str, Record]:
    """Return the newest record of each measurement by its key, without those that were not available."""
    return {record.measurement_key: record for record in records if record.unavailable is None}


def newest(records: Sequence[Record]) -> list[Record]:
    """Return the newest record of each cell."""
    return list({record.cell_key: record for record in records}.values())


def identify(model: str) -> dict[str, str | None]:
    """Identify a model so that other weights count as another model."""
    source = ModelSource(model, {})
    if source.is_packaged:
        return {"name": model, "revision": None, "weights": _of_base(source), "config": None}
    folder = Path(model)
    if folder.is_dir():
        files = [file for pattern in _SETTINGS for file in sorted(folder.glob(pattern))]
        name, weights = folder.resolve().name, _digest(folder)
        return {"name": name, "revision": None, "weights": weights, "config": digest_files(files)}
    file = source.file(CONFIG) or source.file(ADAPTER_CONFIG)
    if file is None:
        raise ValueError(
            f"{model!r} is not a directory here, and as a repository it has no {CONFIG} or {ADAPTER_CONFIG} that can "
            "be read. Check the name; without a network, only what was downloaded before is there."
        )
    base = source.adapter_base() if file.name == ADAPTER_CONFIG else None
    digest = None if base is None else hashlib.sha256(json.dumps(_of_base(base)).encode()).hexdigest()[:16]
    return {"name": model, "revision": extract_commit_hash(str(file), None), "weights": digest, "config": None}


def digest_files(files: Sequence[Path]) -> str:
    """Return digests that distinguish files of the same names, such as a driver's data, for settings of records."""
    digest = hashlib.sha256()
    for file in filter(Path.is_file, files):
        with file.open("rb") as stream:
            digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def conditions(device: str) -> dict[str, Any]:
    """Return versions, hardware and time as keywords of a record."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    is_gpu = device.startswith("cuda")
    name = torch.cuda.get_device_name(device) if is_gpu else platform.processor() or platform.machine()
    return {
        "versions": versions,
        "hardware": {"device": name, "threads": torch.get_num_threads()},
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _digest(folder: Path) -> str:
    """Return a digest of all weights of a folder, including the base of an adapter."""
    weights = digest_files(sorted([*folder.glob("*.safetensors"), *folder.glob("*model*.bin")]))
    base = ModelSource(str(folder), {}).adapter_base()
    if base is None:
        return weights
    return hashlib.sha256((weights + json.dumps(_of_base(base))).encode()).hexdigest()[:16]


def _of_base(base: ModelSource) -> Any:
    """Identify a base: by the digest of a GGUF file, or by `identify`."""
    if base.is_packaged:
        return gemma3_270m.SHA256[:16]
    gguf = base.gguf()
    return identify(base.path) if gguf is None else digest_files([gguf])


def _key(record: Record, *more: Any) -> str:
    """Return the values that distinguish records, as one string."""
    parts = [record.table, record.system, record.unit, record.seed, record.replica, record.step, *more]
    return json.dumps(parts, sort_keys=True)
