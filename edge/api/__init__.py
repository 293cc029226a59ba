"""The daemon's HTTP face: OpenAI's API, and Outrider's own beside it.

`app.build` makes a Starlette application on any `EdgeService`; `server.ApiServer`
serves it on the event loop that gRPC already runs on.
"""
