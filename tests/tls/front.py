#!/usr/bin/env python3
"""TLS in front of a plain server, signed with a certificate of one's own.

    front.py --cert FILE --key FILE --to PORT      prints: ready PORT
"""

import argparse
import asyncio
import ssl


async def carry(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except (ConnectionError, ssl.SSLError):
        pass
    finally:
        writer.close()


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cert", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--to", required=True, type=int)
    args = parser.parse_args()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(args.cert, args.key)

    async def serve(reader, writer):
        back_reader, back_writer = await asyncio.open_connection("127.0.0.1", args.to)
        await asyncio.gather(carry(reader, back_writer), carry(back_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    print("ready", server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
