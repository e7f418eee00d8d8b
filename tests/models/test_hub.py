"""Names on the Hub: what is downloaded, what the cache gives without network, and that failing takes no time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from models.test_weights import bin_folder
from models.weights_made import llama

from icl_kernel_lens import load_model
from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.models.hub import wanted

COMMIT = "c" * 40


def test_one_set_of_weights_is_wanted():
    small = ["config.json", "tokenizer.json", "merges.txt"]
    other = [
        "README.md",
        "model.py",
        "onnx/model.onnx",
        "onnx/config.json",
        "flax_model.msgpack",
        ".gitattributes",
    ]
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    bins = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    assert wanted([*small, *other, "pytorch_model.bin"]) == [*small, "pytorch_model.bin"]
    assert wanted([*small, *other, "pytorch_model.bin", "model.safetensors", *shards]) == [
        *small,
        "model.safetensors",
    ]
    assert wanted([*small, *shards, *bins]) == [*small, *shards]
    assert wanted([*small, *bins, "training_args.bin"]) == [*small, *bins]
    adapter = ["adapter_config.json", "adapter_model.safetensors"]
    assert wanted([*adapter, "adapter_model.bin"]) == adapter
    assert wanted([*small, "pytorch_model.bin", *adapter]) == [
        *small,
        adapter[0],
        "pytorch_model.bin",
        adapter[1],
    ]


def test_names_that_cannot_be():
    with pytest.raises(LoadError, match=r"as a name it is not possible: .*model-hub"):
        load_model("a/b/c/d")
    with pytest.raises(LoadError, match='neither "mini", nor a folder here, nor readable on the Hub'):
        load_model("no-such/model-anywhere")


SCRIPT = """
import threading, time, warnings
warnings.simplefilter("error")
import icl_kernel_lens as ikl
from icl_kernel_lens.models.load import load_record
import huggingface_hub, transformers, transformer_lens
start = time.time()
try:
    record = load_record(ikl.load_model("someone/tiny", device="cpu"))
    print("LOADED", record.source, record.revision, record.compared[:28], threading.active_count())
except ikl.errors.LoadError as error:
    print("REFUSED", error)
print("SECONDS", time.time() - start)
"""


def in_a_process(endpoint, home):
    """Loading with this Hub and this cache, by a process of its own: the Hub's address is read when it starts."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if "proxy" not in key.lower() and not key.startswith("HF_")
    }
    env = kept | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "PYTHONWARNINGS": "ignore",
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert "SECONDS" in done.stdout, done.stdout + done.stderr
    said, seconds = done.stdout.strip().split("SECONDS")
    return said, float(seconds)


@pytest.fixture
def hub(tmp_path):
    """A Hub on this machine that has one model, as .bin; its address, and what it was asked."""
    folder, asked = tmp_path / "on-the-hub", []
    folder.mkdir()
    bin_folder(folder, llama())
    (folder / "model.py").write_text("raise SystemExit")

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(f"{self.command} {self.path.split('?')[0]}")
            path = self.path.split("?")[0].strip("/")
            headers = {"X-Repo-Commit": COMMIT}
            if path.startswith("api/models/someone/tiny/tree"):
                tree = [
                    {
                        "type": "file",
                        "path": file.name,
                        "size": file.stat().st_size,
                        "oid": sha256(file.read_bytes()).hexdigest(),
                    }
                    for file in sorted(folder.iterdir())
                ]
                body = json.dumps(tree).encode()
            elif path.startswith("api/models/someone/tiny"):
                files = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
                body = json.dumps({"id": "someone/tiny", "sha": COMMIT, "siblings": files}).encode()
            elif path.startswith("someone/tiny/resolve/") and (folder / path.split("/")[-1]).exists():
                body = (folder / path.split("/")[-1]).read_bytes()
                headers["ETag"] = f'"{sha256(body).hexdigest()}"'
            else:
                self.send_response(404)
                self.send_header(
                    "X-Error-Code", "RepoNotFound" if path.startswith("api") else "EntryNotFound"
                )
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


def test_a_bin_model_of_the_hub_and_the_cache_it_leaves(hub, tmp_path):
    """No conversion is asked for, no code is fetched, and without the Hub the same call works again, at once."""
    endpoint, asked = hub
    said, _ = in_a_process(endpoint, tmp_path / "home")
    assert said.split()[:3] == ["LOADED", "someone/tiny", COMMIT], said
    assert "logits equal Hugging Face's" in said
    files = {line.rsplit("/", 1)[-1] for line in asked if "/resolve/" in line}
    assert files == {"config.json", "pytorch_model.bin"}
    known = ("/api/models/someone/tiny", "/someone/tiny/resolve/", "/api/agent-harnesses")
    assert all(line.split()[1].startswith(known) for line in asked), asked
    assert not any("discussions" in line or "refs/pr" in line for line in asked)
    said, seconds = in_a_process("http://127.0.0.1:9", tmp_path / "home")
    assert said.split()[:3] == ["LOADED", "someone/tiny", COMMIT], said
    assert seconds < 20


@pytest.mark.once
def test_a_model_that_is_there_as_gguf_alone(hub, tmp_path):
    """What to do is said, and nothing is downloaded; a folder of such files says the same."""
    endpoint, asked = hub
    (tmp_path / "on-the-hub" / "pytorch_model.bin").unlink()
    for kind in ("Q4_0", "Q8_0"):
        (tmp_path / "on-the-hub" / f"tiny-{kind}.gguf").write_bytes(b"GGUF")
    said, _ = in_a_process(endpoint, tmp_path / "home")
    assert said.startswith("REFUSED a model on the Hub must have weights as safetensors"), said
    assert "'someone/tiny' has them as .gguf files alone: tiny-Q4_0.gguf, tiny-Q8_0.gguf." in said
    assert "`hf download someone/tiny tiny-Q4_0.gguf`" in said
    assert not any("/resolve/" in line for line in asked)
    with pytest.raises(LoadError, match=r"alone: tiny-Q4_0.gguf, tiny-Q8_0.gguf. Give the path of one."):
        load_model(tmp_path / "on-the-hub", device="cpu")


@pytest.mark.once
def test_without_network_it_fails_at_once(tmp_path):
    start = time.time()
    said, seconds = in_a_process("http://127.0.0.1:9", tmp_path / "home")
    assert "REFUSED" in said
    assert "the Hub cannot be asked (ConnectError" in said
    assert "no earlier download is in the cache" in said
    assert seconds < 5, time.time() - start
