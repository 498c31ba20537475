"""NVIDIA's pickles are read as data: what they hold comes out exactly, and nothing in them runs."""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import struct
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small import refusal
from torch import nn

from dode.utils.files import FileError
from dode.zoo import pickles
from dode.zoo.pickles import Record, network, read

SOURCE = "raise SystemExit('this source code was executed')\n"  # as the real files, ours carry source code


class Persistent:
    """Pickles as an instance of one of NVIDIA's persistent classes: their function's name, and a description."""

    def __init__(self, kind: str, state: dict[str, Any], rebuild: Any) -> None:
        self.kind, self.state, self.rebuild = kind, state, rebuild

    def __reduce__(self) -> tuple[Any, ...]:
        meta = dict(type="class", version=6, module_src=SOURCE, class_name=self.kind, state=self.state)
        return self.rebuild, (meta,), None


class Nvidia:
    """Writes modules as NVIDIA's persistence would, without its code."""

    def __init__(self) -> None:
        persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")

        def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
            raise AssertionError("this function was called")

        _reconstruct_persistent_obj.__module__ = persistence.__name__
        _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
        persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
        util.EasyDict = type("EasyDict", (dict,), {"__module__": util.__name__})  # type: ignore[attr-defined]
        self.rebuild, self.easy = _reconstruct_persistent_obj, util.EasyDict  # type: ignore[attr-defined]
        self.modules = {
            "torch_utils": types.ModuleType("torch_utils"), "torch_utils.persistence": persistence,
            "dnnlib": types.ModuleType("dnnlib"), "dnnlib.util": util,
        }  # fmt: skip

    def persistent(self, kind: str, state: dict[str, Any]) -> Persistent:
        return Persistent(kind, state, self.rebuild)

    def module(self, module: nn.Module, kind: str, **arguments: Any) -> Any:
        """A module and all below it; a ``ModuleDict`` keeps torch's own class, as there."""
        children = OrderedDict((name, self.child(child, name)) for name, child in module.named_children())
        state = dict(vars(module)) | dict(
            _modules=children, _init_args=(), _init_kwargs=self.easy(arguments), skip_scale=np.sqrt(0.5)
        )
        return self.persistent(kind, {k: v for k, v in state.items() if not callable(v)})

    def child(self, module: nn.Module, name: str = "") -> Any:
        if isinstance(module, nn.Identity):  # theirs has no module, or one without parameters
            return self.persistent("PositionalEmbedding", dict(num_channels=128)) if name == "map_noise" else None
        if isinstance(module, nn.ModuleDict):
            copy = nn.ModuleDict()
            vars(copy)["_modules"] = OrderedDict((k, self.child(v)) for k, v in module.items())
            return copy
        return self.module(module, type(module).__name__)

    def dump(self, path: Path, root: Any, protocol: int = 4) -> Path:
        """The names exist while the file is written, and not when it is read."""
        sys.modules.update(self.modules)
        try:
            path.write_bytes(pickle.dumps(root, protocol=protocol))
        finally:
            for name in self.modules:
                del sys.modules[name]
        return path


