"""The fleet mode: thousands of devices, a few events an answer, one a pass of a cloud.

Exact: arrivals, slots, queues, prompts in chunks, the rows and the time of every pass, which
hint rows are granted and hold, who is held back for a hint, commits. Aggregated: messages and
bursts of drafting are no events; when hints reach the cloud is computed from round trip and
drafting speed at each pass; a cloud knows an answer's true acceptance instead of learning it;
placement is decided once an answer. `tests/partitioner/test_sim_fleet.py` and docs/simulator.md
compare it with the exact mode.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.partitioner.power import constants
from outrider.partitioner.power.radio import Radio
from outrider.partitioner.signals import at
from outrider.partitioner.sim import setup as setups
from outrider.partitioner.sim import trace as traces
from outrider.partitioner.sim.agreement import runs
from outrider.partitioner.sim.device import MESSAGE_BYTES, NOTICE_S, RECONNECT_S
from outrider.partitioner.sim.exact import LEAST_S, LONGEST
from outrider.partitioner.sim.lane import BURST
from outrider.partitioner.sim.lane import PREFILL_ROWS as PREFILL_CHUNK
from outrider.partitioner.sim.mind import Choice, Load, Mind
from outrider.partitioner.sim.policies import Policy
from outrider.partitioner.sim.result import CloudUse, Outcome, Served
from outrider.partitioner.sim.rules import (
    MAX_HINT_ROWS,
    PREFILL_ROWS,
    Habits,
    cost_table,
    grants,
    habits,
    patience_s,
    value_table,
)
from outrider.partitioner.sim.setup import Gear, World
from outrider.partitioner.sim.trace import Ask, Change, Trace

SKILLS = np.array([-1.5, -0.75, 0.0, 0.75, 1.5])
"""Answers' skills are rounded to these for what the committer expects; what holds is not."""
REMEMBERED = 64
"""Passes that a round trip may take, at most."""
NOISES = 4096
LOAD_FADE = 0.98

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(slots=True)
class Ticket:
    """An answer on its way through a cloud."""

    number: int
    ask: Ask
    mind: Mind
    chosen: Choice
    came_s: float = 0.0
    seated_s: float = 0.0
    first_s: float = 0.0
    rates: tuple[float, ...] = ()
    runs: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Lengths of the next stretches of right drafts."""

    @property
    def drafts(self) -> bool:
        return self.chosen.placement == "draft" and bool(self.mind.gear.draft)


class Slots:
    """Columns of what a cloud knows of the answers in its slots, and their devices."""

    def __init__(self, count: int) -> None:
        self.taken: Bools = np.zeros(count, dtype=bool)
        self.prefill: Ints = np.zeros(count, dtype=np.int64)
        self.pos: Ints = np.zeros(count, dtype=np.int64)
        self.left: Ints = np.zeros(count, dtype=np.int64)
        self.right: Ints = np.zeros(count, dtype=np.int64)
        """Tokens before the next wrong draft."""
        self.base: Ints = np.zeros(count, dtype=np.int64)
        """Where the chain began."""
        self.first: Ints = np.zeros(count, dtype=np.int64)
        """Tokens of its first burst."""
        self.depth: Ints = np.zeros(count, dtype=np.int64)
        self.level: Ints = np.zeros(count, dtype=np.int64)
        self.arrive: Floats = np.zeros(count)
        """When the chain's first tokens are here."""
        self.rtt: Floats = np.zeros(count)
        self.each: Floats = np.zeros(count)
        self.burst: Floats = np.zeros(count)
        self.lag: Floats = np.zeros(count)
        self.settled: Floats = np.zeros(count)
        self.off_until: Floats = np.zeros(count)
        self.joules: Floats = np.zeros(count)
        self.drafted: Floats = np.zeros(count)
        self.drafts: Bools = np.zeros(count, dtype=bool)
        self.heard: Bools = np.zeros(count, dtype=bool)
        self.passed_over: Bools = np.zeros(count, dtype=bool)
        self.waited: Bools = np.zeros(count, dtype=bool)
        self.waits_alone: Bools = np.zeros(count, dtype=bool)
        self.passes: Ints = np.zeros(count, dtype=np.int64)
        self.hint_rows: Ints = np.zeros(count, dtype=np.int64)
        self.held: Ints = np.zeros(count, dtype=np.int64)


