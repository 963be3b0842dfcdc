"""An asyncio program with one timer and nothing to do: what a wake-up costs on this machine. A program by itself.

`idle_timer SECONDS` prints a line when it has started, and wakes up once in so many seconds.
"""

from __future__ import annotations

import asyncio
import sys


async def main(seconds: float) -> None:
    loop = asyncio.get_running_loop()

    def turn() -> None:
        loop.call_later(seconds, turn)

    turn()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1])))