def small() -> nn.Module:
    torch.manual_seed(0)
    inner = nn.ModuleDict({"8x8_conv": nn.Conv2d(3, 4, 3), "8x8_norm": nn.GroupNorm(2, 4)})
    outer = nn.Sequential()
    outer.add_module("enc", inner)
    outer.add_module("out", nn.Linear(4, 2, bias=False))
    outer.register_buffer("freqs", torch.randn(5))
    outer.register_buffer("scratch", torch.randn(5), persistent=False)
    return outer


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_what_is_in_the_file_comes_out(tmp_path: Path, nvidia: Nvidia, protocol: int) -> None:
    module = small()
    saved = nvidia.module(module, "SongUNet", img_resolution=8, channel_mult=[1, 2], gain=np.sqrt(0.2), none=None)
    root = dict(
        ema=saved, loss_fn=nvidia.persistent("EDMLoss", dict(P_mean=-1.2)), dataset_kwargs=nvidia.easy(path="x.zip")
    )
    found = network(nvidia.dump(tmp_path / "n.pkl", root, protocol))
    assert found.kind == "SongUNet" and list(found.children) == ["enc", "out"]
    assert found.children["enc"].kind == "ModuleDict" and found.children["enc"].children["8x8_conv"].kind == "Conv2d"
    assert found.arguments == ((), dict(img_resolution=8, channel_mult=[1, 2], gain=0.2**0.5, none=None))
    assert type(found.arguments[1]["gain"]) is float and found.state["skip_scale"] == 0.5**0.5
    wanted, given_ = module.state_dict(), found.tensors()
    assert list(given_) and given_.keys() == wanted.keys() and "scratch" not in given_
    for name, tensor in wanted.items():
        assert torch.equal(given_[name], tensor) and given_[name].dtype == tensor.dtype
    assert not {"torch_utils", "dnnlib"} & sys.modules.keys()


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_the_root_may_be_their_dictionary(tmp_path: Path, nvidia: Nvidia, protocol: int) -> None:
    """EDM2's training writes ``EasyDict(encoder=..., dataset_kwargs=..., loss_fn=..., ema=...)``."""
    root = nvidia.easy(encoder=nvidia.persistent("Encoder", {}), ema=nvidia.module(small(), "Precond", label_dim=3))
    path, wanted = tmp_path / "n.pkl", small().state_dict()
    found = network(nvidia.dump(path, root, protocol))
    assert found.kind == "Precond" and found.arguments == ((), dict(label_dim=3))
    assert found.tensors().keys() == wanted.keys() and torch.equal(found.tensors()["freqs"], wanted["freqs"])
    for root in (nvidia.easy(net=found.kind), nvidia.easy(), nvidia.easy(ema=3)):
        assert "holds no network of NVIDIA's under 'ema'" in refusal(nvidia.dump(path, root, protocol), network)
    path.write_bytes(b"\x80\x02cdnnlib.util\nEasyDict\n(K\x03tR.")  # EasyDict(3)
    assert "does not describe a network" in refusal(path, network)


def test_numbers_views_and_shared_storages(tmp_path: Path, nvidia: Nvidia) -> None:
    base = torch.arange(24, dtype=torch.float64).reshape(4, 6)
    state = dict(
        _parameters=OrderedDict(a=nn.Parameter(base[1:3, ::2].T), b=nn.Parameter(torch.ones(2).half())),
        _buffers=OrderedDict(count=torch.tensor(7), none=None), empty=torch.empty(0, 3),
        array=np.asfortranarray(np.arange(6.0).reshape(2, 3)), big=np.array([1, 2], dtype=">i4"), flag=np.bool_(True),
        several={1, 2}, nested=[(1, {"x": np.float32(2.5)})],
    )  # fmt: skip
    found = network(nvidia.dump(tmp_path / "n.pkl", nvidia.persistent("Anything", state)))
    tensors = found.tensors()
    assert tensors.keys() == {"a", "b", "count"} and torch.equal(tensors["a"], base[1:3, ::2].T)
    assert tensors["b"].dtype == torch.float16 and int(tensors["count"]) == 7 and found.state["empty"].shape == (0, 3)
    assert np.array_equal(found.state["array"], state["array"]) and found.state["big"].tolist() == [1, 2]
    assert found.state["flag"] is True and found.state["several"] == {1, 2}
    assert found.state["nested"] == [(1, {"x": 2.5})]


# --- what must not run ------------------------------------------------------------------------------------------


class Trap:
    """Unpickling one calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture
def sprung(tmp_path: Path) -> Iterator[Path]:
    """A file that every trap below would create."""
    path = tmp_path / "sprung"
    yield path
    assert not path.exists()


def text(value: str) -> bytes:
    raw = value.encode()
    return b"\x8c" + struct.pack("<B", len(raw)) + raw


def chain(path: Path) -> bytes:
    """``builtins.getattr(builtins.__import__("os"), "system")("touch ...")``, by STACK_GLOBAL."""
    name = lambda module, attribute: text(module) + text(attribute) + b"\x93"  # noqa: E731
    imported = name("builtins", "__import__") + text("os") + b"\x85R"
    function = name("builtins", "getattr") + imported + text("system") + b"\x86R"
    return b"\x80\x04" + function + text(f"touch {path}") + b"\x85R."


def written(module: str, name: str, argument: str) -> bytes:
    """The older spelling: ``GLOBAL``, a tuple, ``REDUCE``."""
    return b"\x80\x02" + f"c{module}\n{name}\n(V{argument}\ntR.".encode()


def programs(path: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that would create ``path``, each with what its refusal must name."""
    touch = f"touch {path}"
    return {
        "system": (pickle.dumps(Trap(os.system, touch)), "system"),
        "eval": (pickle.dumps(Trap(eval, f"open({str(path)!r}, 'w')")), "builtins.eval"),
        "path": (pickle.dumps({"ema": Trap(Path.touch, path)}), "pathlib"),
        "getattr": (chain(path), "builtins.getattr"),
        "old": (written("os", "system", touch), "os.system"),
        "dotted": (written("torch.storage", "io.os.system", touch), "torch.storage.io.os.system"),
        "dotted in theirs": (written("torch_utils.persistence", "os.system", touch), "persistence.os.system"),
        "INST": (b"\x80\x02" + f"(V{touch}\nios\nsystem\n.".encode(), "INST"),
        "OBJ": (b"\x80\x02" + f"(cos\nsystem\nV{touch}\no.".encode(), "os.system"),
        "torch": (written("torch", "hub.load", touch), "torch.hub.load"),
        "numpy": (written("numpy", "load", str(path)), "numpy.load"),
        "torch.load": (written("torch", "load", str(path)), "torch.load"),
        "persistent id": (b"\x80\x04" + text("x") + b"Q.", "BINPERSID"),
        "buffer": (b"\x80\x05\x96" + struct.pack("<Q", 1 << 60), "BYTEARRAY8"),
        "protocol": (b"\x80\xff.", "protocol"),
    }


