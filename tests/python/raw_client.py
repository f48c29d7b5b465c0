"""A client in another language, with nothing but nats-py: submits, waits for the event, reads the record by KV get.

    python raw_client.py nats://127.0.0.1:4222

Prints one JSON object of what it saw; exits with an error if anything is not as docs/submitting.md says.
"""

import asyncio
import base64
import json
import sys

import nats
from nats.js.errors import APIError, KeyNotFoundError


async def record(store, key):
    try:
        return json.loads((await store.get(key)).value)
    except KeyNotFoundError:
        return None


async def finished(client, store, queue, id):
    """Subscribe, then read, then read again with every event: nothing is missed in between."""
    events = await client.subscribe(f"shoal.events.tasks.{queue}.{id}")
    await client.flush()
    while True:
        seen = await record(store, f"{queue}.{id}")
        if seen and seen.get("ended_at"):
            await events.unsubscribe()
            return seen
        await events.next_msg(timeout=30)


async def main(url):
    client = await nats.connect(url)
    js = client.jetstream()
    script = "sleep 0.5; printf 'from %s' python > \"$SHOAL_RESULT_FILE\""
    task = {"workload": {"kind": "process", "command": ["sh", "-c", script]}}

    ack = await js.publish("shoal.tasks.default.python-1", json.dumps(task).encode())
    try:
        await js.publish("shoal.tasks.default.python-1", json.dumps(task).encode())
        sys.exit("a second publish of an id that is queued or running was accepted")
    except APIError as error:
        refused = error.err_code

    store = await js.key_value("shoal_tasks")
    seen = await asyncio.wait_for(finished(client, store, "default", "python-1"), 60)
    assert seen["state"] == "succeeded", seen
    assert seen["sequence"] == ack.seq, (seen, ack)
    assert [attempt["number"] for attempt in seen["attempts"]] == [1], seen

    # A message that is no task becomes a dead letter with its bytes and the reason.
    bad = await js.publish("shoal.tasks.default.python-2", b"no task")
    seen_bad = await asyncio.wait_for(finished(client, store, "default", "python-2"), 60)
    assert seen_bad["state"] == "failed" and seen_bad["error"]["code"] == "invalid_task", seen_bad
    for _ in range(300):
        try:
            letter = await js.get_last_msg("SHOAL_DEAD", "shoal.dead.default.python-2")
            break
        except APIError:
            await asyncio.sleep(0.1)
    else:
        sys.exit("there is no dead letter")
    assert letter.data == b"no task", letter
    assert letter.headers["Shoal-Reason"] == "invalid_task", letter
    assert letter.headers["Shoal-Sequence"] == str(bad.seq), letter

    result = base64.b64decode(seen["result"]["inline"]).decode()
    print(json.dumps({"sequence": ack.seq, "refused": refused, "result": result}))
    await client.close()


asyncio.run(main(sys.argv[1]))
