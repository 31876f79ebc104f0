"""A TCP proxy that delays every byte and stalls now and then, from a seed.

    proxy.py LISTEN_PORT HOST:PORT [--delay-ms 50] [--stall-ms 2500] [--seed 1]

Bytes arrive whole and in order; only time is added. It stands in for netem, which not every kernel has.
"""

import argparse
import asyncio
import random
import sys


class Link:
    """Both directions of all connections stall together, as behind one switch."""

    def __init__(self, args):
        self.args = args
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.num_stalls = 0

    async def stall(self):
        source = random.Random(self.args.seed)
        while self.args.stall_ms > 0:
            await asyncio.sleep(source.uniform(0.5, 2))
            self.is_open.clear()
            await asyncio.sleep(source.uniform(0.1, 1) * self.args.stall_ms / 1000)
            self.is_open.set()
            self.num_stalls += 1

    async def pump(self, reader, writer):
        queue = asyncio.Queue(maxsize=1024)
        loop = asyncio.get_running_loop()

        async def deliver():
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0, due - loop.time()))
                await self.is_open.wait()
                if not data:
                    writer.close()
                    return
                writer.write(data)
                await writer.drain()

        task = asyncio.create_task(deliver())
        try:
            while data := await reader.read(1 << 16):
                await queue.put((loop.time() + self.args.delay_ms / 1000, data))
            await queue.put((loop.time(), b""))
            await task
        except (ConnectionError, asyncio.CancelledError):
            task.cancel()
            writer.close()

    async def accept(self, reader, writer):
        host, port = self.args.target.rsplit(":", 1)
        try:
            other_reader, other_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        await asyncio.gather(self.pump(reader, other_writer), self.pump(other_reader, writer))


async def serve(args):
    link = Link(args)
    server = await asyncio.start_server(link.accept, "127.0.0.1", args.port)
    print("ready", flush=True)
    async with server:
        await asyncio.gather(server.serve_forever(), link.stall())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("target")
    parser.add_argument("--delay-ms", type=float, default=0)
    parser.add_argument("--stall-ms", type=float, default=0)
    parser.add_argument("--seed", type=int, default=1)
    try:
        asyncio.run(serve(parser.parse_args()))
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