class FleetCloud:
    """One cloud; a simpy process that yields once a pass."""

    def __init__(self, env: Any, world: World, policy: Policy, seed: int, number: int) -> None:
        self.env, self.world, self.policy = env, world, policy
        self.setup = world.cloud
        self.random = np.random.default_rng((seed, 3, number))
        self.use = CloudUse()
        self.load = Load()
        self.queue: deque[Ticket] = deque()
        self.tickets: dict[int, Ticket] = {}
        """By slot."""
        self.served: list[Served] = []
        self.cost = cost_table(world.cloud)
        self.levels = [world.agreement.shifted(float(skill)) for skill in SKILLS]
        self.values = np.stack([value_table(rates) for rates in self.levels])
        self.slots = Slots(world.cloud.slots)
        self.prefilling: list[int] = []
        self.decoding: Ints = np.zeros(0, dtype=np.int64)
        self._habits: dict[tuple[int, int], Habits] = {}
        self._times = np.zeros(REMEMBERED * 8)
        self._seen = np.zeros((REMEMBERED * 8, world.cloud.slots), dtype=np.int64)
        self._last = 1
        self._noise = self._noises()
        self._wake = env.event()

    def start(self) -> None:
        self.env.process(self._run())

    @property
    def busy(self) -> int:
        return len(self.queue) + len(self.tickets)

    # --- who comes and goes ------------------------------------------------------------------

    def arrive(self, ticket: Ticket) -> None:
        ticket.came_s = self.env.now
        self.queue.append(ticket)
        if not self._wake.triggered:
            self._wake.succeed()

    def cut(self, mind: Mind, until: float) -> None:
        """A device is away: its answers rest from when the cloud notices."""
        for slot, ticket in self.tickets.items():
            if ticket.mind is mind:
                self.slots.off_until[slot] = until

    def moved(self, mind: Mind) -> None:
        """A device's round trip is another."""
        for slot, ticket in self.tickets.items():
            if ticket.mind is mind:
                self._aim(slot, ticket)

    def _seat(self) -> None:
        free = np.flatnonzero(~self.slots.taken)
        for slot in free[: len(self.queue)]:
            self._take(int(slot), self.queue.popleft())
        self.use.most_seated = max(self.use.most_seated, len(self.tickets))

    def _take(self, slot: int, ticket: Ticket) -> None:
        slots, now = self.slots, self.env.now
        ticket.seated_s = now
        waited_ms = (now - ticket.came_s) * 1e3
        self.load = Load(self.load.rows, self.load.queue_ms * 0.9 + waited_ms * 0.1)
        self.tickets[slot] = ticket
        slots.taken[slot] = True
        slots.prefill[slot], slots.left[slot] = ticket.ask.prompt, ticket.ask.tokens
        for column in (
            slots.pos, slots.base, slots.joules, slots.drafted, slots.passes, slots.hint_rows,
            slots.held, slots.off_until,
        ):  # fmt: skip
            column[slot] = 0
        for flags in (slots.heard, slots.passed_over, slots.waited):
            flags[slot] = False
        slots.drafts[slot] = ticket.drafts
        slots.settled[slot] = now
        self._seen[max(0, self._last - REMEMBERED) : self._last, slot] = 0
        self._aim(slot, ticket)
        slots.right[slot] = self._next_run(ticket)
        # The device reads the prompt as soon as it knows that the cloud has it, and drafts on.
        read_s = prompt_s(ticket.mind.gear, ticket.ask.prompt) if ticket.drafts else 0.0
        slots.arrive[slot] = now + slots.lag[slot] + read_s
        self.prefilling.append(slot)

    def _aim(self, slot: int, ticket: Ticket) -> None:
        """The device's speed and distance, and how far it drafts ahead."""
        slots, gear, beyond = self.slots, ticket.mind.gear, self.world.overheads
        slots.rtt[slot] = (ticket.mind.rtt_ms + beyond.up_ms + beyond.down_ms) / 1e3
        if not ticket.drafts:
            return
        each_ms = at(gear.draft, 1.0, 0.0)
        level = int(np.abs(SKILLS - ticket.ask.skill).argmin())
        first, wish = BURST // 2, 0
        for _ in range(2):
            lag_ms = slots.rtt[slot] * 1e3 + gear.burst_ms + each_ms * first
            found = self._habit(level, lag_ms)
            wish = min(found.wish, ticket.chosen.depth)
            first = max(1, min(BURST, wish))
            slots.waits_alone[slot] = found.waits_alone
        slots.each[slot], slots.burst[slot] = each_ms / 1e3, gear.burst_ms / 1e3
        slots.level[slot], slots.depth[slot], slots.first[slot] = level, wish, first
        slots.lag[slot] = slots.rtt[slot] + (gear.burst_ms + each_ms * first) / 1e3
        slots.drafts[slot] = wish > 0

    def _habit(self, level: int, lag_ms: float) -> Habits:
        key = (level, round(lag_ms))
        if key not in self._habits:
            rates = self.levels[level]
            self._habits[key] = habits(rates, float(key[1]), self.cost, self.policy)
        return self._habits[key]

    def _next_run(self, ticket: Ticket) -> int:
        if not len(ticket.runs):
            ticket.runs = runs(ticket.rates, 32, self.random)
        found, ticket.runs = int(ticket.runs[0]), ticket.runs[1:]
        return found

    # --- passes ----------------------------------------------------------------------------

    def _run(self) -> Generator[Any, Any, None]:
        env = self.env
        while True:
            if self.queue and len(self.tickets) < self.setup.slots:
                self._seat()
            if not self.tickets:
                self._wake = env.event()
                yield self._wake
                continue
            took_s = self._pass(env.now)
            if took_s > 0.0:
                yield env.timeout(took_s)
            else:
                self._wake = env.event()
                yield self._wake | env.timeout(self._until - env.now)

    _until = 0.0
    """When the first of those that rest must be looked at."""

    def _pass(self, now: float) -> float:
        """Compute a pass that begins now; seconds until the next may begin, 0 with nothing."""
        here = self.decoding
        live = self._live(here, now)
        run, live = self._hold(here, live, now)
        chunks = self._chunks(shared=len(run) > 0)
        prefill_rows = sum(rows for _, rows in chunks)
        if not len(run) and not chunks:
            return self._rest(here, now)
        granted = self._granted(run, live, prefill_rows)
        rows = len(run) + prefill_rows + int(granted.sum())
        took_s = float(self.cost[min(rows, len(self.cost) - 1)]) / 1e3 * self._factor()
        self._count(rows, took_s, run, granted, chunks)
        self._settle(run, granted, now + took_s)
        self._fill(chunks, now + took_s)
        return took_s + self.setup.gap_ms / 1e3

    def _live(self, here: Ints, now: float) -> Ints:
        """Hint tokens past the committed end that are here."""
        slots = self.slots
        live = np.zeros(len(here), dtype=np.int64)
        arrived = slots.drafts[here] & (slots.arrive[here] <= now)
        if not arrived.any():
            return live
        who = here[arrived]
        each = slots.each[who]
        seen = self._seen_at(who, now - slots.rtt[who] - slots.burst[who] - each)
        drawn = slots.base[who] + slots.first[who] + (now - slots.arrive[who]) / each
        end = np.minimum(np.maximum(seen, slots.base[who]) + slots.depth[who], drawn)
        live[arrived] = np.maximum(0, end.astype(np.int64) - slots.pos[who])
        slots.heard[who] = True
        slots.waited[who] &= live[arrived] == 0
        return live

    def _seen_at(self, who: Ints, when: Floats) -> Ints:
        begin = max(0, self._last - REMEMBERED)
        place = np.searchsorted(self._times[begin : self._last], when, side="right") - 1
        found: Ints = self._seen[begin + np.maximum(place, 0), who]
        return found

    def _hold(self, here: Ints, live: Ints, now: float) -> tuple[Ints, Ints]:
        """Those that run in this pass, with their live hints; the others are passed over."""
        slots = self.slots
        away = slots.off_until[here] > now
        if away.any():
            here, live = here[~away], live[~away]
        can = slots.heard[here] & (live == 0) & ~slots.passed_over[here] & slots.drafts[here]
        if not can.any():
            return here, live
        sharing = len(here) + len(self.prefilling)
        patience = patience_s(
            self.policy,
            slots.lag[here],
            slots.waits_alone[here],
            sharing,
            float(self.cost[min(sharing, len(self.cost) - 1)]) / 1e3,
        )
        if self.policy.trigger == "auto":
            can &= ~slots.waited[here]
        held = can & (slots.settled[here] + patience > now)
        if not held.any():
            return here, live
        if held.all() and not self.prefilling:
            self._until = float((slots.settled[here] + patience).min())
            return here[:0], live[:0]
        slots.passed_over[here[held]] = True
        return here[~held], live[~held]

    def _rest(self, here: Ints, now: float) -> float:
        """Nothing runs: until a hint is here, a device is back, or patience ends."""
        slots = self.slots
        away = slots.off_until[here] > now
        if away.all():
            self._until = float(slots.off_until[here].min())
            return 0.0
        waiting = here[~away]
        comes = slots.arrive[waiting]
        comes = comes[comes > now]
        ends = min(self._until, float(comes.min()) if len(comes) else math.inf)
        if ends <= now + 1e-6 or ends >= self._until:
            slots.waited[waiting] = True
        self._until = max(ends, now + 1e-6)
        return 0.0

    def _chunks(self, *, shared: bool) -> list[tuple[int, int]]:
        """(Slot, prompt rows) of this pass."""
        if not self.prefilling:
            return []
        left = PREFILL_ROWS if shared else self.setup.max_rows
        found = []
        for slot in self.prefilling:
            if left <= 0:
                break
            rows = min(left, int(self.slots.prefill[slot]))
            left -= rows
            found.append((slot, rows))
        return found

    def _granted(self, run: Ints, live: Ints, prefill_rows: int) -> Ints:
        slots = self.slots
        allowed = np.minimum(np.minimum(live, MAX_HINT_ROWS), slots.left[run] - 1)
        if not (allowed > 0).any():
            return np.zeros(len(run), dtype=np.int64)
        depth = np.minimum(slots.pos[run] - slots.base[run], self.values.shape[1] - 1)
        values = self.values[slots.level[run], depth]
        return grants(values, allowed, len(run) + prefill_rows, self.setup.max_rows, self.cost)

    def _count(
        self, rows: int, took_s: float, run: Ints, granted: Ints, chunks: list[tuple[int, int]]
    ) -> None:
        self.use.passes += 1
        self.use.rows += rows
        self.use.busy_s += took_s
        plain = len(run) + len(chunks)
        self.load = Load(self.load.rows * LOAD_FADE + plain * (1 - LOAD_FADE), self.load.queue_ms)
        further = rows - plain
        common_s = min(took_s, float(self.cost[plain]) / 1e3) if further else took_s
        each, row_s = common_s / plain, (took_s - common_s) / max(1, further)
        self.slots.joules[run] += (each + granted * row_s) * self.setup.watts
        for slot, own in chunks:
            self.slots.joules[slot] += (each + (own - 1) * row_s) * self.setup.watts

    def _settle(self, run: Ints, granted: Ints, end_s: float) -> None:
        if not len(run):
            return
        slots = self.slots
        held = np.minimum(granted, np.maximum(slots.right[run], 0))
        count = np.minimum(held + 1, slots.left[run])
        slots.passed_over[run] = False
        slots.passes[run] += 1
        slots.hint_rows[run] += granted
        slots.held[run] += held
        slots.settled[run] = end_s
        slots.right[run] -= count
        broke = run[(slots.right[run] < 0) & slots.drafts[run]]
        if len(broke):
            self._break(broke, count[(slots.right[run] < 0) & slots.drafts[run]], end_s)
        slots.pos[run] += count
        slots.left[run] -= count
        self.use.hint_rows += int(granted.sum())
        self.use.accepted += int(held.sum())
        self.use.committed += int(count.sum())
        self._remember(end_s)
        over = run[slots.left[run] <= 0]
        if len(over):
            self._end(over, end_s)

    def _break(self, who: Ints, count: Ints, end_s: float) -> None:
        """Chains that met a wrong token: the next one is a lag away."""
        slots = self.slots
        slots.drafted[who] += self._drawn(who, end_s)
        slots.base[who] = slots.pos[who] + count
        slots.arrive[who] = end_s + slots.lag[who]
        for slot in who:
            slots.right[slot] = self._next_run(self.tickets[int(slot)])

    def _drawn(self, who: Ints, end_s: float) -> Floats:
        """Tokens that the device drafts for a chain before it hears of its end."""
        slots = self.slots
        spent = (end_s + slots.rtt[who] - slots.arrive[who]) / slots.each[who] + slots.first[who]
        most = slots.pos[who] - slots.base[who] + slots.depth[who]
        return np.clip(spent, 0.0, most)

    def _remember(self, end_s: float) -> None:
        """What was committed when; the oldest passes are forgotten."""
        if self._last == len(self._times):
            kept = slice(self._last - REMEMBERED, self._last)
            self._times[:REMEMBERED] = self._times[kept]
            self._seen[:REMEMBERED] = self._seen[kept]
            self._last = REMEMBERED
        self._times[self._last] = end_s
        self._seen[self._last] = self.slots.pos
        self._last += 1

    def _fill(self, chunks: list[tuple[int, int]], end_s: float) -> None:
        """Prompts grow; the pass with a prompt's last row commits the first token."""
        slots, done = self.slots, []
        for slot, rows in chunks:
            slots.prefill[slot] -= rows
            if slots.prefill[slot] <= 0:
                done.append(slot)
        if not done:
            return
        self.prefilling = [slot for slot in self.prefilling if slot not in done]
        who = np.array(done, dtype=np.int64)
        for slot in done:
            self.tickets[slot].first_s = end_s
        self.decoding = np.concatenate([self.decoding, who])
        self._settle(who, np.zeros(len(who), dtype=np.int64), end_s)

    def _end(self, over: Ints, end_s: float) -> None:
        for slot in over:
            ticket = self.tickets.pop(int(slot))
            self.slots.taken[slot] = False
            if self.slots.drafts[slot]:
                self.slots.drafted[slot] += self._drawn(over[over == slot], end_s)[0]
            self.served.append(self._served(int(slot), ticket, end_s))
        self.decoding = np.array([s for s in self.decoding if s not in set(over)], dtype=np.int64)

    def _served(self, slot: int, ticket: Ticket, end_s: float) -> Served:
        slots, ask, gear = self.slots, ticket.ask, ticket.mind.gear
        down_s = float(slots.rtt[slot]) / 2
        drafted = float(slots.drafted[slot])
        bursts = drafted / max(1.0, float(slots.first[slot]))
        busy_s = drafted * slots.each[slot] + bursts * slots.burst[slot]
        if ticket.drafts:
            busy_s += prompt_s(gear, ask.prompt)
        device_j = float(busy_s) * gear.busy_w
        ticket.mind.battery.draw(device_j)
        tpot_ms = (end_s - ticket.first_s) * 1e3 / max(1, ask.tokens - 1)
        ticket.mind.learn(ticket.chosen, ask.tokens, tpot_ms, end_s)
        messages = int(slots.passes[slot]), int(bursts) + ask.tokens // 16
        radio_j = radio_joules(gear, ask, end_s - ticket.came_s, messages)
        return Served(
            ticket.number,
            ask.device,
            ask.at_s,
            "draft" if ticket.drafts else "cloud",
            ask.prompt,
            ask.tokens,
            ticket.first_s + down_s - ask.at_s,
            end_s + down_s - ask.at_s,
            ticket.seated_s - ticket.came_s,
            int(slots.passes[slot]),
            int(slots.hint_rows[slot]),
            int(slots.held[slot]),
            device_j,
            radio_j,
            float(slots.joules[slot]),
            int(ticket.chosen.changed),
        )

    def _factor(self) -> float:
        if not self.setup.noise:
            return 1.0
        if not self._noise:
            self._noise = self._noises()
        return self._noise.pop()

    def _noises(self) -> list[float]:
        spread = self.setup.noise
        drawn = self.random.standard_normal(NOISES)
        found: list[float] = np.exp(spread * drawn - spread * spread / 2).tolist()
        return found


