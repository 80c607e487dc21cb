"""Voices in from outside and out again, through the jail; and what hostile files come to."""

import dataclasses
import io
import os
import pickle
import zipfile
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

from services.common.errors import Reason, VoxfleetError
from services.common.jail.running import BrokenError, run_jailed
from services.common.jail.work import JailLimits
from services.engines.rvc import exchange
from services.engines.rvc.community import read_pth, write_pth
from services.engines.rvc.config import TINY_40K, V2_40K
from services.engines.rvc.exchange import Opened, open_voice, write_voice
from services.engines.rvc.package import unpack_voice
from services.engines.rvc.retrieval import IndexParts, blend, build_index, load_index, take_apart
from services.engines.rvc.synthesizer import Synthesizer
from services.engines.rvc.voice import VoiceFacts, inference_weights, load_weights_of, read_facts

SMALL = dataclasses.replace(TINY_40K, content_width=768)


def weights_of(config):
    return inference_weights(Synthesizer(config).state_dict())


def pth(shape=SMALL, **changes):
    sink = io.BytesIO()
    write_pth(VoiceFacts(shape, "contentvec", training={"info": "by hand"}), weights_of(shape), sink)
    if changes:
        sink.seek(0)
        document = {**torch.load(sink, weights_only=True), **changes}
        sink = io.BytesIO()
        torch.save(document, sink)
    return sink.getvalue()


def index_file(width=768, count=200):
    vectors = np.random.default_rng(0).standard_normal((count, width)).astype(np.float32)
    return faiss.serialize_index(build_index(vectors).index).tobytes()


async def through(tmp_path, model, index=None, **limits):
    """Both processes of an import; returns what they say and the package."""
    inputs = {"model": tmp_path / "model"}
    inputs["model"].write_bytes(model)
    if index is not None:
        inputs["index"] = tmp_path / "index"
        inputs["index"].write_bytes(index)
    plain = {name: tmp_path / f"plain-{name}" for name in ("weights", "vectors", "centres")}
    found = await run_jailed(
        "services.engines.rvc.exchange:OPEN",
        inputs=inputs,
        outputs=plain,
        facts={"name": "voice.pth", "index_name": "added.index"},
        limits=JailLimits(**limits),
    )
    package = tmp_path / "package"
    made = await run_jailed(
        "services.engines.rvc.exchange:WRITE",
        inputs=plain,
        outputs={"package": package},
        facts={**found, "more": {"licence": "CC0-1.0"}},
        limits=JailLimits(**limits),
    )
    return made, package


async def test_a_full_voice_goes_through_the_jail_and_out_again_unchanged(tmp_path):
    """Upstream's own size, with every key in its place, and an index that finds what it found."""
    model, index = pth(V2_40K), index_file(count=2000)
    made, package = await through(tmp_path, model, index)
    assert made == {"content_encoder": "contentvec", "rate_hz": 40_000, "trained": True, "vectors": 2000}
    unpack_voice(package, tmp_path / "voice")
    facts = read_facts(tmp_path / "voice")
    assert (facts.training["licence"], facts.training["info"]) == ("CC0-1.0", "by hand")
    incompatible = Synthesizer(V2_40K, with_posterior=False).load_state_dict(
        load_weights_of(tmp_path / "voice", facts), strict=False
    )
    assert (incompatible.missing_keys, incompatible.unexpected_keys) == ([], [])
    given = tmp_path / "given.index"
    given.write_bytes(index)
    features = np.random.default_rng(1).standard_normal((50, 768)).astype(np.float32)
    before, after = (
        blend(load_index(path), features, 0.7) for path in (given, tmp_path / "voice" / "index.faiss")
    )
    assert np.array_equal(before, after)

    outputs = {"pth": tmp_path / "out.pth", "index": tmp_path / "out.index"}
    said = await run_jailed(
        "services.engines.rvc.exchange:EXPORT", inputs={"package": package}, outputs=outputs
    )
    assert said == {"index": True}
    first, last = (read_pth(io.BytesIO(data), "it") for data in (model, outputs["pth"].read_bytes()))
    assert (first.config, first.info) == (last.config, last.info)
    assert all(torch.equal(first.weights[name], last.weights[name]) for name in first.weights)
    assert outputs["index"].read_bytes() == index


