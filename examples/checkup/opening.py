"""Open a directory or Hub id and collect facts about its files."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import AutoModel

from examples.checkup.findings import Finding, judged
from modeling_magnet import FAMILIES, AutoMagnetForCausalLM
from modeling_magnet.publishing import check_weights
from modeling_magnet.sources_magnet import ModelSource

Kind = Literal["plain decoder", "checkpoint", "adapter"]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model and where it came from."""

    model: Any
    loading: dict[str, Any]
    source: ModelSource
    base: ModelSource | None
    values: dict[str, Any]
    kind: Kind
    seconds: float

    @property
    def own_class(self) -> type[Any]:
        """Return the class of the installed package for this family, even if remote code was loaded."""
        return FAMILIES[self.values["model_type"]]

    def is_causal_embedder(self) -> bool:
        """Return whether sentence-transformers would use these files without a decoder of ours, causally."""
        return self.kind == "plain decoder" or (self.kind == "adapter" and "is_causal" not in self.values)


def open_model(
    path: str,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    revision: str | None = None,
    gguf_file: str | None = None,
    mask_token: str | None = None,
    trust_remote_code: bool = False,
) -> Opened:
    """Open a plain decoder, a checkpoint or an adapter."""
    given = {"revision": revision, "gguf_file": gguf_file}
    where = {name: value for name, value in given.items() if value is not None}
    source = ModelSource(path, where)
    base = source.adapter_base()
    values = (base or source).config_values()
    for place in (source, base):
        if place is not None:
            check_weights(place)
    kind: Kind = "adapter" if base is not None else "checkpoint" if "magnet" in values else "plain decoder"
    arguments: dict[str, Any] = {**where, "dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    if mask_token is not None:
        arguments["mask_token"] = mask_token
    opener: Any = AutoMagnetForCausalLM
    if trust_remote_code:
        opener, arguments["trust_remote_code"] = AutoModel, True
    start = time.monotonic()
    model, loading = opener.from_pretrained(path, output_loading_info=True, **arguments)
    model.eval().to(device)
    seconds = time.monotonic() - start
    return Opened(model=model, loading=loading, source=source, base=base, values=values, kind=kind, seconds=seconds)


def opening_findings(opened: Opened, *, trust_remote_code: bool) -> Iterator[Finding]:
    """Report the kind of model, missing and unexpected tensors, and non-finite weights."""
    model = opened.model
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    code = "remote code" if trust_remote_code else "the package"
    is_remote = type(model).__module__.startswith("transformers_modules.")
    described = (
        f"{opened.kind}, as {type(model).__name__} of {code}; {num_parameters:,} parameters, "
        f"{str(model.dtype).removeprefix('torch.')} on {model.device}"
    )
    if trust_remote_code and not is_remote:
        described += f"; but its class is of {type(model).__module__}, not of the model's own files"
    yield judged("opens", is_remote == trust_remote_code, described)
    missing, unexpected = (sorted(opened.loading[kind]) for kind in ("missing_keys", "unexpected_keys"))
    keys = f"{len(missing)} missing, {len(unexpected)} unexpected"
    detail = "".join(f"; {name}" for name in [*missing, *unexpected][:3])
    yield judged("weights fit the class", not missing and not unexpected, keys + detail)
    odd = [name for name, tensor in model.named_parameters() if not bool(tensor.isfinite().all())]
    detail = f"{len(odd)} tensors with NaN or infinity" + "".join(f", such as {name}" for name in odd[:1])
    yield judged("weights are numbers", not odd, detail)