@pytest.mark.parametrize("name", programs(Path("x")))
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, sprung: Path, name: str) -> None:
    raw, named = programs(sprung)[name]
    path = tmp_path / "evil.pkl"
    path.write_bytes(raw)
    assert named in refusal(path, network)


@pytest.mark.parametrize("name", ["system", "eval", "path", "getattr", "old", "INST", "OBJ"])
def test_the_traps_work(tmp_path: Path, name: str) -> None:
    """Else the test above would prove nothing."""
    path = tmp_path / "really"
    pickle.loads(programs(path)[name][0])
    assert path.exists()


def evil_state(nvidia: Nvidia, path: Path) -> dict[str, tuple[Any, str]]:
    """Traps at the places where a network has its parts."""
    zipped, legacy = io.BytesIO(), io.BytesIO()
    torch.save([Trap(os.system, f"touch {path}")], zipped)
    torch.save([Trap(os.system, f"touch {path}")], legacy, _use_new_zipfile_serialization=False)
    storage = lambda raw: Trap(torch.storage._load_from_bytes, raw)  # noqa: E731
    tensor = lambda raw, *view: Trap(torch._utils._rebuild_tensor_v2, storage(raw), *view)  # noqa: E731
    four = torch.arange(4.0).untyped_storage()
    good = torch.storage.TypedStorage(wrap_storage=four, dtype=torch.float32, _internal=True).__reduce__()[1][0]
    view = (0, (2,), (1,), False, OrderedDict())
    return {
        "in the state": (dict(_parameters=Trap(os.system, f"touch {path}")), "system"),
        "in the arguments": (dict(_init_kwargs=dict(a=Trap(os.system, f"touch {path}"))), "system"),
        "in torch's bytes": (dict(_parameters=dict(a=tensor(zipped.getvalue(), *view))), "system"),
        "in older bytes": (dict(_parameters=dict(a=tensor(legacy.getvalue(), *view))), "system"),
        "in older yet": (dict(_parameters=dict(a=tensor(b"cos\nsystem\n.", *view))), "os.system"),
        "in no bytes": (dict(_parameters=dict(a=tensor(b"", *view))), "cannot"),
        "a tensor too long": (dict(_parameters=dict(a=tensor(good, 0, (5,), (1,), False, None))), "beyond"),
        "a huge tensor": (dict(_parameters=dict(a=tensor(good, 0, (1 << 40,), (1 << 20,), False, None))), "beyond"),
        "a tensor from before": (dict(_parameters=dict(a=tensor(good, -1, (2,), (1,), False, None))), "beyond"),
        "objects of numpy": (dict(a=np.array([Trap(os.system, f"touch {path}")], dtype=object)), "system"),
        "pointers of numpy": (dict(a=Trap(np.dtype, "O8", False, True), b=np.float64(1)), "numbers"),
    }


@pytest.mark.parametrize("name", evil_state(Nvidia(), Path("x")))
def test_a_malicious_part_runs_nothing(tmp_path: Path, nvidia: Nvidia, sprung: Path, name: str) -> None:
    state, named = evil_state(nvidia, sprung)[name]
    path = nvidia.dump(tmp_path / "evil.pkl", dict(ema=nvidia.persistent("SongUNet", state)))
    assert named in refusal(path, network)


