"""A server of the three apis that plays a list of steps: real HTTP, and every fault a service can have.

A step is a dict. `status`, `body`, `headers`: an answer as it is. `text`, `finish`, `model`, `usage`, `id`, `message`
(more of a chat message), `logprobs`: a good answer with these. `silent`: no byte is sent. `parts`: so many parts of a
stream, then `then`: "cut" (the socket is closed) or "stall". Steps are taken in the order of requests; after the last
one every request gets a good answer, an echo of its prompt.
"""

from __future__ import annotations

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """`asked`: what came, in order: {path, body, headers, at, paid}. `peak`: most requests at once."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *steps: dict[str, Any], slow: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.steps, self.slow = list(steps), slow
        self.asked: list[dict[str, Any]] = []
        self.lock, self.ended = threading.Lock(), threading.Event()
        self.now = self.peak = 0
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def prompts(self) -> list[str]:
        """The prompts that were asked, in order."""
        return [prompt_of(record["body"]) for record in self.asked]

    @property
    def paid(self) -> list[str]:
        """The prompts whose answers were written out whole, in order."""
        return [prompt_of(record["body"]) for record in self.asked if record["paid"]]

    def __enter__(self) -> Server:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


def prompt_of(body: dict[str, Any]) -> str:
    prompt = body.get("prompt") or body.get("messages") or body.get("input")
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        with server.lock:
            record = {"path": self.path, "body": body, "headers": dict(self.headers), "at": time.monotonic()}
            record["paid"] = False
            server.asked.append(record)
            step = server.steps.pop(0) if server.steps else {}
            server.now += 1
            server.peak = max(server.peak, server.now)
        try:
            server.ended.wait(step.get("slow", server.slow))
            self.play(step, record)
        except OSError:
            self.close_connection = True
        finally:
            with server.lock:
                server.now -= 1

    def play(self, step: dict[str, Any], record: dict[str, Any]) -> None:
        body = record["body"]
        if step.get("silent"):
            self.server.ended.wait(30)
            self.close_connection = True
            return
        if "status" in step:
            text = step.get("body", "")
            self.whole(step["status"], text if isinstance(text, str | bytes) else json.dumps(text), step)
            return
        good = answer_of(self.path, body, step)
        if body.get("stream"):
            events = stream_of(self.path, good, body)
            self.stream(events[: step.get("parts", len(events))], step)
            record["paid"] = "parts" not in step
            return
        if step.get("then") == "cut":
            self.send_response(200)
            self.send_header("content-length", "1000")
            self.end_headers()
            self.wfile.write(b'{"id": "x", "choi')
            self.close_connection = True
            return
        record["paid"] = True
        self.whole(200, json.dumps(good), step)

    def whole(self, status: int, text: str | bytes, step: dict[str, Any]) -> None:
        raw = text.encode() if isinstance(text, str) else text
        self.send_response(status)
        for name, value in {"content-type": "application/json", **step.get("headers", {})}.items():
            self.send_header(name, value() if callable(value) else value)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def stream(self, events: list[str], step: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for event in events:
            self.server.ended.wait(step.get("gap", 0))
            self.wfile.write(event.encode())
            self.wfile.flush()
        if step.get("then") == "stall":
            while not self.server.ended.wait(0.05):
                self.wfile.write(b": still here\n\n")  # a comment is no part of an answer
        self.close_connection = True


def answer_of(path: str, body: dict[str, Any], step: dict[str, Any]) -> dict[str, Any]:
    """A good answer of the api at `path`, changed as the step says."""
    text = step.get("text", f"echo {prompt_of(body)}")
    read, written = step.get("tokens", (10, 5))
    logprobs = step.get("logprobs", tokens_of(path, body, text))
    head = {"id": step.get("id", f"x{time.monotonic_ns()}"), "model": step.get("model", body["model"])}
    if path.endswith("/responses"):
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs or []}
        message = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [part]}
        usage = {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}
        whole = {**head, "object": "response", "status": "completed", "output": [message], "usage": usage}
        return {**whole, **step.get("response", {})}
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    choice: dict[str, Any] = {"index": 0, "finish_reason": step.get("finish", "stop")}
    if path.endswith("/chat/completions"):
        choice["message"] = {"role": "assistant", "content": text, **step.get("message", {})}
        choice["logprobs"] = {"content": logprobs} if logprobs else None
    else:
        choice |= {"text": text, "logprobs": logprobs}
    return {**head, "choices": [choice], "usage": step.get("usage", usage), "system_fingerprint": "f1"}


def tokens_of(path: str, body: dict[str, Any], text: str) -> Any:
    """Log-probabilities of each word of a text as the api at `path` tells them, where they are asked; else None."""
    asked = body.get("top_logprobs") or body.get("logprobs")
    if not asked:
        return None
    words = re.findall(r"\S+\s*|\s+", text)
    tops = [{word: -0.5, **{f"other{i}": -2.0 - i for i in range(asked - 1)}} for word in words]
    if path.endswith("/completions") and not path.endswith("/chat/completions"):
        return {"tokens": words, "token_logprobs": [-0.5] * len(words), "top_logprobs": tops, "text_offset": []}
    told = [
        [{"token": word, "bytes": list(word.encode()), "logprob": value} for word, value in top.items()] for top in tops
    ]
    return [{**top[0], "top_logprobs": top} for top in told]


def stream_of(path: str, good: dict[str, Any], body: dict[str, Any]) -> list[str]:
    """The events of a whole answer, three parts of its text among them."""

    def event(value: Any) -> str:
        return f"data: {json.dumps(value)}\n\n"

    if path.endswith("/responses"):
        created = {**good, "status": "in_progress", "output": [], "usage": None}
        deltas = [{"type": "response.output_text.delta", "delta": "x"}] * 3
        kinds = [{"type": "response.created", "response": created}, *deltas]
        kinds.append({"type": f"response.{good['status']}", "response": good})
        return [f"event: {kind['type']}\n{event(kind)}" for kind in kinds]
    (choice,) = good["choices"]
    head = {"id": good["id"], "model": good["model"]}
    message = choice.get("message") or {"text": choice["text"]}
    texts = {name: value for name, value in message.items() if isinstance(value, str) and name != "role"}
    rest = {name: value for name, value in message.items() if not isinstance(value, str)}
    events = []
    for place in range(3):
        cut = {name: value[place * len(value) // 3 : (place + 1) * len(value) // 3] for name, value in texts.items()}
        told = choice.get("logprobs") if place == 1 else None
        part: dict[str, Any] = {"index": 0, "finish_reason": None, "logprobs": told}
        part |= {"delta": {**cut, **(rest if place == 0 else {})}} if "message" in choice else cut
        events.append(event({**head, "choices": [part]}))
    last: dict[str, Any] = {"index": 0, "finish_reason": choice["finish_reason"], "logprobs": None}
    last |= {"delta": {}} if "message" in choice else {"text": ""}
    events.append(event({**head, "choices": [last]}))
    if (body.get("stream_options") or {}).get("include_usage"):
        events.append(event({**head, "choices": [], "usage": good["usage"]}))
    return [*events, "data: [DONE]\n\n"]
