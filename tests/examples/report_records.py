"""Make records for the tests of the report. Their figures are invented and must not leave the tests."""

from examples.evaluate.parts.records import Record, RecordFile

TIME = "2026-11-21T12:00:00+00:00"
STS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICK-R")


def make_record(table, system, unit, *, weights=None, settings=None, **fields):
    """Return a record with all fields that a driver writes; the weights depend on system and replica."""
    replica = fields.get("replica", 0)
    return Record(
        table=table,
        system=system,
        unit=unit,
        settings={"dtype": "float32", "preset": "paper", **(settings or {})},
        model={"name": "tiny", "revision": None, "weights": weights or f"{system}-{replica}"},
        **{"seconds": 2.0, "time": TIME, "versions": {"torch": "2.13"}, "hardware": {"device": "cpu"}, **fields},
    )


def write(folder, records):
    """Write records as the drivers do."""
    for record in records:
        RecordFile(folder, record.table).append(record)
    return folder


def replicas(table, system, unit, metric, values, **fields):
    """Return one record per training."""
    return [
        make_record(table, system, unit, metrics={metric: value}, replica=number, **fields)
        for number, value in enumerate(values)
    ]


def whole_study():
    """Return records for every table, with peers, curves, samples and unavailable cells; MAGNET matches the paper."""
    records = []
    for unit, height in (("chunking", 60.0), ("ner", 70.0), ("pos", 80.0)):
        for system, gain in (("base, causal", 0.0), ("LLM2Vec recipe", 2.0), ("MNTP", 3.0), ("MAGNET", 5.0)):
            values = [height + gain] if system == "base, causal" else [height + gain - 0.25, height + gain + 0.25]
            records += replicas("words", system, unit, "accuracy", values, counts={"sentences": 3453})
    records.append(make_record("words", "tiny-bert", "pos", metrics={"accuracy": 85.0, "f1": 84.0}))
    records.append(make_record("words", "tiny-bert", "ner", unavailable="no CoNLL-2003 <here>"))
    for number, unit in enumerate(STS):
        for system, gain in (("base, causal", 0.0), ("Echo", 1.0), ("LLM2Vec recipe", 5.0), ("MAGNET", 8.0)):
            records += replicas("sts", system, unit, "spearman", [30.0 + number + gain, 30.5 + number + gain])
    for system, value in (("LLM2Vec recipe", 10.0), ("MAGNET", 12.0)):
        records += replicas("clustering", system, "TwentyNewsgroupsClustering", "v_measure", [value, value + 0.1])
    for unit in ("ROCStories", "WikiText"):
        for reading, value in (("left", 40.0), ("infill", 300.0)):
            records += replicas("infilling", "base", unit, "perplexity", [value], settings={"reading": reading})
        magnet = {"settings": {"reading": "infill"}}
        records += replicas("infilling", "MAGNET", unit, "perplexity", [30.0, 31.0], **magnet)
        for step in (100, 200, 300):
            records += replicas("infilling", "MAGNET", unit, "perplexity", [40 - step / 30.0], step=step, **magnet)
        records += repetition(unit)
    for system, value in (("base", 30.0), ("MAGNET", 29.0)):
        records.append(make_record("mmlu", system, "average", metrics={"accuracy": value, "stderr": 0.1}))
        records += replicas("perplexity", system, "WikiText", "perplexity", [20.0 if system == "base" else 21.0])
    for system, reading, hits in (("MAGNET", "infilling", "1111100000"), ("base", "left to right", "1000010000")):
        unit, fields = f"third sentence, {reading}", {"metrics": {"accuracy": 50.0}, "samples": [{"hits": hits}]}
        records.append(make_record("story_cloze", system, unit, **fields))
    for step in (0, 50, 100):
        for system, change in (("MNTP", 0.002), ("MTP", -0.001)):
            metrics = {"masked_accuracy": 0.2 + change * step, "loss_mntp": 5.0 - 0.01 * step}
            records.append(make_record("curves", system, "training", metrics=metrics, step=step))
    return records + samples()


def repetition(unit):
    """Return records of the base once and of two systems over steps, in which only the recipe's repetition grows."""
    final = {"base": [0.05], "LLM2Vec recipe": [0.5, 0.52], "MAGNET": [0.1, 0.11]}
    cells = {(system, number, None): value for system, values in final.items() for number, value in enumerate(values)}
    for number, step in enumerate((100, 200, 300)):
        cells["LLM2Vec recipe", 0, step] = 0.2 + 0.15 * number
        cells["MAGNET", 0, step] = 0.1 + 0.01 * (number % 2)
    return [
        make_record("repetition", system, unit, replica=replica, step=step, metrics={"rep_sen": value, "rep_4": value})
        for (system, replica, step), value in cells.items()
    ]


def samples():
    """Return samples of two systems and one story, with texts that try to break out of the page."""
    fills = {"MAGNET": "<script>alert('x')</script>", "unidirectional": "| `code` *stars* [link](javascript:alert(1))"}
    return [
        make_record(
            "side_by_side",
            system,
            "infilling",
            samples=[{"title": "Story 1", "prefix": "Tom ran & ran.", "fill": fill, "suffix": "He won </article>."}],
        )
        for system, fill in fills.items()
    ]