def prompt_s(gear: Gear, prompt: int) -> float:
    """A drafter's reading of a prompt, in chunks."""
    whole, rest = divmod(prompt, PREFILL_CHUNK)
    ms = whole * at(gear.draft, float(PREFILL_CHUNK), 0.0)
    return (ms + (at(gear.draft, float(rest), 0.0) if rest else 0.0)) / 1e3


def radio_joules(gear: Gear, ask: Ask, seconds: float, messages: tuple[int, int]) -> float:
    """Awake from the first message to the tail after the last, if commits come faster than the
    tail is long; bytes by messages down and up."""
    radio: Radio = constants.radio(gear.radio)
    down, up = messages
    awake_s = min(seconds, down * radio.tail_s) + radio.tail_s
    size_up = ask.prompt * 4 + MESSAGE_BYTES * (1 + up)
    return awake_s * radio.tail_w + radio.wake_j + radio.bytes_j(size_up, MESSAGE_BYTES * down)


# --- a run -------------------------------------------------------------------------------------


def simulate(trace: Trace, world: World, policy: Policy, *, seed: int = 0) -> Outcome:
    """Run a trace to the end of its last answer. Raises ConfigError, InvalidProfile."""
    import simpy

    traces.check(trace)
    setups.check(world)
    env: Any = simpy.Environment()
    run = _Run(
        env,
        world,
        policy,
        [FleetCloud(env, world, policy, seed, number) for number in range(world.clouds)],
        [Mind(rider, world.gear(rider.gear), rider.rtt_ms) for rider in trace.devices],
        np.random.default_rng((seed, 4)),
    )
    for cloud in run.clouds:
        cloud.start()
    env.process(run.happen(trace))
    limit = trace.seconds * LONGEST + LEAST_S
    while run.over < len(trace.asks) and env.peek() <= limit:
        env.step()
    return run.outcome(trace)


