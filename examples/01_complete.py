"""Ask the daemon: one prompt, one answer. Start `outrider cloud` and `outrider edge` before."""

from outrider import Client

with Client() as client:
    answer = client.complete("def fibonacci(n):", max_tokens=48, temperature=0)
    print(answer.text)
    print()
    print(f"model {answer.model}, placement {answer.placement}, exact: {answer.exact}")
    print(f"{answer.completion_tokens} tokens, first after {answer.choices[0].done.ttft_ms:.0f} ms")

    # The seed and the parameters make the same text again, whoever drafts and whatever breaks.
    sampled = client.complete("import os", max_tokens=16)
    again = client.complete("import os", max_tokens=16, seed=sampled.seed)
    print(f"the same text from seed {sampled.seed}: {again.text == sampled.text}")
