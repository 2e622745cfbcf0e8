"""Anybody's checkpoint is read whole, without running code in it, or refused with what is wrong in it."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgekit.errors import CheckpointError
from edgekit.models import checkpoint


def net() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.Linear(4, 5))


STATE = net().state_dict()


@pytest.fixture
def saved(tmp_path):
    """Write an object as .safetensors or with torch.save, by the file's suffix; returns its path."""

    def saved(name, content, **how):
        if name.endswith(".safetensors"):
            save_file(content, tmp_path / name)
        else:
            torch.save(content, tmp_path / name, **how)
        return tmp_path / name

    return saved


def assert_is_state(read: dict) -> None:
    assert read.keys() == STATE.keys()
    assert all(torch.equal(read[k], v) for k, v in STATE.items())


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.pth", "a.bin"])
def test_a_bare_state_dict_is_read(saved, name):
    assert_is_state(checkpoint.read_state(saved(name, STATE)))


def test_torchs_format_before_zip_is_read(saved):
    assert_is_state(checkpoint.read_state(saved("a.pt", STATE, _use_new_zipfile_serialization=False)))


@pytest.mark.parametrize("wrapper", checkpoint.WRAPPERS)
def test_wrappers_are_opened_and_what_lies_beside_is_left(saved, wrapper):
    path = saved("a.pt", {wrapper: STATE, "epoch": 7, "optimizer": {"state": {}}, "best": 0.3})
    assert_is_state(checkpoint.read_state(path))


def test_data_parallels_prefix_is_dropped(saved):
    assert_is_state(checkpoint.read_state(saved("a.pt", {"state_dict": {f"module.{k}": v for k, v in STATE.items()}})))


