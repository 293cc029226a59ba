"""The last net: what nobody foresaw ends as an error in the envelope, and in the log."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from outrider.edge.api.context import Context
from outrider.edge.api.errors import respond


class Net:
    """ASGI middleware. The server below would log the exception's text, which may hold a prompt."""

    def __init__(self, app: ASGIApp, context: Context) -> None:
        self._app = app
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:  # noqa: BLE001  Logged by `typed`, without its text.
            answer = respond(self._context.typed(error))
            if not begun:
                await answer(scope, receive, send)
