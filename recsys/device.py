"""Which device a fit or a request runs on, decided in one place."""

import re

from recsys.errors import DeviceUnavailable, InvalidConfig


def resolve_device(name: str) -> str:
    """Turn a configured device into one that is there.

    Args:
        name: "auto" (CUDA where there is one, else the CPU), "cpu", "cuda" or "cuda:N".

    Raises:
        InvalidConfig: another name.
        DeviceUnavailable: CUDA, or that many CUDA devices, are not there.
    """
    import torch

    if name == "cpu":
        return name
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    matched = re.fullmatch("cuda(?::([0-9]+))?", name)
    if matched is None:
        raise InvalidConfig(f'device {name!r} is not known; use "auto", "cpu", "cuda" or "cuda:N"')
    if int(matched[1] or 0) >= torch.cuda.device_count():
        raise DeviceUnavailable(
            f'device {name!r} is not there, {torch.cuda.device_count()} CUDA devices are; use "cpu" or "auto"'
        )
    return name
