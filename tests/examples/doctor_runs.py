"""Run the doctor for tests, and break the models that it checks."""

import json

from safetensors.torch import load_file, save_file

from examples import doctor

FAMILY_NAMES = ("llama", "gemma3_text", "mistral")
BOUND = ["bidirectional", "infill"]


def rows_of(tmp_path, model, *arguments):
    """Return the exit code and the findings by name."""
    file = tmp_path / "doctor.json"
    code = doctor.main([f"--model={model}", *arguments, "--output", str(file)])
    rows = {row["name"]: row for row in json.loads(file.read_text())["findings"]} if file.exists() else {}
    return code, rows


def names_of(rows, outcome):
    return {name for name, row in rows.items() if row["outcome"] == outcome}


def edit_json(file, **changes):
    values = json.loads(file.read_text())
    for key, value in changes.items():
        if value is None:
            del values[key]
        else:
            values[key] = value
    file.write_text(json.dumps(values))


def edit_weights(folder, change):
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})