def test_a_prefix_on_some_keys_only_is_part_of_their_names(saved):
    assert set(checkpoint.read_state(saved("a.pt", {"module.a": torch.ones(1), "b": torch.ones(1)}))) == {"module.a", "b"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_other_floats_are_widened_or_narrowed_and_counters_kept(saved, dtype, name):
    read = checkpoint.read_state(saved(name, {k: v.to(dtype) if v.is_floating_point() else v for k, v in STATE.items()}))
    assert read["0.weight"].dtype is torch.float32 and torch.equal(read["0.weight"], STATE["0.weight"].to(dtype).float())
    assert read["1.num_batches_tracked"].dtype is torch.int64


class Boom:
    """Unpickled, it makes a folder: proof that code ran."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("how", ["torch", "torch before zip", "pickle 2", "pickle 5", "a whole module"])
def test_pickled_objects_are_refused_and_not_run(saved, tmp_path, how):
    bomb = tmp_path / "code-ran"
    if how.startswith("pickle"):
        path = tmp_path / "evil.pt"
        path.write_bytes(pickle.dumps({"0.weight": Boom(bomb)}, protocol=int(how[-1])))
    elif how == "a whole module":
        path = saved("evil.pt", net())
    else:
        path = saved("evil.pt", {**STATE, "extra": Boom(bomb)}, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(CheckpointError, match=r"evil.pt: .*Python objects besides weights.*\n  hint: save only `model.state_dict\(\)`"):
        checkpoint.read_state(path)
    assert not bomb.exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize(("name", "how"), [("a.safetensors", {}), ("a.pt", {}), ("a.pt", {"_use_new_zipfile_serialization": False})], ids=["safetensors", "zip", "old"])
def test_a_truncated_file_is_refused(saved, name, how, share):
    path = saved(name, STATE, **how)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(CheckpointError, match=r"a\.\w+: not a.* (torch checkpoint|safetensors file).*\n  hint: copy it again"):
        checkpoint.read_state(path)


@pytest.mark.parametrize(("name", "how"), [("a.safetensors", {}), ("a.pt", {}), ("a.pt", {"_use_new_zipfile_serialization": False})], ids=["safetensors", "zip", "old"])
def test_wrong_bytes_end_in_one_clear_error_or_in_tensors(saved, name, how, recwarn):
    path = saved(name, STATE, **how)
    raw, rng = path.read_bytes(), np.random.default_rng(4)
    for _ in range(60):
        damaged = bytearray(raw)
        for at in rng.integers(0, min(len(raw), 900), 20):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert checkpoint.read_state(path)
        except CheckpointError as error:
            assert str(path) in str(error) and "\n" not in error.message
    assert not recwarn.list


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no tensors"),
        ({"state_dict": {}}, "holds no tensors"),
        ({"lr": 0.1, "name": "net"}, "holds no tensors"),
        ({0: torch.ones(2)}, "holds no tensors"),
        ([torch.ones(2)], "holds a list, not a state dict"),
        (torch.ones(2), "holds a Tensor, not a state dict"),
    ],
)
def test_a_file_without_a_state_dict_is_refused(saved, content, message):
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read_state(saved("a.pt", content))


def test_a_file_that_is_none_of_it_is_refused(tmp_path):
    (tmp_path / "notes.pt").write_text("dear diary\n" * 20)
    with pytest.raises(CheckpointError, match="not a"):
        checkpoint.read_state(tmp_path / "notes.pt")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.read_state(tmp_path / "absent.pt")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.read_state(tmp_path)


def test_loading_fills_the_module_and_reports_what_it_has_no_use_for(tmp_path):
    module = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.Linear(4, 5))
    extra = {**STATE, "head.weight": torch.ones(3), "head.bias": torch.full((3,), float("nan"))}
    assert checkpoint.load_into(module, extra, tmp_path) == ["head.bias", "head.weight"]
    assert all(torch.equal(module.state_dict()[k], v) for k, v in STATE.items())


def test_batch_norms_counter_and_optional_keys_may_be_missing(tmp_path):
    partial = {k: v for k, v in STATE.items() if k not in ("1.num_batches_tracked", "2.bias")}
    assert checkpoint.load_into(net(), partial, tmp_path, optional=("2.bias",)) == []
    with pytest.raises(CheckpointError, match="1 weights are missing: 2.bias"):
        checkpoint.load_into(net(), partial, tmp_path)


def test_missing_keys_are_named_with_the_nearest_in_the_file(tmp_path):
    misspelt = {("2.wieght" if k == "2.weight" else k): v for k, v in STATE.items()}
    with pytest.raises(CheckpointError, match=r"1 weights are missing: 2\.weight\n  hint: the nearest key in the file is `2\.wieght`"):
        checkpoint.load_into(net(), misspelt, tmp_path)


def test_another_models_checkpoint_is_told_from_a_partial_one(tmp_path):
    other = {f"encoder.layers.{i}.weight": torch.ones(2) for i in range(3)}
    with pytest.raises(CheckpointError, match=r"another model's checkpoint: 8 of 9 weights are missing, first `0.weight`; it has `encoder.layers.0.weight`\n  hint: check `load.model`"):
        checkpoint.load_into(net(), other, tmp_path)


def test_another_shape_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"`2.weight` is \[5, 7\], this model has \[5, 4\]\n  hint: check `load.config`"):
        checkpoint.load_into(net(), {**STATE, "2.weight": torch.ones(5, 7)}, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_counted_and_named(tmp_path, value):
    bad = STATE["2.weight"].clone()
    bad[1, :2] = value
    with pytest.raises(CheckpointError, match="`2.weight` has 2 values that are NaN or infinite"):
        checkpoint.load_into(net(), {**STATE, "2.weight": bad}, tmp_path)


@pytest.mark.parametrize("value", [torch.ones(5, 4, dtype=torch.int8), torch.ones(5, 4).to_sparse(), torch.ones(5, 4, dtype=torch.complex64)], ids=["int8", "sparse", "complex"])
def test_weights_that_are_not_plain_floats_are_refused(tmp_path, value):
    with pytest.raises(CheckpointError, match="`2.weight` holds torch.*, not plain floats"):
        checkpoint.load_into(net(), {**STATE, "2.weight": value}, tmp_path)


def test_a_refused_checkpoint_leaves_the_module_as_it_was(tmp_path):
    module = net()
    with pytest.raises(CheckpointError):
        checkpoint.load_into(module, {**{k: v + 1 for k, v in STATE.items()}, "2.bias": torch.full((5,), float("nan"))}, tmp_path)
    assert all(torch.equal(module.state_dict()[k], v) for k, v in STATE.items())


def test_a_packed_checkpoint_that_is_cut_off_or_a_bomb_is_refused(tmp_path, monkeypatch):
    import lzma

    from safetensors.torch import save

    whole = checkpoint.pack(save({"weight": torch.randn(64, 64).half()}))
    path = tmp_path / "x.safetensors.xz"
    for broken in (whole[:-20], whole[:100], b"not xz at all", lzma.compress(b"no safetensors"), whole[:200] + bytes(50) + whole[250:]):
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"x\.safetensors\.xz: not a whole \.safetensors\.xz"):
            checkpoint.read_state(path)
    monkeypatch.setattr(checkpoint, "MAX_UNPACKED", 1 << 20)
    path.write_bytes(lzma.compress(bytes(1 << 22)))
    assert path.stat().st_size < 1000
    with pytest.raises(CheckpointError, match="unpacks to more than"):
        checkpoint.read_state(path)