def test_extension_codes_are_out_of_reach(tmp_path: Path, sprung: Path) -> None:
    """copyreg's registry hands out objects without asking for their names, once they have been asked for."""
    copyreg.add_extension(os.system.__module__, "system", 77)
    try:
        warm = pickle.dumps(os.system, protocol=2)
        assert b"\x82\x4d" in warm and pickle.loads(warm) is os.system  # EXT1 77, and now cached
        path = tmp_path / "evil.pkl"
        for code in (b"\x82\x4d", b"\x83\x4d\x00", b"\x84\x4d\x00\x00\x00"):
            path.write_bytes(b"\x80\x02" + code + text(f"touch {sprung}") + b"\x85R.")
            assert "EXT" in refusal(path, network)
    finally:
        copyreg.remove_extension(os.system.__module__, "system", 77)


def test_records_are_inert_and_not_shared(tmp_path: Path, nvidia: Nvidia) -> None:
    """BUILD can set attributes on whatever it is given: on a type, that would outlive the file."""
    state = b"N}" + text("name") + text("os.system") + b"s\x86b"  # (None, {"name": "os.system"})
    path = tmp_path / "evil.pkl"
    for target in (b"", b")R"):  # the type; an instance
        path.write_bytes(b"\x80\x04ccollections\nOrderedDict\n" + target + state + b".")
        before = set(vars(Record))
        with pytest.raises(FileError):
            network(path)
        assert set(vars(Record)) == before
    first, second = (pickles.Reader(io.BytesIO(b"ccollections\nOrderedDict\n.")).load() for _ in range(2))
    assert first is not second and issubclass(first, Record) and not hasattr(OrderedDict, "state")


def test_nothing_admitted_can_be_called() -> None:
    """Every name on the list comes out as a record, whatever the arguments."""
    for full in pickles.ADMITTED:
        module, _, name = full.rpartition(".")
        found = pickles.Reader(io.BytesIO(f"c{module}\n{name}\n(Vx\ntR.".encode())).load()
        assert isinstance(found, Record) and found.args == ("x",) and found.name == full


def test_a_nest_of_shared_lists_is_read_once(tmp_path: Path, nvidia: Nvidia) -> None:
    """A list of two references to a list of two references, and so on: 2**200 leaves, were each walked."""
    nest: list[Any] = []
    for _ in range(200):
        nest = [nest, nest]
    assert network(nvidia.dump(tmp_path / "n.pkl", nvidia.persistent("Deep", dict(nest=nest)))).kind == "Deep"
    for _ in range(5000):
        nest = [nest]
    path, limit = tmp_path / "deep.pkl", sys.getrecursionlimit()
    sys.setrecursionlimit(40_000)
    try:
        nvidia.dump(path, nvidia.persistent("Deep", dict(nest=nest)))
    finally:
        sys.setrecursionlimit(limit)
    assert "does not describe a network" in refusal(path, network)


def test_files_that_are_no_networks(tmp_path: Path, nvidia: Nvidia) -> None:
    path = tmp_path / "n.pkl"
    assert "does not exist" in refusal(path, network)
    for raw in (b"", b"hello", b"PK\x03\x04", b"\x80\x04", b"\x80\x04N", pickle.dumps([1, 2])[:-1]):
        path.write_bytes(raw)
        assert "not a whole pickle" in refusal(path, network) or "is no pickle of protocol 2" in refusal(path, network)
    for root in ([1, 2], {"ema": 3}, {"net": 1}, None):
        path.write_bytes(pickle.dumps(root))
        assert "holds no network" in refusal(path, network)
    assert read(path) is None
    other = Persistent("SongUNet", {}, nvidia.rebuild)
    other.__class__ = type("Persistent", (Persistent,), {"__reduce__": lambda s: (s.rebuild, (dict(type="module"),))})
    assert "'module', not a class" in refusal(nvidia.dump(path, other), network)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    writer, path = Nvidia(), tmp_path_factory.mktemp("damage") / "n.pkl"
    return path, writer.dump(path, dict(ema=writer.module(small(), "SongUNet", a=1))).read_bytes()


places = st.tuples(st.integers(0, 1 << 20), st.integers(0, 3), st.binary(max_size=3))


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(places, min_size=1, max_size=4))
def test_no_damage_is_worse_than_a_message(whole: tuple[Path, bytes], damage: list[tuple[int, int, bytes]]) -> None:
    """Bytes changed, cut out or put in: the network, or one line."""
    path, raw = whole[0], bytearray(whole[1])
    for at, length, put in damage:
        raw[at % len(raw) : at % len(raw) + length] = put
    path.write_bytes(raw)
    try:
        network(path)
    except FileError as error:
        assert "\n" not in str(error)
