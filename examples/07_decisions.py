"""Why did it run like that? The daemon's decisions, hints, commits and joules of one answer."""

from outrider import Client, Commit, Decision, Draft, Energy, Fallback

with Client() as client:
    drafts, held = 0, 0
    with client.stream("class Queue:", max_tokens=64, temperature=0, trace="events") as events:
        for event in events:
            match event:
                case Draft():
                    drafts += event.tokens
                case Commit():
                    held += event.from_hints
                case Decision():
                    print(f"{event.t_ms:7.1f} ms  {event.what}: {event.old} -> {event.new}")
                    print(f"            because {'; '.join(event.reasons)}")
                    print(
                        f"            weighed {', '.join(a.placement for a in event.alternatives)}"
                    )
                case Fallback():
                    print(f"{event.t_ms:7.1f} ms  the cloud went away: {event.cause}")
                case Energy(joules=float(joules)):
                    print(f"{joules:.2f} J, {event.kind}")
        answer = events.answer()
    print(f"{drafts} drafts sent, {held} tokens of the answer came from them")
    print(f"began as {answer.plan.began}, ended as {answer.plan.ended}: {answer.plan.reason}")

    # What the daemon weighs for the next one.
    for score in client.status().placements[0].scores:
        cost = score.why or f"{score.ms} ms and {score.joules} J a token"
        print(f"  {score.placement:6} {cost}")
    link = client.links()[0]
    print(f"{link.address} is {link.state}, round trip {link.rtt_ms:.1f} ms")
