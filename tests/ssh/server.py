#!/usr/bin/env python3
"""A git host behind real ssh, for one key: fetches and pushes of the repositories below a folder, and nothing else.

    server.py --root FOLDER --key FILE --host-key FILE      prints: ready PORT
"""

import argparse
import asyncio
import os
import shlex

import asyncssh

ALLOWED = ("git-upload-pack", "git-receive-pack")


async def serve(process, root):
    words = shlex.split(process.command or "")
    inside = len(words) == 2 and os.path.realpath(words[1]).startswith(os.path.realpath(root) + os.sep)
    if not inside or words[0] not in ALLOWED:
        process.stderr.write(b"not allowed here\n")
        process.exit(126)
        return
    pipe = asyncio.subprocess.PIPE
    git = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe, stderr=pipe)
    await process.redirect(stdin=git.stdin, stdout=git.stdout, stderr=git.stderr)
    # What it wrote is sent before its end is told.
    await process.stdout.drain()
    process.exit(await git.wait())


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--host-key", required=True)
    args = parser.parse_args()
    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[args.host_key],
        authorized_client_keys=args.key,
        process_factory=lambda process: serve(process, args.root),
        encoding=None,
    )
    print("ready", server.get_port(), flush=True)
    await server.wait_closed()


asyncio.run(main())
