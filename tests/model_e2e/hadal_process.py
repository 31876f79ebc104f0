"""A hadal server as a child process, and the few HTTP calls that the end-to-end tests make."""

import http.client
import json
import re
import signal
import subprocess
import threading

READY = re.compile(r"on http://([0-9.]+):([0-9]+)\. Try:")


class Server:
    """`with Server(binary, flags) as server`: waits until the port is open, drains at the end."""

    def __init__(self, binary, flags, start_timeout_s=120):
        self.lines = []
        self.process = subprocess.Popen(
            [binary, "serve", "--host", "127.0.0.1", "--port", "0", *flags],
            stderr=subprocess.PIPE,
            text=True,
        )
        self._ready = threading.Event()
        self._address = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(start_timeout_s) or self._address is None:
            self.process.kill()
            raise RuntimeError("hadal did not start:\n" + "".join(self.lines[-40:]))

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line)
            found = READY.search(line)
            if found:
                self._address = (found.group(1), int(found.group(2)))
                self._ready.set()
        self._ready.set()  # the process ended

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self, signal_number=signal.SIGTERM, timeout_s=60):
        """The exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join(5)
        return code

    def connect(self, timeout_s=600):
        return http.client.HTTPConnection(*self._address, timeout=timeout_s)

    def request(self, method, path, body=None):
        """Status and body text."""
        connection = self.connect()
        data = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        connection.request(method, path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, text

    def chat(self, body):
        """The parsed reply of an unstreamed chat; fails on another status than 200."""
        status, text = self.request("POST", "/v1/chat/completions", body)
        if status != 200:
            raise RuntimeError(f"status {status}: {text}")
        return json.loads(text)

    def chat_streamed(self, body):
        """A streamed chat put together again into the shape of an unstreamed one."""
        body = dict(body, stream=True, stream_options={"include_usage": True})
        connection = self.connect()
        data = json.dumps(body, ensure_ascii=False).encode()
        connection.request("POST", "/v1/chat/completions", data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"status {response.status}: {response.read().decode()}")
        content, calls, finish, usage, done = "", {}, None, None, False
        for line in response:
            line = line.decode().rstrip("\n")
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                done = True
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(f"error event: {event}")
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                content += choice["delta"].get("content") or ""
                finish = choice.get("finish_reason") or finish
                for call in choice["delta"].get("tool_calls") or []:
                    entry = calls.setdefault(call["index"], {"name": "", "arguments": ""})
                    function = call.get("function", {})
                    entry["name"] += function.get("name") or ""
                    entry["arguments"] += function.get("arguments") or ""
        connection.close()
        if not done:
            raise RuntimeError("the stream ended without [DONE]")
        message = {"content": content, "tool_calls": [{"function": calls[i]} for i in sorted(calls)]}
        return {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}
