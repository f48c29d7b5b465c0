#!/usr/bin/env python3
"""A scripted model behind a strict, OpenAI-compatible chat-completions endpoint. Standard library only.

    server.py --script FILE [--port 0] [--log FILE]      prints: ready http://127.0.0.1:PORT/v1

It speaks the protocol (streams, tool calls, usage, errors) and holds the client to it: whatever an endpoint could call
wrong is answered with 400 and noted as a violation. GET /requests, GET /violations: what has been, as JSON.

The script:
    {"key": "...", "model": "...", "conversations": [{"match": REGEX, "turns": [TURN, ...]}]}

A request belongs to the first conversation whose `match` is found in its first user message. Jobs whose first user
messages differ have counters of their own, so one script serves many at once; a group `(?P<run>...)` in `match`
makes that group alone the difference.

A turn is an object. What it answers:
    "say": TEXT, "calls": [{"name": ..., "arguments": {...}, "id": optional}], both, or one of the faults
    "malformed_call": TEXT       a call (of `name`, default edit_file) with TEXT in place of JSON
    "empty": true                an answer without anything
    "refusal": TEXT              the model declines
    "garbage": TEXT              this in place of an answer, with status 200 and the right content type
    "status": N                  an HTTP error, with optional "headers" and "body"
    "hang": true                 nothing, until the client goes; with "cut_after" after that many events
What changes it:
    "plain": true                as a whole, though a stream was asked for
    "finish": WORD               finish reason in place of the right one
    "cut_after": N               the connection is closed after N events
    "usage": {...} or false      in place of a quarter of the bytes; false: none is sent
    "delay_ms": N, "chunk_delay_ms": N     before the answer; before each event
    "expect": REGEX              must be found in the last message, else a violation
    "seen": REGEX                must be found in any message, else a violation
    "after": REGEX               out of order, once, when the last message matches
Instead of one: {"repeat": TURN} is answered for ever, {"times": N, "turn": TURN} N times.
"""

