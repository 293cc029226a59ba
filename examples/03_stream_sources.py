"""Who produced each token: a draft that the target agreed with, or the target itself."""

from collections import Counter

from outrider import Client, Done, Started, Token

COLOURS = {"accepted": 32, "corrected": 33, "bonus": 36, "cloud": 34, "edge": 35}

with Client() as client:
    sources: Counter[str] = Counter()
    with client.stream("def quicksort(items):", max_tokens=64, temperature=0) as events:
        for event in events:
            match event:
                case Started():
                    print(f"{event.model}, {event.placement}, seed {event.seed}\n")
                case Token():
                    sources[event.source] += 1
                    print(f"\x1b[{COLOURS[event.source]}m{event.text}\x1b[0m", end="", flush=True)
                case Done():
                    counts = event.speculation
                    print(f"\n\n{event.completion_tokens} tokens in {counts.passes} passes")
    for source, number in sources.most_common():
        print(f"\x1b[{COLOURS[source]}m{source}\x1b[0m {number}")
