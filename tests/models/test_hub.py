"""Published weights: from a hub made up here, by timm's own way, and what is said where there is no network."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import timm
import torch
from safetensors.torch import load, load_file, save, save_file

from shiftproof.base.field_error import FieldError
from shiftproof.models import (
    MODELS,
    Model,
    Normalisation,
    Published,
    build_network,
    hub,
    hub_weights,
    published_weights,
    stated_facts,
    stated_normalisation,
    weights_fingerprint,
    weights_name,
)

TINY, FULL = "test_resnet", "timm/test_resnet.r160_in1k"
FILE = f"/{FULL}/resolve/main/model.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHIFTPROOF_CACHE", str(tmp_path / "cache"))
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / "cache"


@contextmanager
def serving(files, answers=lambda: True):
    """Serve files as the Hugging Face hub does; yield the address and the list of what was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer(body=True)

        def do_HEAD(self):
            self._answer(body=False)

        def _answer(self, body):
            asked.append((self.command, self.path))
            answers()
            content = files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "a" * 40)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()
        thread.join()


def _tensors():
    torch.manual_seed(5)
    return timm.create_model(TINY).state_dict()


CODE = """
import json, sys
from shiftproof.models import hub_weights
print(json.dumps(str(hub_weights(sys.argv[1]))))
"""


def _elsewhere(address, tmp_path, model=TINY):
    """Return the file that a process finds whose Hugging Face hub has an address."""
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", CODE, model]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr.splitlines()[-1]


def test_timm_downloads_once_and_the_file_says_what_it_is(tmp_path, cache):
    with serving({FILE: save(_tensors())}) as (address, asked):
        file = _elsewhere(address, tmp_path)
    assert ("GET", FILE) in asked
    assert file == str(cache / "weights" / "timm-test_resnet.r160_in1k.safetensors")
    file = hub_weights(TINY)  # here and now there is no hub
    assert stated_facts(file) == {"source": f"hub: {FULL}", "licence": "apache-2.0", "normalisation": "half"}
    assert weights_name(file) == f"hub: {FULL}"
    assert stated_normalisation(file, 3) == Normalisation((0.5,) * 3, (0.5,) * 3)
    network = build_network(TINY, (3, 64, 64), 5, dropout=0.0, seed=0, weights=file)
    wanted = _tensors()
    for name, tensor in network.featurizer.state_dict().items():
        assert tensor.equal(wanted[name]), name
    # what the hub's own cache holds needs no network either, and gives the same file
    before = weights_fingerprint(file)
    file.unlink()
    assert _elsewhere("http://127.0.0.1:9", tmp_path) == str(file)
    assert weights_fingerprint(file) == before


def test_the_kept_file_has_the_same_bytes_in_whatever_order_its_facts_are_written():
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(3, dtype=torch.float16)}
    plain = save(tensors)
    size = int.from_bytes(plain[:8], "little")
    written = []
    for facts in ({"source": "hub", "normalisation": "half"}, {"normalisation": "half", "source": "hub"}):
        header = json.dumps({"__metadata__": facts, **json.loads(plain[8 : 8 + size])}).encode()
        written.append(hub._in_order(len(header).to_bytes(8, "little") + header + plain[8 + size :]))
    assert written[0] == written[1]
    assert int.from_bytes(written[0][:8], "little") % 8 == 0
    read = load(written[0])
    assert {name: tensor.tolist() for name, tensor in read.items()} == {n: t.tolist() for n, t in tensors.items()}


def test_what_does_not_fit_the_model_is_not_kept(tmp_path, cache):
    tensors = _tensors()
    del tensors["conv1.0.weight"]
    with serving({FILE: save(tensors)}) as (address, _):
        said = _elsewhere(address, tmp_path)
    assert f"FieldError: the weights {FULL} cannot be downloaded (RuntimeError: Error(s) in loading state_dict" in said
    assert [path.suffix for path in (cache / "weights").iterdir()] == [".lock"]


def _guest(monkeypatch, address, read=dict, **facts):
    published = Published(
        **{
            "name": "guest/net.v1", "licence": None, "normalisation": Normalisation((0.1,), (0.2,)),
            "address": address, "is_here": lambda: False, "read": read, **facts,
        }
    )  # fmt: skip
    monkeypatch.setitem(MODELS._entries, "guest", Model(lambda shape: None, published=lambda: published))
    return published


def _refused():
    began = time.monotonic()
    with pytest.raises(FieldError) as raised:
        hub_weights("guest")
    assert raised.value.field == "weights"
    assert "\n" not in str(raised.value)
    return str(raised.value), time.monotonic() - began


def test_without_a_network_one_line_says_so_at_once(monkeypatch):
    _guest(monkeypatch, "http://127.0.0.1:9/net.safetensors", read=lambda: pytest.fail("was tried all the same"))
    said, _ = _refused()
    assert said == (
        "the weights guest/net.v1 are not on this machine, and 127.0.0.1:9 cannot be reached ([Errno 111] Connection "
        "refused): download them where it can, and name their file"
    )


