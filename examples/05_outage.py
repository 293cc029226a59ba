"""The link dies in the middle of an answer; the committed text is the same as without that."""

import asyncio

from outrider import AsyncClient, Provisional, Retract, Token
from outrider.testing.link import Link
from outrider.testing.pair import Pair

PROMPT = "def read_lines(path):"


async def main() -> None:
    async with (
        Pair(Link.of_rtt(40), edge_arguments=("--fallback", "local")) as pair,
        AsyncClient(pair.url) as client,
    ):
        calm = await client.complete(PROMPT, max_tokens=96, temperature=0)
        shown, taken_back = 0, 0
        async with client.stream(PROMPT, max_tokens=96, temperature=0) as events:
            async for event in events:
                match event:
                    case Token(position=8):
                        await pair.proxy.cut()
                    case Provisional():
                        shown += 1
                        if shown == 12:
                            await pair.proxy.restore()
                    case Retract():
                        taken_back += 1
            stormy = await events.answer()
        print(stormy.text)
        print(f"\n{shown} provisional tokens were shown, {taken_back} times some were taken back")
        print(f"the committed text is the same: {stormy.text == calm.text}")


asyncio.run(main())