@dataclass(slots=True)
class _Run:
    env: Any
    world: World
    policy: Policy
    clouds: list[FleetCloud]
    minds: list[Mind]
    random: np.random.Generator
    alone: list[Served] = field(default_factory=list)

    @property
    def over(self) -> int:
        return len(self.alone) + sum(len(cloud.served) for cloud in self.clouds)

    def happen(self, trace: Trace) -> Generator[Any, Any, None]:
        moments: list[tuple[float, int, Ask | Change]] = [
            *((change.at_s, -1, change) for change in trace.changes),
            *((ask.at_s, number, ask) for number, ask in enumerate(trace.asks)),
        ]
        for at_s, number, what in sorted(moments, key=lambda moment: moment[:2]):
            if at_s > self.env.now:
                yield self.env.timeout(at_s - self.env.now)
            if isinstance(what, Ask):
                self._ask(number, what)
            else:
                self._change(what)

    def _ask(self, number: int, ask: Ask) -> None:
        mind, now = self.minds[ask.device], self.env.now
        cloud = min(self.clouds, key=lambda cloud: cloud.busy)
        chosen = mind.choose(ask, self.world, self.policy, cloud.load, now)
        if chosen.placement == "edge":
            self.alone.append(alone(number, ask, mind, now))
            return
        ticket = Ticket(number, ask, mind, chosen)
        ticket.rates = self.world.agreement.shifted(ask.skill)
        way_s = (mind.rtt_ms / 2 + self.world.overheads.open_ms) / 1e3
        delay = self.env.timeout(max(0.0, mind.down_until - now) + way_s)
        delay.callbacks.append(lambda _: cloud.arrive(ticket))

    def _change(self, change: Change) -> None:
        now = self.env.now
        for mind in self.minds if change.device < 0 else [self.minds[change.device]]:
            if change.supply is not None:
                mind.battery.plug(change.supply, now)
            if change.rtt_ms is not None:
                mind.rtt_ms = change.rtt_ms
            if change.cut_s is not None:
                mind.down_until = max(mind.down_until, now + change.cut_s)
            for cloud in self.clouds:
                if change.cut_s is not None:
                    back = max(change.cut_s, NOTICE_S) + RECONNECT_S + mind.rtt_ms / 1e3
                    cloud.cut(mind, now + back)
                if change.rtt_ms is not None:
                    cloud.moved(mind)

    def outcome(self, trace: Trace) -> Outcome:
        served = [*self.alone, *(one for cloud in self.clouds for one in cloud.served)]
        return Outcome(
            trace.name,
            self.policy.name,
            "fleet",
            len(trace.devices),
            max((one.at_s + one.latency_s for one in served), default=0.0),
            sorted(served, key=lambda one: one.ask),
            len(trace.asks) - len(served),
            [cloud.use for cloud in self.clouds],
            self.world.cloud.dollars_per_hour,
            sum(cloud.use.passes for cloud in self.clouds) + 2 * len(trace.asks),
        )


def alone(number: int, ask: Ask, mind: Mind, now: float) -> Served:
    """The small model's own answer: prompt, then token by token, one answer after another."""
    gear = mind.gear
    begins = max(now, mind.busy_until)
    read_s = prompt_s(gear, ask.prompt)
    each_s = at(gear.draft, 1.0, 0.0) / 1e3 + gear.burst_ms / 1e3 / BURST
    busy_s = read_s + ask.tokens * each_s
    mind.busy_until = begins + busy_s
    mind.battery.draw(busy_s * gear.busy_w)
    first_s = begins + read_s + each_s * min(BURST, ask.tokens)
    return Served(
        number, ask.device, ask.at_s, "edge", ask.prompt, ask.tokens,
        first_s - now, begins + busy_s - now, begins - now, device_j=busy_s * gear.busy_w,
    )  # fmt: skip
