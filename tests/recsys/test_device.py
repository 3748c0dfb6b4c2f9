from __future__ import annotations

import pytest
import torch

from recsys.device import resolve_device
from recsys.errors import DeviceUnavailable, InvalidConfig


def test_a_cpu_is_a_cpu():
    assert resolve_device("cpu") == "cpu"


@pytest.mark.parametrize(("there", "device"), [(True, "cuda"), (False, "cpu")])
def test_auto_takes_cuda_where_it_is_there(monkeypatch, there, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert resolve_device("auto") == device


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1"])
def test_cuda_devices_that_are_there_keep_their_name(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device(name) == name


@pytest.mark.parametrize(("name", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_cuda_devices_that_are_not_there_are_refused(monkeypatch, name, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(
        DeviceUnavailable, match=rf"device '{name}' is not there, {count} CUDA devices are; use \"cpu\""
    ):
        resolve_device(name)


@pytest.mark.parametrize(
    "name", ["gpu", "", "cuda:", "cuda:x", "cuda:-1", "cuda:²", "cuda0", "CPU", "cpu:0", "cuda:0\n"]
)
def test_other_names_are_refused(name):
    with pytest.raises(InvalidConfig, match='is not known; use "auto", "cpu", "cuda" or "cuda:N"'):
        resolve_device(name)