async def test_our_own_package_comes_in_again_to_the_same_voice(tmp_path):
    config = dataclasses.replace(TINY_40K, content_width=512)
    parts = take_apart(index_file(width=512), "index")
    sink = io.BytesIO()
    facts = VoiceFacts(config, "whisper-base", training={"steps": 12, "loss": [1, 2], "epochs": 3})
    write_voice(Opened(facts, weights_of(config), parts), sink)
    made, package = await through(tmp_path, sink.getvalue())
    assert (made["content_encoder"], made["vectors"], made["trained"]) == ("whisper-base", 200, True)
    with zipfile.ZipFile(sink) as before, zipfile.ZipFile(package) as after:
        for name in ("model.safetensors", "index.faiss"):
            assert before.read(name) == after.read(name)
    unpack_voice(package, tmp_path / "voice")
    assert read_facts(tmp_path / "voice").training == {"steps": 12, "epochs": 3, "licence": "CC0-1.0"}


class Runs:
    """What a pickle does as it is opened."""

    def __init__(self, call, *arguments):
        self.call = call, arguments

    def __reduce__(self):
        return self.call


def _pickled(thing, *, raw=False):
    if raw:
        return pickle.dumps(thing)
    sink = io.BytesIO()
    torch.save(thing, sink)
    return sink.getvalue()


def _bomb():
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 28))
    return sink.getvalue()


def _liar():
    """A zip whose directory says that an entry has four gibibytes."""
    data = bytearray(pth())
    at = data.index(b"PK\x01\x02")
    data[at + 20 : at + 28] = b"\xfe\xff\xff\xff" * 2
    return bytes(data)


def _many():
    tensor = torch.zeros(1)
    return _pickled({"weight": {f"w{number}": tensor for number in range(1_000_000)}, "config": []})


def _huge_claim():
    weights = weights_of(SMALL)
    weights["emb_g.weight"] = torch.zeros(1, dtype=torch.float16).expand(1 << 20, 1 << 20)
    return pth(weight=weights)


def _config(**values):
    config = SMALL.to_list()
    for at, value in values.items():
        config[int(at[1:])] = value
    return pth(config=config)


