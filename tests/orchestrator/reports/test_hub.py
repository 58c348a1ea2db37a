"""Pushing to a model hub, up to a server on loopback that takes what the real one would be asked."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.recipe.teacher import TeacherSpec
from fewstep.orchestrator.reports.hub import check_push, push
from fewstep.orchestrator.reports.licence import Terms, terms_of

TOKEN = "hf_" + "x" * 34


@dataclass
class Asked:
    """What a hub was asked, and what it holds now."""

    url: str
    calls: list[tuple[str, str]] = field(default_factory=list)
    settings: dict[str, object] = field(default_factory=dict)
    created: dict[str, object] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as uploading small files takes."""

    asked: ClassVar[Asked]

    def do_POST(self) -> None:
        body, path = self._body(), self.path.partition("?")[0]
        if path == "/api/repos/create":
            self.asked.created = json.loads(body)
            self._answer({"url": f"{self.asked.url}/me/student", "name": "me/student", "id": "me/student"})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            self._answer({"files": [{**told, "uploadMode": "regular", "shouldIgnore": False} for told in files]})
        elif "/commit/" in path:
            for line in body.splitlines():
                told = json.loads(line)
                if told["key"] == "file":
                    self.asked.files[told["value"]["path"]] = base64.b64decode(told["value"]["content"])
            url = f"{self.asked.url}/me/student/commit/{'a' * 40}"
            self._answer({"success": True, "commitOid": "a" * 40, "commitUrl": url, "hookOutput": ""})
        else:
            self._answer({"warnings": [], "errors": []})  # of the card's metadata

    def do_PUT(self) -> None:
        self.asked.settings = json.loads(self._body())
        assert not self.asked.files  # a gate is shut before there is anything to read
        self._answer({})

    def do_GET(self) -> None:
        self._body()
        card = {"license": "openrail++", "extra_gated_prompt": "Be kind.", "tags": ["x"]}
        names = [{"rfilename": name} for name in ("README.md", "model_index.json")]
        self._answer({"id": "them/teacher", "sha": "a" * 40, "gated": "manual", "cardData": card, "siblings": names})

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _body(self) -> bytes:
        self.asked.calls.append((self.command, self.path.partition("?")[0]))
        self.asked.tokens.add(self.headers.get("Authorization", ""))
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, told: object) -> None:
        data = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def listening() -> Iterator[Asked]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Hub.asked = Asked(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Hub.asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    """What HF_ENDPOINT and HF_TOKEN would say, had they been there when the library was imported."""
    with listening() as asked:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", asked.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield asked


@pytest.fixture
def silent_hub(hub: Asked, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of one that does not answer any more."""
    with listening() as asked:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", asked.url)
    return asked.url


@pytest.fixture
def student(tmp_path: Path) -> Path:
    folder = tmp_path / "student"
    (folder / "unet").mkdir(parents=True)
    (folder / "README.md").write_text("# here")
    (folder / "recipe.yaml").write_text("output: x")
    (folder / "unet" / "weights.safetensors").write_bytes(bytes(range(256)))
    (folder / ".README.md.1234").write_text("half of a file")
    return folder


def test_a_student_is_uploaded_in_one_commit_behind_the_gate_of_its_teacher(
    hub: Asked, student: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert push(student, "# on the hub", "me/student", "auto", private=True) == f"{hub.url}/me/student"
    assert (hub.created["name"], hub.created["organization"]) == ("student", "me")
    assert (hub.settings["gated"], hub.settings["visibility"]) == ("auto", "private")
    assert hub.files == {
        "README.md": b"# on the hub",
        "recipe.yaml": b"output: x",
        "unet/weights.safetensors": bytes(range(256)),
    }
    assert [call for call in hub.calls if "/commit/" in call[1]] == [("POST", "/api/models/me/student/commit/main")]
    assert hub.tokens - {""} == {f"Bearer {TOKEN}"}
    assert TOKEN not in "".join(capfd.readouterr())


def test_a_hub_that_does_not_answer_is_named_in_one_sentence(silent_hub: str, student: Path) -> None:
    with pytest.raises(BadInput, match=f"--push-to-hub: {silent_hub} did not take me/student: ") as refused:
        push(student, "", "me/student", "", private=False)
    assert TOKEN not in str(refused.value) and "\n" not in str(refused.value)


def test_terms_are_read_from_the_hub_that_the_teacher_is_on(hub: Asked) -> None:
    found = terms_of(TeacherSpec(hub="them/teacher", revision="0" * 40))
    assert found == Terms({"license": "openrail++", "extra_gated_prompt": "Be kind."}, "manual")


def test_terms_that_cannot_be_read_are_said_to_be_unknown(silent_hub: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert terms_of(TeacherSpec(hub="them/teacher", revision="0" * 40)) == Terms()
    assert "the licence of them/teacher could not be read" in capfd.readouterr().err


def test_what_cannot_be_pushed_is_refused_before_anything_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(BadInput, match="--push-to-hub: .*write it like name/model"):
        check_push("not/an/id")
    check_push("me/student")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(BadInput, match="--push-to-hub: there is no token; set HF_TOKEN"):
        check_push("me/student")