def test_a_server_that_does_not_answer_is_waited_for_so_long(monkeypatch):
    monkeypatch.setattr(hub, "SECONDS", 0.3)
    over = threading.Event()
    with serving({}, answers=lambda: over.wait(30)) as (address, _):
        _guest(monkeypatch, f"{address}/net.safetensors", read=lambda: pytest.fail("was tried all the same"))
        said, seconds = _refused()
        over.set()
    assert "(no answer within 0.3 s)" in said or "(timed out)" in said or "TimeoutError" in said
    assert 0.2 < seconds < 5


def test_looking_up_a_name_for_long_is_no_answer_either(monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(hub, "SECONDS", 0.3)
    monkeypatch.setattr(hub, "_answer", lambda address: str(over.wait(30)))
    _guest(monkeypatch, "https://hub.invalid/net.safetensors")
    said, seconds = _refused()
    over.set()
    assert "hub.invalid cannot be reached (no answer within 0.3 s)" in said
    assert seconds < 5


@pytest.mark.parametrize("path", ["/absent.safetensors", "/net.safetensors"])
def test_any_answer_of_the_server_will_do(monkeypatch, path):
    tensors = {"weight": torch.arange(6.0).view(2, 3).t(), "bias": torch.ones(2)}
    tensors["tied"] = tensors["bias"]
    with serving({"/net.safetensors": b"x"}) as (address, asked):
        _guest(monkeypatch, f"{address}{path}", read=lambda: tensors)
        file = hub_weights("guest")
    assert asked == [("HEAD", path)]
    assert stated_facts(file) == {"source": "hub: guest/net.v1", "normalisation": "0.1,0.2"}
    loaded = load_file(file)
    assert all(loaded[name].equal(tensor) for name, tensor in tensors.items())


def test_a_download_that_fails_is_one_line(monkeypatch, cache):
    def breaks():
        raise ConnectionResetError("the server closed the connection\nand more")

    _guest(monkeypatch, "http://127.0.0.1:9/net.pth", read=breaks, is_here=lambda: True)
    said, _ = _refused()
    assert said == (
        "the weights guest/net.v1 cannot be downloaded (ConnectionResetError: the server closed the connection)"
    )
    assert not list(cache.rglob("*.safetensors"))


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("a file")
    _guest(monkeypatch, "http://127.0.0.1:9/net.pth", is_here=lambda: True)
    assert "there is no place for the weights guest/net.v1" in _refused()[0]


@pytest.mark.parametrize("model", ["linear", "small_conv"])
def test_models_without_published_weights_are_refused(model):
    with pytest.raises(FieldError, match=f"no published weights of model '{model}' are known: name a file, or a model"):
        hub_weights(model)
    with pytest.raises(ValueError, match="unknown model 'resnet81'"):
        hub_weights("resnet81")


@pytest.mark.parametrize(
    ("model", "name", "licence", "normalisation"),
    [
        ("resnet50", "torchvision/ResNet50_Weights.IMAGENET1K_V1", None, "imagenet"),
        ("resnet18", "torchvision/ResNet18_Weights.IMAGENET1K_V1", None, "imagenet"),
        ("squeezenet1_1", "torchvision/SqueezeNet1_1_Weights.IMAGENET1K_V1", None, "imagenet"),
        ("resnet50.a1_in1k", "timm/resnet50.a1_in1k", "apache-2.0", "imagenet"),
        ("resnet50.tv_in1k", "timm/resnet50.tv_in1k", "bsd-3-clause", "imagenet"),
        ("resnet26", "timm/resnet26.bt_in1k", "apache-2.0", "imagenet"),
        ("tf_efficientnet_lite0", "timm/tf_efficientnet_lite0.in1k", "apache-2.0", "half"),
    ],
)
def test_what_the_guide_says_of_published_weights_is_so(model, name, licence, normalisation):
    published = published_weights(model)
    assert (published.name, published.licence, str(published.normalisation)) == (name, licence, normalisation)
    assert published.address.startswith("https://")


def test_what_torchvision_downloaded_before_needs_no_network(monkeypatch, tmp_path):
    from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(3)
    wanted = squeezenet1_1().state_dict()
    file = tmp_path / "hub" / "checkpoints" / SqueezeNet1_1_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(wanted, file)
    kept = hub_weights("squeezenet1_1")
    assert stated_facts(kept) == {
        "source": "hub: torchvision/SqueezeNet1_1_Weights.IMAGENET1K_V1", "normalisation": "imagenet"
    }  # fmt: skip
    network = build_network("squeezenet1_1", (3, 33, 33), 5, dropout=0.0, seed=0, weights=kept)
    for name, tensor in network.featurizer.state_dict().items():
        assert tensor.equal(wanted[name]), name


def test_a_file_that_says_nothing_of_itself_has_its_own_name(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "mine.safetensors")
    torch.save({"a": torch.ones(1)}, tmp_path / "mine.pth")
    assert weights_name(tmp_path / "mine.safetensors") == "mine.safetensors"
    assert weights_name(tmp_path / "mine.pth") == "mine.pth"
