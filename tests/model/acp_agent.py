#!/usr/bin/env python3
"""An agent that speaks the Agent Client Protocol, version 1, over stdin and stdout, as a script tells it.

    acp_agent.py SCRIPT LOG

SCRIPT is JSON: a list of prompts, each a list of actions, each a pair of a word and its argument:

    ["say", text]  ["think", text]  ["tool", {id, title, input, output, failed}]
    ["read", {path, line?, limit?}]  ["write", {path, content}]  ["permission", {title, options: [[id, name, kind]]}]
    ["stop", reason]  ["exit", code]  ["stderr", text]  ["raw", line]  ["flood", bytes]  ["hang", null] (until it is
    cancelled)  ["deaf", null] (for good)  ["version", n]
    ["login", null]  (the last two before any prompt, as the first list's first action)

LOG gets one JSON line for everything that the client sent, and for what each action brought. It is strict: whatever the
protocol does not allow ends it with code 3 and a word on stderr.
"""

import json
import os
import sys

script = json.load(open(sys.argv[1]))
log = open(sys.argv[2], "a", buffering=1)
waiting = []
asked = 0


def note(what, value):
    log.write(json.dumps([what, value]) + "\n")


def wrong(why):
    note("violation", why)
    print("violation: " + why, file=sys.stderr)
    sys.exit(3)


def check(holds, why):
    if not holds:
        wrong(why)


def send(message):
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def receive():
    line = sys.stdin.readline()
    if not line:
        note("eof", None)
        sys.exit(0)
    message = json.loads(line)
    check(message.get("jsonrpc") == "2.0", "no JSON-RPC 2.0")
    if "method" in message:
        note(message["method"], message.get("params"))
    return message


def next_request():
    return waiting.pop(0) if waiting else receive()


def ask(method, params):
    """Asks the client; what comes meanwhile waits, but a cancellation is told at once."""
    global asked
    asked += 1
    send({"id": asked, "method": method, "params": params})
    while True:
        message = receive()
        if "method" in message:
            waiting.append(message)
        else:
            check(message["id"] == asked, "an answer to no question")
            check(("result" in message) != ("error" in message), "an answer is a result or an error")
            note("answer", message.get("result", message.get("error")))
            return message


def update(session, update):
    send({"method": "session/update", "params": {"sessionId": session, "update": update}})


def act(session, word, argument):
    """Does one action; the reason why the turn ends with it, if it does."""
    text = lambda text: {"type": "text", "text": text}
    if word == "say":
        update(session, {"sessionUpdate": "agent_message_chunk", "content": text(argument)})
    elif word == "think":
        update(session, {"sessionUpdate": "agent_thought_chunk", "content": text(argument)})
    elif word == "tool":
        call = {"toolCallId": argument["id"], "title": argument["title"], "kind": "execute", "status": "pending"}
        update(session, {"sessionUpdate": "tool_call", "rawInput": argument["input"], **call})
        status = "failed" if argument.get("failed") else "completed"
        content = [{"type": "content", "content": text(argument["output"])}]
        done = {"toolCallId": argument["id"], "status": status, "content": content}
        update(session, {"sessionUpdate": "tool_call_update", **done})
    elif word == "read":
        ask("fs/read_text_file", {"sessionId": session, **argument})
    elif word == "write":
        ask("fs/write_text_file", {"sessionId": session, **argument})
    elif word == "permission":
        options = [{"optionId": id, "name": name, "kind": kind} for id, name, kind in argument["options"]]
        call = {"toolCallId": "p", "title": argument["title"]}
        answer = ask("session/request_permission", {"sessionId": session, "toolCall": call, "options": options})
        check("outcome" in answer.get("result", {}), "a permission is an outcome")
        if answer["result"]["outcome"]["outcome"] == "cancelled" and any(m["method"] == "session/cancel" for m in waiting):
            return "cancelled"
    elif word == "stop":
        return argument
    elif word == "exit":
        sys.exit(argument)
    elif word == "stderr":
        print(argument, file=sys.stderr)
    elif word == "raw":
        sys.stdout.write(argument + "\n")
        sys.stdout.flush()
    elif word == "flood":
        sys.stdout.write("x" * argument)
        sys.stdout.flush()
    elif word == "hang":
        # Until it is cancelled.
        while True:
            message = next_request()
            if message.get("method") == "session/cancel":
                check(message["params"]["sessionId"] == session, "another session is cancelled")
                return "cancelled"
            check("id" not in message, "a request while a prompt runs")
    elif word == "deaf":
        while True:
            receive()
    else:
        sys.exit(f"no such action: {word}")
    return None


def main():
    note("pid", os.getpid())
    opening = dict(script[0]) if script and script[0] and script[0][0][0] in ("version", "login") else {}
    prompts = script[1:] if opening else script
    session = None
    initialized = False
    while True:
        message = next_request()
        method, params, id = message.get("method"), message.get("params"), message.get("id")
        if method == "initialize":
            check(not initialized, "initialized twice")
            check(params["protocolVersion"] == 1, "a protocol version that is not 1")
            files = params["clientCapabilities"]["fs"]
            check(files["readTextFile"] is True and files["writeTextFile"] is True, "no files")
            check(not params["clientCapabilities"].get("terminal"), "a terminal that is not there")
            initialized = True
            version = opening.get("version", 1)
            send({"id": id, "result": {"protocolVersion": version, "agentCapabilities": {}, "authMethods": []}})
        elif method == "session/new":
            check(initialized, "a session before initialize")
            check(session is None, "a second session")
            check(params["cwd"].startswith("/") and isinstance(params["mcpServers"], list), "a session without its place")
            if "login" in opening:
                send({"id": id, "error": {"code": -32000, "message": "Authentication required"}})
                continue
            session = "session-1"
            send({"id": id, "result": {"sessionId": session}})
        elif method == "session/prompt":
            check(session is not None and params["sessionId"] == session, "a prompt to no session")
            check(all(block["type"] == "text" for block in params["prompt"]), "a block that is not text")
            check(bool(prompts), "one prompt too many")
            stop = None
            for word, argument in prompts.pop(0):
                stop = act(session, word, argument)
                if stop:
                    break
            send({"id": id, "result": {"stopReason": stop or "end_turn"}})
        elif method == "session/cancel":
            pass
        elif method is not None and id is not None:
            send({"id": id, "error": {"code": -32601, "message": "Method not found"}})


main()
