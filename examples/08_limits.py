"""Patience and failure: time limits, retries, errors that openai's users know, a way back."""

import outrider
from outrider import Client, Retry, Timeouts, Token
from outrider.errors import ContextExceeded

patient = Timeouts(first_token_s=60, token_s=20, resume_s=30)
with Client(timeouts=patient, retry=Retry(attempts=4)) as client:
    # Every error is one of Outrider's tree and one of openai's.
    try:
        client.complete("x", max_tokens=10**6)
    except outrider.BadRequestError as error:
        assert isinstance(error, ContextExceeded)
        print(f"{error.status_code}: {error.what}")
        print(f"try: {error.todo}")

    # Leaving a stream ends the work at the daemon and in the cloud.
    with client.stream("import os", max_tokens=500, seed=4) as stream:
        for event in stream:
            if isinstance(event, Token) and event.position == 10:
                break
    state = next(one for one in client.requests() if one.id == stream.request)
    print(f"{state.state} after {state.committed[0]} of 500 tokens")

    # What was answered can be read again from any token on, and made again from its seed.
    whole = client.complete("import sys", max_tokens=24)
    rest = [e.text for e in client.resume(whole.request, [12]) if isinstance(e, Token)]
    print(f"resumed at token 12: {''.join(rest) == ''.join(t.text for t in whole.tokens[12:])}")

    # Text and token ids, as the target reads them.
    ids = client.tokenize("def f(x):")
    print(f"{len(ids)} tokens, and back: {client.detokenize(ids) == 'def f(x):'}")