MARKER = "/tmp/voxfleet-hostile-pickle-ran"
HOSTILE = {
    "runs a command": lambda: _pickled({"weight": Runs(os.system, f"touch {MARKER}")}),
    "runs a command, no zip": lambda: _pickled(Runs(os.system, f"touch {MARKER}"), raw=True),
    "opens a socket": lambda: _pickled({"weight": Runs(__import__("socket").create_connection, ("::1", 9))}),
    "never ends": lambda: _pickled({"weight": Runs(__import__("time").sleep, 1e9)}),
    "zip bomb": _bomb,
    "lies of its size": _liar,
    "truncated": lambda: pth()[:-1000],
    "empty": lambda: b"",
    "a text": lambda: b"this is no model\n" * 50,
    "a million tensors": _many,
    "a tensor of a terabyte": _huge_claim,
    "a million layers": lambda: _config(_6=1_000_000),
    "a rate of a megahertz": lambda: _config(_12=[1000, 10], _14=[16, 16], _17=1_000_000),
    "a negative size": lambda: _config(_3=-32),
    "sizes that are none": lambda: _config(_3="many"),
    "no dilation": lambda: _config(_11=[[0, -1, 1 << 40]]),
    "not a number in it": lambda: pth(
        weight={name: tensor * float("nan") for name, tensor in weights_of(SMALL).items()}
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_model_is_refused(what):
    """By the reader itself; beneath it is the jail, which ``tests/unit/jail`` tries."""
    with pytest.raises(VoxfleetError) as caught:
        open_voice(io.BytesIO(HOSTILE[what]()), "voice.pth")
    assert caught.value.reason is Reason.MODEL_CORRUPT
    assert not Path(MARKER).exists()


async def test_memory_that_a_pickle_asks_for_is_refused_by_the_jail(tmp_path):
    """torch itself lets a pickle make a bytearray, of whatever length."""
    with pytest.raises(BrokenError) as caught:
        await through(tmp_path, _pickled({"weight": Runs(bytearray, 50 << 30)}), memory_bytes=1 << 30)
    assert caught.value.cause == "memory"


@pytest.mark.parametrize("what", ["runs a command", "a million tensors", "truncated"])
async def test_the_refusal_comes_out_of_the_jail(tmp_path, what):
    with pytest.raises(VoxfleetError) as caught:
        await through(tmp_path, HOSTILE[what]())
    assert caught.value.reason is Reason.MODEL_CORRUPT
    assert "voice.pth" in caught.value.message
    assert not os.path.exists(MARKER)  # noqa: ASYNC240, PTH110


def _altered(at, value):
    data = bytearray(index_file())
    data[at : at + len(value)] = value
    return bytes(data)


def _not_finite():
    vectors = np.random.default_rng(0).standard_normal((200, 768)).astype(np.float32)
    return index_file().replace(vectors[7].tobytes(), np.full(768, np.inf, dtype=np.float32).tobytes())


def _other_kind():
    index = faiss.IndexFlatL2(768)
    index.add(np.eye(4, 768, dtype=np.float32))
    return faiss.serialize_index(index).tobytes()


def _many_vectors():
    coarse = faiss.IndexFlatL2(8)
    coarse.add(np.zeros((1, 8), dtype=np.float32))
    index = faiss.IndexIVFFlat(coarse, 8, 1)
    index.is_trained = True
    index.add(np.zeros((1 << 20, 8), dtype=np.float32))
    data = bytearray(faiss.serialize_index(index).tobytes())
    return bytes(data).replace((8).to_bytes(4, "little"), (768).to_bytes(4, "little"))


HOSTILE_INDEXES = {
    "a million vectors that claim to be wide": _many_vectors,
    "junk": lambda: b"junk" * 1000,
    "empty": lambda: b"",
    "truncated": lambda: index_file()[:-5000],
    "a width of a billion": lambda: _altered(4, (1 << 30).to_bytes(4, "little")),
    "a count of a quintillion": lambda: _altered(8, (1 << 60).to_bytes(8, "little")),
    "another kind": _other_kind,
    "another width": lambda: index_file(width=256),
    "no numbers": _not_finite,
}


@pytest.mark.parametrize("what", HOSTILE_INDEXES)
async def test_a_hostile_index_is_refused_or_breaks_the_jailed_process_alone(tmp_path, what):
    with pytest.raises((VoxfleetError, BrokenError)) as caught:
        await through(tmp_path, pth(), HOSTILE_INDEXES[what]())
    if isinstance(caught.value, VoxfleetError):
        assert caught.value.reason is Reason.MODEL_CORRUPT
    else:
        assert caught.value.cause in ("crash", "memory", "time")


def test_a_package_that_was_altered_or_has_more_in_it_is_refused():
    config = dataclasses.replace(TINY_40K, content_width=512)
    sink = io.BytesIO()
    write_voice(Opened(VoiceFacts(config, "whisper-base"), weights_of(config), None), sink)
    whole = sink.getvalue()
    open_voice(io.BytesIO(whole), "voice.zip")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    more = io.BytesIO(whole)
    with zipfile.ZipFile(more, "a") as archive:
        archive.writestr("../../etc/passwd", "x")
    wrong = io.BytesIO()
    write_voice(Opened(VoiceFacts(config, "contentvec"), weights_of(config), None), wrong)
    unknown = io.BytesIO()
    write_voice(Opened(VoiceFacts(config, "whisper-base", "magic"), weights_of(config), None), unknown)
    for data in (bytes(flipped), whole[:-100], more.getvalue(), wrong.getvalue(), unknown.getvalue()):
        with pytest.raises(VoxfleetError) as caught:
            open_voice(io.BytesIO(data), "voice.zip")
        assert caught.value.reason is Reason.MODEL_CORRUPT
    with pytest.raises(VoxfleetError, match="own index"):
        open_voice(io.BytesIO(whole), "voice.zip", io.BytesIO(index_file()), "added.index")


def test_what_the_first_process_leaves_is_checked_again(tmp_path):
    """A first process that was taken over hands on what it likes: the second judges it as if it did."""
    facts = {
        "config": SMALL.to_dict(),
        "content_encoder": "contentvec",
        "f0_method": "fcpe",
        "training": {},
        "more": {},
    }
    good = io.BytesIO(__import__("safetensors.torch").torch.save(weights_of(SMALL)))
    for weights, vectors, said in (
        (io.BytesIO(b"\x80\x04pickle"), io.BytesIO(), facts),
        (good, io.BytesIO(b"odd"), facts),
        (good, io.BytesIO(np.full((3, 768), np.inf, np.float32).tobytes()), facts),
        (good, io.BytesIO(), {**facts, "config": {**facts["config"], "layers": 3}}),
        (good, io.BytesIO(), {**facts, "content_encoder": "whisper-base"}),
        (good, io.BytesIO(), {"config": facts["config"]}),
    ):
        good.seek(0)
        inputs = {"weights": weights, "vectors": vectors, "centres": io.BytesIO()}
        with pytest.raises(VoxfleetError) as caught:
            exchange._run_write(inputs, {"package": io.BytesIO()}, said)
        assert caught.value.reason is Reason.MODEL_CORRUPT


def test_an_index_of_one_list_and_one_vector_keeps_its_parts():
    vectors = np.ones((1, 768), dtype=np.float32)
    parts = take_apart(faiss.serialize_index(build_index(vectors).index).tobytes(), "index")
    assert isinstance(parts, IndexParts)
    assert np.array_equal(parts.vectors, vectors)