import argparse, collections, json, re, select, socket, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FIELDS = {"model", "messages", "tools", "tool_choice", "parallel_tool_calls", "stream", "stream_options", "temperature",
          "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "n", "reasoning_effort", "response_format", "user"}
ROLES = {"system": {"role", "content", "name"}, "developer": {"role", "content", "name"}, "user": {"role", "content", "name"},
         "assistant": {"role", "content", "name", "refusal", "tool_calls"}, "tool": {"role", "content", "tool_call_id"}}
SCHEMA = {"type", "properties", "required", "additionalProperties", "description", "items", "enum", "minimum", "maximum",
          "minLength", "maxLength", "minItems", "maxItems", "pattern", "default", "anyOf", "const"}
TYPES = {"object", "string", "integer", "number", "boolean", "array", "null"}
TURN = {"say", "calls", "malformed_call", "name", "empty", "refusal", "garbage", "status", "headers", "body", "hang", "finish",
        "cut_after", "usage", "delay_ms", "chunk_delay_ms", "expect", "seen", "after", "plain", "repeat", "times", "turn"}


class Violation(Exception):
    """What a strict endpoint would call wrong."""


def must(good, what):
    if not good:
        raise Violation(what)


def text_of(message):
    """The text of a message, whether it is a string, parts, or nothing."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


def is_object(text):
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def check_schema(schema, where):
    must(isinstance(schema, dict), f"{where}: a schema must be an object")
    must(not (unknown := set(schema) - SCHEMA), f"{where}: unknown keywords {sorted(unknown)}")
    kinds = schema.get("type", [])
    must(set([kinds] if isinstance(kinds, str) else kinds) <= TYPES, f"{where}: unknown type {kinds}")
    properties = schema.get("properties", {})
    must(set(schema.get("required", [])) <= set(properties), f"{where}: required names no property")
    for name, inner in properties.items():
        check_schema(inner, f"{where}.{name}")
    for inner in schema.get("anyOf", []):
        check_schema(inner, f"{where}.anyOf")
    if "items" in schema:
        check_schema(schema["items"], f"{where}[]")


def check_tools(tools):
    must(isinstance(tools, list) and tools, "tools must be a non-empty array")
    names = set()
    for tool in tools:
        must(set(tool) == {"type", "function"} and tool["type"] == "function", "a tool is {type: function, function}")
        function = tool["function"]
        must(not (unknown := set(function) - {"name", "description", "parameters", "strict"}), f"tool: unknown {unknown}")
        name = function.get("name", "")
        must(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name), f"tool name {name!r}")
        must(name not in names, f"tool {name} is there twice")
        names.add(name)
        must(function.get("parameters", {}).get("type") == "object", f"tool {name}: parameters must be of type object")
        check_schema(function["parameters"], name)


def check_messages(messages):
    must(isinstance(messages, list) and messages, "messages must be a non-empty array")
    open_calls, seen, before = [], set(), None
    for at, message in enumerate(messages):
        where = f"messages[{at}]"
        must(isinstance(message, dict), f"{where} must be an object")
        role = message.get("role")
        must(role in ROLES, f"{where}: unknown role {role!r}")
        must(not (unknown := set(message) - ROLES[role]), f"{where}: unknown fields {sorted(unknown)}")
        must(not open_calls or role == "tool", f"{where}: calls {open_calls} are not answered before role {role}")
        content = message.get("content")
        parts = isinstance(content, list) and all(set(part) == {"type", "text"} for part in content)
        must(isinstance(content, str) or parts or (role == "assistant" and content is None), f"{where}: content")
        if role in ("system", "developer"):
            must(before in (None, "system", "developer"), f"{where}: {role} after {before}")
        if role == "assistant":
            must(before in ("user", "tool"), f"{where}: assistant after {before}")
            calls = message.get("tool_calls")
            must(calls is None or calls, f"{where}: tool_calls must not be an empty array")
            must(calls or text_of(message), f"{where}: neither content nor tool_calls")
            for call in calls or []:
                must(set(call) == {"id", "type", "function"} and call["type"] == "function", f"{where}: tool call")
                must(set(call["function"]) == {"name", "arguments"}, f"{where}: tool call's function")
                must(isinstance(call["function"]["arguments"], str), f"{where}: arguments must be a string")
                # Endpoints that render them anew for their model fail on what is no object.
                must(is_object(call["function"]["arguments"]), f"{where}: arguments are no JSON object")
                must(call["id"] and call["id"] not in seen, f"{where}: id {call['id']!r} is there twice")
                seen.add(call["id"])
                open_calls.append(call["id"])
        if role == "tool":
            id = message.get("tool_call_id")
            must(id in open_calls, f"{where}: answers {id!r}, which is not open")
            open_calls.remove(id)
        before = role
    must(not open_calls, f"calls {open_calls} are not answered")
    must(before in ("user", "tool"), f"the last message is of role {before}")


def check_request(body):
    must(isinstance(body, dict), "the body must be an object")
    must(not (unknown := set(body) - FIELDS), f"unknown fields {sorted(unknown)}")
    check_messages(body.get("messages"))
    if "tools" in body:
        check_tools(body["tools"])
    must(isinstance(body.get("stream", False), bool), "stream must be a boolean")
    must("stream_options" not in body or body.get("stream"), "stream_options without stream")
    must(0 <= body.get("temperature", 1) <= 2, "temperature must be 0 to 2")
    for name in ("max_tokens", "max_completion_tokens"):
        must(name not in body or (isinstance(body[name], int) and body[name] > 0), f"{name} must be a positive integer")


class Script:
    """Which turn comes next."""

    def __init__(self, script):
        self.key, self.model, self.conversations = script["key"], script["model"], script["conversations"]
        for turn in (turn for conversation in self.conversations for turn in conversation["turns"]):
            while turn:
                if unknown := set(turn) - TURN:
                    sys.exit(f"script: unknown fields {sorted(unknown)} in {turn}")
                turn = turn.get("repeat") or turn.get("turn")
        self.lock, self.used = threading.Lock(), collections.defaultdict(collections.Counter)

    def next(self, messages):
        first = next((text_of(message) for message in messages if message["role"] == "user"), "")
        last = text_of(messages[-1])
        for number, conversation in enumerate(self.conversations):
            if not (found := re.search(conversation["match"], first)):
                continue
            with self.lock:
                used = self.used[number, found.groupdict().get("run", first)]
                ready = [at for at, turn in enumerate(conversation["turns"])
                         if "repeat" in turn or used[at] < turn.get("times", 1)]
                def after(at):
                    turn = conversation["turns"][at]
                    return (turn.get("repeat") or turn.get("turn") or turn).get("after")
                chosen = [at for at in ready if after(at) and re.search(after(at), last)]
                chosen = chosen or [at for at in ready if not after(at)]
                must(chosen, f"the script of {conversation['match']!r} has no more turns")
                used[chosen[0]] += 1
            turn = conversation["turns"][chosen[0]]
            turn = turn.get("repeat") or turn.get("turn") or turn
            if "expect" in turn:
                must(re.search(turn["expect"], last), f"expected {turn['expect']!r} in: {last[:2000]}")
            if "seen" in turn:
                must(any(re.search(turn["seen"], text_of(message)) for message in messages), f"not seen: {turn['seen']!r}")
            return turn
        raise Violation(f"no conversation of the script matches: {first[:2000]}")


def calls_of(turn, number):
    """The turn's tool calls in the protocol's shape."""
    calls = [(call["name"], json.dumps(call.get("arguments", {})), call.get("id")) for call in turn.get("calls", [])]
    if "malformed_call" in turn:
        calls.append((turn.get("name", "edit_file"), turn["malformed_call"], None))
    return [{"id": f"call_{number}_{at}" if id is None else id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for at, (name, arguments, id) in enumerate(calls)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    client_gone = False

    def log_message(self, *_):
        pass

    def do_GET(self):
        what = {"/requests": self.server.requests, "/violations": self.server.violations}.get(self.path)
        if what is None:
            return self.error(404, f"no such path {self.path}")
        with self.server.lock:
            body = json.dumps(what).encode()
        self.reply(200, body)

    def do_POST(self):
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        entry = {"at": time.time(), "authorized": self.headers.get("Authorization") == f"Bearer {self.server.script.key}"}
        with self.server.lock:
            self.server.requests.append(entry)
            number = len(self.server.requests)
        try:
            must(self.path == "/v1/chat/completions", f"no such path {self.path}")
            must(self.headers.get_content_type() == "application/json", "the content type must be application/json")
            try:
                body = entry["body"] = json.loads(raw)
            except ValueError as error:
                raise Violation(f"the body is no JSON: {error}")
            if not entry["authorized"]:
                return self.error(401, "Incorrect API key provided.", "invalid_api_key")
            check_request(body)
            if body.get("model") != self.server.script.model:
                return self.error(404, f"The model `{body.get('model')}` does not exist.", "model_not_found")
            turn = entry["turn"] = self.server.script.next(body["messages"])
        except Violation as violation:
            with self.server.lock:
                self.server.violations.append(str(violation))
            self.server.note({"violation": str(violation)})
            return self.error(400, str(violation))
        self.server.note({"request": number, "turn": turn})
        try:
            self.answer(body, turn, number)
            entry["client_gone"] = self.client_gone
        except (BrokenPipeError, ConnectionResetError):
            entry["client_gone"] = self.close_connection = True  # dropped in the middle of an answer

    def answer(self, body, turn, number):
        time.sleep(turn.get("delay_ms", 0) / 1000)
        if "status" in turn:
            default = {"error": {"message": f"scripted {turn['status']}", "type": "scripted", "param": None, "code": None}}
            given = turn.get("body", default)
            raw = given.encode() if isinstance(given, str) else json.dumps(given).encode()
            return self.reply(turn["status"], raw, turn.get("headers", {}))
        if turn.get("hang") and "cut_after" not in turn:
            return self.hang()
        if "garbage" in turn:
            return self.reply(200, turn["garbage"].encode(), {"Content-Type": "text/event-stream"})
        text = None if turn.get("empty") else turn.get("say")
        calls = calls_of(turn, number)
        finish = turn.get("finish") or ("tool_calls" if calls else "stop")
        written = len(text or "") + sum(len(call["function"]["arguments"]) for call in calls)
        read = sum(len(json.dumps(message)) for message in body["messages"])
        usage = {"prompt_tokens": read // 4, "completion_tokens": written // 4 + 1} | (turn.get("usage") or {})
        usage = {"total_tokens": usage["prompt_tokens"] + usage["completion_tokens"]} | usage
        head = {"id": f"chatcmpl-{number}", "created": int(time.time()), "model": body["model"]}
        if not body.get("stream") or turn.get("plain"):
            message = {"role": "assistant", "content": text, "refusal": turn.get("refusal")}
            message |= {"tool_calls": calls} if calls else {}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
            answer = head | {"object": "chat.completion", "choices": [choice]}
            return self.reply(200, json.dumps(answer | ({} if turn.get("usage") is False else {"usage": usage})).encode())
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        head["object"] = "chat.completion.chunk"
        for at, (delta, end) in enumerate(self.deltas(text, calls, turn.get("refusal"), finish)):
            if at == turn.get("cut_after", -1):
                return self.hang() if turn.get("hang") else self.cut()
            self.event(head | {"choices": [{"index": 0, "delta": delta, "finish_reason": end}]}, turn)
        if (body.get("stream_options") or {}).get("include_usage") and turn.get("usage") is not False:
            self.event(head | {"choices": [], "usage": usage}, turn)
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def deltas(self, text, calls, refusal, finish):
        """An answer in small pieces, as endpoints send it."""
        yield {"role": "assistant", "content": "" if text else None}, None
        for piece in re.findall(r"\s*\S+\s*", text or ""):
            yield {"content": piece}, None
        for piece in re.findall(r"\s*\S+\s*", refusal or ""):
            yield {"refusal": piece}, None
        for index, call in enumerate(calls):
            arguments = call["function"]["arguments"]
            yield {"tool_calls": [{"index": index, **call, "function": call["function"] | {"arguments": ""}}]}, None
            step = max(5, len(arguments) // 20)
            for start in range(0, len(arguments), step):
                piece = arguments[start:start + step]
                yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}, None
        yield {}, finish

    def event(self, value, turn):
        time.sleep(turn.get("chunk_delay_ms", 0) / 1000)
        self.chunk(b"data: " + json.dumps(value).encode() + b"\n\n")

    def chunk(self, data):
        self.wfile.write(b"%x\r\n" % len(data) + data + b"\r\n")
        self.wfile.flush()

    def cut(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def hang(self):
        """Until the client goes away."""
        self.close_connection = self.client_gone = True
        while not (select.select([self.connection], [], [], 1)[0] and not self.connection.recv(1)):
            pass

    def reply(self, status, body, headers={}):
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def error(self, status, message, code=None):
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        self.reply(status, json.dumps({"error": error}).encode())


class Server(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128

    def __init__(self, port, script, log):
        super().__init__(("127.0.0.1", port), Handler)
        self.script, self.log = script, open(log, "a", buffering=1) if log else None
        self.lock, self.requests, self.violations = threading.Lock(), [], []

    def note(self, what):
        if self.log:
            with self.lock:
                self.log.write(json.dumps(what) + "\n")

    def handle_error(self, request, address):
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, address)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--script", required=True)
    arguments.add_argument("--port", type=int, default=0)
    arguments.add_argument("--log")
    arguments = arguments.parse_args()
    with open(arguments.script) as file:
        server = Server(arguments.port, Script(json.load(file)), arguments.log)
    print(f"ready http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
